"""The comparison of what two models computed, and its result."""

from dataclasses import dataclass, replace

from mixer_common.comparison.bounds import UNIT_ROUNDOFF, forward_bounds, gradient_bound, gradient_scales
from mixer_common.comparison.diagnosis import describe_weights, likely_cause
from mixer_common.comparison.differences import LayerDifference, layer_differences
from mixer_common.comparison.recording import Origin, Recording
from mixer_common.errors import UserError


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison; printing.py prints it, page.py makes a page of it."""

    a: Origin
    b: Origin
    images: str  # their number and their data set
    weights: str  # one sentence: equal to the bit, or the first that differ
    activations: tuple[LayerDifference, ...]  # in network order
    gradients: tuple[LayerDifference, ...]  # in network order; empty where not asked for
    tolerance: float | None = None  # the bound of every layer; None: each has the bound that rounding explains
    cause: str = ""  # one or two sentences on the first layer past its bound; empty where there is none

    @property
    def precision(self) -> str:
        """The lower of the two precisions, whose rounding the bounds allow."""
        return max(self.a.precision, self.b.precision, key=UNIT_ROUNDOFF.__getitem__)

    @property
    def first_past_bound(self) -> LayerDifference | None:
        """The place where the sides part: among the activations, else among the gradients from the last back."""
        differences = (*self.activations, *reversed(self.gradients))
        return next((difference for difference in differences if difference.past_bound), None)

    @property
    def nearest_to_bound(self) -> LayerDifference:
        """The difference that is the largest multiple of its bound."""
        return max((*self.activations, *self.gradients), key=lambda difference: difference.ratio)


def compare(a: Recording, b: Recording, tolerance: float | None = None) -> Comparison:
    """Compares what two models computed on the same images, layer by layer.

    tolerance: the bound of every layer; None: what rounding explains in each, in the lower of the two precisions.
    Raises UserError where the recordings are of different images.
    """
    if a.inputs.sha256 != b.inputs.sha256:
        raise UserError(
            f"{a.origin.name} was computed on {a.inputs.description} (SHA-256 {a.inputs.sha256[:12]}), and "
            f"{b.origin.name} on {b.inputs.description} (SHA-256 {b.inputs.sha256[:12]}): compare what was computed "
            "on the same images and labels."
        )
    precision = max(a.origin.precision, b.origin.precision, key=UNIT_ROUNDOFF.__getitem__)
    bounds = forward_bounds(a.config, precision)
    bound = gradient_bound(a.config, precision, len(a.inputs.images))
    if tolerance is not None:
        bounds, bound = dict.fromkeys(bounds, tolerance), tolerance
    gradients: tuple[LayerDifference, ...] = ()
    if a.gradients is not None and b.gradients is not None:
        gradients = layer_differences(
            b.gradients, a.gradients, dict.fromkeys(a.gradients, bound), gradient_scales(a.gradients)
        )
    comparison = Comparison(
        a.origin,
        b.origin,
        a.inputs.description,
        describe_weights(a, b),
        layer_differences(b.activations, a.activations, bounds),
        gradients,
        tolerance,
    )
    first = comparison.first_past_bound
    if first is None:
        return comparison
    if first in comparison.activations:
        return replace(comparison, cause=likely_cause(first, a, b))
    return replace(
        comparison,
        cause="Every activation agrees, so the way back differs: a derivative rule, "
        "the loss, or the precision of a sum over images and patches.",
    )
