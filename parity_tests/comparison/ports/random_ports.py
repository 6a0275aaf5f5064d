"""Correct ports with random sizes, names, layouts and prefixes, in PyTorch and in Flax Linen."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from mixer_common.config.model import ModelConfig

# Of stem, blocks, the six modules of a block, final norm, head.
VOCABULARIES = (
    ("embed", "layers", "tok_ln", "tok_up", "tok_down", "chan_ln", "chan_up", "chan_down", "final_ln", "classifier"),
    ("conv1", "stage", "n1", "m1a", "m1b", "n2", "m2a", "m2b", "n_out", "out"),
    ("patch_proj", "trunk", "pre_s", "spatial_in", "spatial_out", "pre_c", "wide", "narrow", "post", "to_logits"),
    ("q", "z", "k", "r", "s", "t", "u", "v", "w", "y"),
)
PREFIXES = ("", "model", "net", "backbone")


def random_config(random: np.random.Generator) -> ModelConfig:
    patch, rows, columns = random.integers(2, 6), random.integers(2, 5), random.integers(2, 6)
    return ModelConfig(
        image_size=(int(rows * patch), int(columns * patch)),
        patch_size=int(patch),
        num_classes=int(random.integers(2, 12)),
        hidden_dim=int(random.integers(4, 40)),
        num_blocks=int(random.integers(1, 5)),
        tokens_mlp_dim=int(random.integers(2, 40)),
        channels_mlp_dim=int(random.integers(2, 60)),
        gelu=("exact", "tanh")[random.integers(2)],
        layer_norm_epsilon=(1e-5, 1e-6)[random.integers(2)],
    )


class TorchStem(nn.Module):
    """A linear layer over the flattened patches, rows and columns and colours in one of two orders."""

    def __init__(self, config: ModelConfig, colours_last: bool):
        super().__init__()
        self.patch, self.order = config.patch_size, (0, 2, 3, 4, 5, 1) if colours_last else (0, 2, 3, 1, 4, 5)
        self.linear = nn.Linear(3 * self.patch**2, config.hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        P = self.patch
        x = x.unfold(2, P, P).unfold(3, P, P).permute(self.order)  # from (B, 3, h, w, P, P)
        return self.linear(x.flatten(3).flatten(1, 2))


class TorchBlock(nn.Module):
    def __init__(self, config: ModelConfig, names: tuple[str, ...], conv: bool, functional: bool):
        super().__init__()
        S, C, tokens, channels = (
            config.num_patches,
            config.hidden_dim,
            config.tokens_mlp_dim,
            config.channels_mlp_dim,
        )
        linear = partial(nn.Conv1d, kernel_size=1) if conv else nn.Linear
        approximate = "tanh" if config.gelu == "tanh" else "none"
        modules = (
            nn.LayerNorm(C, config.layer_norm_epsilon),
            linear(S, tokens),
            linear(tokens, S),
            nn.LayerNorm(C, config.layer_norm_epsilon),
            nn.Linear(C, channels),
            nn.Linear(channels, C),
        )
        self.names, self.conv = names, conv
        for name, module in zip(names, modules, strict=True):
            self.add_module(name, module)
        self.act = partial(F.gelu, approximate=approximate) if functional else nn.GELU(approximate)

    def forward(self, x: Tensor) -> Tensor:
        norm1, up, down, norm2, wide, narrow = (getattr(self, name) for name in self.names)
        y = norm1(x)
        x = x + (down(self.act(up(y))) if self.conv else down(self.act(up(y.transpose(1, 2)))).transpose(1, 2))
        return x + narrow(self.act(wide(norm2(x))))


class TorchPort(nn.Module):
    def __init__(self, config: ModelConfig, random: np.random.Generator):
        super().__init__()
        stem, blocks, *inner, norm, head = VOCABULARIES[random.integers(len(VOCABULARIES))]
        conv, functional, listed, kind = random.integers(2), random.integers(2), random.integers(2), random.integers(3)
        C, P = config.hidden_dim, config.patch_size
        self.kind = kind
        self.stem_name, self.norm_name, self.head_name = stem, norm, head
        self.add_module(stem, nn.Conv2d(3, C, P, P) if kind == 0 else TorchStem(config, colours_last=kind == 1))
        made = [TorchBlock(config, tuple(inner), bool(conv), bool(functional)) for _ in range(config.num_blocks)]
        self.block_names = [f"{blocks}_{i}" for i in range(config.num_blocks)]
        if listed:
            self.block_names = [blocks]
            self.add_module(blocks, nn.Sequential(*made))
        else:
            for name, block in zip(self.block_names, made, strict=True):
                self.add_module(name, block)
        self.add_module(norm, nn.LayerNorm(C, config.layer_norm_epsilon))
        self.add_module(head, nn.Linear(C, config.num_classes))
        self.pool: Callable[[Tensor], Tensor] = (
            (lambda x: x.mean(1)) if random.integers(2) else (lambda x: F.adaptive_avg_pool1d(x.mT, 1).flatten(1))
        )

    def forward(self, x: Tensor) -> Tensor:
        x = getattr(self, self.stem_name)(x)
        if self.kind == 0:
            x = x.flatten(2).mT
        for name in self.block_names:
            x = getattr(self, name)(x)
        return getattr(self, self.head_name)(self.pool(getattr(self, self.norm_name)(x)))


class Wrapped(nn.Module):
    def __init__(self, prefix: str, module: nn.Module):
        super().__init__()
        self.prefix = prefix
        self.add_module(prefix, module)

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, self.prefix)(x)


def build_torch(config: ModelConfig, random: np.random.Generator) -> nn.Module:
    model = TorchPort(config, random)
    prefix = PREFIXES[random.integers(len(PREFIXES))]
    return Wrapped(prefix, model) if prefix else model


class LinenBlock(linen.Module):
    config: ModelConfig
    names: tuple[str, ...]

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config, (norm1, up, down, norm2, wide, narrow) = self.config, self.names
        gelu = partial(linen.gelu, approximate=config.gelu == "tanh")
        y = linen.LayerNorm(config.layer_norm_epsilon, name=norm1)(x).swapaxes(1, 2)
        y = linen.Dense(config.tokens_mlp_dim, name=up)(y)
        x = x + linen.Dense(config.num_patches, name=down)(gelu(y)).swapaxes(1, 2)
        y = linen.LayerNorm(config.layer_norm_epsilon, name=norm2)(x)
        return x + linen.Dense(config.hidden_dim, name=narrow)(gelu(linen.Dense(config.channels_mlp_dim, name=wide)(y)))


class LinenPort(linen.Module):
    config: ModelConfig
    vocabulary: int
    grid: bool  # the stem is a convolution over the images; else over patches that were cut before

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config = self.config
        stem, blocks, *inner, norm, head = VOCABULARIES[self.vocabulary]
        P, C = config.patch_size, config.hidden_dim
        if self.grid:
            x = linen.Conv(C, (P, P), (P, P), padding="VALID", name=stem)(x)
        else:
            B, H, W, _ = x.shape
            x = x.reshape(B, H // P, P, W // P, P, 3).swapaxes(2, 3).reshape(B, -1, P * P * 3)
            x = linen.Dense(C, name=stem)(x)
        x = x.reshape(len(x), -1, C)
        for i in range(config.num_blocks):
            x = LinenBlock(config, tuple(inner), name=f"{blocks}_{i}")(x)
        x = linen.LayerNorm(config.layer_norm_epsilon, name=norm)(x)
        return linen.Dense(config.num_classes, name=head)(x.mean(1))


def build_linen(config: ModelConfig, random: np.random.Generator) -> tuple[linen.Module, Any]:
    model = LinenPort(config, int(random.integers(len(VOCABULARIES))), bool(random.integers(2)))
    return model, model.init(jax.random.key(0), jnp.zeros((1, *config.image_size, 3)))


BUILDERS = {"torch": build_torch, "jax": build_linen}
