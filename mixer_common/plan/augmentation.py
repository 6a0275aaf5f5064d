"""The random numbers by which an epoch's images are augmented, drawn ahead; augment.py in each framework applies them.

The order of application is: crop and flip; one operation of TrivialAugment; cutout; mixup or CutMix.
"""

import numpy as np

from mixer_common.config.train import OPERATIONS, TrainConfig
from mixer_common.plan.random import generator

Draws = dict[str, np.ndarray]  # by name, the first axis counts the epoch's steps

GREY = 127.5  # the byte that becomes 0 in [-1, 1]
STRENGTHS = 31  # the number of equally spaced strengths of an operation, as in torchvision's TrivialAugmentWide


def draw(recipe: TrainConfig, shape: tuple[int, int, int], epoch: int) -> Draws:
    """The random numbers that augment the images of epoch `epoch`.

    shape: the number of steps, and height and width of the images. With B images in a batch, the names and the axes
    behind the steps are these; those of a setting that is off are missing:

    - crop_padding or flip: `corner` int32 (B, 2), row and column where the window begins, and `flip` bool (B,).
    - trivial_augment: the arrays that the function `trivial_augment` returns.
    - cutout: `cutout` int32 (B, 4), a box: top, left, bottom, right, the last two exclusive.
    - mixup or cutmix: `mixing_box` int32 (4,), in which image i becomes image B-1-i; `mixing_weight` float64 (),
      of image i outside the box; `label_weight` float64 (), of its label.
    """
    steps, *size = shape
    batch = steps, recipe.batch_size
    draws: Draws = {}
    if recipe.crop_padding or recipe.flip:
        padding = recipe.crop_padding
        draws["corner"] = generator(recipe.seed, epoch, "crop").integers(
            -padding, padding, (*batch, 2), np.int32, endpoint=True
        )
        draws["flip"] = generator(recipe.seed, epoch, "flip").random(batch) < 0.5 * recipe.flip
    if recipe.trivial_augment:
        random = generator(recipe.seed, epoch, "trivial_augment")
        chosen = np.array([OPERATIONS.index(name) for name in recipe.operations or OPERATIONS])
        operation, strength = chosen[random.integers(len(chosen), size=batch)], random.integers(STRENGTHS, size=batch)
        draws |= trivial_augment(operation, strength, random.random(batch) < 0.5, *size)
    if recipe.cutout:
        centre = generator(recipe.seed, epoch, "cutout").integers(0, size, (*batch, 2))
        draws["cutout"] = _box(centre, recipe.cutout, size)
    if recipe.mixup or recipe.cutmix:
        draws |= _mixing(recipe, generator(recipe.seed, epoch, "mixing"), steps, size)
    return draws


def trivial_augment(
    operation: np.ndarray, strength: np.ndarray, negative: np.ndarray, height: int, width: int
) -> Draws:
    """The parameters of one operation per image; those of all other operations are neutral.

    The three arrays have the same shape. operation: index in OPERATIONS; strength: 0 to STRENGTHS - 1; negative:
    whether an operation that has a sign goes the other way. height and width: of the images, pixels.

    Returned, with these axes behind that shape:

    - `posterize` int32 (), the bits of a byte that stay.
    - `solarize` int32 (), the byte from which on bytes are inverted.
    - `equalize` and `autocontrast` bool ().
    - `blend` float64 (4,), weights of the image, its grey version, that one's mean and the smoothed image.
    - `affine` float64 (2, 3), which takes row, column and 1 of a pixel to the row and column it is sampled from.
    """

    def by(name: str, value: np.ndarray | float, neutral: float) -> np.ndarray:
        return np.where(operation == OPERATIONS.index(name), value, neutral)

    share = strength / (STRENGTHS - 1)
    sign = np.where(negative, -1, 1)
    factor = 1 + sign * 0.99 * share
    blend = [by(name, 1 - factor, 0) for name in ("color", "contrast", "sharpness")]
    weight = np.where(
        np.isin(operation, [OPERATIONS.index(name) for name in ("brightness", "color", "contrast", "sharpness")]),
        factor,
        1,
    )

    angle = by("rotate", np.radians(sign * 135 * share), 0)  # counter-clockwise
    cosine, sine = np.cos(angle), np.sin(angle)
    pixels = 32 * strength // (STRENGTHS - 1)
    shear_x, shear_y = (by(name, sign * 0.99 * share, 0) for name in ("shear_x", "shear_y"))
    shift_x, shift_y = (by(name, sign * pixels, 0) for name in ("translate_x", "translate_y"))
    y, x = (height - 1) / 2, (width - 1) / 2  # a rotation's fixed point; a shear's is the corner, (-0.5, -0.5)
    affine = [
        cosine,
        sine + shear_y,
        y - cosine * y - sine * x + shear_y / 2 - shift_y,
        shear_x - sine,
        cosine,
        x + sine * y - cosine * x + shear_x / 2 - shift_x,
    ]
    return {
        "posterize": by("posterize", 256 - 2 ** np.round(6 * share).astype(np.int32), 255).astype(np.int32),
        "solarize": by("solarize", 255 - 255 * strength // (STRENGTHS - 1), 256).astype(np.int32),
        "equalize": operation == OPERATIONS.index("equalize"),
        "autocontrast": operation == OPERATIONS.index("autocontrast"),
        "blend": np.stack([weight, *blend], axis=-1),
        "affine": np.stack(affine, axis=-1).reshape(*operation.shape, 2, 3),
    }


def _mixing(recipe: TrainConfig, random: np.random.Generator, steps: int, size: list[int]) -> Draws:
    """Mixup (Zhang et al. 2018, arXiv 1710.09412) or CutMix (Yun et al. 2019, arXiv 1905.04899) of each step;
    where both are on, one of the two with equal chances."""
    cut = random.random(steps) < (0.5 if recipe.mixup and recipe.cutmix else float(recipe.cutmix > 0))
    alpha = np.where(cut, recipe.cutmix, recipe.mixup)
    weight = random.beta(alpha, alpha)
    side = np.where(cut, np.sqrt(1 - weight), 0)[:, None] * size
    box = _box(random.integers(0, size, (steps, 2)), side.astype(np.int64), size)
    area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
    return {
        "mixing_box": box,
        "mixing_weight": np.where(cut, 1, weight),
        "label_weight": np.where(cut, 1 - area / np.prod(size), weight),
    }


def _box(centre: np.ndarray, side: np.ndarray | int, size: list[int]) -> np.ndarray:
    """Boxes of `side` pixels around `centre`, clipped at the border of the image: int32 (..., 4)."""
    start = centre - side // 2
    return np.concatenate([np.clip(start, 0, size), np.clip(start + side, 0, size)], axis=-1).astype(np.int32)
