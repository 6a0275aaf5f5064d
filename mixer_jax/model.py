"""MLP-Mixer in Flax NNX (Tolstikhin et al. 2021, arXiv 2105.01601), and the tutorial's variant of it.

Twin of mixer_torch/model.py. Shapes: B images, S patches, C channels.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from mixer_common.config.model import ModelConfig, weight_shapes
from mixer_common.weights.canonical import check_weights, from_flax, to_flax
from mixer_common.weights.in_memory import check_pixels
from mixer_jax.device import Device
from mixer_jax.hooks import Hooks, Recorder
from mixer_jax.xla import affine, linear, opaque_one


class Stem(nnx.Module):
    """Patch embedding: a convolution whose kernel is its stride, (B, H, W, 3) -> (B, S, C)."""

    def __init__(self, config: ModelConfig):
        self.kernel = nnx.Param(jnp.zeros((config.patch_size, config.patch_size, 3, config.hidden_dim)))
        self.bias = nnx.Param(jnp.zeros(config.hidden_dim))

    def __call__(self, pixels: Array) -> Array:
        # Patches do not overlap, so the convolution is one matmul over the flattened patches.
        B, H, W, _ = pixels.shape
        P, C = self.kernel.shape[0], self.kernel.shape[-1]
        patches = pixels.reshape(B, H // P, P, W // P, P, 3).transpose(0, 1, 3, 2, 4, 5)
        rows = affine(patches.reshape(-1, P * P * 3), self.kernel[...].reshape(-1, C), self.bias[...])  # (B S, C)
        return rows.reshape(B, -1, C)


class Linear(nnx.Module):
    """x · kernel + bias over the last axis; kernel is (in, out)."""

    def __init__(self, size: int, out: int):
        self.kernel = nnx.Param(jnp.zeros((size, out)))
        self.bias = nnx.Param(jnp.zeros(out))

    def __call__(self, x: Array) -> Array:
        return linear(x, self.kernel[...], self.bias[...])


class Mlp(nnx.Module):
    """Linear, GELU, Linear over the channels of each token, or over the tokens of each channel (`over_tokens`)."""

    def __init__(self, size: int, hidden: int, gelu: str, over_tokens: bool):
        self.fc1 = Linear(size, hidden)
        self.fc2 = Linear(hidden, size)
        self.gelu, self.over_tokens = gelu, over_tokens

    def __call__(self, x: Array, hooks: Hooks) -> Array:
        hidden = self.fc1(self._swap(x))  # (B, S, hidden), or over tokens (B, C, hidden)
        hidden = hooks.record("mixing.fc1", hidden, self.over_tokens)
        hidden = gelu(hidden, self.gelu)
        hidden = hooks.record("mixing.gelu", hidden, self.over_tokens)
        return hooks.record("mixing.fc2", self._swap(self.fc2(hidden)))  # (B, S, C)

    def _swap(self, x: Array) -> Array:
        # Once on the way in and once on the way out, as the paper's code does. Where the middle axis is contracted
        # instead, XLA on the CPU transposes for every product, and the whole takes more than twice as long.
        return x.swapaxes(1, 2) if self.over_tokens else x


class LayerNorm(nnx.Module):
    """LayerNorm over the channels, or over the patches (`over_tokens`, the tutorial's).

    The variance is the mean of the squared deviations, which needs no cancellation; statistics in float32
    at least.
    """

    def __init__(self, size: int, epsilon: float, over_tokens: bool = False):
        self.scale = nnx.Param(jnp.ones(size))
        self.bias = nnx.Param(jnp.zeros(size))
        self.epsilon, self.over_tokens = epsilon, over_tokens

    def __call__(self, x: Array, hooks: Hooks) -> Array:
        axis, column = (1, (slice(None), None)) if self.over_tokens else (-1, ...)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        centred = wide - wide.mean(axis, keepdims=True)
        inverse = jax.lax.rsqrt(jnp.square(centred).mean(axis, keepdims=True) + self.epsilon)
        return hooks.record("norm", (centred * inverse * self.scale[column] + self.bias[column]).astype(x.dtype))


class Block(nnx.Module):
    """x + token_mixing(token_norm(x)), then x + channel_mixing(channel_norm(x)); (B, S, C) -> (B, S, C)."""

    def __init__(self, config: ModelConfig):
        C, S, epsilon = config.hidden_dim, config.num_patches, config.layer_norm_epsilon
        tutorial = config.block == "tutorial"
        self.token_norm = LayerNorm(S if tutorial else C, epsilon, over_tokens=tutorial)
        self.token_mixing = Mlp(C if tutorial else S, config.tokens_mlp_dim, config.gelu, over_tokens=not tutorial)
        self.channel_norm = LayerNorm(C, epsilon)
        self.channel_mixing = Mlp(C, config.channels_mlp_dim, config.gelu, over_tokens=False)

    def __call__(self, x: Array, hooks: Hooks) -> Array:
        token, channel = hooks.branches(opaque_one(self.token_norm.scale[...]))
        x = token.add(x, self.token_mixing(self.token_norm(x, token), token))  # (B, S, C)
        x = channel.add(x, self.channel_mixing(self.channel_norm(x, channel), channel))  # (B, S, C)
        return x


class Mixer(nnx.Module):
    """The whole model. Its weights start as zeros; `build_model` loads the common start instead."""

    def __init__(self, config: ModelConfig):
        self.config = config
        self.stem = Stem(config)
        self.blocks = nnx.List([Block(config) for _ in range(config.num_blocks)])
        self.norm = LayerNorm(config.hidden_dim, config.layer_norm_epsilon)
        self.head = Linear(config.hidden_dim, config.num_classes)

    def __call__(self, pixels: Array, drop_path: Array | None = None, recorder: Recorder | None = None) -> Array:
        """Logits (B, num_classes) of pixels (B, H, W, 3) in [-1, 1], in the dtype of both.

        drop_path: (num_blocks, 2, B), what every branch is multiplied with (see
        mixer_common.plan.drop_paths.drop_path_scales); None drops nothing, as in evaluation.
        recorder: called with the name and value of every activation in network order
        (mixer_common.config.model.activation_names); the model goes on with what it returns.

        Raises UserError for whole numbers, and for images of another size than the config's.
        """
        check_pixels(pixels.shape, jnp.issubdtype(pixels.dtype, jnp.floating), self.config)
        hooks = Hooks(recorder, drop_path)
        x = hooks.record("stem", self.stem(pixels))  # (B, S, C)
        for i, block in enumerate(self.blocks):
            x = block(x, hooks.block(i))  # (B, S, C)
        x = self.norm(x, hooks)  # (B, S, C)
        x = hooks.record("pool", x.mean(axis=1))  # (B, C)
        return hooks.record("head", self.head(x))  # (B, num_classes)


def build_model(
    config: ModelConfig,
    weights: Mapping[str, np.ndarray],
    device: Device | None = None,
    dtype: np.dtype | None = None,
) -> Mixer:
    """A Mixer that holds the canonical weights, in `dtype` (None: theirs), on the device (None: JAX's default).

    Raises UserError where the weights do not fit.
    """
    check_weights(weights, weight_shapes(config), "the set of weights")
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Mixer(config)))
    return nnx.merge(graphdef, from_canonical(state, weights, device, dtype))


def from_canonical(
    like: nnx.State, arrays: Mapping[str, np.ndarray], device: Device | None = None, dtype: np.dtype | None = None
) -> nnx.State:
    """Canonical arrays of weights or moments as a state with the structure of `like`."""
    flax = to_flax(arrays)
    return nnx.from_flat_state(
        [
            (path, variable.replace(jax.device_put(np.array(flax[_dotted(path)], dtype, order="C"), device)))
            for path, variable in nnx.to_flat_state(like)
        ]
    )


def to_canonical(config: ModelConfig, state: nnx.State) -> dict[str, np.ndarray]:
    """Canonical arrays of weights, gradients or moments held in the model's state; copies."""
    return from_flax(
        {_dotted(path): np.array(variable[...]) for path, variable in nnx.to_flat_state(state)}, weight_shapes(config)
    )


def gelu(x: Array, form: str) -> Array:
    """GELU (Hendrycks & Gimpel 2016, arXiv 1606.08415): exact, x · Φ(x), or its tanh approximation."""
    if form == "tanh":
        return 0.5 * x * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


def _dotted(path: tuple) -> str:
    return ".".join(map(str, path))
