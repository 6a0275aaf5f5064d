"""CIFAR-10 in Parquet files: found, joined in order, and refused where they are damaged."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data.cifar_archives import CLASS_NAMES, assert_is, encode, load, parquet_table, refused, write_parquet
from PIL import Image

from mixer_common.data.decode import decode_image


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


def test_parquet_in_a_folder_for_each_split(tmp_path, data):
    """As in Hugging Face's branch refs/convert/parquet."""
    write_parquet(tmp_path, data)
    for split in ("train", "test"):
        (tmp_path / "plain_text" / split).mkdir(parents=True)
        (tmp_path / f"{split}-00000-of-00001.parquet").rename(tmp_path / "plain_text" / split / "0000.parquet")
    assert_is(load(tmp_path), data)


def test_parquet_without_numbers(tmp_path, data):
    write_parquet(tmp_path, data)
    for split in ("train", "test"):
        (tmp_path / f"{split}-00000-of-00001.parquet").rename(tmp_path / f"{split}.parquet")
    assert_is(load(tmp_path), data)


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
    ("table", "parts"),
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
def test_parquet_with_wrong_content(parquet_folder, table, parts):
    pq.write_table(table, parquet_folder / TRAIN_FILE)
    refused(parquet_folder, TRAIN_FILE, *parts)


@pytest.mark.parametrize("options", [{"quality": 75}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_decodes_as_pillow_does(data, options):
    encoded = encode(data["train"][0][0], "JPEG", **options)
    np.testing.assert_array_equal(decode_image(encoded, "here"), np.asarray(Image.open(io.BytesIO(encoded))))


def named(names: object) -> bytes:
    """A Parquet file with one image whose metadata name the classes, as Hugging Face's datasets write them."""
    metadata = {"huggingface": json.dumps({"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}})}
    table = parquet_table([GOOD], [0])
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("names", [list("0123456789"), [*CLASS_NAMES[1:], CLASS_NAMES[0]], CLASS_NAMES[:9]])
def test_classes_that_are_not_those_of_cifar10_are_refused(parquet_folder, names):
    (parquet_folder / TRAIN_FILE).write_bytes(named(names))
    refused(parquet_folder, TRAIN_FILE, f"its classes are {', '.join(names)}, but those of CIFAR-10 are airplane")


@pytest.mark.parametrize("names", [list(CLASS_NAMES), None, 3])
def test_classes_of_cifar10_are_read(parquet_folder, names):
    (parquet_folder / TRAIN_FILE).write_bytes(named(names))
    assert len(load(parquet_folder).train_images) == 1


def test_a_stray_file_is_not_trained_on_twice(parquet_folder):
    (parquet_folder / "train-copy.parquet").write_bytes((parquet_folder / TRAIN_FILE).read_bytes())
    refused(parquet_folder, "train-copy.parquet", TRAIN_FILE, "twice")
