"""Weights carried to another image size: the identity, the paper's block-diagonal form, interpolation."""

from dataclasses import replace

import jax
import numpy as np
import pytest
import torch
from helpers import TINY, random_weights

import mixer_jax.activations
import mixer_torch.activations
from mixer_common.comparison.bounds import forward_bounds
from mixer_common.comparison.differences import relative_error
from mixer_common.config.model import ModelConfig, weight_shapes
from mixer_common.errors import UserError
from mixer_common.weights.canonical import ModelWeights, check_weights
from mixer_common.weights.image_size import change_image_size


def weights_of(config: ModelConfig) -> ModelWeights:
    return ModelWeights(config, random_weights(config), "canonical")


def activations(weights: ModelWeights, images: np.ndarray) -> list[dict[str, np.ndarray]]:
    """In JAX and in PyTorch, float64."""
    jax.config.update("jax_enable_x64", True)
    given = weights.config, weights.arrays, images, "float64"
    return [
        mixer_jax.activations.activations_of_weights(*given, jax.devices()[0]),
        mixer_torch.activations.activations_of_weights(*given, torch.device("cpu")),
    ]


def pictures(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def waves(size: int, slope: float) -> np.ndarray:
    """Eight pictures of waves, the same whatever the size; `slope` 0 makes each of one colour."""
    y, x = np.meshgrid(*[(np.arange(size) + 0.5) / size] * 2, indexing="ij")
    random = np.random.default_rng(0)
    along_y, along_x = random.uniform(-slope, slope, (2, 8, 1, 1, 3))
    phases = random.uniform(0, 2 * np.pi, (8, 1, 1, 3))
    return np.round(127.5 + 100 * np.cos(along_y * y[..., None] + along_x * x[..., None] + phases)).astype(np.uint8)


@pytest.mark.parametrize("block", ["mixer", "tutorial"])
def test_the_same_size_is_the_identity(block):
    weights = weights_of(replace(TINY, block=block))
    same, description = change_image_size(weights, 32)
    assert same == weights
    assert "the same 8x8 patches" in description


@pytest.mark.parametrize(
    ("config", "size"),
    [(TINY, 64), (TINY, 96), (replace(TINY, image_size=(16, 8)), 32), (replace(TINY, image_size=4), 16)],
)
def test_a_multiple_mixes_every_part_of_the_image_as_before(config, size):
    """Each part of the larger image has the activations that it has as an image by itself."""
    weights = weights_of(config)
    larger, description = change_image_size(weights, size)
    check_weights(larger.arrays, weight_shapes(larger.config), "the larger model")
    height, width = config.image_size
    parts = (size // height) * (size // width)
    assert "block-diagonal" in description
    assert larger.config.tokens_mlp_dim == parts * config.tokens_mlp_dim

    images = pictures(2, size, size)
    tiles = images.reshape(2, size // height, height, size // width, width, 3).swapaxes(2, 3)
    tiles = np.ascontiguousarray(tiles.reshape(-1, height, width, 3))
    bound = forward_bounds(larger.config, "float64")["head"]
    for whole, single in zip(activations(larger, images), activations(weights, tiles), strict=True):
        for name in (f"blocks.{config.num_blocks - 1}.channel_mixing", "norm"):
            rows, columns = config.grid
            expected = single[name].reshape(2, size // height, size // width, rows, columns, -1).swapaxes(2, 3)
            assert relative_error(whole[name], expected.reshape(whole[name].shape)) <= bound
        assert relative_error(whole["pool"], single["pool"].reshape(2, parts, -1).mean(axis=1)) <= bound
        assert relative_error(whole["head"], single["head"].reshape(2, parts, -1).mean(axis=1)) <= bound


def smooth_over_the_grid(weights: ModelWeights) -> ModelWeights:
    """What token mixing holds for each patch changes slowly from patch to patch."""
    half_wave = np.cos(np.pi * (np.arange(8) + 0.5) / 8)
    up = np.kron(*[np.stack([np.ones(8), half_wave], axis=1)] * 2)  # (64, 4)
    arrays = dict(weights.arrays)
    for name, array in arrays.items():
        if "token_mixing.fc1.weight" in name:
            arrays[name] = array[:, :4] @ up.T
        elif "token_mixing.fc2" in name:
            arrays[name] = up @ array[:4]
    return replace(weights, arrays=arrays)


@pytest.mark.parametrize("size", [40, 48, 24, 16])
def test_interpolation_keeps_the_logits_of_a_smooth_image(size):
    weights = smooth_over_the_grid(weights_of(TINY))
    other, description = change_image_size(weights, size)
    assert f"8x8 to {size // 4}x{size // 4} patches: interpolated" in description
    assert other.config.tokens_mlp_dim == TINY.tokens_mlp_dim

    def errors(slope: float) -> list[float]:
        return [
            relative_error(after["head"], before["head"])
            for before, after in zip(
                activations(weights, waves(32, slope)), activations(other, waves(size, slope)), strict=True
            )
        ]

    gentle, steep = errors(0.5), errors(30)
    print(f"{size} px: gentle waves {max(gentle):.1e}, steep ones {min(steep):.1e}")
    assert max(gentle) < 0.1
    assert 8 * max(gentle) < min(steep)


def test_a_tutorial_model_is_interpolated_even_to_a_multiple():
    weights = weights_of(replace(TINY, block="tutorial"))
    larger, description = change_image_size(weights, 64)
    assert "interpolated" in description
    check_weights(larger.arrays, weight_shapes(larger.config), "the larger model")
    for name, array in weights.arrays.items():
        if "token_norm" not in name:
            assert array is larger.arrays[name]
    # Bilinear: each old patch's value lies between its neighbours', and the mean of a symmetric grid stays.
    norm = weights.arrays["blocks.0.token_norm.weight"]
    assert norm.min() <= larger.arrays["blocks.0.token_norm.weight"].min()
    assert norm.max() >= larger.arrays["blocks.0.token_norm.weight"].max()


def test_a_size_that_the_patch_does_not_divide():
    with pytest.raises(UserError, match="image_size 30 is not a multiple of patch_size 4"):
        change_image_size(weights_of(TINY), 30)
