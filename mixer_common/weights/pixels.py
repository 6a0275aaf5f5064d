"""The scale of the pixels that weights were made for, folded into the stem, so that they take pixels from -1 to 1."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from mixer_common.config.fields import by_name
from mixer_common.errors import UserError
from mixer_common.weights.canonical import ModelWeights


class PixelScale(NamedTuple):
    """The model takes (p - mean) / std, per colour, of pixels p from 0 to 1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


PIXEL_SCALES = {
    "inception": PixelScale((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": PixelScale((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": PixelScale((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "none": PixelScale((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
_MEAN = re.compile(r"(|.*[./\\]|(?:.*[./\\])?(?:pixel|image|img|norm)_)mean")
OWN_SCALE = PIXEL_SCALES["inception"]  # this project's: pixels from -1 to 1


def stated_scale(mean: Sequence[str] | None, std: Sequence[str] | None) -> PixelScale | None:
    """The scale that the options --pixel-mean and --pixel-std state: a name of PIXEL_SCALES, or three numbers each.

    A name in one of them stands for both. None where both are left out. Raises UserError for anything else.
    """
    named = [PIXEL_SCALES[values[0]] for values in (mean, std) if values and values[0] in PIXEL_SCALES]
    if named:
        if mean and std and (len(named) < 2 or named[0] != named[1]):
            raise UserError(
                f"--pixel-mean {' '.join(mean)} and --pixel-std {' '.join(std)} do not belong together: state one "
                "name, or three numbers for each."
            )
        if len(values := mean or std or [""]) > 1:
            raise UserError(f"a name such as {values[0]} stands for all colours: state it alone.")
        return named[0]
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        given, missing = ("mean", "std") if std is None else ("std", "mean")
        raise UserError(f"--pixel-{given} is stated without --pixel-{missing}: state both, or a name that has both.")
    return checked_scale(mean, std, "--pixel-mean and --pixel-std")


def named_scale(value: Any) -> PixelScale:
    """A scale from its name in PIXEL_SCALES, or from mean and deviation, three numbers each. Raises UserError for
    anything else."""
    if isinstance(value, str):
        return by_name("scale of pixels", PIXEL_SCALES, value)
    try:
        mean, std = value
    except (TypeError, ValueError):
        mean = std = value
    return checked_scale(mean, std, "pixels")


def checked_scale(mean: Any, std: Any, origin: str) -> PixelScale:
    """A scale from three numbers each, for pixels from 0 to 1. Raises UserError where they are none; `origin` names
    their place in it."""
    try:
        scale = PixelScale(*(tuple(float(value) for value in values) for values in (mean, std)))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        scale = PixelScale((math.nan, 0, 0), (math.nan, 0, 0))
    if not (
        all(len(values) == 3 for values in scale)
        and all(0 <= value <= 1 for value in scale.mean)
        and all(0 < value <= 1 for value in scale.std)
    ):
        raise UserError(
            f"{origin}: the mean is {_joined(mean)} and the deviation {_joined(std)}, but expected three numbers each, "
            f"one for each colour, of pixels from 0 to 1, or one of {', '.join(PIXEL_SCALES)}."
        )
    return scale


def _joined(values: Any) -> str:
    return " ".join(map(str, values)) if isinstance(values, list | tuple) else repr(values)


def describe_scale(scale: PixelScale) -> str:
    """The scale for people."""
    name = next((f" ({name})" for name, known in PIXEL_SCALES.items() if known == scale), "")
    if scale == OWN_SCALE:
        return f"pixels -1..1{name}"
    return (
        f"pixels of mean {_joined([f'{v:g}' for v in scale.mean])}, std {_joined([f'{v:g}' for v in scale.std])}{name}"
    )


def scale_in_config(values: Mapping[str, Any], origin: str) -> PixelScale | None:
    """The scale in the config.json of timm, also in its "pretrained_cfg", or in Hugging Face's
    preprocessor_config.json; None where there is none. Raises UserError where it is no scale."""
    for part in config_parts(values):
        for mean, std in (("mean", "std"), ("image_mean", "image_std")):
            if mean in part and std in part:
                return checked_scale(part[mean], part[std], origin)
    return None


def config_parts(values: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The places of a setting in a config.json, the first before the second: timm's "pretrained_cfg", the top."""
    inner = values.get("pretrained_cfg")
    return inner if isinstance(inner, dict) else {}, values


def is_scale(name: str) -> bool:
    """Whether an array of this name may be a model's own mean or deviation of the pixels."""
    return bool(_MEAN.fullmatch(re.sub(r"std$", "mean", name)))


def scale_in_arrays(arrays: Mapping[str, np.ndarray], origin: str) -> tuple[PixelScale, list[str]] | None:
    """The scale in a model's own buffers `mean` and `std`, of pixels from 0 to 1 or to 255, and their names.

    Raises UserError where two pairs of them differ.
    """
    found: dict[str, PixelScale] = {}
    names = []
    for name, array in arrays.items():
        match = _MEAN.fullmatch(name)
        other = f"{match[1]}std" if match else ""
        if match and other in arrays and np.size(array) == np.size(arrays[other]) == 3:
            own_mean, own_std = (np.asarray(values, np.float64).reshape(3) for values in (array, arrays[other]))
            unit = 255.0 if max(own_mean.max(), own_std.max()) > 1 else 1.0
            found[name] = checked_scale((own_mean / unit).tolist(), (own_std / unit).tolist(), f"{name} in {origin}")
            names += [name, other]
    if not found:
        return None
    scale, *others = found.values()
    if any(other != scale for other in others):
        raise UserError(
            f"{origin} holds several scales of pixels, {' and '.join(found)}: state the right one with --pixel-mean "
            "and --pixel-std."
        )
    return scale, names


def fold_scale(weights: ModelWeights, scale: PixelScale) -> ModelWeights:
    """The weights for pixels from -1 to 1 of weights that were made for `scale`; the same function.

    Of pixels x from -1 to 1, the stem was given (x / 2 + 1 / 2 - mean) / std. Hence w ← w / (2 · std) and
    b ← b + sum(w · (1 / 2 - mean) / std), in float64, then rounded once.
    """
    if scale == OWN_SCALE:
        return weights
    mean, std = (np.array(values).reshape(1, 3, 1, 1) for values in scale)
    kernel, bias = weights.arrays["stem.weight"], weights.arrays["stem.bias"]
    wide = kernel.astype(np.float64)
    folded = {
        "stem.weight": (wide / (2 * std)).astype(kernel.dtype),
        "stem.bias": (bias + (wide * ((0.5 - mean) / std)).sum((1, 2, 3))).astype(bias.dtype),
    }
    return replace(weights, arrays=weights.arrays | folded)
