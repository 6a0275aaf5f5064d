"""What makes two models part at a layer: the layer computed anew with the usual mistakes, until one fits.

Everything is NumPy in float64. Up to the layer both sides agree, so its input is known, and a mistake that
turns one side's values into the other's is the cause, whichever program made it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

import numpy as np
from scipy.special import erf

from mixer_common.comparison.differences import LayerDifference, relative_error
from mixer_common.config.model import ModelConfig, activation_names
from mixer_common.plan.epoch import PIXEL_SCALE
from mixer_common.plan.resize import resize_matrix

# A mistake explains a difference when it leaves at most this share of it.
_EXPLAINED = 0.02
# Relative L2 errors that rounding each product's factors leaves, with room for sums and norms around it.
_ROUNDED = (("bfloat16", 4e-4, 2e-2), ("TF32 or float16", 3e-5, 4e-4), ("float32", 3e-9, 1e-5))
_USUAL = {
    "stem": "the order of patches, rows or colours in the filters, a transposed filter, or pixels scaled otherwise",
    "norm": "another epsilon, swapped norms, statistics over the wrong axis or in a lower precision",
    "fc": "a transposed or mis-shaped weight, a missing bias, TF32 or another low precision in the product",
    "gelu": "the tanh form of GELU against the exact one",
    "sum": "a residual connection left out or taken from another place, or a scaled branch",
    "pool": "a maximum or a class token instead of the mean over the patches",
    "head": "another set of classes, a transposed weight or a missing bias",
}


@dataclass(frozen=True)
class Computed:
    """One side: its model and its activations."""

    config: ModelConfig
    weights: Mapping[str, np.ndarray]  # canonical
    activations: Mapping[str, np.ndarray]


def describe_weights(a: Computed, b: Computed) -> str:
    """One sentence: whether both sides hold the same weights, and where they part first."""
    names = list(a.weights)
    if names != list(b.weights):
        return f"{len(names)} arrays in A, {len(b.weights)} in B: the models have different layers"
    differ = _different_weights(a, b)
    if not differ:
        return "the same on both sides, to the bit"
    name = differ[0]
    if a.weights[name].shape != b.weights[name].shape:
        how = f"shape {a.weights[name].shape} in A, {b.weights[name].shape} in B"
    else:
        how = f"by {relative_error(b.weights[name], a.weights[name]):.1e} of the largest"
    return f"{len(differ)} of {len(names)} arrays differ, the first is {name}: {how}"


def likely_cause(error: LayerDifference, a: Computed, b: Computed, images: np.ndarray) -> str:
    """What explains the first layer past its bound; images: uint8 (B, H, W, 3), those of the activations."""
    layer, kind = error.name, _kind(error.name)
    if error.note:
        if kind == "head":
            return (
                f"A tells {a.config.num_classes} classes apart, B {b.config.num_classes}: one head was replaced, "
                "or counts a class, such as a background, that the other does not."
            )
        differ = [
            f"{field.name} {getattr(a.config, field.name)} in A, {getattr(b.config, field.name)} in B"
            for field in fields(ModelConfig)
            if getattr(a.config, field.name) != getattr(b.config, field.name)
        ]
        return f"The architectures differ: {'; '.join(differ)}."
    for good, odd, names in ((a, b, ("B", "A")), (b, a, ("A", "B"))):
        value, right = (side.activations[layer].astype(np.float64) for side in (odd, good))
        enough = max(error.bound, _EXPLAINED * relative_error(value, right))
        (_, expected), *mistakes = _candidates(layer, good, odd, images)
        if relative_error(right, expected) > enough:  # does not do what its weights and config say
            continue
        left = {what: relative_error(value, candidate) for what, candidate in mistakes}
        what = min(left, key=left.get)
        if left[what] <= enough:
            return f"{names[0]}'s values are {names[1]}'s with {what}."
    different = _different_weights(a, b)
    if len(different) > len(a.weights) / 2:
        return (
            f"The weights are others, {len(different)} of {len(a.weights)} arrays by up to "
            f"{max(relative_error(b.weights[name], a.weights[name]) for name in different):.1e} of their largest: "
            "two models, or one run trained twice. What the programs do shows with one set of weights in both, "
            "jax:PATH torch:PATH; whether two runs are near enough, with --tolerance."
        )
    differ = [name for name in different if name.rpartition(".")[0] == layer]
    if differ:
        return (
            f"The weights differ here: {' and '.join(differ)}, by "
            f"{max(relative_error(b.weights[name], a.weights[name]) for name in differ):.1e} of the largest. "
            f"If they should be the same: {_USUAL[kind]}."
        )
    for precision, low, high in _ROUNDED:
        if low <= error.l2_error <= high and kind != "gelu":
            return (
                f"No usual mistake gives these values; a relative L2 error of {error.l2_error:.0e} is the size of "
                f"rounding to {precision} in this layer."
            )
    return f"Usual causes here: {_USUAL[kind]}."


def _different_weights(a: Computed, b: Computed) -> list[str]:
    return [
        name
        for name, array in a.weights.items()
        if array.dtype != b.weights[name].dtype or array.tobytes() != b.weights[name].tobytes()
    ]


def _kind(layer: str) -> str:
    last = layer.rpartition(".")[2]
    return {
        "token_norm": "norm",
        "channel_norm": "norm",
        "token_mixing": "sum",
        "channel_mixing": "sum",
        "fc1": "fc",
        "fc2": "fc",
    }.get(last, last)


def _candidates(layer: str, good: Computed, odd: Computed, images: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """What the layer should be by the good side's input, weights and config; then what usual mistakes make of it."""
    config, kind = good.config, _kind(layer)
    names = activation_names(config)
    before = {name: good.activations[name].astype(np.float64) for name in _inputs(layer, names)}
    x = next(iter(before.values()), None)
    weight, bias = (
        good.weights[name].astype(np.float64) if (name := f"{layer}.{part}") in good.weights else None
        for part in ("weight", "bias")
    )
    if kind == "stem":
        pixels = _pixels(images, config)
        right = _stem(pixels, weight, bias)
        column_major = np.arange(config.num_patches).reshape(config.grid).T.reshape(-1)
        yield "nothing", right
        yield "the grid of patches in column-major order", right[:, column_major]
        imagenet = ((pixels + 1) / 2 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
        yield "the colours in the order blue, green, red", _stem(pixels[..., ::-1], weight, bias)
        yield "the rows and columns of its filters transposed", _stem(pixels, weight.swapaxes(2, 3), bias)
        yield "pixels in [0, 1] instead of [-1, 1]", _stem((pixels + 1) / 2, weight, bias)
        yield "pixels in [0, 255] instead of [-1, 1]", _stem((pixels + 1) * 127.5, weight, bias)
        yield "pixels scaled by ImageNet's means and deviations", _stem(imagenet, weight, bias)
        yield "no bias", _stem(pixels, weight, 0)
    elif kind == "norm":
        tutorial = config.block == "tutorial" and layer.endswith("token_norm")
        yield "nothing", _layer_norm(x, weight, bias, config.layer_norm_epsilon, tutorial)
        for epsilon in dict.fromkeys((odd.config.layer_norm_epsilon, 1e-3, 1e-5, 1e-6, 1e-12)):
            if epsilon != config.layer_norm_epsilon:
                yield (
                    f"LayerNorm epsilon {epsilon:g} instead of {config.layer_norm_epsilon:g}",
                    _layer_norm(x, weight, bias, epsilon, tutorial),
                )
        others = [
            name
            for name in names
            if _kind(name) == "norm" and name != layer and good.weights[f"{name}.weight"].shape == weight.shape
        ]
        near = layer.rpartition(".")[0]
        for other in sorted(others, key=lambda name: not name.startswith(f"{near}.")):
            yield (
                f"the weights of {other}, as if the two were swapped",
                _layer_norm(
                    x,
                    good.weights[f"{other}.weight"],
                    good.weights[f"{other}.bias"],
                    config.layer_norm_epsilon,
                    tutorial,
                ),
            )
        for what, w, b in (("no bias", weight, 0), ("no scale", 1, bias), ("neither scale nor bias", 1, 0)):
            yield what, _layer_norm(x, w, b, config.layer_norm_epsilon, tutorial)
    elif kind in ("fc", "head"):
        over_tokens = ".token_mixing." in layer and config.block == "mixer"
        yield "nothing", _linear(x, weight, bias, over_tokens)
        if weight.shape[0] == weight.shape[1]:
            yield "its weight transposed", _linear(x, weight.T, bias, over_tokens)
        yield (
            "its weight reshaped where it should be transposed",
            _linear(x, weight.T.reshape(weight.shape), bias, over_tokens),
        )
        yield "no bias", _linear(x, weight, np.zeros_like(bias), over_tokens)
    elif kind == "gelu":
        forms = {
            "exact": 0.5 * x * (1 + erf(x * np.sqrt(0.5))),
            "tanh": 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
            "sigmoid": x / (1 + np.exp(-1.702 * x)),
        }
        yield "nothing", forms[config.gelu]
        yield from (
            (f"the {name} form of GELU instead of the {config.gelu} form", form)
            for name, form in forms.items()
            if name != config.gelu
        )
        yield "ReLU instead of GELU", np.maximum(x, 0)
    elif kind == "sum":
        branch, stream = before.values()
        yield "nothing", branch + stream
        yield "the residual connection left out", branch
        yield "the branch left out", stream
        yield (
            "the normalised input added instead of the input itself",
            branch + good.activations[layer.replace("mixing", "norm")],
        )
    elif kind == "pool":
        yield "nothing", x.mean(axis=1)
        yield "the maximum over the patches instead of the mean", x.max(axis=1)
        yield "the first patch instead of the mean", x[:, 0]
        yield "the sum over the patches instead of the mean", x.sum(axis=1)


def _inputs(layer: str, names: list[str]) -> list[str]:
    """The activations that a layer is computed from: a sum's branch and its residual stream, or the one before."""
    if layer == "stem":
        return []
    sums = [name for name in names if _kind(name) in ("stem", "sum")]
    stream = [name for name in sums if names.index(name) < names.index(layer)][-1]
    if _kind(layer) == "sum":
        return [f"{layer}.fc2", stream]
    return [stream] if _kind(layer) == "norm" else [names[names.index(layer) - 1]]


def _pixels(images: np.ndarray, config: ModelConfig) -> np.ndarray:
    pixels = (2 * images.astype(np.float64) - 255) * PIXEL_SCALE
    rows, columns = (resize_matrix(*sizes) for sizes in zip(images.shape[1:3], config.image_size, strict=True))
    return np.einsum("hi,bijc,wj->bhwc", rows, pixels, columns, optimize=True)


def _stem(pixels: np.ndarray, weight: np.ndarray, bias: np.ndarray | int) -> np.ndarray:
    B, H, W, _ = pixels.shape
    P = weight.shape[-1]
    patches = pixels.reshape(B, H // P, P, W // P, P, 3).transpose(0, 1, 3, 5, 2, 4)
    return patches.reshape(B, -1, 3 * P * P) @ weight.reshape(len(weight), -1).T + bias


def _layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, epsilon: float, over_tokens: bool) -> np.ndarray:
    x = x.swapaxes(1, 2) if over_tokens else x
    centred = x - x.mean(-1, keepdims=True)
    y = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + epsilon) * weight + bias
    return y.swapaxes(1, 2) if over_tokens else y


def _linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, over_tokens: bool) -> np.ndarray:
    return weight @ x + bias[:, None] if over_tokens else x @ weight.T + bias
