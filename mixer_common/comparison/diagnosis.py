"""The likely cause of a difference: the layer computed anew with the usual mistakes, until one of them explains it.

Everything is NumPy in float64. Up to the layer both sides agree, so its input is known, and a mistake that
turns one side's values into the other's is the cause, whichever program made it.
"""

import math

import numpy as np

from mixer_common.comparison.differences import LayerDifference, relative_error
from mixer_common.comparison.mistakes import recompute
from mixer_common.comparison.recording import Recording
from mixer_common.config.model import describe_differences, layers

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


def describe_weights(a: Recording, b: Recording) -> str:
    """One sentence: the weights of both sides are equal to the bit, or the first that differ."""
    names = list(a.weights)
    if names != list(b.weights):
        return f"{len(names)} arrays in A, {len(b.weights)} in B: the models have different layers"
    differing = _differing_weights(a, b)
    if not differing:
        return "the same on both sides, to the bit"
    name = differing[0]
    if a.weights[name].shape != b.weights[name].shape:
        difference = f"shape {a.weights[name].shape} in A, {b.weights[name].shape} in B"
    else:
        difference = f"by {relative_error(b.weights[name], a.weights[name]):.1e} of the largest"
    return f"{len(differing)} of {len(names)} arrays differ, the first is {name}: {difference}"


def likely_cause(difference: LayerDifference, a: Recording, b: Recording) -> str:
    """Sentences on the cause of a difference, that of the first activation past its bound."""
    name = difference.name
    if difference.note:
        if name == "head":
            return (
                f"A tells {a.config.num_classes} classes apart, B {b.config.num_classes}: one head was replaced, "
                "or counts a class, such as a background, that the other does not."
            )
        return f"The architectures differ: {describe_differences(a.config, b.config)}."
    layer = next(layer for layer in layers(a.config) if layer.name == name)
    usual_causes = _USUAL_CAUSES.get(name, _USUAL_CAUSES[layer.kind])
    if mistake := _mistake(difference, a, b):
        return mistake
    differing = _differing_weights(a, b)
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
    return f"Usual causes here: {usual_causes}."


def _mistake(difference: LayerDifference, a: Recording, b: Recording) -> str:
    """One sentence on the mistake that turns one side's values into the other's; empty where none does."""
    name = difference.name
    for good, odd, good_name, odd_name in ((a, b, "A", "B"), (b, a, "B", "A")):
        value, right = (side.activations[name].astype(np.float64) for side in (odd, good))
        enough = max(difference.bound, _EXPLAINED * relative_error(value, right))
        layer = next(layer for layer in layers(good.config) if layer.name == name)
        expected, mistakes = recompute(layer, good, odd.config)
        if relative_error(right, expected) > enough:  # does not do what its weights and config say
            continue
        errors = {mistake: relative_error(value, candidate) for mistake, candidate in mistakes.items()}
        nearest = min(errors, key=lambda mistake: errors[mistake])
        if errors[nearest] <= enough:
            return f"{odd_name}'s values are {good_name}'s with {nearest}."
    return ""


def _largest_error(names: list[str], a: Recording, b: Recording) -> float:
    """The largest relative error of those weights that can be subtracted; infinite where none can."""
    pairs = [(b.weights[name], a.weights[name]) for name in names if name in b.weights]
    return max((relative_error(*pair) for pair in pairs if pair[0].shape == pair[1].shape), default=math.inf)


def _differing_weights(a: Recording, b: Recording) -> list[str]:
    """The weights of A that B does not have, to the bit."""
    return [
        name
        for name, array in a.weights.items()
        if name not in b.weights or array.dtype != b.weights[name].dtype or array.tobytes() != b.weights[name].tobytes()
    ]
