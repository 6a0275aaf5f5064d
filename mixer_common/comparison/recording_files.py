"""Recordings in files: safetensors whose metadata is JSON, written array by array and read as they are needed.

The metadata of the file has one entry, RECORDING_KEY, with the format's version, the model's config, the hash of the
inputs, where the recording comes from, and its observations. The names of the arrays begin with their group:
"activations.stem", "weights.stem.weight", "inputs.images".
"""

import json
import math
import mmap
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mixer_common.comparison.bounds import UNIT_ROUNDOFF
from mixer_common.comparison.recording import Arrays, Inputs, Origin, Recording, RecordingSubject
from mixer_common.config.fields import from_dict
from mixer_common.config.model import ModelConfig, activation_names, layers, model_config_from_json, weight_shapes
from mixer_common.errors import UserError
from mixer_common.files import hidden_sibling
from mixer_common.interface import Framework
from mixer_common.weights.canonical import mismatches
from mixer_common.weights.safetensors_files import RECORDING_KEY

VERSION = 1
# The groups of arrays, and the attributes of a Recording that hold them.
GROUPS = {
    "weights": "weights",
    "activations": "activations",
    "weight_gradients": "gradients",
    "activation_gradients": "activation_gradients",
}
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I32": "<i4", "U8": "|u1"}
_NAMES_OF_DTYPES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_LARGEST_HEADER = 100_000_000  # bytes; that of the format's own library

Layout = Mapping[str, tuple[np.dtype, tuple[int, ...]]]
Progress = Callable[[str, int, int], None]  # takes the activity, bytes done, bytes in all


def no_progress(activity: str, done: int, total: int) -> None:
    """The Progress that shows nothing."""


class RecordingWriter:
    """The file of a recording that is being written: its arrays are added in any order, each as soon as it is there."""

    def __init__(
        self,
        file: BinaryIO,
        header: bytes,
        layout: Layout,
        offsets: Mapping[str, int],
        progress: Progress = no_progress,
    ):
        """layout, offsets: by group and name, dtype and shape of each array and its place behind the header."""
        file.write(header)
        self._file, self._layout, self._offsets, self._start = file, layout, offsets, len(header)
        self._missing = set(layout)
        self._progress, self._done = progress, 0
        self._total = sum(_size(*entry) for entry in layout.values())

    def add(self, group: str, name: str, array: np.ndarray) -> None:
        """Writes one array. Raises ValueError where it is not one that was announced."""
        full_name = f"{group}.{name}"
        if full_name not in self._missing or (array.dtype, array.shape) != self._layout[full_name]:
            raise ValueError(f"{full_name} of {array.dtype} {array.shape} was not announced or is there already")
        self._missing.remove(full_name)
        self._file.seek(self._start + self._offsets[full_name])
        self._file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        self._done += array.nbytes
        self._progress("recording", self._done, self._total)

    def add_group(self, group: str, arrays: Arrays) -> None:
        for name, array in arrays.items():
            self.add(group, name, array)

    def finish(self) -> None:
        """Waits until the file lies on the disk. Raises ValueError where an array was not added."""
        if self._missing:
            raise ValueError(f"{', '.join(sorted(self._missing))} were announced and not added")
        self._file.flush()
        os.fsync(self._file.fileno())


@contextmanager
def new_recording(
    path: Path,
    config: ModelConfig,
    inputs: Inputs,
    origin: Origin,
    arrays: Layout,
    observations: tuple[str, ...] = (),
    progress: Progress = no_progress,
) -> Iterator[RecordingWriter]:
    """Writes a recording whole or not at all: the file gets its name when all of `arrays` were added in the context.

    arrays: dtype and shape by group and name ("activations.stem"), without the inputs and losses, which are written
    at once. Raises OSError, with the path in it, where the disk is full.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    few = {"inputs.labels": inputs.labels.astype("<i4"), "inputs.images": inputs.images}
    if origin.step_losses is not None:
        few["run.step_losses"] = origin.step_losses
    layout = {**arrays, **{name: (array.dtype, array.shape) for name, array in few.items()}}
    metadata = {
        "version": VERSION,
        "config": asdict(config),
        "inputs": {"sha256": inputs.sha256, "description": inputs.description},
        "origin": {name: value for name, value in _plain(origin).items() if name != "step_losses"},
        "observations": observations,
    }
    header, offsets = _header(metadata, layout)
    new = hidden_sibling(path, "new")
    try:
        with new.open("wb") as file:
            writer = RecordingWriter(file, header, layout, offsets, progress)
            for name, array in few.items():
                group, _, rest = name.partition(".")
                writer.add(group, rest, array)
            yield writer
            writer.finish()
        new.replace(path)
    except OSError as error:
        error.filename, error.filename2 = str(path), None  # a full disk does not name it
        raise
    finally:
        new.unlink(missing_ok=True)


def save_recording(path: Path, recording: Recording) -> None:
    """Writes a recording that is in memory."""
    groups = {group: getattr(recording, attribute) for group, attribute in GROUPS.items()}
    groups = {group: arrays for group, arrays in groups.items() if arrays is not None}
    layout = {
        f"{group}.{name}": (array.dtype, array.shape)
        for group, arrays in groups.items()
        for name, array in arrays.items()
    }
    with new_recording(
        path, recording.config, recording.inputs, recording.origin, layout, recording.observations
    ) as writer:
        for group, arrays in groups.items():
            writer.add_group(group, arrays)


def record_to_file(
    path: Path,
    config: ModelConfig,
    weights: Arrays,
    inputs: Inputs,
    origin: Origin,
    framework: Framework,
    device: Any,
    gradients: bool = False,
    progress: Progress = no_progress,
) -> None:
    """Computes this project's model and writes the recording, each activation as soon as it is computed.

    So the activations are never in memory together; the gradients, where they are asked for, are.
    device: the framework's, prepared for origin.precision.
    """
    dtype, num_images = np.dtype("<f8" if origin.precision == "float64" else "<f4"), len(inputs.images)
    activations = {layer.name: (dtype, (num_images, *layer.activation)) for layer in layers(config)}
    layout = {f"weights.{name}": (array.dtype, array.shape) for name, array in weights.items()}
    layout |= {f"activations.{name}": entry for name, entry in activations.items()}
    if gradients:
        layout |= {f"weight_gradients.{name}": (dtype, shape) for name, shape in weight_shapes(config).items()}
        layout |= {f"activation_gradients.{name}": entry for name, entry in activations.items()}
    arguments = (inputs.images, inputs.labels % config.num_classes, origin.precision, device)
    with new_recording(path, config, inputs, origin, layout, progress=progress) as writer:
        writer.add_group("weights", weights)
        framework.activations(
            config, weights, inputs.images, origin.precision, device, sink=partial(writer.add, "activations")
        )
        if gradients:
            writer.add_group("weight_gradients", framework.gradients(config, weights, *arguments))
            writer.add_group("activation_gradients", framework.activation_gradients(config, weights, *arguments))


def is_recording(path: Path) -> bool:
    """Whether a file is a recording, whole or not; reads its first bytes and its header alone."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
            if len(start) < 9 or start[8:] != b"{":
                return False
            return f'"{RECORDING_KEY}"'.encode() in file.read(min(_LARGEST_HEADER, struct.unpack("<Q", start[:8])[0]))
    except OSError:
        return False


def open_recording(text: str) -> RecordingSubject | None:
    """The recording that a side of a comparison names, as PATH, jax:PATH or torch:PATH; None where there is none.

    Its origin is named as the user named the file. Raises UserError where it is damaged, or was made in the framework
    that is not named.
    """
    prefix, colon, rest = text.partition(":")
    framework, path = (prefix, Path(rest)) if colon and prefix in ("jax", "torch") else (None, Path(text))
    if not is_recording(path):
        return None
    recording = load_recording(path)
    origin = recording.origin
    if framework not in (None, origin.framework):
        raise UserError(
            f"{path} was recorded in {origin.framework}, so it is no side of {framework}: write its path alone."
        )
    origin = replace(origin, name=text, model=f"a recording in {origin.precision} of {origin.name}, {origin.model}")
    return RecordingSubject(replace(recording, origin=origin))


def load_recording(path: Path) -> Recording:
    """Reads a recording; its arrays are views of the file, which the system reads when they are used.

    Raises UserError where it is no recording, one of another version, cut short, or does not fit together.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist: name a recording that scripts/record.py wrote.")
    if not is_recording(path):
        raise UserError(
            f"{path} is no recording: its metadata has no {RECORDING_KEY}; make one with scripts/record.py."
        )
    header, arrays = _read_arrays(path)
    metadata = _metadata(path, header)
    config = model_config_from_json(metadata["config"], f"the config in {path}")
    groups = {
        group: {
            name.removeprefix(f"{group}."): arrays.pop(name) for name in list(arrays) if name.startswith(f"{group}.")
        }
        for group in (*GROUPS, "inputs", "run")
    }
    _check_arrays(path, config, groups, list(arrays))
    inputs = _inputs(path, metadata["inputs"], groups["inputs"])
    origin = _origin(path, metadata["origin"], groups["run"].get("step_losses"))
    ordered = {group: _in_order(groups[group], group, config) for group in GROUPS}
    if not ordered["activations"]:
        raise _changed(path, "it holds no activations")
    observations = metadata["observations"]
    if not isinstance(observations, list) or not all(isinstance(text, str) for text in observations):
        raise _changed(path, f"its observations are {observations!r}")
    return Recording(
        config,
        ordered["weights"],
        ordered["activations"],
        inputs,
        origin,
        ordered["weight_gradients"] or None,
        ordered["activation_gradients"] or None,
        tuple(observations),
    )


def _header(metadata: Mapping[str, Any], layout: Layout) -> tuple[bytes, dict[str, int]]:
    """The file's first bytes, and where the data of each array begins after them.

    The header names the arrays in the order of `layout`; those of the largest numbers lie first, so that all are
    aligned.
    """
    offsets, end = {}, 0
    entries: dict[str, Any] = {"__metadata__": {RECORDING_KEY: json.dumps(metadata, ensure_ascii=False)}}
    places = {}
    for name in sorted(layout, key=lambda name: -layout[name][0].itemsize):
        dtype, shape = layout[name]
        offsets[name], end = end, end + _size(dtype, shape)
        places[name] = {"dtype": _NAMES_OF_DTYPES[dtype], "shape": shape, "data_offsets": (offsets[name], end)}
    entries |= {name: places[name] for name in layout}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, offsets


def _size(dtype: np.dtype, shape: tuple[int, ...]) -> int:
    """Bytes of an array."""
    return dtype.itemsize * math.prod(shape)


def _read_arrays(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The header of a file, and its arrays by name. Raises UserError where it is cut short or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):  # checks the header: names, sizes, and that they cover the file
            pass
    except SafetensorError as error:
        raise UserError(
            f"{path} is no complete recording ({error}): it was cut short or changed; make it again with "
            "scripts/record.py, or use another copy."
        ) from None
    with path.open("rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(size))
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    arrays = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _DTYPES:
            raise _changed(path, f"it holds {name} as {entry['dtype']}")
        begin, end = entry["data_offsets"]
        dtype = np.dtype(_DTYPES[entry["dtype"]])
        array = np.frombuffer(data, dtype, (end - begin) // dtype.itemsize, 8 + size + begin)
        arrays[name] = array.reshape(entry["shape"])
    return header, arrays


def _metadata(path: Path, header: Mapping[str, Any]) -> dict[str, Any]:
    """What a file's header says of the recording. Raises UserError where it does not say all of it."""
    try:
        metadata = json.loads(header["__metadata__"][RECORDING_KEY])
        version = metadata["version"]
    except (KeyError, ValueError, TypeError):
        raise _changed(path, f"its {RECORDING_KEY} is no JSON object with a version") from None
    if version != VERSION:
        raise UserError(
            f"{path} is a recording of format version {version}, and this version of the program reads {VERSION}: "
            "make it again with this one, or compare with the one that wrote it."
        )
    if missing := [name for name in ("config", "inputs", "origin", "observations") if name not in metadata]:
        raise _changed(path, f"its metadata lacks {' and '.join(missing)}")
    return metadata


def _check_arrays(path: Path, config: ModelConfig, groups: Mapping[str, Arrays], others: list[str]) -> None:
    """Raises UserError where an array does not belong into a recording of this model."""
    if others:
        raise _changed(path, f"{others[0]} is not expected")
    shapes, names = weight_shapes(config), activation_names(config)
    for group in ("activations", "activation_gradients"):
        if unknown := [name for name in groups[group] if name not in names]:
            raise _changed(path, f"its model has no activation {unknown[0]}")
    for group in ("weights", "weight_gradients"):
        arrays = groups[group]  # some may be missing: a module of somebody else's may have no final norm
        if wrong := mismatches(arrays, {name: shape for name, shape in shapes.items() if name in arrays}):
            raise _changed(path, f"of its {group}, {wrong[0]}")


def _inputs(path: Path, metadata: Any, arrays: Arrays) -> Inputs:
    """The images and labels. Raises UserError where they are not those whose hash the metadata holds."""
    if set(arrays) != {"images", "labels"}:
        raise _changed(path, "it does not hold its images and labels")
    images, labels = (arrays[name].copy() for name in ("images", "labels"))  # PyTorch takes no views that are read-only
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or labels.shape != images.shape[:1]:
        raise _changed(path, f"its images have shape {images.shape} and its labels {labels.shape}")
    if not isinstance(metadata, dict) or not all(
        isinstance(metadata.get(key), str) for key in ("sha256", "description")
    ):
        raise _changed(path, "its metadata does not tell the hash and the description of its inputs")
    inputs = Inputs(images, labels, metadata["description"])
    if inputs.sha256 != metadata["sha256"]:
        raise _changed(
            path,
            f"its images and labels have the SHA-256 {inputs.sha256[:12]}, and its metadata says "
            f"{metadata['sha256'][:12]}",
        )
    return inputs


def _origin(path: Path, metadata: Any, step_losses: np.ndarray | None) -> Origin:
    """Where the recording comes from. Raises UserError where the metadata does not tell it field by field."""
    if isinstance(metadata, dict):
        metadata = {**metadata, "notes": tuple(metadata.get("notes", ()))}
    origin = replace(from_dict(Origin, metadata, f"the origin in {path}"), step_losses=step_losses)
    if origin.framework not in ("jax", "torch") or origin.precision not in UNIT_ROUNDOFF:
        raise _changed(path, f"its framework is {origin.framework!r} and its precision {origin.precision!r}")
    texts = (origin.name, origin.model, origin.device, origin.processor, *origin.notes)
    tables = (origin.versions, origin.run)
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(table, dict) for table in tables):
        raise _changed(path, "its origin holds something else than texts and tables")
    if origin.framework not in origin.versions:
        raise _changed(path, f"its versions lack that of {origin.framework}")
    return origin


def _in_order(arrays: Arrays, group: str, config: ModelConfig) -> dict[str, np.ndarray]:
    """The arrays in network order."""
    names = activation_names(config) if group.startswith("activation") else weight_shapes(config)
    return {name: arrays[name] for name in names if name in arrays}


def _plain(origin: Origin) -> dict[str, Any]:
    """The fields of an origin, as JSON can hold them."""
    return {**vars(origin), "versions": dict(origin.versions), "run": dict(origin.run)}


def _changed(path: Path, fault: str) -> UserError:
    return UserError(
        f"{path} does not hold a whole recording, {fault}: it was changed or written by another program; make it again "
        "with scripts/record.py."
    )
