"""Augmentation of a batch on the device, by the numbers of mixer_common.plan.augmentation.

Twin of mixer_torch/augment.py.

Whatever has a threshold or rounds sees whole bytes, on which both frameworks agree exactly; everything after it is
continuous, so that a rounding stays one.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array

from mixer_common.plan.augmentation import GREY


def of_step(draws: dict[str, Array], i: int | Array) -> dict[str, Array]:
    """The numbers of step `i` of an epoch's."""
    return {name: rows[i] for name, rows in draws.items()}


def augment(images: Array, draws: dict[str, Array], dtype: np.dtype) -> Array:
    """Bytes (B, H, W, 3) as real numbers in `dtype` from uint8 ones; draws: one step's."""
    if "corner" in draws:
        images = crop(images, draws["corner"], draws["flip"])
    values = images.astype(dtype)
    if "affine" in draws:
        levels = quantize(images, draws["posterize"], draws["solarize"], draws["equalize"])
        values = warp(recolour(levels, draws["autocontrast"], draws["blend"]), draws["affine"])
    if "cutout" in draws:
        values = jnp.where(inside(draws["cutout"], values)[..., None], jnp.asarray(GREY, dtype), values)
    if "mixing_box" in draws:
        values = mix(values, draws["mixing_box"], draws["mixing_weight"])
    return values


def crop(images: Array, corner: Array, flip: Array) -> Array:
    """The window of each image (B, H, W, 3) that begins at `corner` (B, 2), black where it leaves the image; then
    left to right where `flip` (B,)."""
    B, H, W, _ = images.shape
    columns = jnp.where(flip[:, None], W - 1 - jnp.arange(W), jnp.arange(W)) + corner[:, 1:]
    rows = jnp.arange(H) + corner[:, :1]
    rows, columns = rows[:, :, None], columns[:, None, :]
    seen = (rows >= 0) & (rows < H) & (columns >= 0) & (columns < W)
    window = images[jnp.arange(B)[:, None, None], rows.clip(0, H - 1), columns.clip(0, W - 1)]
    return window * seen[..., None]


def quantize(images: Array, posterize: Array, solarize: Array, equalize: Array) -> Array:
    """uint8 (B, H, W, 3) -> int32: only the bits of `posterize` (B,), inverted from `solarize` (B,) on, and where
    `equalize` (B,) with PIL's equalized histogram of each channel."""
    B, H, W, C = images.shape
    levels = images.reshape(B, -1, C).astype(jnp.int32)
    levels = levels & posterize[:, None, None]
    levels = jnp.where(levels >= solarize[:, None, None], 255 - levels, levels)
    counts = jnp.zeros((B, 256, C), jnp.int32).at[jnp.arange(B)[:, None, None], levels, jnp.arange(C)].add(1)
    below = counts.cumsum(axis=1) - counts
    largest = levels.max(axis=1, keepdims=True)
    step = jnp.take_along_axis(below, largest, axis=1) // 255
    table = ((below + step // 2) // step.clip(1)).clip(0, 255)
    equalized = jnp.take_along_axis(table, levels, axis=1)
    return jnp.where(equalize[:, None, None] & (step > 0), equalized, levels).reshape(B, H, W, C)


def recolour(levels: Array, autocontrast: Array, blend: Array) -> Array:
    """Whole bytes (B, H, W, 3) -> real ones in the dtype of `blend`: every channel stretched to 0 to 255 where
    `autocontrast` (B,), weighed by `blend` (B, 4) against its grey version, that one's mean and its smoothed
    version, all three rounded to whole bytes as PIL.ImageEnhance does."""
    H, W = levels.shape[1:3]
    red, green, blue = jnp.unstack(levels, axis=-1)
    grey = (19595 * red + 38470 * green + 7471 * blue + 2**15 >> 16)[..., None]
    mean = (2 * grey.sum(axis=(1, 2, 3), keepdims=True) + H * W) // (2 * H * W)
    columns = levels[:, :, :-2] + levels[:, :, 1:-1] + levels[:, :, 2:]
    total = columns[:, :-2] + columns[:, 1:-1] + columns[:, 2:] + 4 * levels[:, 1:-1, 1:-1]
    smooth = levels.at[:, 1:-1, 1:-1].set((2 * total + 13) // 26)

    low, high = levels.min(axis=(1, 2), keepdims=True), levels.max(axis=(1, 2), keepdims=True)
    stretched = autocontrast[:, None, None, None] & (low < high)
    gain = jnp.where(stretched, 255 / (high - low).clip(1).astype(blend.dtype), 1)
    values = (levels - jnp.where(stretched, low, 0)).astype(blend.dtype) * gain
    w = blend[:, :, None, None, None]
    return (w[:, 0] * values + w[:, 1] * grey + w[:, 2] * mean + w[:, 3] * smooth).clip(0, 255)


def warp(values: Array, affine: Array) -> Array:
    """Images (B, H, W, 3) sampled bilinearly where `affine` (B, 2, 3) takes row, column and 1; black outside."""
    B, H, W, C = values.shape
    a = affine[:, :, :, None, None]
    y, x = jnp.arange(H, dtype=values.dtype)[:, None], jnp.arange(W, dtype=values.dtype)
    # Beyond the black frame of one pixel everything is black; a border of the frame is one of its cells.
    row = (a[:, 0, 0] * y + a[:, 0, 1] * x + a[:, 0, 2]).clip(-1, H)
    column = (a[:, 1, 0] * y + a[:, 1, 1] * x + a[:, 1, 2]).clip(-1, W)
    top, left = jnp.floor(row).clip(-1, H - 1), jnp.floor(column).clip(-1, W - 1)
    v, u = (row - top)[..., None], (column - left)[..., None]
    framed = jnp.pad(values, [(0, 0), (1, 1), (1, 1), (0, 0)])
    # Each pixel with its right, lower and lower right neighbours, so that one row of 4 C numbers is fetched.
    cells = jnp.concatenate([framed[:, :-1, :-1], framed[:, :-1, 1:], framed[:, 1:, :-1], framed[:, 1:, 1:]], axis=-1)
    place = (jnp.arange(B)[:, None, None] * (H + 1) + top.astype(jnp.int32) + 1) * (W + 1) + left.astype(jnp.int32) + 1
    corners = cells.reshape(-1, 4 * C)[place]
    upper = (1 - u) * corners[..., :C] + u * corners[..., C : 2 * C]
    lower = (1 - u) * corners[..., 2 * C : 3 * C] + u * corners[..., 3 * C :]
    return (1 - v) * upper + v * lower


def inside(boxes: Array, images: Array) -> Array:
    """Which pixels of images (B, H, W, 3) lie in boxes (..., 4): bool (..., H, W)."""
    top, left, bottom, right = (boxes[..., i, None, None] for i in range(4))
    y, x = jnp.arange(images.shape[1])[:, None], jnp.arange(images.shape[2])
    return (y >= top) & (y < bottom) & (x >= left) & (x < right)


def mix(values: Array, box: Array, weight: Array) -> Array:
    """Image i of (B, H, W, 3) becomes image B-1-i in `box` (4,), and outside `weight` () of itself and the rest of
    that one."""
    weight = jnp.where(inside(box, values), 0, weight)[:, :, None]
    return weight * values + (1 - weight) * values[::-1]
