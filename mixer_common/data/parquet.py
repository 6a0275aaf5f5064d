"""CIFAR-10 in Parquet files, as Hugging Face has it: encoded images and labels in two columns."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mixer_common.data.decode import CLASS_NAMES, Split, check_labels, decode_image
from mixer_common.errors import UserError


def read_parquet(train: list[Path], test: list[Path]) -> tuple[Split, Split]:
    """The training and the test split, each from its shards in order.

    Each file has a column `img` or `image` (a struct whose field `bytes` is a PNG or JPEG file) and an
    integer column `label`.

    Raises:
      UserError: a damaged file, a missing column, an image that does not decode or is not 32x32 RGB, a
        label outside 0..9.
    """
    return _read_split(train), _read_split(test)


def _read_split(paths: list[Path]) -> Split:
    images, labels = zip(*(_read_shard(path) for path in paths), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _read_shard(path: Path) -> Split:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            _check_classes(path, file.schema_arrow.metadata or {})
            table = file.read()
    except PermissionError:
        raise UserError(f"{path} may not be read: check its permissions.") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        first_line = str(error).partition("\n")[0]
        raise UserError(f"{path} is damaged or no Parquet file ({first_line}): fetch it again.") from error

    columns = table.column_names
    image_column = next((name for name in ("img", "image") if name in columns), None)
    if image_column is None or "label" not in columns:
        raise UserError(f"{path} has the columns {columns}: expected 'img' (or 'image') and 'label'.")
    encoded = table[image_column]
    if not pa.types.is_struct(encoded.type) or encoded.type.get_field_index("bytes") < 0:
        raise UserError(f"{path}: column {image_column!r} is {encoded.type}: expected a struct with 'bytes'.")
    labels = table["label"]
    if not pa.types.is_integer(labels.type) or labels.null_count:
        raise UserError(
            f"{path}: column 'label' is {labels.type} with {labels.null_count} missing values: expected "
            "integers 0 to 9 and none missing."
        )
    labels = labels.to_numpy()
    check_labels(labels, str(path))

    images = np.empty((len(labels), 32, 32, 3), np.uint8)
    files = pc.struct_field(encoded, "bytes")  # pyright: ignore[reportAttributeAccessIssue] (made at its import)
    for row, image in enumerate(files.to_pylist()):
        images[row] = decode_image(image, f"{path}: image {row}")
    return images, labels.astype(np.int32)


def _check_classes(path: Path, metadata: Mapping[bytes, bytes]) -> None:
    """Raises UserError where the schema's metadata, as Hugging Face's datasets write it, name other classes."""
    try:
        names = [str(name) for name in json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"]]
    except (KeyError, TypeError, ValueError):
        return
    if names != list(CLASS_NAMES):
        raise UserError(
            f"{path} says that its classes are {', '.join(names)}, but those of CIFAR-10 are "
            f"{', '.join(CLASS_NAMES)}: name a folder with CIFAR-10."
        )
