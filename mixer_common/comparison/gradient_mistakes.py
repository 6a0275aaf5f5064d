"""Gradients computed anew from those of later layers, in NumPy and float64, with each of the usual mistakes.

Activations x are (N, S, C) or (N, C). Every gradient is that of the mean cross-entropy.
"""

from collections.abc import Iterator

import numpy as np
from scipy.special import erf

from mixer_common.comparison.recording import Arrays
from mixer_common.comparison.reference import Reference
from mixer_common.config.model import Layer

Candidates = Iterator[tuple[str, np.ndarray]]


def right_gradient(name: str, model: Reference, known: Arrays, labels: np.ndarray) -> np.ndarray:
    """The gradient of an activation, or of a weight, by those of the activations after it.

    known: gradients of activations by name; those that are absent are computed. labels: (N,).
    """
    if name in model.layers:
        return sum(_parts(name, model, known, labels).values(), np.zeros(()))
    return _weight_gradient(name, model, known, labels)


def gradient_mistakes(name: str, model: Reference, known: Arrays, labels: np.ndarray, values: np.ndarray) -> Candidates:
    """The gradient of an activation, or of a weight, with each usual mistake; values: the gradient to explain."""
    right = right_gradient(name, model, known, labels)
    if name in model.layers:
        yield "no way back from what follows: detached, or its gradient stopped", np.zeros_like(right)
        yield from _activation_mistakes(name, model, known, labels, values)
    else:
        yield "no gradient of this weight: frozen, detached, or never used", np.zeros_like(right)
        if right.ndim == 2 and right.shape[0] == right.shape[1]:
            yield "it transposed", right.T
    length = float(np.square(right).sum())
    if length and values.any():
        factor = float((values * right).sum()) / length
        N = len(labels)
        reason = " (a sum over the images instead of the mean)" if N > 1 and abs(factor - N) < 1e-3 * N else ""
        yield f"a factor of {factor:.4g}{reason}", factor * right


def _parts(name: str, model: Reference, known: Arrays, labels: np.ndarray) -> dict[str, np.ndarray]:
    """What each later layer adds to an activation's gradient, by that layer's name; of the logits, the loss."""
    names = list(model.layers)
    after = [model.layers[later] for later in names[names.index(name) + 1 :]]
    if not after:
        return {"the loss": (_probabilities(model.activation("head")) - _one_hot(labels, model)) / len(labels)}
    following = after[0]
    g = _gradient(following.name, model, known, labels)
    x = model.activation(name)
    match following.kind:
        case "norm":
            parts = {following.name: _norm_back(x, g, following, model)}
            if residual := next((later for later in after if later.kind == "residual"), None):
                parts[residual.name] = _gradient(residual.name, model, known, labels)
            return parts
        case "linear":
            weight, _ = model.parameters(following.name)
            return {following.name: weight.T @ g if following.over_patches else g @ weight}
        case "gelu":
            return {following.name: g * _derivatives(x)[model.config.gelu]}
        case "residual":
            return {following.name: g}
        case "pool":
            return {following.name: np.broadcast_to(g[:, None] / x.shape[1], x.shape)}
        case kind:
            raise ValueError(kind)


def _gradient(name: str, model: Reference, known: Arrays, labels: np.ndarray) -> np.ndarray:
    return known[name].astype(np.float64) if name in known else right_gradient(name, model, known, labels)


def _activation_mistakes(
    name: str, model: Reference, known: Arrays, labels: np.ndarray, values: np.ndarray
) -> Candidates:
    parts = _parts(name, model, known, labels)
    if len(parts) > 1:
        branch, residual = parts
        yield f"none through {branch}: the branch is detached", parts[residual]
        yield f"none through the residual connection {residual}: the stream is detached there", parts[branch]
    if name == "head":
        N, K = values.shape
        smoothed = (_one_hot(labels, model) - 1 / K) / N
        share = float(((values - parts["the loss"]) * smoothed).sum() / np.square(smoothed).sum())
        yield f"labels smoothed by {share:.3g}", parts["the loss"] + share * smoothed
        return
    names = list(model.layers)
    following = model.layers[names[names.index(name) + 1]]
    g, x = _gradient(following.name, model, known, labels), model.activation(name)
    rest = sum((part for layer, part in parts.items() if layer != following.name), np.zeros(()))
    match following.kind:
        case "norm":
            for mistake, value in _norm_back_mistakes(x, g, following, model):
                yield f"{mistake} in {following.name}", rest + value
        case "linear":
            weight, _ = model.parameters(following.name)
            if weight.shape[0] == weight.shape[1]:
                yield (
                    f"the weight of {following.name} transposed",
                    weight @ g if following.over_patches else g @ weight.T,
                )
        case "gelu":
            for form, derivative in _derivatives(x).items():
                if form != model.config.gelu:
                    yield f"{_DERIVATIVES[form]} at {following.name}", g * derivative
        case "pool":
            yield "the gradient of a sum instead of a mean", np.broadcast_to(g[:, None], x.shape)


_DERIVATIVES = {
    "exact": "the derivative of the exact form of GELU",
    "tanh": "the derivative of the tanh form of GELU",
    "sigmoid": "the derivative of the sigmoid form of GELU",
    "relu": "the derivative of ReLU",
    "one": "a derivative of one (straight through)",
    "cdf": "the derivative of GELU without its second term, x times the density",
    "density": "the derivative of GELU without its first term, the distribution",
    "result": "the derivative of GELU taken at its result instead of its input",
}


def _derivatives(x: np.ndarray) -> dict[str, np.ndarray]:
    """The derivatives of GELU's forms by name, and those that the usual mistakes give."""

    def exact(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return 0.5 * (1 + erf(x * np.sqrt(0.5))), x * np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi)

    first, second = exact(x)
    u = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    slope = np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)
    tanh = 0.5 * (1 + np.tanh(u)) + 0.5 * x * (1 - np.tanh(u) ** 2) * slope
    s = 1 / (1 + np.exp(-1.702 * x))
    return {
        "exact": first + second,
        "tanh": tanh,
        "sigmoid": s + 1.702 * x * s * (1 - s),
        "relu": (x > 0).astype(np.float64),
        "one": np.ones_like(x),
        "cdf": first,
        "density": second,
        "result": np.add(*exact(x * first)),
    }


def _norm_back(x: np.ndarray, g: np.ndarray, layer: Layer, model: Reference) -> np.ndarray:
    """The gradient of a LayerNorm's input from that of its result."""
    axis, weighted, standard, deviation = _norm_parts(x, g, layer, model)
    means = weighted.mean(axis, keepdims=True), (weighted * standard).mean(axis, keepdims=True)
    return (weighted - means[0] - standard * means[1]) / deviation


def _norm_back_mistakes(x: np.ndarray, g: np.ndarray, layer: Layer, model: Reference) -> Candidates:
    axis, weighted, standard, deviation = _norm_parts(x, g, layer, model)
    mean = weighted.mean(axis, keepdims=True)
    product = standard * (weighted * standard).mean(axis, keepdims=True)
    yield "mean and variance detached", weighted / deviation
    yield "the variance detached", (weighted - mean) / deviation
    yield "the mean detached", (weighted - product) / deviation
    axis, plain, standard, deviation = _norm_parts(x, g, layer, model, scaled=False)
    product = standard * (plain * standard).mean(axis, keepdims=True)
    yield "its scale forgotten on the way back", (plain - plain.mean(axis, keepdims=True) - product) / deviation
    yield "a derivative of one (straight through)", g


def _norm_parts(x: np.ndarray, g: np.ndarray, layer: Layer, model: Reference, scaled: bool = True):
    """The axis of the statistics, the gradient of the standardised input, that input, and its deviation."""
    axis, shape = (1, (-1, 1)) if layer.over_patches else (-1, (-1,))
    weight = model.parameters(layer.name)[0].reshape(shape) if scaled else 1
    centred = x - x.mean(axis, keepdims=True)
    deviation = np.sqrt(np.square(centred).mean(axis, keepdims=True) + model.config.layer_norm_epsilon)
    return axis, g * weight, centred / deviation, deviation


def _weight_gradient(name: str, model: Reference, known: Arrays, labels: np.ndarray) -> np.ndarray:
    layer_name, _, part = name.rpartition(".")
    layer = model.layers[layer_name]
    g = _gradient(layer_name, model, known, labels)
    if layer.kind == "norm":
        (x,) = model.inputs(layer)
        axis, _, standard, _ = _norm_parts(x, g, layer, model)
        return (g * standard if part == "weight" else g).sum((0, 2 if axis == 1 else 1))
    if part == "bias":
        return g.sum(2 if layer.over_patches else ()).reshape(-1, g.shape[1 if layer.over_patches else -1]).sum(0)
    if layer.kind == "stem":
        images, P = model.pixels(), model.config.patch_size
        B, H, W, _ = images.shape
        patches = images.reshape(B, H // P, P, W // P, P, 3).transpose(0, 1, 3, 5, 2, 4).reshape(B, -1, 3 * P * P)
        return np.einsum("bso,bsi->oi", g, patches, optimize=True).reshape(layer.weight or ())
    (x,) = model.inputs(layer)
    if layer.over_patches:
        return np.einsum("boc,bic->oi", g, x, optimize=True)
    return np.einsum("...o,...i->oi", g, x, optimize=True)


def _probabilities(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _one_hot(labels: np.ndarray, model: Reference) -> np.ndarray:
    return np.eye(model.config.num_classes)[labels]
