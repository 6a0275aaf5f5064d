"""How far two sets of named arrays are apart, and how far rounding alone may take them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LayerDifference:
    """How far one activation, or one gradient, of side B is from side A's."""

    name: str  # canonical: of an activation (config.activation_names) or of a weight
    max_error: float  # largest absolute difference over largest magnitude; inf where shapes differ
    l2_error: float  # norm of the difference over the norm
    bound: float  # of max_error: what counts as rounding
    note: str = ""  # where the arrays cannot be subtracted: why

    @property
    def past(self) -> bool:
        """Whether the error is past the bound; NaN is."""
        return not self.max_error <= self.bound

    @property
    def ratio(self) -> float:
        """The error as a multiple of its bound."""
        return self.max_error / self.bound if self.bound else math.inf if self.max_error else 0.0


@dataclass(frozen=True)
class Side:
    """One side of a comparison, for people."""

    name: str  # what the user called it
    what: str  # model, format, step
    runs_in: str  # framework, version, device
    step_losses: np.ndarray | None = None  # (steps,), where the side is a run


@dataclass(frozen=True)
class Comparison:
    """Everything that a comparison found; scripts/compare.py prints it, mixer_common/report.py draws it."""

    a: Side
    b: Side
    images: str  # how many, of which data
    precision: str
    weights: str  # one sentence: equal to the bit, or where they part first
    activations: tuple[LayerDifference, ...]  # in network order
    gradients: tuple[LayerDifference, ...]  # in network order; empty where not asked for
    tolerance: float | None = None  # the bound of every layer, where rounding is not
    cause: str = ""  # one or two sentences on the first layer past its bound; empty where none is

    @property
    def first(self) -> LayerDifference | None:
        """Where the sides part first: among the activations, else among the gradients from the last back."""
        return next((error for error in (*self.activations, *reversed(self.gradients)) if error.past), None)


def describe_losses(a: np.ndarray, b: np.ndarray) -> str:
    """Sentences on how far the losses (steps,) of two runs are apart."""
    steps = min(len(a), len(b))
    a_common, b_common = a[:steps].astype(np.float64), b[:steps].astype(np.float64)
    with np.errstate(invalid="ignore"):
        difference = np.abs(a_common - b_common)
    differ = np.flatnonzero(~((a_common == b_common) | (np.isnan(a_common) & np.isnan(b_common))))
    words = [f"{len(a):,} steps in A, {len(b):,} in B." if len(a) != len(b) else f"{steps:,} steps on both sides."]
    if len(differ):
        words.append(f"The losses differ from step {differ[0] + 1:,} on.")
        if np.nan_to_num(difference).any():
            largest = int(np.nanargmax(difference))
            words.append(f"The largest difference is {difference[largest]:.1e} nats, at step {largest + 1:,}.")
    else:
        words.append("The losses of all common steps are equal to the bit.")
    words += [
        f"{side} is not a number in {count:,} steps, the first is {int(np.isnan(losses).argmax()) + 1:,}."
        for side, losses in (("A", a), ("B", b))
        if (count := int(np.isnan(losses).sum()))
    ]
    return " ".join(words)


def relative_error(value: np.ndarray, reference: np.ndarray, scale: float | None = None) -> float:
    """max|value − reference| / max|reference|; the one norm of every comparison.

    `scale` replaces the denominator where the reference alone is no measure.
    """
    scale = float(np.abs(reference).max()) if scale is None else scale
    difference = float(np.abs(value.astype(np.float64) - reference.astype(np.float64)).max())
    return difference / scale if scale else math.inf if difference else 0.0


def layer_differences(
    values: Mapping[str, np.ndarray],
    references: Mapping[str, np.ndarray],
    bounds: Mapping[str, float],
    scales: Mapping[str, float] | None = None,
) -> tuple[LayerDifference, ...]:
    """The errors of side B's arrays (`values`) against side A's (`references`), in network order.

    Arrays of different shapes, and those that only one side has, are infinitely far apart.
    """
    scales = scales or {}
    longer, shorter = (values, references) if len(values) > len(references) else (references, values)
    errors = []
    for name in (*longer, *(name for name in shorter if name not in longer)):
        if name not in values or name not in references:
            note = f"only in {'A' if name in references else 'B'}"
        elif values[name].shape != references[name].shape:
            note = f"shape {references[name].shape} in A, {values[name].shape} in B"
        else:
            value, reference = values[name].astype(np.float64), references[name].astype(np.float64)
            length, difference = np.linalg.norm(reference), np.linalg.norm(value - reference)
            errors.append(
                LayerDifference(
                    name,
                    relative_error(value, reference, scales.get(name)),
                    float(difference / length) if length else math.inf if difference else 0.0,
                    bounds[name],
                )
            )
            continue
        errors.append(LayerDifference(name, math.inf, math.inf, bounds.get(name, 0.0), note))
    return tuple(errors)
