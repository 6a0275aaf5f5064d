"""Mistakes that hold an unknown number, fitted to one side's values, in NumPy and float64."""

from collections.abc import Iterator

import numpy as np

from mixer_common.comparison.pixel_mistakes import fitted_scale
from mixer_common.comparison.reference import Reference
from mixer_common.config.model import Layer

Candidates = Iterator[tuple[str, np.ndarray]]


def fitted_mistakes(layer: Layer, model: Reference, values: np.ndarray) -> Candidates:
    """The activation of a layer with the mistakes that hold an unknown number, fitted to one side's values."""
    right = model.value(layer)
    if layer.kind == "stem":
        yield fitted_scale(values, model.pixels(), *model.parameters("stem"))
    if layer.kind == "residual":
        branch, stream = model.inputs(layer)
        part = values - stream
        factor = _factor(part, branch)
        yield f"the branch multiplied with {factor:.4g}", stream + factor * branch
        with np.errstate(invalid="ignore", divide="ignore"):
            factors = (part * branch).sum((0, 1)) / np.square(branch).sum((0, 1))
        if np.abs(factors - factor).max() > 1e-3 * abs(factor):
            yield "the branch multiplied with a number for each channel, as LayerScale does", stream + factors * branch
        yield from _dropped(part, branch, "the branch", stream)
    if layer.kind == "pool":
        count = model.config.num_patches + 1
        token = (values * count - right * model.config.num_patches).mean(0)
        if len(values) > 1:  # with one image, a token would explain everything
            yield (
                "one more token in the mean, the same for every image: a class token left in",
                (right * model.config.num_patches + token) / count,
            )
    if layer.name == "head":
        order = np.abs(values[:, :, None] - right[:, None]).max(0).argmin(1)
        yield f"the classes in another order: {', '.join(map(str, order[:12]))}", right[:, order]
    factor = _factor(values, right)
    yield f"all values multiplied with {factor:.4g}", factor * right
    yield from _dropped(values, right, "the values", np.zeros(()))


def _factor(values: np.ndarray, right: np.ndarray) -> float:
    length = float(np.square(right).sum())
    return float((values * right).sum()) / length if length else np.nan


def _dropped(values: np.ndarray, right: np.ndarray, description: str, added: np.ndarray) -> Candidates:
    """Values of which a share is zero and the others are the right ones multiplied with one number."""
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = values / right
    dropped = np.abs(ratio) < 1e-3
    if not dropped.any() or dropped.all():
        return
    factor = float(np.median(ratio[~dropped]))
    whole = dropped.reshape(len(dropped), -1)
    each = "whole images of " if (whole.all(1) | ~whole.any(1)).all() and whole.shape[1] > 1 else ""
    rate = 1 - 1 / factor if factor > 1 else float(dropped.mean())
    kind = "stochastic depth" if each else "dropout"
    yield (
        f"{kind} left on: {each}{description} dropped at a rate of about {rate:.2g}",
        added + np.where(dropped, 0, factor * right),
    )
