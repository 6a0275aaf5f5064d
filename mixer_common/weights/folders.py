"""Folders of weights: a run's, a checkpoint's, and those of timm and Hugging Face with their config.json."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mixer_common import files
from mixer_common.config.model import ImageSize
from mixer_common.errors import UserError
from mixer_common.weights import containers
from mixer_common.weights.canonical import ModelWeights
from mixer_common.weights.containers import ByteCallback
from mixer_common.weights.pixels import PixelScale, config_parts, scale_in_config

# The names under which Hugging Face's libraries and timm keep the weights in a folder, in the order of preference.
NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "flax_model.msgpack",
)


class FolderConfig(NamedTuple):
    """What the JSON files beside weights tell."""

    pixels: PixelScale | None = None
    image_size: ImageSize | None = None
    origin: str = ""  # the file


def weights_in(folder: Path) -> Path:
    """The file of weights in a folder, or the index of its parts: a checkpoint's, that of a run, also of one that was
    stopped between the two renames that replace a checkpoint, or another's. Raises UserError where there is none, or
    more than one of unknown names."""
    checkpoint = folder / "checkpoint"
    for candidate in (folder, checkpoint, files.hidden_sibling(checkpoint, "old")):
        if (candidate / "model.safetensors").is_file():
            return candidate / "model.safetensors"
    for name in NAMES:
        if (folder / name).is_file():
            return folder / name
    if latest := _latest_of_flax(folder):
        return latest
    others = sorted(path for path in folder.iterdir() if path.suffix in containers.WRITERS and path.is_file())
    if len(others) == 1:
        return others[0]
    if others:
        raise UserError(
            f"{folder} holds several files of weights, {', '.join(path.name for path in others)}: name one of them."
        )
    raise UserError(
        f"{folder} holds no weights: expected a run, a checkpoint or another folder with "
        "model.safetensors; name one of these, or a file of weights."
    )


def _latest_of_flax(folder: Path) -> Path | None:
    """The checkpoint of the highest step among those that functions of Flax or Orbax wrote into a folder: checkpoint_5,
    a file or a folder, or 5, a folder with an item such as `default`; or the folder itself, if Orbax wrote it."""
    if orbax := _orbax_folder(folder):
        return orbax
    steps = {
        int(match[1]): path
        for path in folder.iterdir()
        if (match := re.fullmatch(r"(?:checkpoint_)?(\d+)", path.name))
        and (_orbax_folder(path) or (path.is_file() and match[0] != match[1]))
    }
    if not steps:
        return None
    latest = steps[max(steps)]
    return latest if latest.is_file() else _orbax_folder(latest)


def _orbax_folder(folder: Path) -> Path | None:
    """The folder of one checkpoint of Orbax: this one, or its single item."""
    if not folder.is_dir():
        return None
    items = [path for path in (folder, *sorted(folder.iterdir())) if (path / "_METADATA").is_file()]
    return items[0] if items else None


def read_parts(index: Path, progress: ByteCallback) -> tuple[dict[str, np.ndarray], str]:
    """The arrays of the files that an index of Hugging Face names, and the name of their container.

    Raises UserError where the index is damaged, and where a file or an array is missing.
    """
    try:
        places = json.loads(index.read_bytes())["weight_map"]
        names = sorted(set(places.values()))
        if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise ValueError("no names of files in it")
    except FileNotFoundError:
        raise UserError(f"{index} does not exist: name a file of weights, or a run's folder.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f'{index} is no index of a model\'s parts ({error}): expected a "weight_map" from names of arrays to '
            "files; use another copy."
        ) from None
    paths = [index.with_name(name) for name in names]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise UserError(f"{index} names {', '.join(missing)}, which is not beside it: put all parts into one folder.")
    total, done = sum(path.stat().st_size for path in paths), 0
    arrays: dict[str, np.ndarray] = {}
    container = ""
    for path in paths:
        part, container = containers.read(
            path, lambda activity, size, _, done=done: progress(activity, done + size, total)
        )
        if doubled := arrays.keys() & part.keys():
            raise UserError(
                f"{index} names parts of which two hold {min(doubled)}, one of them {path.name}: remove the part that "
                "is too much, or use another copy."
            )
        arrays |= part
        done += path.stat().st_size
    if lost := [name for name in places if name not in arrays]:
        raise UserError(f"{index} names arrays that its files do not hold, {', '.join(lost[:4])}: use another copy.")
    return arrays, container


def config_beside(path: Path) -> FolderConfig:
    """What config.json and preprocessor_config.json tell beside a file that is named as timm or Hugging Face do."""
    if path.name not in NAMES:
        return FolderConfig()
    for name in ("config.json", "preprocessor_config.json"):
        beside = path.with_name(name)
        values = files.read_json(beside) if beside.is_file() else {}
        pixels, image_size = scale_in_config(values, str(beside)), _image_size(values)
        if pixels or image_size:
            return FolderConfig(pixels, image_size, str(beside))
    return FolderConfig()


def with_image_size(weights: ModelWeights, config: FolderConfig) -> ModelWeights:
    """The weights with the size of the images that the folder tells, if nobody stated one and it has the patches."""
    size = config.image_size
    if size is None or "image_size" not in weights.assumed or any(side % weights.config.patch_size for side in size):
        return weights
    sized = replace(weights.config, image_size=size)
    if sized.num_patches != weights.config.num_patches:
        return weights
    assumed = tuple(name for name in weights.assumed if name != "image_size")
    return replace(weights, config=sized, assumed=assumed)


def _image_size(values: dict[str, Any]) -> ImageSize | None:
    """Height and width in timm's "input_size", (3, H, W); None where there are none."""
    for part in config_parts(values):
        size = part.get("input_size")
        if isinstance(size, list) and len(size) == 3 and all(isinstance(side, int) and side > 0 for side in size):
            return ImageSize(*size[1:])
    return None
