"""What a comparison looks at: every activation and every gradient of a model. Twin of mixer_torch/activations.py."""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.experimental import io_callback

from mixer_common.config.model import ModelConfig, activation_names, layers
from mixer_common.interface import Sink
from mixer_jax.device import WEIGHTS_DTYPE, Device
from mixer_jax.forward import forward
from mixer_jax.model import build_model, to_canonical
from mixer_jax.train import cross_entropy


def activations_of_weights(
    config: ModelConfig,
    weights: Mapping[str, np.ndarray],
    images: np.ndarray,
    precision: str,
    device: Device,
    replacements: Mapping[str, np.ndarray] | None = None,
    sink: Sink | None = None,
) -> dict[str, np.ndarray]:
    """Every activation of one forward pass, in network order and in the weights' dtype; "head" is the logits.

    replacements: activations, by name, with which the model goes on after it has computed its own.
    sink: gets each activation as soon as it is computed; the result is empty then.
    """
    graphdef, state = nnx.split(build_model(config, weights, device, WEIGHTS_DTYPE[precision]))
    errors: list[Exception] = []

    def call_sink(name: str, value: Array) -> None:
        try:
            if sink and not errors:
                sink(name, np.asarray(value))
        except Exception as error:  # JAX would print it and raise an error of its own
            errors.append(error)

    @jax.jit
    def run(state: nnx.State, images: Array, replacements: Mapping[str, Array]) -> dict[str, Array]:
        recorded: dict[str, Array] = {}

        def record(name: str, x: Array) -> Array:
            value = x.astype(WEIGHTS_DTYPE[precision])
            if sink:
                io_callback(partial(call_sink, name), None, value, ordered=True)
            else:
                recorded[name] = value
            return replacements[name].astype(x.dtype) if name in replacements else x

        forward(nnx.merge(graphdef, state), images, None, precision, record)
        return recorded

    recorded = run(state, images, dict(replacements or {}))
    jax.effects_barrier()
    if errors:
        raise errors[0]
    # A dict comes back from jit sorted by its keys.
    return {name: np.asarray(recorded[name]) for name in activation_names(config) if name in recorded}


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


def gradients_of_activations(
    config: ModelConfig,
    weights: Mapping[str, np.ndarray],
    images: np.ndarray,
    labels: np.ndarray,
    precision: str,
    device: Device,
) -> dict[str, np.ndarray]:
    """Gradients of the same loss with respect to every activation, in network order and in the weights' dtype."""
    graphdef, params = nnx.split(build_model(config, weights, device, WEIGHTS_DTYPE[precision]))
    dtype = WEIGHTS_DTYPE[precision]
    # The gradient of a zero that is added to an activation is that of the activation.
    zeros = {layer.name: jnp.zeros((len(images), *layer.activation), dtype) for layer in layers(config)}

    @jax.jit
    @jax.grad
    def run(zeros: dict[str, Array], params: nnx.State, images: Array, labels: Array) -> Array:
        def add(name: str, x: Array) -> Array:
            return x + zeros[name].astype(x.dtype)

        return cross_entropy(forward(nnx.merge(graphdef, params), images, None, precision, add), labels, 0.0)

    gradients = run(zeros, params, images, labels)
    return {name: np.asarray(gradients[name]) for name in activation_names(config)}
