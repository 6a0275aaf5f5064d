"""The distance of two sets of named arrays, layer by layer, and that of the losses of two runs."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from mixer_common.comparison.judge import FACTOR, JudgeErrors, l2_error
from mixer_common.comparison.stream import with_means_of
from mixer_common.comparison.ulp import lower_dtype, ulp_distances


@dataclass(frozen=True)
class LargestDifference:
    """The entry in which two arrays differ most."""

    index: tuple[int, ...]
    a: float  # its value in A
    b: float  # its value in B


@dataclass(frozen=True)
class LayerDifference:
    """The distance of one activation, or of one gradient, of side B from that of side A."""

    name: str  # canonical: of an activation (config.model.activation_names) or of a weight
    max_error: float  # largest absolute difference over largest magnitude; inf where shapes differ
    l2_error: float  # norm of the difference over the norm
    bound: float  # the largest max_error that counts as rounding, or as tolerable
    note: str = ""  # the reason, where the arrays cannot be subtracted
    cosine: float = math.nan  # of the angle between the arrays as vectors
    ulp_median: int | None = None  # distance in units in the last place of the lower dtype; None: not all is finite
    ulp_max: int | None = None
    largest: LargestDifference | None = None  # None where the arrays are equal or cannot be subtracted
    mean_error: float | None = None  # what was taken out: the largest difference of a token's mean, in max_error's unit
    not_finite: tuple[str, ...] = ()  # "NaN in A", "infinity in B"
    to_judge: JudgeErrors | None = None  # None where there is no judge
    judge_decides: bool = False  # whether the judge's factor stands in for the bound, which nobody could derive

    @property
    def past_bound(self) -> bool:
        """Whether max_error is larger than its bound, or the judge does not let it pass; NaN is."""
        if self.judge_decides and self.to_judge:
            return not self.to_judge.passes
        return not self.max_error <= self.bound

    @property
    def mean_past_bound(self) -> bool:
        """Whether the means that were taken out differ by more than the bound."""
        return self.mean_error is not None and not self.mean_error <= self.bound

    @property
    def ratio(self) -> float:
        """max_error as a multiple of its bound, or the judge's factor as a multiple of the one that passes."""
        if self.judge_decides and self.to_judge:
            return self.to_judge.factor / FACTOR
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
    without_means: Collection[str] = (),
    ulp_dtype: str | None = None,
) -> tuple[LayerDifference, ...]:
    """The differences of side B's arrays (`values`) from side A's (`references`), in network order.

    bounds and scales: by name; see LayerDifference.bound and relative_error. An array that has no bound may differ by
    anything. without_means: names of arrays (..., C) whose means over the channels are not compared: B is measured with
    A's means in place of its own, against the magnitude of A as it is, since that is what the arithmetic rounds.
    ulp_dtype: "bfloat16" where the arrays hold such numbers; None: the lower dtype of each pair. Arrays of different
    shapes, and those that only one side has, are infinitely far apart.
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
            differences.append(
                _difference(
                    name,
                    values[name],
                    references[name],
                    bounds.get(name, math.inf),
                    scales.get(name),
                    name in without_means,
                    ulp_dtype,
                )
            )
            continue
        differences.append(LayerDifference(name, math.inf, math.inf, bounds.get(name, 0.0), note))
    return tuple(differences)


def _difference(
    name: str,
    value: np.ndarray,
    reference: np.ndarray,
    bound: float,
    scale: float | None,
    without_means: bool,
    ulp_dtype: str | None,
) -> LayerDifference:
    ulp_dtype = ulp_dtype or lower_dtype(value.dtype, reference.dtype)
    not_finite = tuple(
        f"{kind} in {side}"
        for side, array in (("A", reference), ("B", value))
        for kind, found in (("NaN", np.isnan(array)), ("infinity", np.isinf(array)))
        if found.any()
    )
    with np.errstate(invalid="ignore", over="ignore"):
        value, reference, mean_error = value.astype(np.float64), reference.astype(np.float64), None
        if without_means:
            mean_error = relative_error(value.mean(-1), reference.mean(-1), float(np.abs(reference).max()))
            value = with_means_of(value, reference)
        difference = np.abs(value - reference)
        lengths = float(np.linalg.norm(reference) * np.linalg.norm(value))
        distance = difference.any()
        index = tuple(int(i) for i in np.unravel_index(difference.argmax(), difference.shape))
        ulps = None if not_finite else ulp_distances(value, reference, ulp_dtype).reshape(-1)
        return LayerDifference(
            name,
            relative_error(value, reference, scale),
            l2_error(value, reference),
            bound,
            cosine=float(np.vdot(value, reference) / lengths) if lengths else 0.0 if distance else 1.0,
            ulp_median=None if ulps is None else int(np.partition(ulps, ulps.size // 2)[ulps.size // 2]),
            ulp_max=None if ulps is None else int(ulps.max()),
            largest=LargestDifference(index, float(reference[index]), float(value[index])) if distance else None,
            mean_error=mean_error,
            not_finite=not_finite,
        )


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
