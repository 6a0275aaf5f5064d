"""CIFAR-10 in its original Python batches: read without running a pickle, and refused where they are damaged."""

import gzip
import os
import pickle

import numpy as np
import pytest
from data.cifar_archives import (
    assert_is,
    binary_archive,
    load,
    python2_pickle,
    python_archive,
    refused,
    rows_of,
    write_batches_folder,
    write_parquet,
)

from mixer_common.errors import UserError


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


def test_a_folder_one_level_too_deep_is_read(tmp_path, data):
    folder = write_batches_folder(tmp_path, data)
    assert_is(load(folder), data)


@pytest.mark.parametrize("name", ["cifar-10-python.tgz", "cifar-10-python.tar", "cifar-10-python.tar.gz"])
@pytest.mark.parametrize("is_packed", [True, False])
def test_an_archive_under_its_other_names(tmp_path, data, name, is_packed):
    """Browsers unpack a .tar.gz and may leave its name."""
    archive = python_archive(data)
    (tmp_path / name).write_bytes(archive if is_packed else gzip.decompress(archive))
    assert_is(load(tmp_path), data)


@pytest.mark.parametrize("name", ["data_batch_1.bin", "cifar-10-binary.tar.gz", "trainLabels.csv"])
def test_forms_that_are_not_read_are_named(tmp_path, name):
    (tmp_path / name).touch()
    refused(tmp_path, name, "which is not read")


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
