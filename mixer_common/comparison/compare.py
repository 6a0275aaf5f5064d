"""The comparison of what two models computed, and its result."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from mixer_common.comparison.bounds import (
    activation_gradient_bounds,
    forward_bounds,
    gradient_bound,
    gradient_scales,
    lower_precision,
)
from mixer_common.comparison.diagnosis import describe_weights, likely_cause, likely_gradient_cause
from mixer_common.comparison.differences import LayerDifference, layer_differences
from mixer_common.comparison.isolate import Isolation
from mixer_common.comparison.judge import JudgeErrors, l2_error
from mixer_common.comparison.logits import LogitAgreement, logit_agreement
from mixer_common.comparison.precisions import LayerEffect
from mixer_common.comparison.recording import Origin, Recording
from mixer_common.comparison.settings import SettingDifference, differing_settings
from mixer_common.comparison.steps import StepsComparison
from mixer_common.comparison.stream import stream_activations, with_means_of
from mixer_common.errors import UserError


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison; printing.py prints it, page.py makes a page of it."""

    a: Origin
    b: Origin
    images: str  # their number and their data set
    weights: str  # one sentence: equal to the bit, or the first that differ
    activations: tuple[LayerDifference, ...]  # in network order
    gradients: tuple[LayerDifference, ...]  # of weights, in network order; empty where not asked for
    tolerance: float | None = None  # the bound of every layer; None: each has the bound that rounding explains
    cause: str = ""  # one or two sentences on the first layer past its bound; empty where there is none
    activation_gradients: tuple[LayerDifference, ...] = ()  # from the head back; empty where not asked for
    logits: LogitAgreement | None = None  # None where the sides have other numbers of classes
    observations: tuple[str, ...] = field(default=())  # for people: what a module did, with its side
    isolation: Isolation | None = None  # None where not asked for
    settings: tuple[SettingDifference, ...] = ()  # what the two sides do not share beside their numbers
    bfloat16: tuple[LayerEffect, ...] = ()  # of A's layers, in network order; empty where not asked for
    steps: StepsComparison | None = None  # two trainings; None where not asked for

    @property
    def precision(self) -> str:
        """The lower of the two precisions, whose rounding the bounds allow."""
        return lower_precision(self.a.precision, self.b.precision)

    @property
    def in_order(self) -> Iterator[LayerDifference]:
        """All differences in the order of their computation; of the weights' gradients, too, the last layer first."""
        yield from self.activations
        yield from self.activation_gradients
        yield from reversed(self.gradients)

    @property
    def first_past_bound(self) -> LayerDifference | None:
        """The place where the sides part."""
        return next((difference for difference in self.in_order if difference.past_bound), None)

    @property
    def nearest_to_bound(self) -> LayerDifference:
        """The difference that is the largest multiple of its bound."""
        return max(self.in_order, key=lambda difference: difference.ratio)

    def title(self, difference: LayerDifference) -> str:
        """Its name, and that it is a gradient where an activation has the same name."""
        is_gradient = any(difference is other for other in self.activation_gradients)
        return f"the gradient of {difference.name}" if is_gradient else difference.name

    @property
    def agrees(self) -> bool:
        """Whether no layer is past its bound, on its own input or on A's."""
        return self.first_past_bound is None and not (self.isolation and self.isolation.faults)

    @property
    def furthest_from_judge(self) -> LayerDifference | None:
        """The layer where B's error is the largest multiple of A's; None where there is no judge."""
        compared = [
            (difference.to_judge.factor, i) for i, difference in enumerate(self.activations) if difference.to_judge
        ]
        return self.activations[max(compared)[1]] if compared else None

    @property
    def without_effect(self) -> LayerDifference | None:
        """The layer whose tokens' means differ most, if by more than its bound: a difference that reaches no logit."""
        past = [difference for difference in self.activations if difference.mean_past_bound]
        return max(past, key=lambda difference: difference.mean_error or math.inf, default=None)

    @property
    def first_not_finite(self) -> LayerDifference | None:
        """The first activation, else gradient, with NaN or infinity on either side."""
        return next((difference for difference in self.in_order if difference.not_finite), None)

    @property
    def passing_tolerance(self) -> float:
        """The smallest tolerance with which all layers pass; inf or NaN where none does."""
        errors = [difference.max_error for difference in self.in_order]
        return math.nan if any(map(math.isnan, errors)) else max(errors)


def compare(a: Recording, b: Recording, tolerance: float | None = None, judge: Recording | None = None) -> Comparison:
    """Compares what two models computed on the same images, layer by layer.

    tolerance: the bound of every layer; None: what rounding explains in each, in the lower of the two precisions.
    judge: A, the reference, in float64; it measures both sides, and decides where a side's sums are not declared and no
    tolerance is given. Raises UserError where the recordings are of different images.
    """
    if a.inputs.sha256 != b.inputs.sha256:
        raise UserError(
            f"{a.origin.name} was computed on {a.inputs.description} (SHA-256 {a.inputs.sha256[:12]}), and "
            f"{b.origin.name} on {b.inputs.description} (SHA-256 {b.inputs.sha256[:12]}): compare what was computed "
            "on the same images and labels."
        )
    activations, hidden = _without_hidden(_activations(a, b, tolerance, judge))
    activation_gradients = [each for each in _activation_gradients(a, b, tolerance) if each.name not in hidden]
    comparison = Comparison(
        a.origin,
        b.origin,
        a.inputs.description,
        describe_weights(a, b),
        activations,
        _gradients(a, b, tolerance),
        tolerance,
        activation_gradients=tuple(activation_gradients),
        logits=logit_agreement(a.activations.get("head"), b.activations.get("head")),
        settings=differing_settings(a, b),
        observations=tuple(
            f"{side}: {observation}"
            for side, recording in (("A", a), ("B", b))
            for observation in (
                *(text for text in recording.observations if text.split(" ")[0] not in hidden),
                *_describe_hidden(hidden, side),
            )
        ),
    )
    first = comparison.first_past_bound
    return replace(comparison, cause=_cause(comparison, first, a, b)) if first else comparison


def _activations(
    a: Recording, b: Recording, tolerance: float | None, judge: Recording | None
) -> tuple[LayerDifference, ...]:
    precision = lower_precision(a.origin.precision, b.origin.precision)
    bounds = forward_bounds(a.config, precision)
    differences = layer_differences(
        b.activations,
        a.activations,
        bounds if tolerance is None else dict.fromkeys(bounds, tolerance),
        without_means=stream_activations(a.config),
        ulp_dtype=_ulp_dtype(precision),
    )
    if judge is None:
        return differences
    decides = tolerance is None and not (a.origin.sums_declared and b.origin.sums_declared)
    return tuple(
        replace(difference, to_judge=_judge_errors(difference.name, a, b, judge), judge_decides=decides)
        if not difference.note and difference.name in judge.activations
        else difference
        for difference in differences
    )


def _without_hidden(
    differences: tuple[LayerDifference, ...],
) -> tuple[tuple[LayerDifference, ...], dict[str, str]]:
    """The differences without layers that one side does not show, and these with their notes.

    A module that uses its weights in functions instead of submodules hides layers. They are left out only where all
    others agree, the logits among them: else a layer that is not there may be what the sides part at.
    """
    hidden = {difference.name: difference.note for difference in differences if difference.note.startswith("only in")}
    shown = tuple(difference for difference in differences if difference.name not in hidden)
    agree = any(difference.name == "head" for difference in shown) and not any(each.past_bound for each in shown)
    return (shown, hidden) if agree else (differences, {})


def _describe_hidden(hidden: Mapping[str, str], side: str) -> list[str]:
    """A sentence on the layers that a side hides; none where it shows all."""
    names = [name for name, note in hidden.items() if note != f"only in {side}"]
    if not names:
        return []
    return [f"{len(names)} layers, from {names[0]} to {names[-1]}, are shown by no submodule, and were not compared."]


def _judge_errors(name: str, a: Recording, b: Recording, judge: Recording) -> JudgeErrors:
    right = judge.activations[name]
    arrays = [recording.activations[name] for recording in (a, b)]
    if name in stream_activations(a.config):
        arrays = [with_means_of(array, right) for array in arrays]
    return JudgeErrors(*(l2_error(array, right) for array in arrays))


def _activation_gradients(a: Recording, b: Recording, tolerance: float | None) -> tuple[LayerDifference, ...]:
    if a.activation_gradients is None or b.activation_gradients is None:
        return ()
    precision = lower_precision(a.origin.precision, b.origin.precision)
    bounds = activation_gradient_bounds(a.config, precision)
    values, references = (
        dict(reversed(list(arrays.items()))) for arrays in (b.activation_gradients, a.activation_gradients)
    )
    return layer_differences(
        values,
        references,
        bounds if tolerance is None else dict.fromkeys(bounds, tolerance),
        ulp_dtype=_ulp_dtype(precision),
    )


def _gradients(a: Recording, b: Recording, tolerance: float | None) -> tuple[LayerDifference, ...]:
    if a.gradients is None or b.gradients is None:
        return ()
    precision = lower_precision(a.origin.precision, b.origin.precision)
    bound = gradient_bound(a.config, precision, len(a.inputs.images)) if tolerance is None else tolerance
    return layer_differences(b.gradients, a.gradients, dict.fromkeys(a.gradients, bound), gradient_scales(a.gradients))


def _cause(comparison: Comparison, first: LayerDifference, a: Recording, b: Recording) -> str:
    """Sentences on the cause of the first difference past its bound."""
    if first in comparison.activations:
        return likely_cause(first, a, b)
    if cause := likely_gradient_cause(first, a, b):
        return f"Every activation agrees. {cause}"
    if first in comparison.activation_gradients:
        passed = comparison.activation_gradients[: comparison.activation_gradients.index(first)]
        rule = f"the derivative of {passed[-1].name}" if passed else "the loss"
        return (
            f"Every activation agrees, and every gradient behind this one, so {rule} differs: its rule, a gradient "
            "that was detached or scaled, or the precision of a sum."
        )
    return (
        "Every activation agrees, so the way back differs: a derivative rule, "
        "the loss, or the precision of a sum over images and patches."
    )


def _ulp_dtype(precision: str) -> str | None:
    """The dtype of the numbers in a recording's activations, where it is not that of the arrays."""
    return precision if precision == "bfloat16" else None
