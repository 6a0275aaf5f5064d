"""The authors' model in Flax Linen, written anew: its names are those that Flax gives in the order of the calls."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixer_common.config.model import ModelConfig


class MlpBlock(nn.Module):
    mlp_dim: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = nn.gelu(nn.Dense(self.mlp_dim)(x))  # the approximation by tanh is Flax's default
        return nn.Dense(x.shape[-1])(hidden)


class MixerBlock(nn.Module):
    tokens_mlp_dim: int
    channels_mlp_dim: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # (B, S, C)
        y = nn.LayerNorm()(x).swapaxes(1, 2)
        x = x + MlpBlock(self.tokens_mlp_dim, name="token_mixing")(y).swapaxes(1, 2)
        return x + MlpBlock(self.channels_mlp_dim, name="channel_mixing")(nn.LayerNorm()(x))


class MlpMixer(nn.Module):
    config: ModelConfig

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:  # (B, H, W, 3)
        config, patch = self.config, (self.config.patch_size,) * 2
        x = nn.Conv(config.hidden_dim, patch, strides=patch, name="stem")(pixels)
        x = x.reshape(len(x), -1, config.hidden_dim)
        for _ in range(config.num_blocks):
            x = MixerBlock(config.tokens_mlp_dim, config.channels_mlp_dim)(x)
        x = nn.LayerNorm(name="pre_head_layer_norm")(x).mean(axis=1)
        return nn.Dense(config.num_classes, name="head")(x)


def first_parameters(config: ModelConfig, dtype: Any = jnp.float32) -> Any:
    """The parameters that Flax draws, of the given dtype."""
    pixels = jnp.zeros((1, *config.image_size, 3), dtype)
    return MlpMixer(config).init(jax.random.key(0), pixels)["params"]
