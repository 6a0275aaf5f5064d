"""The distance of two sets of named arrays, layer by layer, and that of the losses of two runs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LayerDifference:
    """The distance of one activation, or of one gradient, of side B from that of side A."""

    name: str  # canonical: of an activation (config.model.activation_names) or of a weight
    max_error: float  # largest absolute difference over largest magnitude; inf where shapes differ
    l2_error: float  # norm of the difference over the norm
    bound: float  # the largest max_error that counts as rounding, or as tolerable
    note: str = ""  # the reason, where the arrays cannot be subtracted

    @property
    def past_bound(self) -> bool:
        """Whether max_error is larger than its bound; NaN is."""
        return not self.max_error <= self.bound

    @property
    def ratio(self) -> float:
        """max_error as a multiple of its bound."""
        return self.max_error / self.bound if self.bound else math.inf if self.max_error else 0.0


def relative_error(value: np.ndarray, reference: np.ndarray, scale: float | None = None) -> float:
    """max|value − reference| / max|reference|, the one norm of every comparison.

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
    """The differences of side B's arrays (`values`) from side A's (`references`), in network order.

    bounds and scales: by name; see LayerDifference.bound and relative_error. Arrays of different shapes, and those
    that only one side has, are infinitely far apart.
    """
    scales = scales or {}
    first, second = (values, references) if len(values) > len(references) else (references, values)
    differences = []
    for name in (*first, *(name for name in second if name not in first)):
        if name not in values or name not in references:
            note = f"only in {'A' if name in references else 'B'}"
        elif values[name].shape != references[name].shape:
            note = f"shape {references[name].shape} in A, {values[name].shape} in B"
        else:
            value, reference = values[name].astype(np.float64), references[name].astype(np.float64)
            length, distance = np.linalg.norm(reference), np.linalg.norm(value - reference)
            differences.append(
                LayerDifference(
                    name,
                    relative_error(value, reference, scales.get(name)),
                    float(distance / length) if length else math.inf if distance else 0.0,
                    bounds[name],
                )
            )
            continue
        differences.append(LayerDifference(name, math.inf, math.inf, bounds.get(name, 0.0), note))
    return tuple(differences)


def describe_losses(a: np.ndarray, b: np.ndarray) -> str:
    """Sentences on the distance of the losses (steps,) of two runs."""
    steps = min(len(a), len(b))
    a_common, b_common = a[:steps].astype(np.float64), b[:steps].astype(np.float64)
    with np.errstate(invalid="ignore"):
        difference = np.abs(a_common - b_common)
    differ = np.flatnonzero(~((a_common == b_common) | (np.isnan(a_common) & np.isnan(b_common))))
    sentences = [f"{len(a):,} steps in A, {len(b):,} in B." if len(a) != len(b) else f"{steps:,} steps on both sides."]
    if len(differ):
        sentences.append(f"The losses differ from step {differ[0] + 1:,} on.")
        if np.nan_to_num(difference).any():
            largest = int(np.nanargmax(difference))
            sentences.append(f"The largest difference is {difference[largest]:.1e} nats, at step {largest + 1:,}.")
    else:
        sentences.append("The losses of all common steps are equal to the bit.")
    sentences += [
        f"{side} is not a number in {count:,} steps, the first is {int(np.isnan(losses).argmax()) + 1:,}."
        for side, losses in (("A", a), ("B", b))
        if (count := int(np.isnan(losses).sum()))
    ]
    return " ".join(sentences)
