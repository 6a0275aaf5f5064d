"""Downloads of CIFAR-10 by either framework, from a server on this machine."""

import hashlib
import os
import socket
import sys
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
from data.cifar_archives import (
    assert_is,
    binary_archive,
    closed_port_url,
    md5,
    python_archive,
    python_files,
    serve,
    write_parquet,
)

from mixer_common.data import DownloadError, host_answers, load_dataset


@pytest.fixture(params=["mixer_jax", "mixer_torch"])
def twin(request, monkeypatch, tmp_path, data):
    """One framework's download function, and how to aim it and its library at an archive served here."""
    module = import_module(f"{request.param}.download")
    files = python_files(data)
    is_jax = request.param == "mixer_jax"
    archive = binary_archive(data) if is_jax else python_archive(data)
    served = tmp_path / "served"
    served.mkdir()
    path = served / Path(module.URL).name
    path.write_bytes(archive)

    def aim(url: str, expected: bytes = archive):
        """The library fetches `url` and checks that it gets `expected`."""
        monkeypatch.setattr(module, "URL", url)
        if is_jax:
            from tensorflow_datasets.core.download.checksums import UrlInfo
            from tensorflow_datasets.image_classification import Cifar10

            info = UrlInfo(size=len(expected), checksum=hashlib.sha256(expected).hexdigest(), filename=None)
            monkeypatch.setattr(Cifar10, "url_infos", {url: info})
        else:
            from torchvision.datasets import CIFAR10

            train = [[name, md5(files[name])] for name, _ in CIFAR10.train_list]
            test = [[name, md5(files[name])] for name, _ in CIFAR10.test_list]
            monkeypatch.setattr(CIFAR10, "url", url)
            monkeypatch.setattr(CIFAR10, "tgz_md5", md5(expected))
            monkeypatch.setattr(CIFAR10, "train_list", train)
            monkeypatch.setattr(CIFAR10, "test_list", test)
            monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5(files["batches.meta"])})

    return SimpleNamespace(
        download=module.download_cifar10, module=module, aim=aim, served=served, path=path, archive=archive
    )


def test_download_gives_the_same_arrays(twin, tmp_path, data, capsys):
    folder = tmp_path / "data"
    with serve(twin.served) as url:
        twin.aim(f"{url}/{twin.path.name}")
        assert_is(load_dataset("cifar10", folder, twin.download), data)
        printed = capsys.readouterr().out
    assert "170 MB" in printed
    assert url in printed
    assert str(folder) in printed
    assert not list(folder.glob(".*"))
    # The server is gone: it is now read from the folder.
    assert_is(load_dataset("auto", folder, twin.download), data)
    assert "tensorflow" not in sys.modules


def test_wrong_checksum_is_refused(twin, tmp_path):
    folder = tmp_path / "data"
    with serve(twin.served) as url:
        twin.aim(f"{url}/{twin.path.name}", expected=twin.archive[:-1] + b"?")
        with pytest.raises(DownloadError, match=r"checksum|corrupted") as caught:
            load_dataset("cifar10", folder, twin.download)
        assert "--dataset digits" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert os.listdir(folder) == []
        dataset = load_dataset("auto", folder, twin.download)
    assert dataset.name == "digits"
    assert str(folder) in dataset.notice


def test_broken_download_leaves_nothing(twin, tmp_path):
    folder = tmp_path / "data"
    twin.path.write_bytes(twin.archive[: len(twin.archive) // 2])
    with serve(twin.served) as url:
        twin.aim(f"{url}/{twin.path.name}")
        with pytest.raises(DownloadError):
            twin.download(folder)
        assert os.listdir(folder) == []


def test_missing_file_on_the_host_is_refused(twin, tmp_path):
    with serve(twin.served) as url:
        twin.aim(f"{url}/elsewhere/{twin.path.name}")
        with pytest.raises(DownloadError, match="does not answer"):
            twin.download(tmp_path / "data")


def test_download_folder_that_cannot_be_made(twin, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with serve(twin.served) as url:
        twin.aim(f"{url}/{twin.path.name}")
        with pytest.raises(DownloadError, match="file"):
            twin.download(tmp_path / "file" / "data")


def test_no_network_is_told_within_seconds(twin, tmp_path, monkeypatch):
    monkeypatch.setattr(twin.module, "URL", closed_port_url())
    start = time.monotonic()
    with pytest.raises(DownloadError, match="does not answer"):
        load_dataset("cifar10", tmp_path / "data", twin.download)
    dataset = load_dataset("auto", tmp_path / "data", twin.download)
    assert time.monotonic() - start < 15
    assert dataset.name == "digits"
    assert "does not answer" in dataset.notice
    assert "not comparable with CIFAR-10" in dataset.notice


def test_the_libraries_still_use_these_urls():
    import mixer_jax.download
    import mixer_torch.download

    cifar = import_module("tensorflow_datasets.image_classification").Cifar10
    assert mixer_jax.download.URL in cifar.url_infos
    assert import_module("torchvision.datasets").CIFAR10.url == mixer_torch.download.URL


def test_another_run_may_bring_the_data_while_the_download_fails(tmp_path, data):
    def download(folder):
        write_parquet(folder, data)
        raise DownloadError("http://localhost", folder, "another run was faster")

    assert_is(load_dataset("cifar10", tmp_path, download), data)


def test_host_answers(tmp_path):
    (tmp_path / "there").write_text("")
    with serve(tmp_path) as url:
        assert host_answers(f"{url}/there")
        assert not host_answers(f"{url}/not-there")
    assert not host_answers(closed_port_url())
    assert not host_answers("no url")


def test_host_that_accepts_and_never_answers():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        assert not host_answers(f"http://127.0.0.1:{silent.getsockname()[1]}/", timeout=0.3)
        assert time.monotonic() - start < 2
