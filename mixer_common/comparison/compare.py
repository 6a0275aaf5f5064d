"""The comparison of what two models computed, and its result."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mixer_common.comparison.bounds import forward_bounds, gradient_bound, gradient_scales
from mixer_common.comparison.diagnosis import describe_weights, likely_cause
from mixer_common.comparison.differences import LayerDifference, layer_differences
from mixer_common.comparison.recording import Recording


@dataclass(frozen=True)
class Side:
    """One side of a comparison, for people."""

    name: str  # as the user wrote it
    model: str  # its name, size, format, and the steps of a run
    runs_in: str  # framework, version, device
    step_losses: np.ndarray | None = None  # (steps,), where the side is a run


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison; printing.py prints it, page.py makes a page of it."""

    a: Side
    b: Side
    images: str  # their number and their data set
    precision: str
    weights: str  # one sentence: equal to the bit, or the first that differ
    activations: tuple[LayerDifference, ...]  # in network order
    gradients: tuple[LayerDifference, ...]  # in network order; empty where not asked for
    tolerance: float | None = None  # the bound of every layer; None: each has the bound that rounding explains
    cause: str = ""  # one or two sentences on the first layer past its bound; empty where there is none

    @property
    def first_past_bound(self) -> LayerDifference | None:
        """The place where the sides part: among the activations, else among the gradients from the last back."""
        differences = (*self.activations, *reversed(self.gradients))
        return next((difference for difference in differences if difference.past_bound), None)

    @property
    def nearest_to_bound(self) -> LayerDifference:
        """The difference that is the largest multiple of its bound."""
        return max((*self.activations, *self.gradients), key=lambda difference: difference.ratio)


def compare(
    sides: Sequence[Side],
    recordings: Sequence[Recording],
    images: np.ndarray,
    images_description: str,
    precision: str,
    tolerance: float | None,
) -> Comparison:
    """Compares what two models computed on the same images, uint8 (N, H, W, 3), layer by layer.

    sides and recordings: A's and B's.
    tolerance: the bound of every layer; None: what rounding in `precision` explains in each.
    """
    (a, b), (side_a, side_b) = recordings, sides
    bounds = forward_bounds(a.config, precision)
    bound = gradient_bound(a.config, precision, len(images))
    if tolerance is not None:
        bounds, bound = dict.fromkeys(bounds, tolerance), tolerance
    gradients: tuple[LayerDifference, ...] = ()
    if a.gradients is not None and b.gradients is not None:
        gradients = layer_differences(
            b.gradients, a.gradients, dict.fromkeys(a.gradients, bound), gradient_scales(a.gradients)
        )
    comparison = Comparison(
        side_a,
        side_b,
        images_description,
        precision,
        describe_weights(a, b),
        layer_differences(b.activations, a.activations, bounds),
        gradients,
        tolerance,
    )
    first = comparison.first_past_bound
    if first is None:
        return comparison
    if first in comparison.activations:
        return replace(comparison, cause=likely_cause(first, a, b, images))
    return replace(
        comparison,
        cause="Every activation agrees, so the way back differs: a derivative rule, "
        "the loss, or the precision of a sum over images and patches.",
    )
