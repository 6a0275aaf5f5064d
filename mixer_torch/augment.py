"""Augmentation of a batch on the device, by the numbers of mixer_common.plan.augmentation.

Twin of mixer_jax/augment.py.

Whatever has a threshold or rounds sees whole bytes, on which both frameworks agree exactly; everything after it is
continuous, so that a rounding stays one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mixer_common.plan.augmentation import GREY


def of_step(draws: dict[str, Tensor], i: int) -> dict[str, Tensor]:
    """The numbers of step `i` of an epoch's."""
    return {name: rows[i] for name, rows in draws.items()}


def augment(images: Tensor, draws: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
    """Bytes (B, H, W, 3) as real numbers in `dtype` from uint8 ones; draws: one step's."""
    if "corner" in draws:
        images = crop(images, draws["corner"], draws["flip"])
    values = images.to(dtype)
    if "affine" in draws:
        levels = quantize(images, draws["posterize"], draws["solarize"], draws["equalize"])
        values = warp(recolour(levels, draws["autocontrast"], draws["blend"]), draws["affine"])
    if "cutout" in draws:
        values = values.masked_fill(inside(draws["cutout"], values)[..., None], GREY)
    if "mixing_box" in draws:
        values = mix(values, draws["mixing_box"], draws["mixing_weight"])
    return values


def crop(images: Tensor, corner: Tensor, flip: Tensor) -> Tensor:
    """The window of each image (B, H, W, 3) that begins at `corner` (B, 2), black where it leaves the image; then
    left to right where `flip` (B,)."""
    B, H, W, C = images.shape
    batch, y, x = (torch.arange(size, device=images.device) for size in (B, H, W))
    columns = torch.where(flip[:, None], W - 1 - x, x) + corner[:, 1:]
    rows = y + corner[:, :1]
    rows, columns = rows[:, :, None], columns[:, None, :]
    seen = (rows >= 0) & (rows < H) & (columns >= 0) & (columns < W)
    # Whole pixels by one index: several indices at once are slow.
    place = (batch[:, None, None] * H + rows.clamp(0, H - 1)) * W + columns.clamp(0, W - 1)
    window = images.reshape(-1, C)[place]
    return window * seen[..., None]


def quantize(images: Tensor, posterize: Tensor, solarize: Tensor, equalize: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) -> int32: only the bits of `posterize` (B,), inverted from `solarize` (B,) on, and where
    `equalize` (B,) with PIL's equalized histogram of each channel."""
    B, H, W, C = images.shape
    levels = images.reshape(B, -1, C).to(torch.int32)
    levels = levels & posterize[:, None, None]
    levels = torch.where(levels >= solarize[:, None, None], 255 - levels, levels)
    places = levels.long()
    counts = levels.new_zeros((B, 256, C)).scatter_add(1, places, torch.ones_like(levels))
    below = counts.cumsum(1, dtype=torch.int32) - counts
    largest = places.amax(dim=1, keepdim=True)
    step = below.gather(1, largest) // 255
    table = ((below + step // 2) // step.clamp(1)).clamp(0, 255)
    equalized = table.gather(1, places)
    return torch.where(equalize[:, None, None] & (step > 0), equalized, levels).reshape(B, H, W, C)


def recolour(levels: Tensor, autocontrast: Tensor, blend: Tensor) -> Tensor:
    """Whole bytes (B, H, W, 3) -> real ones in the dtype of `blend`: every channel stretched to 0 to 255 where
    `autocontrast` (B,), weighed by `blend` (B, 4) against its grey version, that one's mean and its smoothed
    version, all three rounded to whole bytes as PIL.ImageEnhance does."""
    H, W = levels.shape[1:3]
    red, green, blue = levels.unbind(-1)
    grey = (19595 * red + 38470 * green + 7471 * blue + 2**15 >> 16)[..., None]
    mean = (2 * grey.sum(dim=(1, 2, 3), keepdim=True) + H * W) // (2 * H * W)
    columns = levels[:, :, :-2] + levels[:, :, 1:-1] + levels[:, :, 2:]
    total = columns[:, :-2] + columns[:, 1:-1] + columns[:, 2:] + 4 * levels[:, 1:-1, 1:-1]
    smooth = levels.clone()
    smooth[:, 1:-1, 1:-1] = (2 * total + 13) // 26

    low, high = levels.amin(dim=(1, 2), keepdim=True), levels.amax(dim=(1, 2), keepdim=True)
    stretched = autocontrast[:, None, None, None] & (low < high)
    gain = torch.where(stretched, 255 / (high - low).clamp(1).to(blend.dtype), 1)
    values = (levels - torch.where(stretched, low, 0)).to(blend.dtype) * gain
    w = blend[:, :, None, None, None]
    return (w[:, 0] * values + w[:, 1] * grey + w[:, 2] * mean + w[:, 3] * smooth).clamp(0, 255)


def warp(values: Tensor, affine: Tensor) -> Tensor:
    """Images (B, H, W, 3) sampled bilinearly where `affine` (B, 2, 3) takes row, column and 1; black outside."""
    B, H, W, C = values.shape
    a = affine[:, :, :, None, None]
    y, x = (torch.arange(size, dtype=values.dtype, device=values.device) for size in (H, W))
    y = y[:, None]
    # Beyond the black frame of one pixel everything is black; a border of the frame is one of its cells.
    row = (a[:, 0, 0] * y + a[:, 0, 1] * x + a[:, 0, 2]).clamp(-1, H)
    column = (a[:, 1, 0] * y + a[:, 1, 1] * x + a[:, 1, 2]).clamp(-1, W)
    top, left = row.floor().clamp(-1, H - 1), column.floor().clamp(-1, W - 1)
    v, u = (row - top)[..., None], (column - left)[..., None]
    framed = F.pad(values, (0, 0, 1, 1, 1, 1))
    # Each pixel with its right, lower and lower right neighbours, so that one row of 4 C numbers is fetched.
    cells = torch.cat([framed[:, :-1, :-1], framed[:, :-1, 1:], framed[:, 1:, :-1], framed[:, 1:, 1:]], dim=-1)
    batch = torch.arange(B, device=values.device)[:, None, None]
    place = (batch * (H + 1) + top.to(torch.int32) + 1) * (W + 1) + left.to(torch.int32) + 1
    corners = cells.reshape(-1, 4 * C)[place]
    upper = (1 - u) * corners[..., :C] + u * corners[..., C : 2 * C]
    lower = (1 - u) * corners[..., 2 * C : 3 * C] + u * corners[..., 3 * C :]
    return (1 - v) * upper + v * lower


def inside(boxes: Tensor, images: Tensor) -> Tensor:
    """Which pixels of images (B, H, W, 3) lie in boxes (..., 4): bool (..., H, W)."""
    top, left, bottom, right = boxes[..., None, None].unbind(-3)
    y, x = (torch.arange(size, device=images.device) for size in images.shape[1:3])
    y = y[:, None]
    return (y >= top) & (y < bottom) & (x >= left) & (x < right)


def mix(values: Tensor, box: Tensor, weight: Tensor) -> Tensor:
    """Image i of (B, H, W, 3) becomes image B-1-i in `box` (4,), and outside `weight` () of itself and the rest of
    that one."""
    weight = torch.where(inside(box, values), 0, weight)[:, :, None]
    return weight * values + (1 - weight) * values.flip(0)
