"""Weights in files and folders: loaded whatever their format, saved whole or not at all."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from mixer_common import files
from mixer_common.config.model import model_config_from_json, weight_shapes
from mixer_common.errors import UserError
from mixer_common.weights import containers, folders
from mixer_common.weights.addresses import locate
from mixer_common.weights.canonical import ModelWeights, check_weights, with_details
from mixer_common.weights.containers import ByteCallback
from mixer_common.weights.formats import FORMATS, to_format
from mixer_common.weights.pixels import describe_scale
from mixer_common.weights.recognition import DETAILS, recognise_weights

_CANONICAL_FILES = {"config.json", "model.safetensors"}


def _no_progress(activity: str, done: int, total: int) -> None:
    """The ByteCallback that shows nothing."""


def load_weights(path: str | Path, progress: ByteCallback = _no_progress, **options: Any) -> ModelWeights:
    """The model in a file or folder of any name; its content tells the container and the format.

    path: also an address, hf:OWNER/NAME, https://... or gs://..., which is downloaded; see addresses.locate.

    A folder is a run, a checkpoint, or one of timm or Hugging Face: it holds model.safetensors, its parts with an
    index, pytorch_model.bin, flax_model.msgpack, or a single file of weights. A config.json beside canonical weights
    tells their model; another's tells the scale of the pixels and the size of the images. Files are safetensors, .npz,
    Flax's msgpack, or torch.save's, old or new. The arrays are contiguous.
    options: prefer, pixels, without_head, names, and what the file does not tell: gelu, layer_norm_epsilon, block,
    image_size; see weights.recognition.recognise_weights. Raises UserError where there is no complete Mixer.
    """
    located = locate(path, progress)
    path, notes = located.path, located.notes
    if path.is_dir():
        path = folders.weights_in(path)
        if path != located.path and not path.suffix:  # of several steps the latest, of Flax or Orbax
            notes = (*notes, f"{path.relative_to(located.path)} in {located.path}")
    weights = _load(path, progress, options)
    return replace(weights, origin=located.origin, notes=(*notes, *weights.notes))


def _load(path: Path, progress: ByteCallback, options: dict[str, Any]) -> ModelWeights:
    """The model in a file of weights, an index of its parts, or a folder of Orbax; see load_weights."""
    files.check_sum(path)
    is_index = path.name.endswith(".index.json")
    arrays, container = folders.read_parts(path, progress) if is_index else containers.read(path, progress)
    config_path = path.with_name("config.json")
    folder_config = folders.config_beside(path)
    given_pixels = options.pop("pixels", None)
    weights = recognise_weights(arrays, str(path), pixels=given_pixels or folder_config.pixels, **options)
    del arrays  # so that each goes when its contiguous copy is there
    for name in weights.arrays:
        weights.arrays[name] = np.ascontiguousarray(weights.arrays[name])
    if weights.format == "npz" and container == "msgpack":
        weights = replace(weights, format="msgpack")
    details = {name: options[name] for name in DETAILS if name in options}
    if weights.format == "canonical" and config_path.is_file():
        files.check_sum(config_path)
        config = model_config_from_json(files.read_json(config_path).get("model"), f"'model' in {config_path}")
        check_weights(weights.arrays, weight_shapes(config), str(path))
        return with_details(replace(weights, config=config, assumed=()), str(path), **details)
    if given_pixels is None and folder_config.pixels is not None:
        weights = replace(
            weights, notes=(*weights.notes, f"{describe_scale(folder_config.pixels)}, of {folder_config.origin}")
        )
    return folders.with_image_size(weights, folder_config)


def save_weights(
    path: str | Path,
    weights: ModelWeights,
    format: str,
    progress: ByteCallback = _no_progress,
    overwrite: bool = False,
) -> None:
    """Writes weights in a format: a file or, for canonical, a folder with config.json and model.safetensors.

    It appears under its name when it is complete, and only then does what lay there go. Raises UserError where
    check_target or weights.formats.to_format does.
    """
    path = Path(path)
    check_target(path, format, overwrite)
    arrays = to_format(weights, format)
    if format != "canonical":
        save_arrays(path, arrays, progress)
        return
    with _new_sibling(path) as (path, new):
        new.mkdir()
        config = {"model": asdict(weights.config)}
        files.write_file(new / "config.json", (json.dumps(config, indent=2) + "\n").encode())
        containers.write(new / "model.safetensors", ".safetensors", arrays, progress)
        files.replace_folder(new, path)


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray], progress: ByteCallback = _no_progress) -> None:
    """Writes named arrays to a file, whose ending tells the container; it appears when it is complete."""
    with _new_sibling(path) as (path, new):
        containers.write(new, path.suffix, arrays, progress)
        new.replace(path)


@contextmanager
def _new_sibling(path: Path) -> Iterator[tuple[Path, Path]]:
    """The resolved path, whose folder exists then, and the name of what is written before it gets the path's name.

    Nothing is left under that name, whatever happens.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    new = files.hidden_sibling(path, "new")
    _remove(new)
    try:
        yield path, new
    finally:
        _remove(new)


def check_target(path: Path, format: str, overwrite: bool, source: Path | None = None) -> None:
    """Raises UserError where `format` cannot be written to `path`, or where that would destroy something else.

    format: a key of FORMATS, or "structure" for a file with somebody's own names, in any container.
    source: the file or folder that the weights come from.
    """
    if format not in FORMATS and format != "structure":
        raise UserError(f"unknown format {format!r}: choose one of {', '.join(FORMATS)}.")
    suffixes = tuple(containers.WRITERS) if format == "structure" else FORMATS[format].suffixes
    if suffixes and path.suffix not in suffixes:
        raise UserError(
            f"{path} does not end in {' or '.join(suffixes)}, which {format} is written as: give it such a name."
        )
    if not suffixes and path.suffix in containers.WRITERS:
        raise UserError(f"{path} is named like a file, but {format} is written as a folder: leave out {path.suffix}.")
    if source is not None and path.resolve() == source.resolve():
        raise UserError(f"{path} is what is converted: choose another name.")
    if any((parent / "progress.json").exists() for parent in path.resolve().parents):
        raise UserError(f"{path} lies in a checkpoint, which the next one replaces: choose another folder.")
    if not path.exists():
        return
    if not overwrite:
        raise UserError(f"{path} exists already: replace it with --overwrite, or choose another name.")
    if source is not None and overlap(path, source):
        raise UserError(f"{path} is part of what is converted, {source}: choose another name.")
    if suffixes and not path.is_file():
        raise UserError(f"{path} is a folder, so --overwrite does not replace it by a file: choose another name.")
    if not suffixes and not (path.is_dir() and {item.name for item in path.iterdir()} <= _CANONICAL_FILES):
        raise UserError(
            f"{path} is no folder of weights alone, so --overwrite does not replace it: choose another name."
        )


def overlap(a: Path, b: Path) -> bool:
    """Whether the two paths are the same, or one of them lies in the other."""
    a, b = a.resolve(), b.resolve()
    return a == b or a in b.parents or b in a.parents


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
