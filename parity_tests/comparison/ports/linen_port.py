"""A port in Flax Linen with names of its own: blocks in setup, dense layers over swapped axes, a flag `train`.

`build()` returns the module and its variables at the sizes of helpers.SMALL.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class Dense2(nn.Module):
    """Two dense layers over the last axis."""

    hidden: int
    drop: float = 0.1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        width = x.shape[-1]
        x = nn.Dense(self.hidden, name="expand")(x)
        x = nn.gelu(x, approximate=False)
        x = nn.Dropout(self.drop, deterministic=not train)(x)
        return nn.Dense(width, name="reduce")(x)


class Layer(nn.Module):
    tokens_hidden: int
    channels_hidden: int

    def setup(self):
        self.ln_tokens = nn.LayerNorm(epsilon=1e-5)
        self.tokens = Dense2(self.tokens_hidden)
        self.ln_channels = nn.LayerNorm(epsilon=1e-5)
        self.channels = Dense2(self.channels_hidden)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = self.ln_tokens(x).swapaxes(1, 2)
        x = x + self.tokens(y, train).swapaxes(1, 2)
        return x + self.channels(self.ln_channels(x), train)


class Net(nn.Module):
    """Takes pixels (B, H, W, 3)."""

    patch: int = 4
    width: int = 24
    depth: int = 2
    tokens_hidden: int = 7
    channels_hidden: int = 33
    classes: int = 5

    def setup(self):
        self.patches = nn.Conv(self.width, (self.patch, self.patch), (self.patch, self.patch))
        self.layers = [Layer(self.tokens_hidden, self.channels_hidden) for _ in range(self.depth)]
        self.final_ln = nn.LayerNorm(epsilon=1e-5)
        self.logits = nn.Dense(self.classes)

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = self.patches(images)
        x = x.reshape(len(x), -1, self.width)
        for layer in self.layers:
            x = layer(x, train)
        return self.logits(self.final_ln(x).mean(axis=1))


def build() -> tuple[Net, Any]:
    module = Net()
    return module, module.init(jax.random.key(0), jnp.zeros((1, 12, 20, 3)))
