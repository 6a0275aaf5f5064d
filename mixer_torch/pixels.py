"""From bytes to what the model sees. Twin of mixer_jax/pixels.py."""

import torch
from torch import Tensor

from mixer_common.data import resize_matrix
from mixer_common.plan import PIXEL_SCALE


def to_pixels(images: Tensor, image_size: int, dtype: torch.dtype) -> Tensor:
    """uint8 (B, H, W, 3) -> [-1, 1], resized bilinearly to (B, image_size, image_size, 3) where that differs.

    2 · byte − 255 is exact in `dtype` (float32 or float64), and one product follows: however a compiler
    groups it, both frameworks get the same bits.
    """
    pixels = (2 * images.to(dtype) - 255) * PIXEL_SCALE
    if images.shape[1:3] == (image_size, image_size):
        return pixels
    rows, columns = (torch.tensor(resize_matrix(size, image_size), dtype=dtype, device=images.device)
                     for size in images.shape[1:3])
    return torch.einsum("hi,bijc,wj->bhwc", rows, pixels, columns)
