"""A layer computed anew from its input, in NumPy and float64, with each of the usual mistakes.

Every function yields the values that a mistake gives, with its description, which completes "B's values are A's with".
"""

from collections.abc import Iterator

import numpy as np

from mixer_common.comparison.arithmetic import gelu_forms, layer_norm, linear, stem
from mixer_common.comparison.pixel_mistakes import pixel_mistakes
from mixer_common.comparison.reference import Reference
from mixer_common.config.model import Layer, ModelConfig

Candidates = Iterator[tuple[str, np.ndarray]]

_RESHAPED = "its result (N, C, S) reshaped to (N, S, C) instead of transposed"
# The bits of a number's fraction, with the one in front of it. TF32 has the range of float32 and as many as float16.
SIGNIFICANT_BITS = {"bfloat16": 8, "TF32 or float16": 11, "float32": 24}


def layer_mistakes(layer: Layer, model: Reference, other: ModelConfig) -> Candidates:
    """The activation of a layer with each usual mistake, from the activations before it.

    other: the config of the other side, whose settings may be the mistake.
    """
    match layer.kind:
        case "stem":
            return _stem_mistakes(model)
        case "norm":
            return _norm_mistakes(layer, model, other)
        case "linear":
            return _linear_mistakes(layer, model)
        case "gelu":
            return _gelu_mistakes(model.inputs(layer)[0], model.config.gelu)
        case "residual":
            return _residual_mistakes(layer, model)
        case "pool":
            return _pool_mistakes(model)


def rounded(x: np.ndarray, bits: int) -> np.ndarray:
    """Numbers rounded to so many significant bits, to the nearest, halves to even; no limit of their range."""
    fraction, exponent = np.frexp(x)
    return np.ldexp(np.rint(np.ldexp(fraction, bits)), exponent - bits)


def _stem_mistakes(model: Reference) -> Candidates:
    (weight, bias), config, inputs = model.parameters("stem"), model.config, model.pixels()
    right = stem(inputs, weight, bias)
    rows, columns = config.grid
    O, I, H, W = weight.shape
    yield "the grid of patches in column-major order", right[:, np.arange(rows * columns).reshape(rows, -1).T.ravel()]
    yield "the rows and columns of its filters transposed", stem(inputs, weight.swapaxes(2, 3), bias)
    for description, images in pixel_mistakes(model.images, config):
        yield description, stem(images, weight, bias)
    yield (
        "patches and channels exchanged on the way out: (N, C, S) reshaped to (N, S, C) instead of transposed",
        _reshaped(right),
    )
    yield (
        "its filter of layout H,W,I,O read as O,I,H,W",
        stem(inputs, np.ascontiguousarray(weight.transpose(2, 3, 1, 0)).reshape(weight.shape), bias),
    )
    yield (
        "its filter of layout O,I,H,W read as H,W,I,O",
        stem(inputs, np.ascontiguousarray(weight).reshape(H, W, I, O).transpose(3, 2, 0, 1), bias),
    )
    yield (
        "the pixels of a patch in the order rows, columns, colours where the filter has colours first",
        stem(inputs, weight.reshape(O, H, W, I).transpose(0, 3, 1, 2), bias),
    )
    yield (
        "the pixels of a patch in the order colours, rows, columns where the filter has colours last",
        stem(inputs, np.ascontiguousarray(weight.transpose(0, 2, 3, 1)).reshape(weight.shape), bias),
    )
    yield "its filters turned by 180 degrees, as a true convolution does", stem(inputs, weight[:, :, ::-1, ::-1], bias)
    yield "no bias", stem(inputs, weight, 0)
    yield from _roundings(inputs, weight, bias, stem)


def _norm_mistakes(layer: Layer, model: Reference, other: ModelConfig) -> Candidates:
    (x,), usual = model.inputs(layer), model.config.layer_norm_epsilon
    weight, bias = model.parameters(layer.name)

    def normalised(weight: np.ndarray | int, bias: np.ndarray | int, epsilon: float = usual) -> np.ndarray:
        return layer_norm(x, weight, bias, epsilon, layer.over_patches)

    for epsilon in dict.fromkeys((other.layer_norm_epsilon, 1e-3, 1e-5, 1e-6, 1e-12)):
        if epsilon != usual:
            yield f"LayerNorm epsilon {epsilon:g} instead of {usual:g}", normalised(weight, bias, epsilon)
    norms = [name for name, norm in model.layers.items() if norm.kind == "norm" and norm.weight == layer.weight]
    block = layer.name.rpartition(".")[0]
    for name in sorted(norms, key=lambda name: not name.startswith(f"{block}.")):  # those of its block first
        if name != layer.name:
            yield f"the weights of {name}, as if the two were swapped", model.value(layer, x, weights_of=name)
    yield "no bias", normalised(weight, 0)
    yield "no scale", normalised(1, bias)
    yield "neither scale nor bias", normalised(1, 0)
    yield "one added to its scale", normalised(weight + 1, bias)
    yield "the norm left out: its input goes on unchanged", x
    axis, shape = (1, (-1, 1)) if layer.over_patches else (2, (-1,))
    weight, bias = weight.reshape(shape), bias.reshape(shape)

    def scaled(deviations: np.ndarray, variance: np.ndarray, epsilon: float = usual) -> np.ndarray:
        return deviations / np.sqrt(variance + epsilon) * weight + bias

    centred, n = x - x.mean(axis, keepdims=True), x.shape[axis]
    variance = np.square(centred).mean(axis, keepdims=True)
    if n > 1:
        yield (
            f"the variance divided by {n - 1} instead of {n} values (unbiased)",
            scaled(centred, variance * n / (n - 1)),
        )
        yield (
            f"the variance divided by {n - 1} instead of {n} values (unbiased), and epsilon added to the deviation",
            centred / (np.sqrt(variance * n / (n - 1)) + usual) * weight + bias,
        )
    yield (
        "epsilon added to the deviation instead of the variance",
        centred / (np.sqrt(variance) + usual) * weight + bias,
    )
    yield "no mean subtracted, as RMSNorm does", scaled(x, np.square(x).mean(axis, keepdims=True))
    yield "the mean subtracted but no deviation divided by", centred * weight + bias
    for axes, statistics in (
        ((3 - axis,), "the patches instead of the channels" if axis == 2 else "the channels instead of the patches"),
        ((1, 2), "patches and channels together"),
        ((0,), "the images"),
        ((0, 1), "images and patches, as BatchNorm does"),
    ):
        centred = x - x.mean(axes, keepdims=True)
        yield f"mean and variance over {statistics}", scaled(centred, np.square(centred).mean(axes, keepdims=True))
    if x.shape[1] == x.shape[2]:
        yield (
            f"the norm over the {'channels' if layer.over_patches else 'patches'}, its weights, too",
            layer_norm(x, *model.parameters(layer.name), usual, not layer.over_patches),
        )


def _linear_mistakes(layer: Layer, model: Reference) -> Candidates:
    (x,) = model.inputs(layer)
    weight, bias = model.parameters(layer.name)
    (source,) = model.input_names(layer)

    def product(weight: np.ndarray, bias: np.ndarray = bias, x: np.ndarray = x) -> np.ndarray:
        return linear(x, weight, bias, layer.over_patches)

    if weight.shape[0] == weight.shape[1]:
        yield "its weight transposed", product(weight.T)
    else:
        # On the way from out,in to in,out, and on the way back.
        flat = np.ascontiguousarray(weight)
        for reshaped in (np.ascontiguousarray(weight.T).reshape(weight.shape), flat.reshape(weight.T.shape).T):
            yield "its weight reshaped where it should be transposed", product(reshaped)
    yield "no bias", product(weight, np.zeros_like(bias))
    yield "its bias added twice", product(weight, 2 * bias)
    for name, other in model.layers.items():
        if other.kind == "linear" and other.weight == layer.weight and name != layer.name:
            yield f"the weights of {name}", model.value(layer, weights_of=name)
    if model.layers[source].kind in ("norm", "gelu"):
        (earlier,) = model.inputs(model.layers[source])
        yield f"{source} left out: it is computed from the input of that", product(weight, x=earlier)
    if x.ndim == 3:
        yield from _wrong_axis(layer, x, weight, bias)
    if layer.name == "head":
        logits = product(weight)
        powers = np.exp(logits - logits.max(-1, keepdims=True))
        softmax = powers / powers.sum(-1, keepdims=True)
        yield "a softmax put on the logits", softmax
        yield "a logarithmic softmax put on the logits", np.log(softmax)
        yield "a sigmoid put on the logits", 1 / (1 + np.exp(-logits))
        yield "a GELU put on the logits", gelu_forms(logits)[model.config.gelu]
        yield "a tanh put on its input", product(weight, x=np.tanh(x))
        yield "its input scaled to length 1", product(weight, x=x / np.linalg.norm(x, axis=-1, keepdims=True))
    yield from _roundings(x, weight, bias, lambda x, weight, bias: product(weight, bias, x))


def _wrong_axis(layer: Layer, x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> Candidates:
    """A product over the wrong one of two axes, or with its input or result reshaped where it should be transposed."""
    kinds = ("channels", "patches") if layer.over_patches else ("patches", "channels")
    if x.shape[1] == x.shape[2]:
        result = linear(x, weight, bias, not layer.over_patches)
        for values in (result, result.swapaxes(1, 2)):
            yield f"the product over the {kinds[0]} instead of the {kinds[1]}", values
    elif layer.over_patches:
        swapped = x.reshape(len(x), x.shape[2], x.shape[1])  # (N, S, C) read as (N, C, S)
        yield (
            "its input (N, S, C) reshaped to (N, C, S) instead of transposed",
            linear(swapped, weight, bias, False).swapaxes(1, 2),
        )
    if layer.over_patches:
        yield _RESHAPED, _reshaped(linear(x, weight, bias, True))


def _gelu_mistakes(x: np.ndarray, usual: str) -> Candidates:
    forms = gelu_forms(x)
    for name, form in forms.items():
        if name != usual:
            yield f"the {name} form of GELU instead of the {usual} form", form
    yield "ReLU instead of GELU", np.maximum(x, 0)
    yield "SiLU instead of GELU", x / (1 + np.exp(-x))
    yield "ELU instead of GELU", np.where(x > 0, x, np.expm1(np.minimum(x, 0)))
    yield "tanh instead of GELU", np.tanh(x)
    yield "no GELU", x
    yield "GELU twice", gelu_forms(forms[usual])[usual]


def _residual_mistakes(layer: Layer, model: Reference) -> Candidates:
    branch, stream = model.inputs(layer)
    norm = [earlier.name for earlier in model.before(layer) if earlier.kind == "norm"][-1]
    yield "the residual connection left out", branch
    yield "the branch left out", stream
    yield "the normalised input added instead of the input itself", branch + model.activation(norm)
    yield "the input added twice", branch + 2 * stream
    yield "the branch subtracted", stream - branch
    if model.before(layer)[-1].over_patches:
        if branch.shape[1] == branch.shape[2]:
            yield "the branch added without being transposed back", branch.swapaxes(1, 2) + stream
        else:
            yield f"the branch added with {_RESHAPED}", _reshaped(branch) + stream
    if layer.name.endswith("channel_mixing"):
        block_input = model.stream(int(layer.name.split(".")[1]))
        yield "the input of the block added instead of the sum after token mixing", branch + block_input


def _pool_mistakes(model: Reference) -> Candidates:
    x, before = model.activation("norm"), model.stream(model.config.num_blocks)
    yield "the maximum over the patches instead of the mean", x.max(axis=1)
    yield "the first patch instead of the mean", x[:, 0]
    yield "the last patch instead of the mean", x[:, -1]
    yield "the sum over the patches instead of the mean", x.sum(axis=1)
    yield "the first patch left out of the mean", x[:, 1:].mean(axis=1) if x.shape[1] > 1 else x[:, 0] * np.nan
    if x.shape[1] == x.shape[2]:
        yield "the mean over the channels instead of the patches", x.mean(axis=2)
    yield "the last norm left out: the mean of its input", before.mean(axis=1)
    yield "the mean taken before the last norm", model.value(model.layers["norm"], before.mean(axis=1))


def _roundings(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, product) -> Candidates:
    """A product with input and weight rounded, and with its result rounded, too."""
    for name, bits in SIGNIFICANT_BITS.items():
        low, values = rounded(weight, bits), rounded(x, bits)
        result = product(values, low, bias)
        yield f"rounding to {name} of input and weight", result
        yield (
            f"rounding to {name} of input, weight and result",
            rounded(product(values, low, rounded(bias, bits)), bits),
        )
        yield f"rounding to {name} of its weight", product(x, low, bias)
        yield f"rounding to {name} of its weight and bias", product(x, low, rounded(bias, bits))


def _reshaped(x: np.ndarray) -> np.ndarray:
    """Values that should be transposed from (N, S, C) to (N, C, S) and back, reshaped on the way back."""
    return np.ascontiguousarray(x.swapaxes(1, 2)).reshape(x.shape)
