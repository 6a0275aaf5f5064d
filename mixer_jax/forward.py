"""The forward pass from bytes to logits. Twin of mixer_torch/forward.py."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import Array

from mixer_common.config.model import ModelConfig
from mixer_common.machine import is_memory_exhausted
from mixer_jax.device import COMPUTE_DTYPE, WEIGHTS_DTYPE, Device
from mixer_jax.hooks import Recorder
from mixer_jax.model import Mixer, build_model
from mixer_jax.pixels import bytes_to_pixels
from mixer_jax.xla import compiler_options

BATCH_SIZE = 500


def forward(
    model: Mixer, images: Array, drop_path: Array | None, precision: str, recorder: Recorder | None = None
) -> Array:
    """Logits (B, num_classes) of images (B, H, W, 3), uint8 or augmented, in the dtype of the weights.

    drop_path, recorder: see Mixer.
    """
    dtype, compute = WEIGHTS_DTYPE[precision], COMPUTE_DTYPE[precision]
    pixels = bytes_to_pixels(images, model.config.image_size, dtype).astype(compute)
    drop_path = None if drop_path is None else drop_path.astype(compute)
    graphdef, weights = nnx.split(model)
    model = nnx.merge(graphdef, jax.tree.map(lambda p: p.astype(compute), weights))
    return model(pixels, drop_path, recorder).astype(dtype)


def logits(model: Mixer, images: np.ndarray, precision: str, size: int = BATCH_SIZE) -> np.ndarray:
    """Logits (N, num_classes) of uint8 images (N, H, W, 3), nothing dropped; `size` images at a time, or half as
    many as often as they do not fit into memory."""
    graphdef, weights = nnx.split(model)
    (device,) = model.head.kernel[...].devices()
    run = _compiled_forward(device, model.config, precision)
    size = min(size, len(images))
    result = []
    try:
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            padded = np.pad(batch, [(0, size - len(batch)), (0, 0), (0, 0), (0, 0)])  # one shape, one compilation
            result.append(np.asarray(run(graphdef, weights, padded))[: len(batch)])
        return np.concatenate(result)
    except Exception as error:
        if size == 1 or not is_memory_exhausted(error):
            raise
    return logits(model, images, precision, size // 2)


def logits_of_weights(
    config: ModelConfig, weights: Mapping[str, np.ndarray], images: np.ndarray, precision: str, device: Device
) -> np.ndarray:
    """Logits (N, num_classes) of uint8 images (N, H, W, 3), in the weights' dtype, of canonical weights."""
    return logits(build_model(config, weights, device, WEIGHTS_DTYPE[precision]), images, precision)


@cache
def _compiled_forward(device: Device, config: ModelConfig, precision: str) -> Callable[..., Array]:
    def run(graphdef: Any, weights: nnx.State, images: Array) -> Array:
        return forward(nnx.merge(graphdef, weights), images, None, precision)

    return jax.jit(run, static_argnums=0, compiler_options=compiler_options(device, config))
