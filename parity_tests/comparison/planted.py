"""Mistakes that tests plant in this project's own PyTorch model: what is done to it, and what must be found."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch.nn.functional as F
from helpers import random_weights

import mixer_torch.activations
import mixer_torch.model
from mixer_common.config.model import ModelConfig

CONFIG = ModelConfig(
    image_size=(16, 24),
    patch_size=4,
    hidden_dim=20,
    num_blocks=3,
    tokens_mlp_dim=14,
    channels_mlp_dim=36,
    num_classes=10,
    layer_norm_epsilon=1e-6,
)
SQUARE = replace(CONFIG, tokens_mlp_dim=CONFIG.num_patches)  # token mixing's matrices can be transposed unnoticed

# Each fault takes the model and a block, and returns the layer that must be named and a part of the cause.


def tanh_gelu(model, i):
    model.blocks[i].channel_mixing.gelu = "tanh"
    return f"blocks.{i}.channel_mixing.gelu", "the tanh form of GELU instead of the exact form"


def other_epsilon(model, i):
    model.blocks[i].token_norm.eps = 1e-5
    return f"blocks.{i}.token_norm", "LayerNorm epsilon 1e-05 instead of 1e-06"


def transposed_matrix(model, i):
    weight = model.blocks[i].token_mixing.fc1.weight
    weight.data = weight.data.T.contiguous().clone()
    return f"blocks.{i}.token_mixing.fc1", "its weight transposed"


def reshaped_matrix(model, i):
    weight = model.blocks[i].token_mixing.fc2.weight
    weight.data = weight.data.T.reshape(weight.shape).clone()
    return f"blocks.{i}.token_mixing.fc2", "its weight reshaped where it should be transposed"


def swapped_norms(model, i):
    block = model.blocks[i]
    block.token_norm, block.channel_norm = block.channel_norm, block.token_norm
    return f"blocks.{i}.token_norm", f"the weights of blocks.{i}.channel_norm, as if the two were swapped"


def column_major_grid(model, i):
    embed = model.stem.forward
    rows, columns = model.config.grid
    model.stem.forward = lambda pixels: embed(pixels).unflatten(1, (rows, columns)).transpose(1, 2).flatten(1, 2)
    return "stem", "the grid of patches in column-major order"


def dropped_bias(model, i):
    model.blocks[i].channel_mixing.fc2.bias.data.zero_()
    return f"blocks.{i}.channel_mixing.fc2", "no bias"


def bfloat16_layer(model, i):
    fc = model.blocks[i].channel_mixing.fc1
    fc.forward = lambda x: F.linear(x.bfloat16(), fc.weight.bfloat16(), fc.bias.bfloat16()).to(x.dtype)
    return f"blocks.{i}.channel_mixing.fc1", "rounding to bfloat16"


PROGRAM_FAULTS = (
    tanh_gelu,
    other_epsilon,
    transposed_matrix,
    reshaped_matrix,
    swapped_norms,
    column_major_grid,
    dropped_bias,
    bfloat16_layer,
)


def planted(monkeypatch: pytest.MonkeyPatch, *faults: tuple[Callable, int]) -> list[tuple[str, str]]:
    """Every PyTorch model made from now on has the faults, each in its block; layers and causes that must be found."""
    create = mixer_torch.model.build_model
    model = create(SQUARE, random_weights(SQUARE))
    expected = [fault(model, i) for fault, i in faults]

    def faulty(*arguments):
        model = create(*arguments)
        for fault, i in faults:
            fault(model, i)
        return model

    monkeypatch.setattr(mixer_torch.activations, "build_model", faulty)
    return expected
