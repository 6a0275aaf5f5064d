"""A Mixer's weights at another image size: token mixing, carried to another number of patches."""

from dataclasses import replace

import numpy as np

from mixer_common.plan.resize import resize_matrix
from mixer_common.weights.canonical import ModelWeights


def change_image_size(weights: ModelWeights, image_size: int) -> tuple[ModelWeights, str]:
    """The weights for square images of `image_size` pixels, and a sentence that says how they came about.

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
        how = (
            f"from {grids}: block-diagonal, each of the {parts} parts of the image mixed as before, "
            f"tokens_mlp_dim {old.tokens_mlp_dim} to {new.tokens_mlp_dim}"
        )
    else:
        arrays = _interpolated(weights, _resize(new.grid, old.grid), _resize(old.grid, new.grid))
        how = f"from {grids}: interpolated over the grid"
    return replace(weights, config=new, arrays=arrays), how


def _block_diagonal(weights: ModelWeights, parts: int, order: np.ndarray) -> dict[str, np.ndarray]:
    """order: the patches of the new grid, part by part."""
    arrays = dict(weights.arrays)
    back = np.argsort(order)
    for i in range(weights.config.num_blocks):
        mlp = f"blocks.{i}.token_mixing"
        for name in ("fc1", "fc2"):
            weight, bias = f"{mlp}.{name}.weight", f"{mlp}.{name}.bias"
            arrays[weight] = np.kron(np.eye(parts, dtype=arrays[weight].dtype), arrays[weight])
            arrays[bias] = np.tile(arrays[bias], parts)
        arrays[f"{mlp}.fc1.weight"] = np.ascontiguousarray(arrays[f"{mlp}.fc1.weight"][:, back])
        arrays[f"{mlp}.fc2.weight"] = arrays[f"{mlp}.fc2.weight"][back]
        arrays[f"{mlp}.fc2.bias"] = arrays[f"{mlp}.fc2.bias"][back]
    return arrays


def _sub_grids(old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
    """Indices of the new grid's patches: one sub-grid of the old size after the other."""
    patches = np.arange(new[0] * new[1]).reshape(new[0] // old[0], old[0], new[1] // old[1], old[1])
    return patches.transpose(0, 2, 1, 3).reshape(-1)


def _interpolated(weights: ModelWeights, down: np.ndarray, up: np.ndarray) -> dict[str, np.ndarray]:
    """down: (old patches, new patches); up: (new patches, old patches)."""
    arrays = dict(weights.arrays)

    def change(name: str, product: np.ndarray) -> None:
        arrays[name] = product.astype(arrays[name].dtype)

    for i in range(weights.config.num_blocks):
        norm, mlp = f"blocks.{i}.token_norm", f"blocks.{i}.token_mixing"
        if weights.config.block == "tutorial":
            change(f"{norm}.weight", up @ arrays[f"{norm}.weight"])
            change(f"{norm}.bias", up @ arrays[f"{norm}.bias"])
        else:
            change(f"{mlp}.fc1.weight", arrays[f"{mlp}.fc1.weight"] @ down)
            change(f"{mlp}.fc2.weight", up @ arrays[f"{mlp}.fc2.weight"])
            change(f"{mlp}.fc2.bias", up @ arrays[f"{mlp}.fc2.bias"])
    return arrays


def _resize(source: tuple[int, int], target: tuple[int, int]) -> np.ndarray:
    """The matrix from the patches of one grid, row by row, to those of another: float64 (target, source)."""
    return np.kron(resize_matrix(source[0], target[0]), resize_matrix(source[1], target[1]))
