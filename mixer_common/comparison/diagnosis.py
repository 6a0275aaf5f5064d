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
from mixer_common.comparison.fitted_mistakes import fitted_mistakes
from mixer_common.comparison.gradient_mistakes import gradient_mistakes, right_gradient
from mixer_common.comparison.mistakes import SIGNIFICANT_BITS, layer_mistakes, rounded
from mixer_common.comparison.order_mistakes import order_mistakes, side_by_side
from mixer_common.comparison.recording import Arrays, Recording
from mixer_common.comparison.reference import Reference, merged
from mixer_common.comparison.weight_mistakes import describe_blocks, describe_storage, differing_weights
from mixer_common.config.model import Layer, ModelConfig, layers, weight_shapes

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

    Also of any activation, where b holds A's activations before it, since b was computed with them.
    """
    name = difference.name
    if difference.note:
        return _shape_cause(difference, a, b)
    layer = next(layer for layer in layers(a.config) if layer.name == name)
    usual_causes = _USUAL_CAUSES.get(name, _USUAL_CAUSES[layer.kind])
    differing = differing_weights(a.weights, b.weights)
    if cause := describe_blocks(layer, a.weights, b.weights) or describe_storage(differing, a.weights, b.weights):
        return cause
    if mistake := _mistake(difference, layer, a, b):
        return mistake
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
    observed = "".join(
        f" Of {letter}: {' '.join(side.observations)}" for letter, side in (("A", a), ("B", b)) if side.observations
    )
    for precision, low, high in _ROUNDING_RANGES:
        if low <= difference.l2_error <= high and layer.kind != "gelu":
            return (
                f"No usual mistake gives these values; a relative L2 error of {difference.l2_error:.0e} is the size of "
                f"rounding to {precision} in this layer.{observed}"
            )
    return f"No usual mistake gives these values. Usual causes here: {usual_causes}.{observed}"


def likely_gradient_cause(difference: LayerDifference, a: Recording, b: Recording) -> str:
    """One sentence on the cause of a difference in gradients, that of the first past its bound on the way back.

    difference: of an activation's gradient, or of a weight's. Empty where no usual mistake explains it.
    """
    name = difference.name
    kind = "gradients" if name in a.weights else "activation_gradients"
    labels = a.inputs.labels % a.config.num_classes
    known = merged(a.activation_gradients, b.activation_gradients)
    known.pop(name, None)
    for good, odd, good_name, odd_name in ((a, b, "A", "B"), (b, a, "B", "A")):
        stated, given = (getattr(side, kind) or {} for side in (good, odd))
        if name not in stated:
            continue
        model = Reference(good.config, merged(good.weights, odd.weights), a.inputs.images, _activations(a, b))
        right = right_gradient(name, model, known, labels)
        stated = stated[name].astype(np.float64)
        value = given[name].astype(np.float64) if name in given else np.zeros_like(stated)
        if _largest(stated - right) > _enough(difference, value, stated):
            continue
        if mistake := _explanation(difference, value, stated, gradient_mistakes(name, model, known, labels, value)):
            return f"{odd_name}'s gradient is {good_name}'s with {mistake}."
    return ""


def _shape_cause(difference: LayerDifference, a: Recording, b: Recording) -> str:
    """Sentences on an activation that has another shape on the other side, or is none of it."""
    name = difference.name
    if weight_shapes(a.config) != weight_shapes(b.config):
        return describe_architectures(name, a.config, b.config)
    shapes = [side.activations[name].shape for side in (a, b) if name in side.activations]
    if len(set(shapes)) > 1:
        return describe_shapes(name, a, b)
    good, odd, letters = (a, b, "AB") if difference.note == "only in A" else (b, a, "BA")
    model = Reference(good.config, merged(good.weights, odd.weights), good.inputs.images, good.activations)
    names = list(model.layers)
    for following in [later for later in names[names.index(name) :] if later in odd.activations][:2]:
        right, value = (side.activations[following].astype(np.float64) for side in (good, odd))
        candidates = order_mistakes(model.layers[following], model, odd.activations)
        if mistake := _explanation(difference, value, right, candidates):
            return f"{letters[1]}'s values in {following} are {letters[0]}'s with {mistake}."
    return f"{letters[1]} does not show this layer. {' '.join(odd.observations)}".rstrip()


def _activations(a: Recording, b: Recording) -> dict[str, np.ndarray]:
    """What is known of every layer: A's activations, which B was given where layers are isolated, else B's."""
    shapes = {layer.name: layer.activation for layer in layers(a.config)}
    return {
        name: array
        for name, array in merged(a.activations, b.activations).items()
        if array.shape[1:] == shapes.get(name)
    }


def _mistake(difference: LayerDifference, layer: Layer, a: Recording, b: Recording) -> str:
    """One sentence on the mistake that turns one side's values into the other's; empty where none does."""
    name = difference.name
    for good, odd, good_name, odd_name in ((a, b, "A", "B"), (b, a, "B", "A")):
        value, stated = (side.activations[name].astype(np.float64) for side in (odd, good))
        known = _activations(a, b)
        del known[name]
        model = Reference(good.config, merged(good.weights, odd.weights), good.inputs.images, known)
        if _largest(stated - model.value(layer)) > _enough(difference, value, stated):
            continue  # does not do what its weights and config say
        unseen = _unseen(layer, model, odd.activations)
        for candidates in (
            side_by_side(layer, model, odd.activations),
            chain(layer_mistakes(layer, model, odd.config), _unseen_mistakes(unseen, layer, model, odd.config)),
            order_mistakes(layer, model, odd.activations),
            chain.from_iterable(
                _continued(order_mistakes(earlier, model, odd.activations), earlier, layer, model) for earlier in unseen
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
    rounding, enough, errors = difference.bound * _largest(right), _enough(difference, value, right), {}
    for mistake, values in candidates:
        if values.shape == value.shape and _largest(values - right) > rounding:
            errors[mistake] = min(_largest(values - value), errors.get(mistake, math.inf))
    errors = {mistake: error for mistake, error in errors.items() if error <= enough}  # NaN is not
    if not errors:
        return ""
    same = max(rounding, 2 * min(errors.values()))
    return ", or with ".join(mistake for mistake in sorted(errors, key=errors.__getitem__) if errors[mistake] <= same)


def _enough(difference: LayerDifference, value: np.ndarray, right: np.ndarray) -> float:
    """The largest error that a mistake may leave to explain a difference."""
    return max(difference.bound * _largest(right), _EXPLAINED * _largest(value - right))


def _largest(x: np.ndarray) -> float:
    return float(np.abs(x).max())


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


def _largest_error(names: list[str], a: Recording, b: Recording) -> float:
    """The largest relative error of those weights that can be subtracted; infinite where none can."""
    pairs = [(b.weights[name], a.weights[name]) for name in names if name in b.weights]
    return max((relative_error(*pair) for pair in pairs if pair[0].shape == pair[1].shape), default=math.inf)
