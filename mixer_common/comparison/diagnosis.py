"""The likely cause of a difference: the layer computed anew with the usual mistakes, until one of them explains it.

Everything is NumPy in float64. Up to the layer both sides agree, so its input is known, and a mistake that
turns one side's values into the other's is the cause, whichever program made it.
"""

import math
from collections.abc import Iterator
from itertools import chain

import numpy as np

from mixer_common.comparison.architectures import describe_architectures, describe_shapes
from mixer_common.comparison.differences import LayerDifference, relative_error
from mixer_common.comparison.gradient_mistakes import gradient_mistakes, right_gradient
from mixer_common.comparison.mistakes import SIGNIFICANT_BITS, fitted_mistakes, layer_mistakes, rounded
from mixer_common.comparison.order_mistakes import order_mistakes
from mixer_common.comparison.recording import Arrays, Recording
from mixer_common.comparison.reference import Reference, merged
from mixer_common.comparison.weight_mistakes import describe_blocks, describe_storage, differing_weights
from mixer_common.config.model import Layer, ModelConfig, layers

# A mistake explains a difference when it leaves at most this share of it.
_EXPLAINED = 0.02
# The range of relative L2 errors that rounding the factors of each product leaves, with room for sums and norms.
_ROUNDING_RANGES = (("bfloat16", 4e-4, 2e-2), ("TF32 or float16", 3e-5, 4e-4), ("float32", 3e-9, 1e-5))
# By the layer's name, else by its kind.
_USUAL_CAUSES = {
    "head": "another set of classes, a transposed weight or a missing bias",
    "stem": "the order of patches, rows or colours in the filters, a transposed filter, or pixels scaled otherwise",
    "norm": "another epsilon, swapped norms, statistics over the wrong axis or in a lower precision",
    "linear": "a transposed or mis-shaped weight, a missing bias, TF32 or another low precision in the product",
    "gelu": "the tanh form of GELU against the exact one",
    "residual": "a residual connection left out or taken from another place, or a scaled branch",
    "pool": "a maximum or a class token instead of the mean over the patches",
}
Candidates = Iterator[tuple[str, np.ndarray]]


def describe_weights(a: Recording, b: Recording) -> str:
    """One sentence: the weights of both sides are equal to the bit, or the first that differ."""
    names = list(a.weights)
    if names != list(b.weights):
        return f"{len(names)} arrays in A, {len(b.weights)} in B: the models have different layers"
    differing = differing_weights(a.weights, b.weights)
    if not differing:
        return "the same on both sides, to the bit"
    name = differing[0]
    if a.weights[name].shape != b.weights[name].shape:
        difference = f"shape {a.weights[name].shape} in A, {b.weights[name].shape} in B"
    else:
        difference = f"by {relative_error(b.weights[name], a.weights[name]):.1e} of the largest"
    return f"{len(differing)} of {len(names)} arrays differ, the first is {name}: {difference}"


def likely_cause(difference: LayerDifference, a: Recording, b: Recording) -> str:
    """Sentences on the cause of a difference, that of the first activation past its bound.

    Also of any activation, where b was computed with A's activations in place of its own.
    """
    return f"{_cause(difference, a, b)}{_observations(a, b)}"


def likely_gradient_cause(difference: LayerDifference, a: Recording, b: Recording) -> str:
    """Sentences on the cause of a difference in gradients, that of the first past its bound on the way back.

    difference: of an activation's gradient, or of a weight's; every activation agrees.
    """
    for right, candidates, value, names in _gradient_sides(difference.name, a, b):
        if mistake := _explanation(difference, value, right, candidates):
            return f"{names[0]}'s gradient is {names[1]}'s with {mistake}.{_observations(a, b)}"
    return (
        "Every activation agrees, so the way back differs: a derivative rule, "
        f"the loss, or the precision of a sum over images and patches.{_observations(a, b)}"
    )


def _cause(difference: LayerDifference, a: Recording, b: Recording) -> str:
    name = difference.name
    if a.config != b.config and difference.note:
        return describe_architectures(name, a.config, b.config)
    if name in a.activations and name in b.activations and difference.note:
        return describe_shapes(name, a, b)
    if difference.note:
        return f"Only one side shows {name}: the other does not compute it, or not in a module of its own."
    layer = next(layer for layer in layers(a.config) if layer.name == name)
    usual_causes = _USUAL_CAUSES.get(name, _USUAL_CAUSES[layer.kind])
    differing = differing_weights(a.weights, b.weights)
    if blocks := describe_blocks(layer, a.weights, b.weights):
        return blocks
    if mistake := _mistake(difference, layer, a, b):
        return mistake
    if differing and (storage := describe_storage(differing, a.weights, b.weights)):
        return storage
    if len(differing) > len(a.weights) / 2:
        return (
            f"The weights are others, {len(differing)} of {len(a.weights)} arrays by up to "
            f"{_largest_error(differing, a, b):.1e} of their largest: "
            "two models, or one run trained twice. What the programs do shows with one set of weights in both, "
            "jax:PATH torch:PATH; whether two runs are near enough, with --tolerance."
        )
    if here := [weight for weight in differing if weight in layer.weight_shapes]:
        return (
            f"The weights differ here: {' and '.join(here)}, by {_largest_error(here, a, b):.1e} of the largest. "
            f"If they should be the same: {usual_causes}."
        )
    for precision, low, high in _ROUNDING_RANGES:
        if low <= difference.l2_error <= high and layer.kind != "gelu":
            return (
                f"No usual mistake gives these values; a relative L2 error of {difference.l2_error:.0e} is the size of "
                f"rounding to {precision} in this layer."
            )
    return f"No usual mistake gives these values. Usual causes here: {usual_causes}."


def _mistake(difference: LayerDifference, layer: Layer, a: Recording, b: Recording) -> str:
    """One sentence on the mistake that turns one side's values into the other's; empty where none does."""
    name = difference.name
    for good, odd, good_name, odd_name in ((a, b, "A", "B"), (b, a, "B", "A")):
        value, stated = (side.activations[name].astype(np.float64) for side in (odd, good))
        known = merged(a.activations, b.activations)
        del known[name]
        model = Reference(good.config, good.weights, good.inputs.images, known)
        if relative_error(stated, model.value(layer)) > _enough(difference, value, stated):
            continue  # does not do what its weights and config say
        unseen = _unseen(layer, model, odd.activations)
        for candidates in (
            chain(layer_mistakes(layer, model, odd.config), _unseen_mistakes(unseen, layer, model, odd.config)),
            order_mistakes(layer, model),
            chain.from_iterable(
                _continued(order_mistakes(earlier, model), earlier, layer, model) for earlier in unseen
            ),
            fitted_mistakes(layer, model, value),
            _low_precision(value, difference),
            _rearranged(value, stated, difference),
        ):
            if mistake := _explanation(difference, value, stated, candidates):
                return f"{odd_name}'s values are {good_name}'s with {mistake}."
    return ""


def _explanation(difference: LayerDifference, value: np.ndarray, right: np.ndarray, candidates: Candidates) -> str:
    """The mistakes whose values are one side's, joined by "or" where several give the same; empty where none does."""
    enough, errors = _enough(difference, value, right), {}
    for mistake, values in candidates:
        if values.shape == value.shape and relative_error(values, right) > difference.bound:
            errors[mistake] = relative_error(values, value)
    # NaN is greater than nothing and less than nothing.
    errors = {mistake: error for mistake, error in errors.items() if error <= enough}
    if not errors:
        return ""
    same = max(difference.bound, 2 * min(errors.values()))
    return ", or with ".join(mistake for mistake in sorted(errors, key=errors.__getitem__) if errors[mistake] <= same)


def _enough(difference: LayerDifference, value: np.ndarray, right: np.ndarray) -> float:
    """The largest relative error that a mistake may leave to explain a difference."""
    return max(difference.bound, _EXPLAINED * relative_error(value, right))


def _unseen(layer: Layer, model: Reference, seen: Arrays) -> list[Layer]:
    """The layers just before this one that a side did not show, the nearest first."""
    unseen = []
    for earlier in reversed(model.before(layer)):
        if earlier.name in seen:
            break
        unseen.append(earlier)
    return unseen


def _unseen_mistakes(unseen: list[Layer], layer: Layer, model: Reference, other: ModelConfig) -> Candidates:
    for earlier in unseen:
        yield from _continued(layer_mistakes(earlier, model, other), earlier, layer, model)


def _continued(candidates: Candidates, earlier: Layer, layer: Layer, model: Reference) -> Candidates:
    """What the mistakes of an earlier layer make of this one."""
    for mistake, values in candidates:
        if values.shape[1:] == earlier.activation:
            yield f"{mistake}, at {earlier.name}", model.continued(earlier.name, values, layer)


def _low_precision(value: np.ndarray, difference: LayerDifference) -> Candidates:
    for precision, bits in SIGNIFICANT_BITS.items():
        if difference.l2_error <= 4 * 2.0**-bits and (value == rounded(value, bits)).all():
            yield f"rounding to {precision}: every value is a number of that precision", value


def _rearranged(value: np.ndarray, right: np.ndarray, difference: LayerDifference) -> Candidates:
    if relative_error(np.sort(value, axis=None), np.sort(right, axis=None)) <= difference.bound:
        yield "the same numbers in other places: reshaped where it should be transposed, or in another order", value


def _gradient_sides(name: str, a: Recording, b: Recording):
    """For each side as the right one: the right gradient, its usual mistakes, and the other side's gradient."""
    for good, odd, names in ((a, b, ("B", "A")), (b, a, ("A", "B"))):
        kind = "gradients" if name in a.weights else "activation_gradients"
        stated, value = (getattr(side, kind) or {} for side in (good, odd))
        if name not in stated:
            continue
        stated = stated[name].astype(np.float64)
        value = value[name].astype(np.float64) if name in value else np.zeros_like(stated)
        model = Reference(good.config, good.weights, good.inputs.images, merged(a.activations, b.activations))
        known = merged(a.activation_gradients, b.activation_gradients)
        labels = good.inputs.labels % good.config.num_classes
        right = right_gradient(name, model, known, labels)
        if right is not None and relative_error(stated, right, float(np.abs(stated).max()) or None) <= 1e-3:
            yield stated, gradient_mistakes(name, model, known, labels, value), value, names


def _largest_error(names: list[str], a: Recording, b: Recording) -> float:
    """The largest relative error of those weights that can be subtracted; infinite where none can."""
    pairs = [(b.weights[name], a.weights[name]) for name in names if name in b.weights]
    return max((relative_error(*pair) for pair in pairs if pair[0].shape == pair[1].shape), default=math.inf)


def _observations(a: Recording, b: Recording) -> str:
    """What the modules of both sides did that no Mixer should do, as sentences; empty where they did nothing such."""
    return "".join(
        f" Of {letter}: {'; '.join(side.observations)}." for letter, side in (("A", a), ("B", b)) if side.observations
    )
