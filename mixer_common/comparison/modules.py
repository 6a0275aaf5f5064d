"""Somebody's module as one side of a comparison: it computes, watched layer by layer, and is matched to this model's.

This runs the user's own code, because he named it.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from mixer_common.comparison.arithmetic import bytes_to_pixels, gelu_forms, layer_norm
from mixer_common.comparison.differences import relative_error
from mixer_common.comparison.factories import describe_error
from mixer_common.comparison.matching import Matching, agreement, match_layers
from mixer_common.comparison.module_weights import ModuleWeights, recognise_module
from mixer_common.comparison.recording import Arrays, Inputs, Origin, Recording
from mixer_common.config.model import ImageSize, ModelConfig, layers
from mixer_common.config.presets import model_name
from mixer_common.errors import UserError
from mixer_common.interface import Framework, ModuleError, ModuleReplacements, ModuleRun, OpenedModule
from mixer_common.plan.epoch import PIXEL_SCALE
from mixer_common.plan.random import generator
from mixer_common.weights.patterns import Source
from mixer_common.weights.pixels import OWN_SCALE, PixelScale, describe_scale

PixelLayout = Literal["nchw", "nhwc"]
_USUAL_LAYOUTS: dict[str, PixelLayout] = {"torch": "nchw", "jax": "nhwc"}
_EPSILONS = (1e-5, 1e-6, 1e-3, 1e-12)


@dataclass(frozen=True)
class ModuleOptions:
    """What a module's own code and arrays do not tell."""

    layout: PixelLayout | None = None  # of the pixels that it takes; None: nchw for torch, nhwc for jax
    pixels: PixelScale | None = None  # None: the module's own mean and deviation, else pixels of -1 to 1
    weights: Arrays | None = None  # canonical, loaded into it; None: it keeps its own
    names: Mapping[str, Source] | None = None  # what the user states of its names; see weights.patterns.read_names
    details: Mapping[str, Any] = field(default_factory=dict)  # gelu, layer_norm_epsilon, block


class ModuleSubject:
    """Somebody's module, matched to the layers of a Mixer; see recording.Subject."""

    def __init__(
        self,
        name: str,
        module: OpenedModule,
        framework: Framework,
        device: Callable[[str], Any],
        options: ModuleOptions | None = None,
        image_size: ImageSize | None = None,
        block: str | None = None,
    ):
        """name: as the user wrote it. device: gives the framework's device, prepared for a precision. image_size and
        block: those of the given weights or of the other side, since a module does not tell its own size, nor its block
        where it has as many patches as channels.

        Raises UserError where the module is no Mixer.
        """
        self._name, self._framework, self._device = name, framework, device
        self._options = options or ModuleOptions()
        self._notes: list[str] = []
        layout = self._options.layout or _USUAL_LAYOUTS[framework.name]
        self._layout: PixelLayout = layout
        given = self._options.weights
        if not module.arrays():
            if image_size is None:
                raise UserError(
                    f"{name} returns {module.kind}, which holds no weights: return the module with its variables, "
                    "(module, variables), or state weights with --weights."
                )
            pixels = _in_layout(np.zeros((1, *image_size, 3), np.float32), layout)
            self._call(lambda: module.initialised(pixels))
            if given is None:
                self._notes.append("its weights are drawn by the module itself, with seed 0")
        self._module = module
        found, ambiguous = recognise_module(
            module.arrays(), name, self._options.pixels, self._options.names, **self._options.details
        )
        found = [weights for weights in found if weights.config.block == block] or found
        self._weights = found[0]
        self._image_size = self._chosen_size(image_size)
        if len(found) > 1:
            self._weights = self._choose(found, ambiguous)
            self._image_size = self._chosen_size(image_size)
        if given is not None:
            self._load(given)
        elif self._weights.folded:
            # Unfolded again without being rounded, so that both sides' stems compute one function.
            self._module = module.load(self._weights.to_module(self._weights.arrays))

    def _choose(self, found: Sequence[ModuleWeights], ambiguous: UserError | None) -> ModuleWeights:
        """The one of several mappings by which the module's layers return what their weights give, else the first.

        Raises the UserError, if there is one, where none of them is better than all others.
        """
        images = generator(0, 0, "noise").integers(0, 256, (2, *self._image_size, 3), np.uint8)
        pixels = bytes_to_pixels(images, self._image_size)
        device = self._device("float32")
        run = self._call(lambda: self._module.run(self._own_pixels(images, pixels, "float32"), "float32", device))
        self._check_calls(run)
        scores = [agreement(run, weights, pixels) for weights in found]
        if ambiguous is not None and scores.count(max(scores)) > 1:
            raise ambiguous
        return found[scores.index(max(scores))]

    @property
    def config(self) -> ModelConfig:
        config = self._weights.config
        size = self._image_size
        return (
            replace(config, image_size=size)
            if size[0] % config.patch_size == size[1] % config.patch_size == 0
            else config
        )

    @property
    def weights(self) -> Arrays:
        return self._weights.arrays

    @property
    def framework(self) -> str:
        return self._framework.name

    def with_weights(self, arrays: Arrays) -> "ModuleSubject":
        """The same module with other canonical weights."""
        other = object.__new__(ModuleSubject)
        other.__dict__.update(self.__dict__)
        other._module = self._module.load(self._weights.to_module(arrays))
        other._weights = replace(self._weights, arrays={name: arrays[name] for name in self._weights.arrays})
        return other

    def record(
        self, inputs: Inputs, precision: str, gradients: bool = False, replacements: Arrays | None = None
    ) -> Recording:
        """See recording.Subject."""
        device = self._device(precision)
        pixels = bytes_to_pixels(inputs.images, self._image_size)
        own_pixels = self._own_pixels(inputs.images, pixels, precision)
        labels = inputs.labels % self.config.num_classes if gradients else None
        run = self._call(lambda: self._module.run(own_pixels, precision, device))
        self._check_calls(run)
        matching = match_layers(run, self._weights, pixels)
        activations = matching.activations(run)
        config = replace(self.config, **self._details(activations))
        observations = [*self._weights.observations, *matching.observations, *self._observed_head(run, activations)]
        found: Arrays | None = None
        activation_gradients: Arrays | None = None
        if labels is not None:
            way_back = self._call(lambda: self._module.run(own_pixels, precision, device, labels))
            found = self._weights.to_canonical(way_back.gradients or {})
            activation_gradients = matching.gradients(way_back)
            observations += _missing_gradients(list(matching.gradient_places), activation_gradients)
        if replacements is None:
            activations = _with_returned_logits(activations, run, activations.get("head"))
        else:
            activations = self._isolated(matching, run, replacements, own_pixels, precision, device)
        return Recording(
            config,
            self.weights,
            activations,
            inputs,
            Origin(
                self._name,
                f"{self._module.kind}, {model_name(config)}, {config.num_parameters:,} parameters",
                self._framework.name,
                self._framework.versions,
                self._framework.describe(device),
                precision,
                notes=(*self._notes, *self._assumptions(), *matching.lines),
            ),
            found,
            activation_gradients,
            tuple(dict.fromkeys(observations)),
        )

    def _isolated(
        self,
        matching: Matching,
        run: ModuleRun,
        replacements: Arrays,
        own_pixels: np.ndarray,
        precision: str,
        device: Any,
    ) -> dict[str, np.ndarray]:
        """The activations where every layer was given another model's."""
        by_call = _module_replacements(matching, run, replacements)
        isolated = self._call(lambda: self._module.run(own_pixels, precision, device, replacements=by_call))
        activations = matching.activations(isolated)
        # No submodule computes the residual stream, so only what is added to it can be held against the other's.
        increments = {}
        for name, before in matching.stream.items():
            start = self._stream_start(matching, isolated) if before == "stem" else activations.get(before)
            parts = (activations.get(name), start, replacements.get(before))
            if all(part is not None and part.shape == parts[0].shape for part in parts):  # type: ignore[union-attr]
                increments[name] = parts[0] - parts[1] + parts[2]  # type: ignore[operator]
        logits = replacements.get("head", activations.get("head"))
        return _with_returned_logits(activations | increments, isolated, logits)

    def _stream_start(self, matching: Matching, run: ModuleRun) -> np.ndarray | None:
        """What enters the first block."""
        first = next(iter(matching.inputs.values()), None)
        return None if first is None else first.array(run)

    def _call(self, function: Callable[[], Any]) -> Any:
        """What the function returns. Raises UserError where the module raises."""
        try:
            return function()
        except ModuleError as error:
            cause = error.__cause__ or error
            layers_by_path = (
                {self._weights.owner(name): name for name in _layers_of(self)} if self.__dict__.get("_weights") else {}
            )
            layer = layers_by_path.get(error.path)
            place = f" in {error.path}" + (f", which is {layer}" if layer else "") if error.path else ""
            size = "x".join(map(str, self.__dict__.get("_image_size", ())))
            given = f" of images {size}" if size else ""
            raise UserError(
                f"{self._name} raised {describe_error(cause)}{place}, called with pixels {self._layout}{given}: check "
                "the module, and the layout and the size of the pixels that it takes."
            ) from error

    def _check_calls(self, run: ModuleRun) -> None:
        """Raises UserError where no submodule with weights is called as a module."""
        owners = {self._weights.owner(name) for name in _layers_of(self)} - {None, ""}
        if not owners & {call.path for call in run.calls}:
            raise UserError(
                f"{self._name}: none of its submodules that hold weights is called as a module, so that they cannot be "
                "watched: call them, such as self.fc1(x)."
            )

    def _load(self, given: Arrays) -> None:
        """Loads given weights under the module's own names. Raises UserError where they do not fit."""
        wrong = [
            f"{name} has shape {self._weights.arrays[name].shape} in the module and {array.shape} in the weights"
            for name, array in given.items()
            if name in self._weights.arrays and array.shape != self._weights.arrays[name].shape
        ]
        wrong += [f"{name} is missing in the weights" for name in self._weights.arrays if name not in given]
        extra = [name for name in given if name not in self._weights.arrays]
        wrong += [f"the module has no {name}" for name in extra if not name.startswith("norm.")]
        if wrong:
            raise UserError(f"--weights do not fit {self._name}: {'; '.join(wrong[:6])}.")
        arrays = {name: given[name] for name in self._weights.arrays}
        self._module = self._module.load(self._weights.to_module(arrays))
        self._weights = replace(self._weights, arrays=arrays)

    def _chosen_size(self, other: ImageSize | None) -> ImageSize:
        """The size of the images that the module is given: the other side's, unless only its own can be computed."""
        config = self._weights.config
        if other is None or other == config.image_size or any(size % config.patch_size for size in other):
            return config.image_size
        patches = (other[0] // config.patch_size) * (other[1] // config.patch_size)
        if patches == config.num_patches:
            return other
        device, own = self._device("float32"), _in_layout(np.zeros((1, *other, 3), np.float32), self._layout)
        try:
            self._module.run(own, "float32", device, replacements={})
        except ModuleError:
            return config.image_size
        return other

    def _own_pixels(self, images: np.ndarray, pixels: np.ndarray, precision: str) -> np.ndarray:
        """The pixels as the module takes them, in its layout and scale."""
        dtype = np.float64 if precision == "float64" else np.float32
        if images.shape[1:3] == tuple(self._image_size) and self._weights.takes == OWN_SCALE:
            own = (2 * images.astype(dtype) - 255) * dtype(PIXEL_SCALE)  # the bits of this project's models
        else:
            mean, std = (np.array(values) for values in self._weights.takes)
            own = pixels if self._weights.takes == OWN_SCALE else ((pixels + 1) / 2 - mean) / std
        return _in_layout(own.astype(dtype), self._layout)

    def _assumptions(self) -> list[str]:
        """What was assumed of the module's pixels, for people."""
        height, width = self._image_size
        stated = [
            "stated" if value is not None else "assumed" for value in (self._options.layout, self._options.pixels)
        ]
        scale = describe_scale(self._weights.takes)
        return [f"pixels {self._layout} ({stated[0]}), {scale} ({stated[1]}), images {height}x{width}"]

    def _details(self, activations: Arrays) -> dict[str, Any]:
        """The GELU and the epsilon that most of the layers compute with, by their values."""
        stated, config = self._options.details, self._weights.config
        found: dict[str, list[Any]] = {"gelu": [], "layer_norm_epsilon": []}
        stream = "stem"
        for layer in layers(config):
            y = activations.get(layer.name)
            if layer.kind in ("residual",):
                stream = layer.name
            if layer.kind == "gelu" and y is not None:
                x = activations.get(layer.name.replace("gelu", "fc1"))
                forms = gelu_forms(x.astype(np.float64)) if x is not None and x.shape == y.shape else {}
                candidates = {form: value for form, value in forms.items() if form in ("exact", "tanh")}
                found["gelu"] += _nearest(candidates, y, 1e-2)
            if layer.kind == "norm" and y is not None:
                x = activations.get(stream)
                weight, bias = (self.weights.get(f"{layer.name}.{leaf}") for leaf in ("weight", "bias"))
                if x is not None and weight is not None and x.shape == y.shape:
                    bias = np.zeros(len(weight)) if bias is None else bias
                    candidates = {
                        epsilon: layer_norm(x.astype(np.float64), weight, bias, epsilon, layer.over_patches)
                        for epsilon in dict.fromkeys((config.layer_norm_epsilon, *_EPSILONS))
                    }
                    found["layer_norm_epsilon"] += _nearest(candidates, y, 1e-2)
        return {
            name: Counter(values).most_common(1)[0][0]
            for name, values in found.items()
            if values and name not in stated
        }

    def _observed_head(self, run: ModuleRun, activations: Arrays) -> list[str]:
        """What the module does to the logits, or to its tokens, after its head."""
        head, output = activations.get("head"), run.calls[-1].output
        if head is None or output is None:
            return []
        if output.shape != head.shape:
            return [f"The module returns an array of shape {output.shape}, and its head one of shape {head.shape}."]
        if relative_error(output, head) < 1e-3:
            return []
        shifted = head - head.max(-1, keepdims=True)
        log_softmax = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        for title, value in (("their softmax", np.exp(log_softmax)), ("their log softmax", log_softmax)):
            if relative_error(output, value) < 1e-3:
                return [f"The module returns not the logits of its head but {title}."]
        return ["The module returns other numbers than its head."]


def _with_returned_logits(
    activations: dict[str, np.ndarray], run: ModuleRun, logits: np.ndarray | None
) -> dict[str, np.ndarray]:
    """The activations with what the module returns as its logits, where it changes the logits that its head gave."""
    returned = run.calls[-1].output
    if returned is None or (logits is not None and returned.shape != logits.shape):
        return activations
    if logits is not None and relative_error(returned, logits) < 1e-6:
        return activations
    return activations | {"head": returned}


def _layers_of(subject: ModuleSubject) -> list[str]:
    return [layer.name for layer in layers(subject._weights.config) if layer.weight]


def _in_layout(pixels: np.ndarray, layout: PixelLayout) -> np.ndarray:
    """Pixels (N, H, W, 3) in a module's layout."""
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)) if layout == "nchw" else pixels


def _nearest(candidates: Mapping[Any, np.ndarray], y: np.ndarray, most: float) -> list[Any]:
    """The key of the value nearest to y, if it is near and not as near as another."""
    errors = sorted((relative_error(y, value), i) for i, value in enumerate(candidates.values()))
    if not errors or not errors[0][0] < most or (len(errors) > 1 and errors[0][0] == errors[1][0]):
        return []
    return [list(candidates)[errors[0][1]]]


def _module_replacements(matching: Matching, run: ModuleRun, others: Arrays) -> ModuleReplacements:
    """Another model's activations in a module's layouts, in place of what its layers are given and return."""
    replacements = {}
    names = list(others)
    for layer, number in matching.calls.items():
        call, parts = run.calls[number], []
        for end, place, name in (
            ("input", matching.inputs.get(layer), _input_of(layer, names)),
            ("output", matching.places.get(layer), layer),
        ):
            own = call.input if end == "input" else call.output
            other = others.get(name)
            fits = place is not None and place.layout is not None and other is not None and own is not None
            if fits and place.call == number and place.end == end and other.shape[1:] == place.shape:  # type: ignore[union-attr]
                parts.append(place.layout.own(other, own.shape))  # type: ignore[union-attr]
            else:
                parts.append(None)
        replacements[call.path, call.number] = parts[0], parts[1]
    return replacements


def _input_of(layer: str, names: list[str]) -> str:
    """The activation that a layer with weights is computed from: for a norm the stream before it."""
    if layer == "stem":
        return ""
    if not layer.endswith("norm"):
        return names[names.index(layer) - 1] if layer in names else ""
    earlier = names[: names.index(layer)] if layer in names else []
    return next((name for name in reversed(earlier) if name == "stem" or name.endswith("_mixing")), "")


def _missing_gradients(names: list[str], gradients: Arrays) -> list[str]:
    """An observation where no gradient arrives at the first of the layers, though it does at later ones."""
    without = [name for name in names if name not in gradients or not np.any(gradients[name])]
    arrived = [name for name in names if name not in without]
    if not without or not arrived:
        return ["No gradient arrives anywhere: the logits are detached."] if without else []
    blocked = [name for name in without if names.index(name) < names.index(arrived[-1])]
    if not blocked:
        return []
    return [
        f"No gradient arrives at {blocked[-1]}"
        + (f" and {len(blocked) - 1} other activations" if len(blocked) > 1 else "")
        + ": it is detached on the way back."
    ]
