"""From bytes to what the model sees. Twin of mixer_jax/pixels.py."""

import torch
from torch import Tensor

from mixer_common.plan.epoch import PIXEL_SCALE
from mixer_common.plan.resize import resize_matrix


def bytes_to_pixels(images: Tensor, image_size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Bytes (B, H, W, 3) -> [-1, 1], resized bilinearly to (B, *image_size, 3) where that differs.

    2 · byte − 255 is exact in `dtype` (float32 or float64), and one product follows: however a compiler
    groups it, both frameworks get the same bits. Augmented images come as real numbers instead of uint8.
    """
    pixels = (2 * images.to(dtype) - 255) * PIXEL_SCALE
    if images.shape[1:3] == image_size:
        return pixels
    rows, columns = (
        torch.tensor(resize_matrix(*sizes), dtype=dtype, device=images.device)
        for sizes in zip(images.shape[1:3], image_size, strict=True)
    )
    return torch.einsum("hi,bijc,wj->bhwc", rows, pixels, columns)
