"""Models in memory: what mixer_jax.api and mixer_torch.api agree on, in NumPy.

Arrays may come from NumPy, PyTorch or JAX; neither framework is imported for that.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from mixer_common.config.fields import by_name
from mixer_common.config.model import ModelConfig, checked_image_size, weight_shapes
from mixer_common.config.presets import MODELS
from mixer_common.errors import UserError
from mixer_common.plan.initial import initial_weights
from mixer_common.weights.canonical import ModelWeights, check_weights
from mixer_common.weights.files import load_weights, save_weights
from mixer_common.weights.patterns import names_of_table, read_names
from mixer_common.weights.pixels import named_scale
from mixer_common.weights.reading import plain_array
from mixer_common.weights.recognition import DETAILS

_FILE_DETAILS = (*DETAILS, "pixels", "prefer", "names")


def model_config(model: str | ModelConfig, **details: Any) -> ModelConfig:
    """The config of a preset's name, or a config itself, with other values for some of its fields.

    Raises UserError for an unknown name or field, and where a value does not fit.
    """
    if isinstance(model, str):
        model = by_name("model", MODELS, model)
    elif not isinstance(model, ModelConfig):
        raise UserError(f"model is {model!r}, but must be a ModelConfig or one of {', '.join(MODELS)}.")
    for name in details:
        by_name("field of ModelConfig", dict.fromkeys(field.name for field in fields(ModelConfig)), name)
    return replace(model, **details)


def first_weights(config: ModelConfig, seed: int, weights: Mapping[str, Any] | None) -> dict[str, np.ndarray]:
    """The given weights in canonical form, or without any those that the seed draws, float32.

    Raises UserError where the weights do not fit the config, or the seed is not one of TrainConfig's.
    """
    if weights is not None:
        return canonical_arrays(config, weights)
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise UserError(f"seed is {seed!r}, but must be a whole number of at least 0 and below 2**63.")
    return initial_weights(config, seed)


def canonical_arrays(config: ModelConfig, weights: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Copies of weights, by canonical names, as NumPy arrays in the order of weight_shapes; 16 bits become float32.

    Raises UserError where they do not fit the config, or are no floating-point numbers.
    """
    if not isinstance(weights, Mapping):
        raise UserError(
            f"weights are of type {type(weights).__name__}, but must be a dict of arrays by canonical names."
        )
    shapes = weight_shapes(config)
    arrays = {name: to_numpy(value) for name, value in weights.items()}
    check_weights(arrays, shapes, "the set of weights")
    if wrong := [f"{name} holds {array.dtype}" for name, array in arrays.items() if array.dtype.kind != "f"]:
        raise UserError(f"weights must be floating-point numbers, but {'; '.join(wrong)}.")
    return {name: arrays[name] for name in shapes}


def to_numpy(value: Any) -> np.ndarray:
    """A copy of an array or tensor of any framework and device; floating-point numbers of 16 bits become float32."""
    array = np.array(plain_array(value), order="C")
    return array.astype(np.float32) if array.dtype == np.float16 else array


def load_model(path: str | Path, **details: Any) -> ModelWeights:
    """The weights and config in a file or folder, or at an address, with 16 bits widened to float32; see load_weights.

    details: those of load_weights; pixels may also be a name in PIXEL_SCALES, and names the path of a TOML file or a
    dict as in one. Raises UserError as load_weights does, and for other details.
    """
    for name in details:
        by_name("detail of weights", dict.fromkeys(_FILE_DETAILS), name)
    if details.get("pixels") is not None:
        details["pixels"] = named_scale(details["pixels"])
    if (names := details.get("names")) is not None:
        details["names"] = names_of_table(names, "names") if isinstance(names, Mapping) else read_names(Path(names))
    weights = load_weights(path, **details)
    for name, array in weights.arrays.items():
        if array.dtype == np.float16:
            weights.arrays[name] = array.astype(np.float32)
    return weights


def save_model(
    config: ModelConfig, arrays: dict[str, np.ndarray], path: str | Path, format: str, overwrite: bool
) -> None:
    """Writes canonical arrays to a file or folder; see save_weights, which speaks of a command line's options."""
    try:
        save_weights(path, ModelWeights(config, arrays, "canonical"), format, overwrite=overwrite)
    except UserError as error:
        raise UserError(str(error).replace("--overwrite", "overwrite=True")) from None


def check_images(images: Any) -> None:
    """Raises UserError unless images are an array or a tensor of uint8 (B, H, W, 3)."""
    if not hasattr(images, "shape") or not hasattr(images, "dtype"):
        raise UserError(f"images are of type {type(images).__name__}, but must be an array of uint8 (B, H, W, 3).")
    if (dtype := str(images.dtype).removeprefix("torch.")) != "uint8":
        raise UserError(
            f"images hold {dtype}, but must be bytes from 0 to 255, uint8; pixels that are scaled already go to the "
            "model itself."
        )
    _check_shape("images", tuple(images.shape), None)


def check_pixels(shape: tuple[int, ...], is_floating: bool, config: ModelConfig) -> None:
    """Raises UserError unless pixels are floating-point numbers of shape (B, H, W, 3), H and W those of the config."""
    if not is_floating:
        raise UserError("pixels hold whole numbers, but must lie between -1 and 1: make them of images with to_pixels.")
    _check_shape("pixels", tuple(shape), config.image_size)


def target_size(images: Any, image_size: int | tuple[int, int] | None) -> tuple[int, int]:
    """Height and width that images (B, H, W, 3) are resized to: one number is a square's, None leaves them as they are.

    Raises UserError where it is neither.
    """
    return images.shape[1:3] if image_size is None else checked_image_size(image_size)


def _check_shape(name: str, shape: tuple[int, ...], size: tuple[int, int] | None) -> None:
    if len(shape) == 3:
        advice = f"give even a single one an axis for the batch, {name}[None]"
    elif len(shape) == 4 and shape[1] == 3 and shape[3] != 3:
        advice = "move the channels from the second axis to the last"
    elif len(shape) != 4 or shape[3] != 3:
        advice = "give every pixel its red, green and blue"
    elif size is not None and shape[1:3] != size:
        advice = f"resize them with to_pixels(images, {tuple(size)})"
    else:
        return
    height, width = size or ("H", "W")
    raise UserError(f"{name} have shape {shape}, but must have (B, {height}, {width}, 3): {advice}.")
