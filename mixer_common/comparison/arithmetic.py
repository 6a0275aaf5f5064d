"""The layers of a Mixer in NumPy, on canonical activations: what a layer's weights give of its input."""

import numpy as np
from scipy.special import erf

from mixer_common.plan.epoch import PIXEL_SCALE
from mixer_common.plan.resize import resize_matrix


def bytes_to_pixels(images: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Pixels from -1 to 1, float64 (N, *image_size, 3), of uint8 images (N, H, W, 3), resized bilinearly."""
    pixels = (2 * images.astype(np.float64) - 255) * PIXEL_SCALE
    if images.shape[1:3] == tuple(image_size):
        return pixels
    rows, columns = (resize_matrix(*sizes) for sizes in zip(images.shape[1:3], image_size, strict=True))
    return np.einsum("hi,bijc,wj->bhwc", rows, pixels, columns, optimize=True)


def stem(pixels: np.ndarray, weight: np.ndarray, bias: np.ndarray | int) -> np.ndarray:
    """Tokens (N, S, C) of pixels (N, H, W, 3); weight (C, 3, P, P)."""
    B, H, W, _ = pixels.shape
    P = weight.shape[-1]
    patches = pixels.reshape(B, H // P, P, W // P, P, 3).transpose(0, 1, 3, 5, 2, 4)
    return patches.reshape(B, -1, 3 * P * P) @ weight.reshape(len(weight), -1).T + bias


def patches_of(pixels: np.ndarray, patch_size: int, order: str) -> np.ndarray:
    """The patches (N, S, 3 · P · P) of pixels (N, H, W, 3), their own axes in an order such as "h w i"."""
    B, H, W, _ = pixels.shape
    P = patch_size
    patches = pixels.reshape(B, H // P, P, W // P, P, 3).transpose(0, 1, 3, 2, 4, 5)  # (N, rows, columns, h, w, i)
    axes = [3 + "hwi".index(axis) for axis in order.split()]
    return patches.transpose(0, 1, 2, *axes).reshape(B, -1, 3 * P * P)


def layer_norm(
    x: np.ndarray, weight: np.ndarray | int, bias: np.ndarray | int, epsilon: float, over_patches: bool
) -> np.ndarray:
    """LayerNorm of x (N, S, C) over the channels, or over the patches."""
    x = x.swapaxes(1, 2) if over_patches else x
    centred = x - x.mean(-1, keepdims=True)
    y = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + epsilon) * weight + bias
    return y.swapaxes(1, 2) if over_patches else y


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, over_patches: bool) -> np.ndarray:
    """weight (out, in) over the last axis of x (N, S, C) or (N, C), or over the patches."""
    return weight @ x + bias[:, None] if over_patches else x @ weight.T + bias


def gelu_forms(x: np.ndarray) -> dict[str, np.ndarray]:
    """GELU of x by the name of its form: exact, its tanh approximation, its sigmoid approximation."""
    return {
        "exact": 0.5 * x * (1 + erf(x * np.sqrt(0.5))),
        "tanh": 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        "sigmoid": x / (1 + np.exp(-1.702 * x)),
    }
