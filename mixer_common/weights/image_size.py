"""A Mixer's weights for another image size: token mixing for another number of patches."""

from dataclasses import replace

import numpy as np

from mixer_common.config.model import ModelConfig, layers, weight_shapes
from mixer_common.plan.resize import resize_matrix
from mixer_common.weights.canonical import ModelWeights


def change_image_size(weights: ModelWeights, image_size: int) -> tuple[ModelWeights, str]:
    """The weights for square images of `image_size` pixels, and a description of the change for people.

    Patches keep their size, so that their grid grows or shrinks; only token mixing depends on it.

    - The same grid: nothing changes.
    - A multiple of the old one: token mixing becomes block-diagonal, one copy for each part of the image as
      large as the old one, so that each part is mixed as before and `tokens_mlp_dim` grows with their number
      (Tolstikhin et al. 2021, arXiv 2105.01601, appendix on fine-tuning at higher resolution).
    - Any other, and always in the tutorial's block, which mixes no tokens but scales them in its
      normalisation: what belongs to a patch is interpolated over the grid. With R the matrix that resizes
      the new grid to the old one, and U the one from old to new: fc1 ← fc1 · R, fc2 ← U · fc2, and U on
      fc2's bias.

    Raises UserError where the patch does not divide the image.
    """
    old = weights.config
    new = replace(old, image_size=image_size)
    (rows, columns), (new_rows, new_columns) = old.grid, new.grid
    grids = f"{rows}x{columns} to {new_rows}x{new_columns} patches"
    if new.grid == old.grid:
        return replace(weights, config=new), f"the same {rows}x{columns} patches: nothing changes"
    if old.block == "mixer" and new_rows % rows == new_columns % columns == 0:
        parts = (new_rows // rows) * (new_columns // columns)
        new = replace(new, tokens_mlp_dim=parts * old.tokens_mlp_dim)
        arrays = _block_diagonal(weights, parts, _sub_grids(old.grid, new.grid))
        description = (
            f"from {grids}: block-diagonal, each of the {parts} parts of the image mixed as before, "
            f"tokens_mlp_dim {old.tokens_mlp_dim} to {new.tokens_mlp_dim}"
        )
    else:
        arrays = _interpolated(weights, _resize(new.grid, old.grid), _resize(old.grid, new.grid))
        description = f"from {grids}: interpolated over the grid"
    return replace(weights, config=new, arrays=arrays), description


def _block_diagonal(weights: ModelWeights, parts: int, order: np.ndarray) -> dict[str, np.ndarray]:
    """order: the patches of the new grid, part by part."""
    arrays = dict(weights.arrays)
    back, patch_axes = np.argsort(order), _patch_axes(weights.config)
    for layer in layers(weights.config):
        if not (layer.over_patches and layer.kind == "linear"):
            continue
        for name in layer.weight_shapes:
            array = arrays[name]
            array = np.kron(np.eye(parts, dtype=array.dtype), array) if array.ndim == 2 else np.tile(array, parts)
            for axis in patch_axes[name]:
                array = np.take(array, back, axis)
            arrays[name] = array
    return arrays


def _sub_grids(old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
    """Indices of the new grid's patches: one sub-grid of the old size after the other."""
    patches = np.arange(new[0] * new[1]).reshape(new[0] // old[0], old[0], new[1] // old[1], old[1])
    return patches.transpose(0, 2, 1, 3).reshape(-1)


def _interpolated(weights: ModelWeights, down: np.ndarray, up: np.ndarray) -> dict[str, np.ndarray]:
    """down: (old patches, new patches); up: (new patches, old patches)."""
    arrays = dict(weights.arrays)
    for name, axes in _patch_axes(weights.config).items():
        array = arrays[name]
        if 0 in axes:  # a value for each patch that comes out
            arrays[name] = (up @ array).astype(array.dtype)
        if 1 in axes:  # a factor for each patch that goes in
            arrays[name] = (array @ down).astype(array.dtype)
    return arrays


def _patch_axes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The axes of each array that are as long as there are patches: those that one more row of patches lengthens."""
    height, width = config.image_size
    taller = weight_shapes(replace(config, image_size=(height + config.patch_size, width)))
    return {
        name: tuple(axis for axis, size in enumerate(shape) if size != taller[name][axis])
        for name, shape in weight_shapes(config).items()
    }


def _resize(source: tuple[int, int], target: tuple[int, int]) -> np.ndarray:
    """The matrix from the patches of one grid, row by row, to those of another: float64 (target, source)."""
    return np.kron(resize_matrix(source[0], target[0]), resize_matrix(source[1], target[1]))
