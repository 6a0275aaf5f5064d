"""A Mixer's layers in NumPy and float64, each computed anew from the activations that are known."""

from collections.abc import Mapping

import numpy as np

from mixer_common.comparison.arithmetic import bytes_to_pixels, gelu_forms, layer_norm, linear, stem
from mixer_common.comparison.recording import Arrays
from mixer_common.config.model import Layer, ModelConfig, layers


class Reference:
    """A model by its config and weights: the right value of every layer, from what is known of those before it."""

    def __init__(self, config: ModelConfig, weights: Arrays, images: np.ndarray, known: Arrays):
        """images: uint8 (N, H, W, 3); known: activations by name; the others are computed when they are needed."""
        self.config, self.weights, self.images, self.known = config, weights, images, dict(known)
        self.layers = {layer.name: layer for layer in layers(config)}
        self._names = list(self.layers)

    def before(self, layer: Layer) -> list[Layer]:
        """The layers before this one, in network order."""
        return [self.layers[name] for name in self._names[: self._names.index(layer.name)]]

    def input_names(self, layer: Layer) -> list[str]:
        """The activations that a layer is computed from: for a residual connection its branch and its stream."""
        before = self.before(layer)
        if not before:
            return []
        stream = [earlier.name for earlier in before if earlier.kind in ("stem", "residual")][-1]
        if layer.kind == "residual":
            return [before[-1].name, stream]
        return [stream] if layer.kind == "norm" else [before[-1].name]

    def inputs(self, layer: Layer) -> list[np.ndarray]:
        """The activations that a layer is computed from, in float64."""
        return [self.activation(name) for name in self.input_names(layer)]

    def activation(self, name: str) -> np.ndarray:
        """An activation in float64: as it is known, else computed."""
        if name not in self.known:
            self.known[name] = self.value(self.layers[name])
        return self.known[name].astype(np.float64)

    def parameters(self, layer: str) -> tuple[np.ndarray, np.ndarray]:
        """Weight and bias of a layer, in float64."""
        weight, bias = (self.weights[f"{layer}.{part}"].astype(np.float64) for part in ("weight", "bias"))
        return weight, bias

    def pixels(self) -> np.ndarray:
        """The pixels that the model computes, float64 (N, H, W, 3)."""
        return bytes_to_pixels(self.images, self.config.image_size)

    def value(self, layer: Layer, *inputs: np.ndarray, weights_of: str = "") -> np.ndarray:
        """The right value of a layer; inputs: what it is computed from, by default the activations before it.

        weights_of: the layer whose weights it uses, by default its own.
        """
        inputs = inputs or tuple(self.inputs(layer))
        match layer.kind:
            case "stem":
                return stem(self.pixels(), *self.parameters(weights_of or layer.name))
            case "norm":
                parameters = self.parameters(weights_of or layer.name)
                return layer_norm(inputs[0], *parameters, self.config.layer_norm_epsilon, layer.over_patches)
            case "linear":
                return linear(inputs[0], *self.parameters(weights_of or layer.name), layer.over_patches)
            case "gelu":
                return gelu_forms(inputs[0])[self.config.gelu]
            case "residual":
                branch, stream = inputs
                return branch + stream
            case "pool":
                return inputs[0].mean(axis=1)

    def continued(self, name: str, value: np.ndarray, last: Layer) -> np.ndarray:
        """The value of the layer `last` in a model that goes on with another value of the layer `name` before it."""
        first = self._names.index(name)
        known = {earlier.name: self.activation(earlier.name) for earlier in self.before(self.layers[name])}
        model = Reference(self.config, self.weights, self.images, known | {name: value})
        for later in self._names[first + 1 : self._names.index(last.name)]:
            model.activation(later)
        return model.value(last)

    def branch(self, mixing: str, stream: np.ndarray, norm: bool = True, weights_of: str = "") -> np.ndarray:
        """What a mixing ("blocks.0.token_mixing") adds to a stream (N, S, C); norm: from the normalised stream.

        weights_of: the block whose weights it uses ("blocks.1"), by default its own.
        """
        block, _, kind = mixing.rpartition(".")
        other = f"{weights_of or block}."
        x = stream
        if norm:
            name = f"{kind.removesuffix('mixing')}norm"
            x = self.value(self.layers[f"{block}.{name}"], x, weights_of=other + name)
        for name in ("fc1", "gelu", "fc2"):
            x = self.value(self.layers[f"{mixing}.{name}"], x, weights_of=f"{other}{kind}.{name}")
        return x

    def block(self, i: int, stream: np.ndarray, weights_of: int | None = None) -> np.ndarray:
        """A whole block, (N, S, C) -> (N, S, C); weights_of: the block whose weights it uses, by default its own."""
        other = f"blocks.{i if weights_of is None else weights_of}"
        for kind in ("token_mixing", "channel_mixing"):
            stream = stream + self.branch(f"blocks.{i}.{kind}", stream, weights_of=other)
        return stream

    def stream(self, i: int) -> np.ndarray:
        """What block i is computed from, (N, S, C); i may be num_blocks, for what the last norm is computed from."""
        return self.activation(f"blocks.{i - 1}.channel_mixing" if i else "stem")


def merged(first: Mapping[str, np.ndarray] | None, second: Mapping[str, np.ndarray] | None) -> dict[str, np.ndarray]:
    """The arrays of both by name, the first's where both have one."""
    return {**(second or {}), **(first or {})}
