"""Side B with A's activations as the input of every layer, so that one fault does not colour what follows."""

from dataclasses import dataclass, replace

from mixer_common.comparison.bounds import layer_bounds, lower_precision
from mixer_common.comparison.diagnosis import likely_cause
from mixer_common.comparison.differences import LayerDifference, layer_differences
from mixer_common.comparison.recording import Recording, Subject
from mixer_common.comparison.stream import stream_activations


@dataclass(frozen=True)
class Fault:
    """A layer of side B that gives other values than A's, from the same input."""

    difference: LayerDifference
    cause: str  # one or two sentences


@dataclass(frozen=True)
class Isolation:
    """Every layer of side B, computed from A's activations."""

    activations: tuple[LayerDifference, ...]  # in network order; the bounds allow the rounding of one layer
    faults: tuple[Fault, ...]  # all that are past their bound, in network order


def isolate(a: Recording, b: Recording, subject: Subject, tolerance: float | None = None) -> Isolation:
    """Runs B, the subject, with every activation replaced by A's, and names each layer that is at fault by itself.

    b: B's own recording, without replacements. tolerance: the bound of every layer; None: what rounding explains in
    each. Raises UserError where the subject cannot compute, as a recording.
    """
    fitting = {
        name: array
        for name, array in a.activations.items()
        if name in b.activations and b.activations[name].shape == array.shape
    }
    isolated = subject.record(b.inputs, b.origin.precision, replacements=fitting).activations
    precision = lower_precision(a.origin.precision, b.origin.precision)
    bounds = layer_bounds(a.config, precision, a.origin.precision != b.origin.precision)
    differences = layer_differences(
        isolated,
        a.activations,
        bounds if tolerance is None else dict.fromkeys(bounds, tolerance),
        without_means=stream_activations(a.config),
        ulp_dtype=precision if precision == "bfloat16" else None,
    )
    faults = []
    for difference in differences:
        if difference.past_bound:
            # B as it would be if only this layer were at fault.
            right_before = dict(a.activations)
            if difference.name in isolated:
                right_before[difference.name] = isolated[difference.name]
            faults.append(Fault(difference, likely_cause(difference, a, replace(b, activations=right_before))))
    return Isolation(differences, tuple(faults))
