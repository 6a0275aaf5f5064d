"""The pixels that the usual mistakes before a model make of its images, in NumPy and float64."""

from collections.abc import Callable, Iterator

import numpy as np

from mixer_common.comparison.arithmetic import bytes_to_pixels, stem
from mixer_common.config.model import ModelConfig
from mixer_common.plan.epoch import PIXEL_SCALE
from mixer_common.plan.resize import resize_matrix
from mixer_common.weights.pixels import PIXEL_SCALES


def pixel_mistakes(images: np.ndarray, config: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Pixels (N, H, W, 3) of images of bytes, at the model's size, with each usual mistake, by its description."""
    right = bytes_to_pixels(images, config.image_size)
    B, H, W, _ = right.shape
    share = (right + 1) / 2
    yield "the colours in the order blue, green, red", right[..., ::-1]
    yield "pixels in [0, 1] instead of [-1, 1]", share
    yield "pixels in [0, 255] instead of [-1, 1]", share * 255
    yield "pixels in [-0.5, 0.5] instead of [-1, 1]", right / 2
    yield "pixels divided by 255 twice", share / 255
    yield "pixels with their sign reversed", -right
    for name, people in (("imagenet", "ImageNet"), ("cifar10", "CIFAR-10")):
        mean, std = PIXEL_SCALES[name]
        yield f"pixels scaled by {people}'s means and deviations", (share - mean) / std
        yield f"pixels in [-1, 1] scaled by {people}'s means and deviations once more", (right - mean) / std
    yield "pixels in [-1, 1] scaled to [-1, 1] once more", 2 * right - 1
    yield (
        "images (N, H, W, 3) reshaped to (N, 3, H, W) instead of transposed",
        right.reshape(B, 3, H, W).transpose(0, 2, 3, 1),
    )
    as_planes = np.ascontiguousarray(right.transpose(0, 3, 1, 2))
    yield "images (N, 3, H, W) reshaped to (N, H, W, 3) instead of transposed", as_planes.reshape(B, H, W, 3)
    if H == W:
        yield "the rows and columns of the images exchanged", right.swapaxes(1, 2)
    yield "the images mirrored", right[:, :, ::-1]
    yield "the rows of the images from the bottom up", right[:, ::-1]
    if images.shape[1:3] != (H, W):
        yield from _resize_mistakes(images, (H, W))


def fitted_scale(values: np.ndarray, right: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> tuple[str, np.ndarray]:
    """The scale of the pixels, one for each colour, that fits a stem's values best, and the values that it gives.

    values: (N, S, C); right: pixels in [-1, 1]. A stem's values are linear in the two numbers of each colour's scale.
    """
    colours = [stem(right * (np.arange(3) == colour), weight, 0) for colour in range(3)]
    ones = [np.broadcast_to(weight[:, colour].sum((1, 2)), values.shape) for colour in range(3)]
    columns = np.stack([column.ravel() for column in (*colours, *ones)], axis=1)
    factors = np.linalg.lstsq(columns, (values - bias).ravel(), rcond=None)[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        std = 1 / (2 * factors[:3])
        mean = (1 - factors[3:] / factors[:3]) / 2
    numbers = "; ".join(
        f"{colour} (p - {m:.4g}) / {s:.4g}" for colour, m, s in zip(("red", "green", "blue"), mean, std, strict=True)
    )
    return f"pixels p from 0 to 1 scaled otherwise: {numbers}", (columns @ factors).reshape(values.shape) + bias


def _resize_mistakes(images: np.ndarray, size: tuple[int, int]) -> Iterator[tuple[str, np.ndarray]]:
    sources, values = images.shape[1:3], (2 * images.astype(np.float64) - 255) * PIXEL_SCALE

    def both(matrix: Callable[[int, int], np.ndarray]) -> list[np.ndarray]:
        return [matrix(*sizes) for sizes in zip(sources, size, strict=True)]

    ways = {
        "bilinearly without antialiasing": lambda s, t: _filtered(s, t, _triangle, 1, antialias=False),
        "bilinearly with aligned corners": _aligned_corners,
        "to the nearest pixel": lambda s, t: np.eye(s)[np.floor(np.arange(t) * s / t).astype(int)],
        "to the nearest pixel by centres": lambda s, t: np.eye(s)[np.floor((np.arange(t) + 0.5) * s / t).astype(int)],
        "bicubically": lambda s, t: _filtered(s, t, _cubic(-0.5), 2, antialias=True),
        "bicubically without antialiasing": lambda s, t: _filtered(s, t, _cubic(-0.5), 2, antialias=False),
        "bicubically without antialiasing, by the cubic of PyTorch and OpenCV": lambda s, t: _filtered(
            s, t, _cubic(-0.75), 2, antialias=False, clamped=True
        ),
        "by Lanczos's filter of width 3": lambda s, t: _filtered(s, t, _lanczos, 3, antialias=True),
        "by the mean of areas": _areas,
    }
    right = resize_matrix(sources[0], size[0]), resize_matrix(sources[1], size[1])
    matrices = {"bilinearly with antialiasing": list(right)} | {way: both(matrix) for way, matrix in ways.items()}
    for way, (rows, columns) in matrices.items():
        if any((a != b).any() for a, b in zip((rows, columns), right, strict=True)):
            yield (
                f"images resized {way} instead of bilinearly with antialiasing",
                np.einsum("hi,bijc,wj->bhwc", rows, values, columns, optimize=True),
            )
        if not all(np.isin(matrix, (0, 1)).all() for matrix in (rows, columns)):
            across = _by_pillow("bijc,wj->biwc", images, columns)
            down = _by_pillow("bijc,hi->bhjc", across, rows)
            yield f"images resized {way} and rounded to whole bytes", (2.0 * down - 255) * PIXEL_SCALE


def _by_pillow(axes: str, images: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Images of whole bytes resized along one axis to whole bytes, in Pillow's fixed-point numbers of 22 bits."""
    factors = np.copysign(np.floor(np.abs(matrix) * 2**22 + 0.5), matrix).astype(np.int64)
    sums = np.einsum(axes, images.astype(np.int64), factors, optimize=True)
    return np.clip((sums + 2**21) >> 22, 0, 255)


def _filtered(
    source: int,
    target: int,
    kernel: Callable[[np.ndarray], np.ndarray],
    radius: int,
    antialias: bool,
    clamped: bool = False,
) -> np.ndarray:
    """The matrix (target, source) of a resize by a kernel; clamped: pixels past the edge repeat that at the edge."""
    scale = source / target
    width = max(scale, 1.0) if antialias else 1.0
    margin = radius if clamped else 0
    centres = (np.arange(target) + 0.5) * scale
    weights = kernel((np.arange(-margin, source + margin) + 0.5 - centres[:, None]) / width)
    if clamped:
        edges = weights[:, :margin].sum(1), weights[:, -margin:].sum(1)
        weights = weights[:, margin:-margin].copy()
        weights[:, 0] += edges[0]
        weights[:, -1] += edges[1]
    return weights / weights.sum(axis=1, keepdims=True)


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(0.0, 1 - np.abs(x))


def _cubic(a: float) -> Callable[[np.ndarray], np.ndarray]:
    """The cubic of Keys (1981, doi 10.1109/TASSP.1981.1163711), with its free parameter."""

    def kernel(x: np.ndarray) -> np.ndarray:
        x = np.abs(x)
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * (x**3 - 5 * x**2 + 8 * x - 4)
        return np.where(x <= 1, near, np.where(x < 2, far, 0.0))

    return kernel


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


def _aligned_corners(source: int, target: int) -> np.ndarray:
    positions = np.linspace(0, source - 1, target)
    return _triangle(np.arange(source) - positions[:, None])


def _areas(source: int, target: int) -> np.ndarray:
    """The mean of the pixels that each new one touches, as PyTorch's mode "area" takes it."""
    first = np.floor(np.arange(target) * source / target)
    last = np.ceil((np.arange(target) + 1) * source / target)
    inside = (np.arange(source) >= first[:, None]) & (np.arange(source) < last[:, None])
    return inside / inside.sum(axis=1, keepdims=True)
