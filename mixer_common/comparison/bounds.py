"""The bounds of a comparison: the relative errors that rounding alone explains, layer by layer."""

import math
from collections.abc import Mapping

import numpy as np

from mixer_common.config.model import Layer, ModelConfig, layers

# Chosen. An error is a sum of many small independent ones, so nearly normal; the largest of a tensor's entries
# reaches about five standard deviations, and the rest is room for what the later layers amplify.
SAFETY = 8
# Half the distance from 1 to the next number.
UNIT_ROUNDOFF = {"float32": 2.0**-24, "float64": 2.0**-53, "bfloat16": 2.0**-8}


def lower_precision(*precisions: str) -> str:
    """The one of the precisions that rounds most."""
    return max(precisions, key=UNIT_ROUNDOFF.__getitem__)


def forward_bounds(config: ModelConfig, precision: str) -> dict[str, float]:
    """The largest relative error of each activation that rounding explains between two forward passes.

    A sum of n terms rounds n times; the errors behave like a random walk, √n · u rather than n · u
    (Higham & Mary 2019, doi 10.1137/18M1226312). Layers follow each other, so their n add up under the
    root. The errors of two implementations may have opposite signs, hence the factor 2.

    bfloat16 sums in float32 and rounds once a layer, by at most u of each entry: no sum and no tail to allow
    for, only that the layers amplify each other's errors, up to about twice.
    """
    terms = {layer.name: layer.terms for layer in layers(config)}
    once = precision == "bfloat16"
    roundings = np.cumsum([1 if once else count for count in terms.values()])
    bounds = 2 * (2 if once else SAFETY) * UNIT_ROUNDOFF[precision] * np.sqrt(roundings)
    return dict(zip(terms, bounds.tolist(), strict=True))


def layer_bounds(config: ModelConfig, precision: str, input_rounded: bool = False) -> dict[str, float]:
    """The largest relative error of each activation that rounding explains where both sides compute it from one input.

    forward_bounds with the terms of one layer: nothing is inherited. Each of them is a product and is added, so it
    rounds twice at most; a layer that sums nothing rounds a few times in a row, as GELU does.
    input_rounded: one side computes in a lower precision and gets the input rounded to it, once more for each term.
    """
    once = precision == "bfloat16"
    factor = 2 * (2 if once else SAFETY) * UNIT_ROUNDOFF[precision]
    return {
        layer.name: factor * math.sqrt((1 if once else layer.terms) * (2 if input_rounded else 1))
        for layer in layers(config)
    }


def activation_gradient_bounds(config: ModelConfig, precision: str) -> dict[str, float]:
    """The largest relative error of the loss's gradient with respect to each activation that rounding explains.

    The way back to a layer passes every later one, and sums over the numbers that its result consists of: a product
    over its outputs, a norm over what it normalises, the loss over the classes. The errors of the way forward enter
    twice, by the logits and by the activations that the derivatives are taken at.
    """
    once = precision == "bfloat16"
    network = list(layers(config))
    terms = {layer.name: _terms_back(layer) for layer in network}
    behind = [config.num_classes, *(terms[layer.name] for layer in reversed(network[1:]))]
    roundings = np.cumsum([1 if once else count for count in behind])
    back = 2 * (2 if once else SAFETY) * UNIT_ROUNDOFF[precision] * np.sqrt(roundings)
    forward = math.sqrt(2) * forward_bounds(config, precision)["head"]
    return {layer.name: math.hypot(forward, bound) for layer, bound in zip(reversed(network), back, strict=True)}


def _terms_back(layer: Layer) -> int:
    """Summands in one sum of the gradient with respect to the layer's input."""
    if layer.kind == "linear":
        return layer.activation[0] if layer.over_patches else layer.activation[-1]
    return layer.terms if layer.kind == "norm" else 1


def gradient_bound(config: ModelConfig, precision: str, batch_size: int) -> float:
    """The largest relative error of a gradient that rounding explains, measured against its gradient_scales.

    It combines the errors of the way forward, of the way back, and of the sum over images and patches.
    """
    forward = forward_bounds(config, precision)["head"]
    terms = 1 if precision == "bfloat16" else batch_size * config.num_patches
    return math.hypot(math.sqrt(3) * forward, 2 * SAFETY * UNIT_ROUNDOFF[precision] * math.sqrt(terms))


def gradient_scales(gradients: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The scale of each gradient's relative error: the largest gradient in its layer.

    The gradients of a layer's weight and bias sum the same terms. Those of a bias often cancel, and its
    error does not: in the paper's block, the second bias of token mixing adds the same to all channels of
    a token, every later LayerNorm takes it away again, and nothing but rounding is left of its gradient.
    """
    layers: dict[str, float] = {}
    for name, array in gradients.items():
        layer = name.rpartition(".")[0]
        layers[layer] = max(layers.get(layer, 0.0), float(np.abs(array).max()))
    return {name: layers[name.rpartition(".")[0]] for name in gradients}
