"""From bytes to what the model sees. Twin of mixer_jax/pixels.py."""

import torch
from torch import Tensor

from mixer_common.data import resize_matrix
from mixer_common.plan import PIXEL_SCALE


def to_pixels(images: Tensor, image_shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Bytes (B, H, W, 3) -> [-1, 1], resized bilinearly to (B, *image_shape, 3) where that differs.

    2 · byte − 255 is exact in `dtype` (float32 or float64), and one product follows: however a compiler
    groups it, both frameworks get the same bits. Augmented images come as real numbers instead of uint8.
    """
    pixels = (2 * images.to(dtype) - 255) * PIXEL_SCALE
    if images.shape[1:3] == image_shape:
        return pixels
    rows, columns = (torch.tensor(resize_matrix(*sizes), dtype=dtype, device=images.device)
                     for sizes in zip(images.shape[1:3], image_shape, strict=True))
    return torch.einsum("hi,bijc,wj->bhwc", rows, pixels, columns)
