"""From bytes to what the model sees. Twin of mixer_torch/pixels.py."""

import jax.numpy as jnp
import numpy as np
from jax import Array

from mixer_common.plan.epoch import PIXEL_SCALE
from mixer_common.plan.resize import resize_matrix


def bytes_to_pixels(images: Array, image_size: tuple[int, int], dtype: np.dtype) -> Array:
    """Bytes (B, H, W, 3) -> [-1, 1], resized bilinearly to (B, *image_size, 3) where that differs.

    2 · byte − 255 is exact in `dtype` (float32 or float64), and one product follows: however a compiler
    groups it, both frameworks get the same bits. Augmented images come as real numbers instead of uint8.
    """
    pixels = (2 * images.astype(dtype) - 255) * jnp.asarray(PIXEL_SCALE, dtype)
    if images.shape[1:3] == image_size:
        return pixels
    rows, columns = (
        jnp.asarray(resize_matrix(*sizes), dtype) for sizes in zip(images.shape[1:3], image_size, strict=True)
    )
    return jnp.einsum("hi,bijc,wj->bhwc", rows, pixels, columns)
