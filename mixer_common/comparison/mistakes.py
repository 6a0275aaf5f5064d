"""A layer computed anew from its input, in NumPy and float64: as its config says, and with the usual mistakes.

Every function returns the right values first, then the values that each mistake gives, by its description.
"""

import numpy as np

from mixer_common.comparison.arithmetic import bytes_to_pixels, gelu_forms, layer_norm, linear, stem
from mixer_common.comparison.recording import Recording
from mixer_common.config.model import Layer, ModelConfig, layers

Candidates = tuple[np.ndarray, dict[str, np.ndarray]]

# The means and deviations of ImageNet's colours, by which many programs scale pixels in [0, 1].
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def recompute(layer: Layer, recording: Recording, other: ModelConfig) -> Candidates:
    """The activation of a layer by one side's input, weights and config, right and with each usual mistake.

    other: the config of the other side, whose settings may be the mistake.
    """
    config, before = recording.config, _layers_before(layer, recording.config)
    inputs = [recording.activations[name].astype(np.float64) for name in _inputs(layer, before)]
    weights = [recording.weights[name].astype(np.float64) for name in layer.weight_shapes]
    match layer.kind:
        case "stem":
            weight, bias = weights
            return _stem_candidates(bytes_to_pixels(recording.inputs.images, config.image_size), weight, bias, config)
        case "norm":
            (x,), (weight, bias) = inputs, weights
            return _norm_candidates(layer, x, weight, bias, recording, other)
        case "linear":
            (x,), (weight, bias) = inputs, weights
            return _linear_candidates(layer, x, weight, bias)
        case "gelu":
            (x,) = inputs
            return _gelu_candidates(x, config.gelu)
        case "residual":
            branch, stream = inputs
            norm = [earlier.name for earlier in before if earlier.kind == "norm"][-1]
            return _residual_candidates(branch, stream, recording.activations[norm])
        case "pool":
            (x,) = inputs
            return _pool_candidates(x)


def _layers_before(layer: Layer, config: ModelConfig) -> list[Layer]:
    network = list(layers(config))
    return network[: network.index(layer)]


def _inputs(layer: Layer, before: list[Layer]) -> list[str]:
    """The activations that a layer is computed from: for a residual connection its branch and its stream."""
    if not before:
        return []
    stream = [earlier.name for earlier in before if earlier.kind in ("stem", "residual")][-1]
    if layer.kind == "residual":
        return [before[-1].name, stream]
    return [stream] if layer.kind == "norm" else [before[-1].name]


def _stem_candidates(pixels: np.ndarray, weight: np.ndarray, bias: np.ndarray, config: ModelConfig) -> Candidates:
    right = stem(pixels, weight, bias)
    column_major = np.arange(config.num_patches).reshape(config.grid).T.reshape(-1)
    means, deviations = _IMAGENET
    imagenet = ((pixels + 1) / 2 - means) / deviations
    return right, {
        "the grid of patches in column-major order": right[:, column_major],
        "the colours in the order blue, green, red": stem(pixels[..., ::-1], weight, bias),
        "the rows and columns of its filters transposed": stem(pixels, weight.swapaxes(2, 3), bias),
        "pixels in [0, 1] instead of [-1, 1]": stem((pixels + 1) / 2, weight, bias),
        "pixels in [0, 255] instead of [-1, 1]": stem((pixels + 1) * 127.5, weight, bias),
        "pixels scaled by ImageNet's means and deviations": stem(imagenet, weight, bias),
        "no bias": stem(pixels, weight, 0),
    }


def _norm_candidates(
    layer: Layer, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, recording: Recording, other: ModelConfig
) -> Candidates:
    usual, weights = recording.config.layer_norm_epsilon, recording.weights

    def normalised(weight: np.ndarray | int, bias: np.ndarray | int, epsilon: float = usual) -> np.ndarray:
        return layer_norm(x, weight, bias, epsilon, layer.over_patches)

    mistakes = {}
    for epsilon in dict.fromkeys((other.layer_norm_epsilon, 1e-3, 1e-5, 1e-6, 1e-12)):
        if epsilon != usual:
            mistakes[f"LayerNorm epsilon {epsilon:g} instead of {usual:g}"] = normalised(weight, bias, epsilon)
    norms = [candidate for candidate in layers(recording.config) if candidate.kind == "norm"]
    others = [norm.name for norm in norms if norm.weight == layer.weight and norm.name != layer.name]
    block = layer.name.rpartition(".")[0]
    for name in sorted(others, key=lambda name: not name.startswith(f"{block}.")):  # those of its block first
        mistakes[f"the weights of {name}, as if the two were swapped"] = normalised(
            weights[f"{name}.weight"], weights[f"{name}.bias"]
        )
    mistakes["no bias"] = normalised(weight, 0)
    mistakes["no scale"] = normalised(1, bias)
    mistakes["neither scale nor bias"] = normalised(1, 0)
    return normalised(weight, bias), mistakes


def _linear_candidates(layer: Layer, x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> Candidates:
    def product(weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        return linear(x, weight, bias, layer.over_patches)

    mistakes = {}
    if weight.shape[0] == weight.shape[1]:
        mistakes["its weight transposed"] = product(weight.T, bias)
    mistakes["its weight reshaped where it should be transposed"] = product(weight.T.reshape(weight.shape), bias)
    mistakes["no bias"] = product(weight, np.zeros_like(bias))
    return product(weight, bias), mistakes


def _gelu_candidates(x: np.ndarray, usual: str) -> Candidates:
    forms = gelu_forms(x)
    mistakes = {
        f"the {name} form of GELU instead of the {usual} form": form for name, form in forms.items() if name != usual
    }
    return forms[usual], mistakes | {"ReLU instead of GELU": np.maximum(x, 0)}


def _residual_candidates(branch: np.ndarray, stream: np.ndarray, normalised: np.ndarray) -> Candidates:
    return branch + stream, {
        "the residual connection left out": branch,
        "the branch left out": stream,
        "the normalised input added instead of the input itself": branch + normalised,
    }


def _pool_candidates(x: np.ndarray) -> Candidates:
    return x.mean(axis=1), {
        "the maximum over the patches instead of the mean": x.max(axis=1),
        "the first patch instead of the mean": x[:, 0],
        "the sum over the patches instead of the mean": x.sum(axis=1),
    }
