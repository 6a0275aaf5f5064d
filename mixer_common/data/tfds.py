"""CIFAR-10 as TFDS (TensorFlow Datasets) prepares it, read without TensorFlow."""

import json
from pathlib import Path

import numpy as np

from mixer_common.data.decode import Split, check_labels, decode_image
from mixer_common.errors import UserError


def read_tfds(folder: Path) -> tuple[Split, Split]:
    """The training and the test split from a folder such as cifar10/3.0.2/, in file format array_record.

    TFDS shuffles while it prepares; the feature `id` (train_00012) gives the original order back.

    Raises:
      UserError: the folder is incomplete or damaged, or has a file format that only TensorFlow reads.
    """
    import tensorflow_datasets as tfds

    # TFDS and its readers report damage by exceptions of many kinds.
    try:
        builder = tfds.builder_from_directory(folder)
        file_format = getattr(builder.info.file_format, "value", None)
    except Exception as error:
        raise UserError(
            f"{folder} is no complete TFDS data set ({_first_line(error)}): remove it or prepare it again."
        ) from error
    if file_format != "array_record":
        raise UserError(
            f"{folder} is in TFDS's format {file_format}, which only TensorFlow reads: prepare it again with "
            'file_format="array_record".'
        )
    return _read_split(builder, "train", folder), _read_split(builder, "test", folder)


def is_array_record(folder: Path) -> bool:
    """Whether the data set's own description says that it is in the file format that is read without TensorFlow."""
    try:
        return json.loads((folder / "dataset_info.json").read_bytes()).get("fileFormat") == "array_record"
    except (OSError, ValueError, AttributeError):
        return False


def _read_split(builder, split: str, folder: Path) -> Split:
    import tensorflow_datasets as tfds

    try:
        # Skipping TFDS's decoding lets every source decode, and report damage, in the same way.
        data = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        examples = data.__getitems__(range(len(data)))  # all at once: half the time of one by one
        positions = [int(str(example["id"], "ascii").rpartition("_")[2]) for example in examples]
        labels = np.array([example["label"] for example in examples], np.int64)
    except Exception as error:
        raise UserError(
            f"the {split} split in {folder} is damaged or missing ({_first_line(error)}): prepare it again."
        ) from error
    check_labels(labels, f"the {split} split in {folder}")
    if sorted(positions) != list(range(len(positions))):
        raise UserError(f"the {split} split in {folder} has gaps in its ids: prepare it again.")

    images = np.empty((len(examples), 32, 32, 3), np.uint8)
    for position, example in zip(positions, examples, strict=True):
        images[position] = decode_image(example["image"], f"{folder}: {split} image {position}")
    ordered = np.empty(len(labels), np.int32)
    ordered[positions] = labels
    return images, ordered


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]
