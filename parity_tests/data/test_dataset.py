"""The data sets by name, their fingerprints, and which one `auto` means."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data.cifar_archives import assert_is, load, refused, write_parquet

from mixer_common.data import default_data_dir, load_dataset
from mixer_common.errors import UserError


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


@pytest.mark.parametrize("module", ["mixer_common.data", "mixer_jax.download", "mixer_torch.download"])
def test_heavy_modules_stay_unimported(module):
    heavy = {"jax", "torch", "torchvision", "tensorflow_datasets", "pyarrow", "sklearn"}
    script = f"import sys, {module}; print(*({heavy!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""
