"""What a comparison looks at: every activation and every gradient of a model. Twin of mixer_torch/record.py."""

from collections.abc import Mapping

import jax
import numpy as np
from flax import nnx
from jax import Array

from mixer_common.config.model import ModelConfig, activation_names
from mixer_jax.device import WEIGHTS_DTYPE, Device
from mixer_jax.forward import forward
from mixer_jax.model import build_model, to_canonical
from mixer_jax.train import cross_entropy


def activations_of_weights(
    config: ModelConfig, weights: Mapping[str, np.ndarray], images: np.ndarray, precision: str, device: Device
) -> dict[str, np.ndarray]:
    """Every activation of one forward pass, in network order and in the weights' dtype; "head" is the logits."""
    graphdef, state = nnx.split(build_model(config, weights, device, WEIGHTS_DTYPE[precision]))

    @jax.jit
    def run(state: nnx.State, images: Array) -> dict[str, Array]:
        recorded: dict[str, Array] = {}
        forward(nnx.merge(graphdef, state), images, None, precision, recorded.__setitem__)
        return {name: value.astype(WEIGHTS_DTYPE[precision]) for name, value in recorded.items()}

    recorded = run(state, images)  # a dict comes back from jit sorted by its keys
    return {name: np.asarray(recorded[name]) for name in activation_names(config)}


def gradients_of_weights(
    config: ModelConfig,
    weights: Mapping[str, np.ndarray],
    images: np.ndarray,
    labels: np.ndarray,
    precision: str,
    device: Device,
) -> dict[str, np.ndarray]:
    """Canonical gradients of the mean cross-entropy of uint8 images (B, H, W, 3), nothing dropped."""
    graphdef, params = nnx.split(build_model(config, weights, device, WEIGHTS_DTYPE[precision]))

    @jax.jit
    @jax.grad
    def run(params: nnx.State, images: Array, labels: Array) -> Array:
        return cross_entropy(forward(nnx.merge(graphdef, params), images, None, precision), labels, 0.0)

    return to_canonical(config, run(params, images, labels))
