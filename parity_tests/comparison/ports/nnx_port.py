"""A port in Flax NNX with names of its own: a Sequential stem, dropout, GELU as a function.

`build()` returns the module at the sizes of helpers.SMALL.
"""

import jax
import jax.numpy as jnp
from flax import nnx


class FeedForward(nnx.Module):
    """Two linear layers over the last axis."""

    def __init__(self, width: int, hidden: int, rngs: nnx.Rngs):
        self.wide = nnx.Linear(width, hidden, rngs=rngs)
        self.narrow = nnx.Linear(hidden, width, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.narrow(self.dropout(nnx.gelu(self.wide(x), approximate=False)))


class Layer(nnx.Module):
    def __init__(self, patches: int, width: int, tokens_hidden: int, channels_hidden: int, rngs: nnx.Rngs):
        self.tokens_ln = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.tokens_ff = FeedForward(patches, tokens_hidden, rngs)
        self.features_ln = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.features_ff = FeedForward(width, channels_hidden, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jnp.transpose(self.tokens_ln(x), (0, 2, 1))
        x = x + jnp.transpose(self.tokens_ff(y), (0, 2, 1))
        return x + self.features_ff(self.features_ln(x))


class Net(nnx.Module):
    """Takes pixels (B, H, W, 3)."""

    def __init__(
        self,
        patch: int,
        patches: int,
        width: int,
        depth: int,
        tokens_hidden: int,
        channels_hidden: int,
        classes: int,
        rngs: nnx.Rngs,
    ):
        self.embed = nnx.Conv(3, width, (patch, patch), strides=(patch, patch), rngs=rngs)
        self.layers = nnx.List([Layer(patches, width, tokens_hidden, channels_hidden, rngs) for _ in range(depth)])
        self.out_ln = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.classifier = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self.embed(images)
        x = x.reshape(len(x), -1, x.shape[-1])
        for layer in self.layers:
            x = layer(x)
        return self.classifier(self.out_ln(x).mean(axis=1))


def build() -> Net:
    return Net(patch=4, patches=15, width=24, depth=2, tokens_hidden=7, channels_hidden=33, classes=5, rngs=nnx.Rngs(0))
