"""The forward pass from bytes to logits. Twin of mixer_torch/evaluate.py."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from mixer_common.config import MixerConfig, activation_names
from mixer_jax.compiling import compiler_options
from mixer_jax.model import Mixer, Record, create, ignore
from mixer_jax.pixels import to_pixels

WEIGHTS_DTYPE = {"float32": np.float32, "bfloat16": np.float32, "float64": np.float64}
COMPUTE_DTYPE = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}
BATCH_SIZE = 500


def out_of_memory(error: BaseException) -> bool:
    """Whether the error says that memory, the device's or the machine's, did not suffice."""
    return isinstance(error, MemoryError) or (
        isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error))


def forward(model: Mixer, images: Array, drop_path: Array | None, precision: str, record: Record = ignore) -> Array:
    """Logits (B, num_classes) of images (B, H, W, 3), uint8 or augmented, in the dtype of the weights."""
    dtype, compute = WEIGHTS_DTYPE[precision], COMPUTE_DTYPE[precision]
    pixels = to_pixels(images, model.config.image_shape, dtype).astype(compute)
    drop_path = None if drop_path is None else drop_path.astype(compute)
    graphdef, weights = nnx.split(model)
    model = nnx.merge(graphdef, jax.tree.map(lambda p: p.astype(compute), weights))
    return model(pixels, drop_path, record).astype(dtype)


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
            batch = images[start:start + size]
            padded = np.pad(batch, [(0, size - len(batch)), (0, 0), (0, 0), (0, 0)])  # one shape, one compilation
            result.append(np.asarray(run(graphdef, weights, padded))[: len(batch)])
        return np.concatenate(result)
    except Exception as error:
        if size == 1 or not out_of_memory(error):
            raise
    return logits(model, images, precision, size // 2)


def logits_of_weights(config: MixerConfig, weights: Mapping[str, np.ndarray], images: np.ndarray, precision: str,
                      device: jax.Device) -> np.ndarray:
    """The same, of canonical weights."""
    return logits(create(config, weights, device, WEIGHTS_DTYPE[precision]), images, precision)


def activations_of_weights(config: MixerConfig, weights: Mapping[str, np.ndarray], images: np.ndarray,
                           precision: str, device: jax.Device) -> dict[str, np.ndarray]:
    """Every activation of one forward pass, in network order and in the weights' dtype; "head" is the logits."""
    graphdef, state = nnx.split(create(config, weights, device, WEIGHTS_DTYPE[precision]))

    @jax.jit
    def run(state: nnx.State, images: Array) -> dict[str, Array]:
        recorded: dict[str, Array] = {}
        forward(nnx.merge(graphdef, state), images, None, precision, recorded.__setitem__)
        return {name: value.astype(WEIGHTS_DTYPE[precision]) for name, value in recorded.items()}

    recorded = run(state, images)  # a dict comes back from jit sorted by its keys
    return {name: np.asarray(recorded[name]) for name in activation_names(config)}


@cache
def _compiled_forward(device: jax.Device, config: MixerConfig, precision: str) -> Callable[..., Array]:
    def run(graphdef: Any, weights: nnx.State, images: Array) -> Array:
        return forward(nnx.merge(graphdef, weights), images, None, precision)

    return jax.jit(run, static_argnums=0, compiler_options=compiler_options(device, config))
