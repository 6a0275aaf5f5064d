"""Every source of CIFAR-10 gives the same arrays; every damage is one clear error."""

import hashlib
import io
import os
import pickle
import socket
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data.cifar_archives import (
    CLASS_NAMES,
    binary_archive,
    closed_port_url,
    encode,
    md5,
    parquet_table,
    python2_pickle,
    python_archive,
    python_files,
    rows_of,
    serve,
    small_cifar10,
    write_batches_folder,
    write_parquet,
)
from PIL import Image

from mixer_common.data import DownloadError, default_data_dir, host_answers, load_dataset, load_picture
from mixer_common.data.decode import decode_image
from mixer_common.errors import UserError
from mixer_common.plan.resize import resize_matrix


@pytest.fixture(scope="module")
def data():
    return small_cifar10()


def load(folder: Path):
    return load_dataset("cifar10", folder, None)


def assert_is(dataset, data):
    """The arrays are those of `data`, in its order, in the types that the interface promises."""
    for split, images, labels in (
        ("train", dataset.train_images, dataset.train_labels),
        ("test", dataset.test_images, dataset.test_labels),
    ):
        assert images.dtype == np.uint8
        assert labels.dtype == np.int32
        assert images.flags.c_contiguous
        np.testing.assert_array_equal(images, data[split][0])
        np.testing.assert_array_equal(labels, data[split][1])
    assert dataset.name == "cifar10"
    assert dataset.class_names == CLASS_NAMES
    assert dataset.notice is None


def refused(folder: Path, *words: str) -> str:
    """Loading fails with a UserError of one line that contains `words`, under "auto" as well."""
    with pytest.raises(UserError) as caught:
        load(folder)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    with pytest.raises(UserError):
        load_dataset("auto", folder, None)
    return message


# ---- the sources


@pytest.mark.parametrize("sub_folder", [".", "cifar10", "plain_text", "data", "cifar10/plain_text"])
def test_parquet_is_found_in_the_usual_folders(tmp_path, data, sub_folder):
    write_parquet(tmp_path / sub_folder, data)
    dataset = load(tmp_path)
    assert_is(dataset, data)
    assert str(tmp_path) in dataset.source


@pytest.mark.parametrize("image_column", ["img", "image"])
def test_parquet_shards_are_joined_in_order(tmp_path, data, image_column):
    write_parquet(tmp_path, data, shards=12, image_column=image_column)
    assert_is(load(tmp_path), data)


@pytest.mark.parametrize("sub_folder", [".", "cifar10"])
def test_batches_folder(tmp_path, data, sub_folder):
    write_batches_folder(tmp_path / sub_folder, data)
    assert_is(load(tmp_path), data)


def test_batches_written_again_by_python_3(tmp_path, data):
    folder = write_batches_folder(tmp_path, data)
    images, labels = data["test"]
    batch = {"data": np.asfortranarray(rows_of(images)), "labels": labels.tolist()}
    (folder / "test_batch").write_bytes(pickle.dumps(batch, protocol=4))
    assert_is(load(tmp_path), data)


def test_archive_is_read_without_unpacking(tmp_path, data):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(python_archive(data))
    assert_is(load(tmp_path), data)
    assert os.listdir(tmp_path) == ["cifar-10-python.tar.gz"]


def test_parquet_is_preferred_to_batches_and_batches_to_the_archive(tmp_path, data):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"broken")
    write_batches_folder(tmp_path, data)
    assert "batches folder" in load(tmp_path).source
    write_parquet(tmp_path / "cifar10", data)
    assert "Parquet" in load(tmp_path).source


def test_fingerprint_tells_data_apart(tmp_path, data):
    one = load(write_parquet(tmp_path / "one", data))
    shards = load(write_parquet(tmp_path / "shards", data, shards=2))
    images, labels = data["test"]
    other = load(write_parquet(tmp_path / "other", {**data, "test": (images, (labels + 1) % 10)}))
    assert one.fingerprint == shards.fingerprint
    assert one.fingerprint != other.fingerprint
    assert len(one.fingerprint) == 16


def test_a_small_test_split_is_allowed(tmp_path, data):
    images, labels = data["test"]
    small = {**data, "test": (images[:1], labels[:1])}
    assert_is(load(write_parquet(tmp_path, small)), small)


# ---- downloading


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


# ---- what is not there


def test_empty_and_missing_folder(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match=r"no CIFAR-10 in .*--dataset digits"):
            load(folder)
        assert load_dataset("auto", folder, None).name == "digits"


def test_data_dir_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "is a file", "folder")


def test_data_dir_that_may_not_be_read(tmp_path, monkeypatch):
    def listdir(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(os, "listdir", listdir)
    refused(tmp_path, str(tmp_path), "permissions")


def test_unknown_name():
    with pytest.raises(UserError, match=r"'mnist'.*auto, cifar10, digits"):
        load_dataset("mnist", None, None)


def test_default_data_dir(monkeypatch, tmp_path, data):
    monkeypatch.setenv("MLP_MIXER_DATA", str(tmp_path))
    assert default_data_dir() == tmp_path
    write_parquet(tmp_path, data)
    assert_is(load_dataset("cifar10", None, None), data)
    monkeypatch.delenv("MLP_MIXER_DATA")
    assert default_data_dir() == Path.home() / ".cache" / "mlp-mixer"


# ---- damaged Parquet files

TRAIN_FILE = "train-00000-of-00001.parquet"


@pytest.fixture
def parquet_folder(tmp_path, data):
    return write_parquet(tmp_path, data)


def test_truncated_parquet(parquet_folder):
    path = parquet_folder / TRAIN_FILE
    path.write_bytes(path.read_bytes()[:-100])
    refused(parquet_folder, TRAIN_FILE, "damaged")


def test_empty_parquet_file(parquet_folder):
    (parquet_folder / TRAIN_FILE).write_bytes(b"")
    refused(parquet_folder, TRAIN_FILE, "damaged")


def test_missing_split(parquet_folder):
    (parquet_folder / "test-00000-of-00001.parquet").unlink()
    refused(parquet_folder, str(parquet_folder), "no test-*.parquet")


def test_missing_shard(tmp_path, data):
    write_parquet(tmp_path, data, shards=3)
    (tmp_path / "train-00001-of-00003.parquet").unlink()
    refused(tmp_path, "3 shards")


def test_shards_of_two_sets(parquet_folder, data):
    write_parquet(parquet_folder, data, shards=2)
    refused(parquet_folder, TRAIN_FILE, "another set")


PIXELS = np.zeros((32, 32, 3), np.uint8)
GOOD = {"bytes": encode(PIXELS), "path": None}


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (parquet_table([GOOD, {"bytes": b"no image", "path": None}], [0, 1]), ["image 1", "does not decode"]),
        (parquet_table([{"bytes": GOOD["bytes"][:-30], "path": None}], [0]), ["image 0", "does not decode"]),
        (parquet_table([{"bytes": encode(PIXELS, "JPEG")[:-30], "path": None}], [0]), ["does not decode"]),
        (parquet_table([{"bytes": encode(PIXELS, "JPEG")[:200], "path": None}], [0]), ["does not decode"]),
        (parquet_table([{"bytes": encode(PIXELS[:, :31]), "path": None}], [0]), ["31x32", "32x32"]),
        (parquet_table([{"bytes": encode(PIXELS[:, :31], "JPEG"), "path": None}], [0]), ["31x32", "32x32"]),
        (parquet_table([{"bytes": encode(PIXELS[..., 0], "JPEG"), "path": None}], [0]), ["mode L", "RGB"]),
        (parquet_table([{"bytes": None, "path": "a.png"}], [0]), ["image 0", "no bytes"]),
        (parquet_table([None], [0]), ["image 0", "no bytes"]),
        (parquet_table([GOOD], [10]), ["label 10", "0 to 9"]),
        (parquet_table([GOOD], [-1]), ["label -1", "0 to 9"]),
        (parquet_table([GOOD], [2**63 - 1]), ["0 to 9"]),
        (parquet_table([GOOD], [0.0]), ["double", "integers"]),
        (parquet_table([GOOD], ["cat"]), ["string", "integers"]),
        (parquet_table([GOOD, GOOD], [None, 1]), ["1 missing", "integers"]),
        (parquet_table([], np.zeros(0, np.int64)), ["no image"]),
        (parquet_table([GOOD], [0]).drop_columns("img"), ["'label'", "expected 'img'"]),
        (parquet_table([GOOD], [0]).rename_columns(["img", "fine_label"]), ["fine_label", "'label'"]),
        (pa.table({"img": [b"bytes"], "label": [0]}), ["binary", "struct"]),
    ],
)
def test_parquet_with_wrong_content(parquet_folder, table, words):
    pq.write_table(table, parquet_folder / TRAIN_FILE)
    refused(parquet_folder, TRAIN_FILE, *words)


@pytest.mark.parametrize("options", [{"quality": 75}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_decodes_as_pillow_does(data, options):
    encoded = encode(data["train"][0][0], "JPEG", **options)
    np.testing.assert_array_equal(decode_image(encoded, "here"), np.asarray(Image.open(io.BytesIO(encoded))))


# ---- damaged batches


@pytest.fixture
def batches_folder(tmp_path, data):
    return write_batches_folder(tmp_path, data)


@pytest.mark.parametrize("name", ["data_batch_4", "test_batch"])
def test_missing_batch(batches_folder, name):
    (batches_folder / name).unlink()
    refused(batches_folder.parent, name)


def test_truncated_batch(batches_folder):
    path = batches_folder / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-1000])
    refused(batches_folder.parent, "data_batch_3", "no batch of CIFAR-10")


def _batch(**changes) -> bytes:
    return python2_pickle({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1], **changes})


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "no batch"),
        (b"no pickle", "no batch"),
        (python2_pickle([1, 2]), "no batch"),
        (python2_pickle({}), "no batch"),
        (python2_pickle({"labels": [0, 1]}), "data"),
        (_batch(data=[0]), "no batch"),
        (_batch(data=np.zeros((2, 3071), np.uint8)), "(2, 3071)"),
        (_batch(data=np.zeros((2, 3, 32, 32), np.uint8)), "(2, 3, 32, 32)"),
        (_batch(data=np.zeros((2, 3072), np.float32)), "f4"),
        (_batch(data=np.zeros((2, 3072), np.uint8)[:0], labels=[]), "no image"),
        (_batch(labels=[0]), "1 labels"),
        (_batch(labels=[0, 10]), "label 10"),
        (_batch(labels=[0, "cat"]), "not an integer"),
        (_batch(labels=[0, 1.0]), "not an integer"),
        (_batch(labels=None), "no batch"),
    ],
)
def test_malformed_batch(batches_folder, content, word):
    (batches_folder / "data_batch_2").write_bytes(content)
    refused(batches_folder.parent, "data_batch_2", word)


class Payload:
    """Unpickled by pickle.load, it makes a folder."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_pickle_with_a_payload_is_never_run(batches_folder, tmp_path, protocol):
    trap = tmp_path / "trap"
    for payload in (Payload(os.mkdir, str(trap)), Payload(eval, f"__import__('os').mkdir({str(trap)!r})")):
        content = pickle.dumps({"data": payload, "labels": [0]}, protocol)
        (batches_folder / "data_batch_1").write_bytes(content)
        refused(batches_folder.parent, "data_batch_1", "which CIFAR-10 never does")
        assert not trap.exists()
    pickle.loads(content)
    assert trap.exists(), "the payload works, so the reader did refuse it"


def test_truncated_archive(tmp_path, data):
    archive = python_archive(data)
    for size in (0, 5, 1000, len(archive) // 2, len(archive) - 5):
        (tmp_path / "cifar-10-python.tar.gz").write_bytes(archive[:size])
        refused(tmp_path, "cifar-10-python.tar.gz")


def test_archive_of_something_else(tmp_path, data):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(binary_archive(data))
    refused(tmp_path, "cifar-10-python.tar.gz", "lacks data_batch_1")


@pytest.mark.parametrize("source", ["batch", "parquet"])
def test_random_damage_is_an_error_or_unseen(tmp_path, data, source):
    """Flipped bytes either stay unseen (they are pixels) or raise a UserError: never anything else."""
    if source == "batch":
        path = write_batches_folder(tmp_path, data) / "test_batch"
    else:
        images, labels = data["train"]
        few = {"train": (images[:3], labels[:3]), "test": (images[:3], labels[:3])}
        path = write_parquet(tmp_path, few) / "test-00000-of-00001.parquet"
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    # The structure lies at the ends: pickled names at the start, Parquet's footer at the end.
    ends = np.r_[0:300, len(whole) - 1500 : len(whole)]
    rng = np.random.default_rng(1)
    messages = []
    for _ in range(150):
        damaged = whole.copy()
        damaged[rng.choice(ends, 3)] = rng.integers(0, 256, 3)
        path.write_bytes(damaged)
        try:
            load(tmp_path)
        except UserError as error:
            messages.append(str(error))
    assert len(messages) > 50
    assert not any("\n" in message for message in messages)
    assert all(path.name in message for message in messages)


# ---- damaged TFDS data sets


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, data):
    """A data set that TFDS prepared, at cifar10/3.0.2 in the folder."""
    import mixer_jax.download

    folder = tmp_path_factory.mktemp("prepared")
    served = tmp_path_factory.mktemp("served")
    archive = binary_archive(data)
    (served / "cifar.tar.gz").write_bytes(archive)
    checksums = import_module("tensorflow_datasets.core.download.checksums")
    cifar = import_module("tensorflow_datasets.image_classification").Cifar10
    with serve(served) as url, pytest.MonkeyPatch.context() as patch:
        url = f"{url}/cifar.tar.gz"
        info = checksums.UrlInfo(len(archive), hashlib.sha256(archive).hexdigest(), None)
        patch.setattr(mixer_jax.download, "URL", url)
        patch.setattr(cifar, "url_infos", {url: info})
        mixer_jax.download.download_cifar10(folder)
    return folder


@pytest.fixture
def tfds_folder(tmp_path, prepared):
    """A copy of the prepared data set, to be damaged."""
    import shutil

    shutil.copytree(prepared, tmp_path / "copy")
    (version,) = (tmp_path / "copy" / "cifar10").iterdir()
    return version


def test_tfds_data_set_is_found_by_either_folder(tfds_folder, data):
    assert_is(load(tfds_folder.parent.parent), data)
    assert_is(load(tfds_folder.parent), data)


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_tfds_without_its_description(tfds_folder, name):
    (tfds_folder / name).unlink()
    refused(tfds_folder.parent, str(tfds_folder))


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_tfds_with_a_broken_description(tfds_folder, name):
    (tfds_folder / name).write_text("{")
    refused(tfds_folder.parent, str(tfds_folder))


@pytest.mark.parametrize("split", ["train", "test"])
def test_tfds_without_a_split(tfds_folder, split):
    (path,) = tfds_folder.glob(f"cifar10-{split}*")
    path.unlink()
    refused(tfds_folder.parent, str(tfds_folder), split)


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.999])
def test_tfds_with_a_truncated_split(tfds_folder, keep):
    (path,) = tfds_folder.glob("cifar10-train*")
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if keep < 1 else keep])
    refused(tfds_folder.parent, str(tfds_folder), "train")


def test_tfds_in_a_format_that_needs_tensorflow(tfds_folder):
    path = tfds_folder / "dataset_info.json"
    path.write_text(path.read_text().replace("array_record", "tfrecord"))
    refused(tfds_folder.parent, str(tfds_folder), "tfrecord", "array_record")


def test_an_interrupted_preparation_is_no_data_set(tmp_path):
    (tmp_path / "cifar10" / "incomplete.ABC_3.0.2").mkdir(parents=True)
    (tmp_path / ".download-abc" / "cifar10" / "3.0.2").mkdir(parents=True)
    with pytest.raises(UserError, match="no CIFAR-10"):
        load(tmp_path)


# ---- digits


def test_digits():
    dataset = load_dataset("digits", None, pytest.fail)
    assert dataset.name == "digits"
    assert dataset.notice is None
    assert dataset.class_names == tuple("0123456789")
    assert dataset.train_images.shape == (1437, 32, 32, 3)
    assert dataset.test_images.shape == (360, 32, 32, 3)
    for images, labels in (
        (dataset.train_images, dataset.train_labels),
        (dataset.test_images, dataset.test_labels),
    ):
        assert images.dtype == np.uint8
        assert labels.dtype == np.int32
        assert images.flags.c_contiguous
        assert images.min() == 0
        assert images.max() == 255
        assert set(labels) == set(range(10))
        assert (images == images[..., :1]).all()
    assert dataset.fingerprint == load_dataset("digits", None, None).fingerprint


# ---- the real data


@pytest.fixture(scope="module")
def real_cifar10():
    if not os.environ.get("MLP_MIXER_DATA"):
        pytest.skip("MLP_MIXER_DATA names no folder with CIFAR-10")
    dataset = load_dataset("auto", None, None)
    if dataset.name != "cifar10":
        pytest.skip(dataset.notice)
    return dataset


def test_real_cifar10(real_cifar10):
    assert real_cifar10.train_images.shape == (50_000, 32, 32, 3)
    assert real_cifar10.test_images.shape == (10_000, 32, 32, 3)
    assert (np.bincount(real_cifar10.train_labels) == 5_000).all()
    assert (np.bincount(real_cifar10.test_labels) == 1_000).all()
    # Published channel means of the training images.
    means = real_cifar10.train_images.mean(axis=(0, 1, 2)) / 255
    np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=1e-3)


# ---- resizing


@pytest.mark.parametrize(
    ("source", "target"), [(8, 32), (32, 8), (32, 13), (13, 32), (7, 7), (1, 5), (5, 1), (224, 97)]
)
def test_resize_matrix_is_pillows_bilinear(source, target):
    matrix = resize_matrix(source, target)
    assert matrix.shape == (target, source)
    assert matrix.dtype == np.float64
    np.testing.assert_allclose(matrix.sum(axis=1), 1)
    image = np.random.default_rng(0).random((source, source), np.float32)
    pillow = Image.fromarray(image, "F").resize((target, target), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(matrix @ image @ matrix.T, np.asarray(pillow), atol=1e-6)


def test_resize_matrix_of_equal_sizes_is_the_identity():
    np.testing.assert_array_equal(resize_matrix(9, 9), np.eye(9))


# ---- pictures


def test_picture_is_resized_by_its_shorter_side_and_cropped(tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 120, 3), np.uint8))
    for turned in (picture, picture.transpose(Image.Transpose.ROTATE_90)):
        turned.save(tmp_path / "picture.png")
        loaded = load_picture(tmp_path / "picture.png", 30)
        assert loaded.dtype == np.uint8
        width, height = (size // 2 for size in turned.size)
        halved = np.asarray(turned.resize((width, height), Image.Resampling.BILINEAR))
        top, left = (height - 30) // 2, (width - 30) // 2
        expected = halved[top : top + 30, left : left + 30]
        np.testing.assert_allclose(loaded.astype(int), expected.astype(int), atol=1)


def test_picture_of_the_right_size_is_unchanged(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    np.testing.assert_array_equal(load_picture(tmp_path / "picture.png", 32), picture)


def test_picture_is_antialiased(tmp_path):
    checkers = np.indices((64, 64)).sum(axis=0) % 2 * np.uint8(255)
    Image.fromarray(checkers.astype(np.uint8)).save(tmp_path / "picture.png")
    assert np.ptp(load_picture(tmp_path / "picture.png", 16)) < 20


def test_picture_is_turned_as_its_camera_says(tmp_path):
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # orientation: upside down
    Image.fromarray(picture).save(tmp_path / "picture.png", exif=exif)
    np.testing.assert_array_equal(load_picture(tmp_path / "picture.png", 8), picture[::-1])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_picture_lies_on_white(tmp_path, mode):
    picture = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    if mode == "P":
        Image.new("P", (8, 8), 0).save(tmp_path / "picture.png", transparency=0)
    else:
        picture.convert(mode).save(tmp_path / "picture.png")
    assert (load_picture(tmp_path / "picture.png", 8) == 255).all()


@pytest.mark.parametrize(("mode", "file_format"), [("L", "PNG"), ("1", "PNG"), ("CMYK", "JPEG"), ("P", "GIF")])
def test_picture_of_other_modes(tmp_path, mode, file_format):
    path = tmp_path / "picture"
    Image.new("RGB", (40, 40), "white").convert(mode).save(path, file_format)
    assert (load_picture(path, 32) == 255).all()


def test_picture_of_16_bits_is_scaled_not_clipped(tmp_path):
    Image.fromarray(np.full((8, 8), 0x8000, np.uint16)).save(tmp_path / "picture.png")
    assert (load_picture(tmp_path / "picture.png", 8) == 128).all()


def test_long_thin_picture_needs_little_memory(tmp_path):
    Image.new("L", (200_000, 2), 255).save(tmp_path / "picture.png")
    assert load_picture(tmp_path / "picture.png", 224).shape == (224, 224, 3)


def test_pictures_that_are_none(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    (tmp_path / "cut.jpg").write_bytes(encode(noise, "JPEG")[:2000])
    (tmp_path / "cut.png").write_bytes(encode(noise)[:6000])
    for name in ("text.png", "empty.png", "cut.jpg", "cut.png", "missing.png", ""):
        with pytest.raises(UserError) as caught:
            load_picture(tmp_path / name, 32)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="size 0"):
        load_picture(tmp_path / "text.png", 0)


# ---- imports


@pytest.mark.parametrize("module", ["mixer_common.data", "mixer_jax.download", "mixer_torch.download"])
def test_heavy_modules_stay_unimported(module):
    heavy = {"jax", "torch", "torchvision", "tensorflow_datasets", "pyarrow", "sklearn"}
    script = f"import sys, {module}; print(*({heavy!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""
