"""CIFAR-10 as TFDS prepares it: read without TensorFlow, and refused where it is damaged."""

import hashlib
import shutil
from importlib import import_module

import pytest
from data.cifar_archives import assert_is, binary_archive, load, refused, serve

from mixer_common.errors import UserError


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
    shutil.copytree(prepared, tmp_path / "copy")
    (version,) = (tmp_path / "copy" / "cifar10").iterdir()
    return version


def test_tfds_data_set_is_found_by_either_folder(tfds_folder, data):
    assert_is(load(tfds_folder.parent.parent), data)
    assert_is(load(tfds_folder.parent), data)


def test_tfds_folder_of_a_version_is_read(tfds_folder, data):
    assert_is(load(tfds_folder), data)


def test_an_older_version_is_read_where_the_newest_needs_tensorflow(tfds_folder, data):
    newest = shutil.copytree(tfds_folder, tfds_folder.with_name("9.0.0"))
    description = newest / "dataset_info.json"
    description.write_text(description.read_text().replace("array_record", "tfrecord"))
    assert_is(load(tfds_folder.parent), data)
    assert tfds_folder.name in load(tfds_folder.parent).source


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
