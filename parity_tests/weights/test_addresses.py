"""Weights by addresses: of the web, of Google's storage and of the Hugging Face hub, from a server on this machine."""

import base64
import hashlib
import json
import socket
import time
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.file_download
import pytest
from data.cifar_archives import closed_port_url
from helpers import SMALL, identical, model_weights
from weights.file_server import Files, serve_files

from mixer_common.errors import UserError
from mixer_common.weights import addresses, downloads, hub
from mixer_common.weights.addresses import local_path
from mixer_common.weights.files import load_weights, save_weights


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """No test reads or fills the user's caches, or the hub."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    set_endpoint(monkeypatch, closed_port_url().rpartition("/")[0])
    monkeypatch.setattr(downloads.time, "sleep", lambda seconds: None)
    return tmp_path / "cache"


def set_endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Makes huggingface_hub ask `url`, as HF_ENDPOINT does before it is imported."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def files():
    with serve_files(Files()) as files:
        yield files


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, bytes]:
    """Files of one model's weights."""
    folder = tmp_path_factory.mktemp("saved")
    save_weights(folder / "a.npz", model_weights(SMALL), "npz")
    save_weights(folder / "a.safetensors", model_weights(SMALL), "timm")
    save_weights(folder / "a.bin", model_weights(SMALL), "timm")
    save_weights(folder / "run", model_weights(SMALL), "canonical")
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def is_loaded(address: str | Path, **options) -> bool:
    return identical(load_weights(address, **options).arrays, model_weights(SMALL).arrays)


def refused(address: str, *parts: str) -> None:
    """Loading fails with one sentence that contains all `parts`, within seconds."""
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        load_weights(address)
    assert time.monotonic() - start < 12
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


# ---- The web


def test_a_file_of_the_web_is_downloaded_once(files, saved):
    files.content["/m/a.npz"] = saved["a.npz"]
    address = f"{files.url}/m/a.npz"
    reports = []
    weights = load_weights(address, lambda *report: reports.append(report))
    assert identical(weights.arrays, model_weights(SMALL).arrays)
    sha256 = hashlib.sha256(saved["a.npz"]).hexdigest()
    assert weights.origin == weights.notes[0] == f"{address}#sha256={sha256}"
    size = len(saved["a.npz"])
    assert [report for report in reports if report[0] == "downloading"][-1] == ("downloading", size, size)
    assert is_loaded(address)  # the host is asked, and has nothing new
    assert len(files.requests) == 2
    assert is_loaded(weights.origin)  # nobody is asked
    assert is_loaded(Path(address))  # in which one slash is lost
    assert len(files.requests) == 3


def test_a_newer_file_replaces_the_one_in_the_cache(files, saved, tmp_path):
    files.content["/a.npz"] = saved["a.npz"]
    load_weights(f"{files.url}/a.npz")
    save_weights(tmp_path / "b.npz", model_weights(SMALL, 1), "npz")
    files.content["/a.npz"] = (tmp_path / "b.npz").read_bytes()
    assert identical(load_weights(f"{files.url}/a.npz").arrays, model_weights(SMALL, 1).arrays)


@pytest.mark.parametrize("has_etag", [True, False])
def test_a_cut_connection_is_taken_up_again(files, saved, has_etag):
    data = files.content["/a.npz"] = saved["a.npz"]
    files.cuts, files.has_etag = [len(data) // 3, len(data) // 3], has_etag
    assert is_loaded(f"{files.url}/a.npz")
    ranges = [asked for _, _, asked in files.requests]
    third = len(data) // 3
    # Without a mark of the version, what has arrived could be of another one.
    assert ranges == (["", f"bytes={third}-", f"bytes={2 * third}-"] if has_etag else ["", "", ""])


def test_a_later_call_goes_on_where_the_connection_was_cut(files, saved, cache):
    data = files.content["/a.npz"] = saved["a.npz"]
    files.cuts, files.statuses = [1000], []
    address = f"{files.url}/a.npz"
    with pytest.raises(KeyboardInterrupt):
        load_weights(address, _stop)
    assert not list(cache.rglob("a.npz"))
    files.cuts, files.requests = [], []
    assert is_loaded(address)
    assert files.requests[0][2] == "bytes=1000-"
    assert len(data) > 1000
    assert not list(cache.rglob(".*part*"))


def _stop(activity: str, done: int, total: int) -> None:
    raise KeyboardInterrupt


def test_a_part_of_an_older_version_is_not_continued(files, saved, tmp_path):
    files.content["/a.npz"] = bytes(5000)
    address = f"{files.url}/a.npz"
    files.cuts = [1000]
    with pytest.raises(KeyboardInterrupt):
        load_weights(address, _stop)
    files.content["/a.npz"], files.cuts = saved["a.npz"], []
    assert is_loaded(address)
    # And one that is longer than the file is now.
    files.content["/b.npz"], files.cuts = bytes(2 * len(saved["a.npz"])), [len(saved["a.npz"]) + 5]
    with pytest.raises(KeyboardInterrupt):
        load_weights(f"{files.url}/b.npz", _stop)
    files.content["/b.npz"], files.cuts = saved["a.npz"], []
    assert is_loaded(f"{files.url}/b.npz")


def test_a_connection_that_is_cut_again_and_again(files, saved):
    files.content["/a.npz"] = saved["a.npz"]
    files.cuts = [3000, 0, 0, 0]
    refused(f"{files.url}/a.npz", "was cut after 0.0 MB", "run the command again, which goes on from there")
    assert is_loaded(f"{files.url}/a.npz")
    assert files.requests[-1][2] == "bytes=3000-"


def test_a_host_with_trouble_in_the_middle(files, saved):
    files.content["/a.npz"] = saved["a.npz"]
    files.cuts, files.statuses = [3000], []
    address = f"{files.url}/a.npz"
    with pytest.raises(KeyboardInterrupt):
        load_weights(address, _stop)
    files.statuses = [503]
    refused(address, "cannot be reached (503 Service Unavailable)", "is not in the cache")
    assert is_loaded(address)


def test_checksums_are_checked(files, saved, cache):
    data = files.content["/a.npz"] = saved["a.npz"]
    address = f"{files.url}/a.npz"
    right, wrong = hashlib.sha256(data).hexdigest(), "0" * 64
    refused(f"{address}#sha256={wrong}", f"SHA-256 {right}, but the address states {wrong}")
    assert not [path for path in cache.rglob("*") if path.stat().st_size == len(data)]
    assert is_loaded(f"{address}#sha256={right.upper()}")
    refused(f"{address}#sha256={wrong}", f"the address states {wrong}")  # from the cache, too
    md5 = base64.b64encode(hashlib.md5(b"something else").digest()).decode()
    files.content["/b.npz"], files.headers = data, {"x-goog-hash": f"crc32c=AAAAAA==,md5={md5}"}
    refused(f"{files.url}/b.npz", "arrived with the MD5", "the host states")
    files.headers["x-goog-stored-content-encoding"] = "gzip"  # then it is the checksum of other bytes
    assert is_loaded(f"{files.url}/b.npz")
    md5 = base64.b64encode(hashlib.md5(data).digest()).decode()
    files.content["/c.npz"], files.headers = data, {"x-goog-hash": f"crc32c=AAAAAA==,md5={md5}"}
    assert is_loaded(f"{files.url}/c.npz")
    files.content["/d.npz"], files.headers = data, {"Server": "AmazonS3", "ETag": f'"{"0" * 32}"'}
    files.has_etag = False
    assert downloads._stated_version(_headers({"Server": "AmazonS3", "ETag": f'"{"0" * 32}"'})).md5 == "0" * 32
    assert not downloads._stated_version(_headers({"Server": "nginx", "ETag": f'"{"0" * 32}"'})).md5
    assert not downloads._stated_version(_headers({"ETag": 'W/"abc"'})).etag


def _headers(values: dict[str, str]):
    from email.message import Message

    message = Message()
    for name, value in values.items():
        message[name] = value
    return message


def test_no_network(files, saved):
    address = closed_port_url().replace("cifar.tar.gz", "a.npz")
    refused(address, "cannot be reached (", "refused", "is not in the cache")
    files.content["/a.npz"] = saved["a.npz"]
    load_weights(f"{files.url}/a.npz")
    files.statuses = [503]
    weights = load_weights(f"{files.url}/a.npz")
    assert identical(weights.arrays, model_weights(SMALL).arrays)
    assert "the host cannot be reached (503 Service Unavailable)" in weights.notes[1]


def test_a_host_that_accepts_and_never_answers(monkeypatch):
    monkeypatch.setattr(downloads, "ANSWER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        refused(f"http://127.0.0.1:{silent.getsockname()[1]}/a.npz", "cannot be reached (timed out)")


def test_what_is_no_file_of_weights(files, cache):
    files.content["/page"] = b"<!doctype html><html>"
    refused(f"{files.url}/nothing.npz", "the host answers 404", "check the address")
    files.headers["Content-Type"] = "text/html; charset=utf-8"
    refused(f"{files.url}/page", "is a page of HTML and no file of weights")
    files.headers = {}
    refused(f"{files.url}/page", "is no file of weights, it begins with")
    files.content["/empty.npz"] = b""
    refused(f"{files.url}/empty.npz", "is empty")


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("http://example.com/a.npz", "is not encrypted"),
        ("s3://bucket/a.npz", "is no address that is read here"),
        ("https://example.com/a.npz#md5=12", "expected #sha256= and 64 hexadecimal digits"),
        ("hf:b16", "expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION"),
        ("hf:a/b@", "expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION"),
        ("hf:a--b/..c", "is no address on the Hugging Face hub"),
        ("https://exa mple/a.npz", "is no address"),
    ],
)
def test_addresses_that_cannot_be_read(address, sentence):
    refused(address, sentence)


def test_google_s_storage(files, saved, monkeypatch):
    files.content["/bucket/imagenet21k/Mixer B_16.npz"] = saved["a.npz"]
    monkeypatch.setattr(addresses, "GOOGLE_STORAGE", files.url)
    weights = load_weights("gs://bucket/imagenet21k/Mixer B_16.npz")
    assert identical(weights.arrays, model_weights(SMALL).arrays)
    assert weights.origin.startswith("gs://bucket/imagenet21k/Mixer B_16.npz#sha256=")


def test_paths_and_addresses():
    assert local_path("a/b") == Path("a/b")
    assert local_path("C:\\a") == Path("C:\\a")
    assert [local_path(each) for each in ("hf:a/b", "https://a/b", Path("https://a/b"), "gs://a/b")] == 4 * [None]


# ---- The Hugging Face hub


@pytest.fixture
def hub_files(files, saved, monkeypatch):
    set_endpoint(monkeypatch, files.url)
    config = {"pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, *SMALL.image_size]}}
    files.repositories["timm/small"] = {
        "README.md": b"words",
        "config.json": json.dumps(config).encode(),
        "model.safetensors": saved["a.safetensors"],
        "pytorch_model.bin": saved["a.bin"],
    }
    return files


def test_a_repository_of_the_hub(hub_files, tmp_path):
    weights = load_weights("hf:timm/small")
    commit = hub_files.commit("timm/small")
    assert identical(weights.arrays, model_weights(SMALL).arrays)
    assert weights.origin == weights.notes[0] == f"hf:timm/small@{commit}"
    assert weights.config.image_size == SMALL.image_size
    assert "pixels" not in weights.assumed
    names = {path.name for path in (tmp_path / "hub").rglob("*") if path.is_symlink()}
    assert names == {"config.json", "model.safetensors"}
    for address in (f"hf:timm/small@{commit}", "hf:timm/small@main"):
        assert load_weights(address).origin == weights.origin
    gets = [path for method, path, _ in hub_files.requests if method == "GET" and "resolve" in path]
    assert len(gets) == 2  # each file once
    # Another revision is another content.
    hub_files.repositories["timm/small"]["README.md"] = b"other words"
    assert load_weights("hf:timm/small").origin == f"hf:timm/small@{hub_files.commit('timm/small')}" != weights.origin


def test_without_a_network_the_cached_revision_is_read(hub_files, monkeypatch):
    origin = load_weights("hf:timm/small").origin
    set_endpoint(monkeypatch, closed_port_url().rpartition("/")[0])
    for address in ("hf:timm/small", origin):
        weights = load_weights(address)
        assert identical(weights.arrays, model_weights(SMALL).arrays)
        assert weights.origin == origin
        assert "from the cache: the hub cannot be reached" in weights.notes[0]
    refused("hf:timm/other", "hf:timm/other is not in the cache", "cannot be reached (", "refused")
    refused("hf:timm/small@v2", "hf:timm/small@v2 is not in the cache")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in load_weights("hf:timm/small").notes[0]


def test_a_hub_that_accepts_and_never_answers(monkeypatch):
    monkeypatch.setattr(hub, "ANSWER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        set_endpoint(monkeypatch, url)
        refused("hf:timm/small", "is not in the cache", "cannot be reached (")


def test_a_cut_connection_to_the_hub_is_taken_up_again(hub_files, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # else it keeps 10 MB at a time
    size = len(hub_files.repositories["timm/small"]["model.safetensors"])
    hub_files.cuts = [size // 2]
    assert is_loaded("hf:timm/small")
    assert f"bytes={size // 2 // 1000 * 1000}-" in [asked for _, _, asked in hub_files.requests]


def test_a_download_of_the_hub_that_was_given_up(hub_files, monkeypatch):
    """What has arrived whole stays, and what has not is no weights."""
    get = huggingface_hub.file_download.http_get

    def broken(url, *arguments, **options):
        if "safetensors" in url:
            raise OSError("the disk is full")
        return get(url, *arguments, **options)

    monkeypatch.setattr(huggingface_hub.file_download, "http_get", broken)
    refused("hf:timm/small", "hf:timm/small could not be downloaded (the disk is full): run the command again")
    monkeypatch.setattr(huggingface_hub.file_download, "http_get", get)
    endpoint = huggingface_hub.constants.ENDPOINT
    set_endpoint(monkeypatch, closed_port_url().rpartition("/")[0])
    refused("hf:timm/small", "hf:timm/small is not in the cache")
    set_endpoint(monkeypatch, endpoint)
    assert is_loaded("hf:timm/small")


def test_what_a_repository_can_hold(hub_files, saved):
    repositories = hub_files.repositories
    repositories["a/canonical"] = {"config.json": saved["config.json"], "model.safetensors": saved["model.safetensors"]}
    weights = load_weights("hf:a/canonical")
    assert (weights.format, weights.config) == ("canonical", SMALL)
    repositories["a/bin"] = {"pytorch_model.bin": saved["a.bin"]}
    assert is_loaded("hf:a/bin")
    repositories["a/single"] = {"Mixer [1].npz": saved["a.npz"], "README.md": b""}
    assert is_loaded("hf:a/single")
    repositories["a/two"] = {"a.npz": saved["a.npz"], "b.npz": saved["a.npz"]}
    refused("hf:a/two", "several files of weights, a.npz, b.npz", "https://huggingface.co/a/two/resolve/")
    repositories["a/none"] = {"README.md": b""}
    refused("hf:a/none", "holds no weights, only README.md")
    refused("hf:a/unknown", "hf:a/unknown does not exist on the Hugging Face hub, or is private")
    refused("hf:a/bin@v9", "hf:a/bin has no revision v9")


def test_parts_with_an_index(hub_files, tmp_path):
    from safetensors.numpy import save_file

    from mixer_common.weights.formats import to_format

    arrays = to_format(model_weights(SMALL), "timm")
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    places = {name: names[i % 2] for i, name in enumerate(arrays)}
    for name in names:
        save_file({key: arrays[key] for key in arrays if places[key] == name}, tmp_path / name)
    hub_files.repositories["a/parts"] = {
        "model.safetensors.index.json": json.dumps({"weight_map": places}).encode(),
        **{name: (tmp_path / name).read_bytes() for name in names},
    }
    assert is_loaded("hf:a/parts")
