"""Bilinear resizing as a matrix, so that every framework resizes by the same numbers."""

import numpy as np


def resize_matrix(source: int, target: int) -> np.ndarray:
    """The matrix that resizes a row of `source` pixels to `target` pixels: float64 (target, source).

    Triangle filter with half-pixel centres, widened by source / target when shrinking (antialiasing):
    the convention of Pillow's BILINEAR and of PyTorch's `interpolate(mode="bilinear", antialias=True)`.
    Rows sum to one; equal sizes give the identity. An image x (H, W) resizes to R_h @ x @ R_w.T.
    """
    scale = source / target
    support = max(scale, 1.0)  # half the triangle's width, in source pixels
    centers = (np.arange(target) + 0.5) * scale
    distance = np.abs(np.arange(source) + 0.5 - centers[:, None])
    weights = np.maximum(0.0, 1.0 - distance / support)
    return weights / weights.sum(axis=1, keepdims=True)
