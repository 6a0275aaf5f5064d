"""The input of a comparison: models opened by their paths, and the images that both compute."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mixer_common.comparison.factories import call_factory, is_factory
from mixer_common.comparison.modules import ModuleOptions, ModuleSubject, PixelLayout
from mixer_common.comparison.recording import Arrays, Inputs, Origin, Recording, RecordingSubject, Subject
from mixer_common.comparison.recording_files import Progress, no_progress, open_recording, record_to_file
from mixer_common.comparison.settings import run_settings
from mixer_common.config.model import ModelConfig
from mixer_common.config.presets import model_name
from mixer_common.config.train import TrainConfig
from mixer_common.data import Dataset
from mixer_common.errors import UserError
from mixer_common.interface import Framework, Trainer, load_framework
from mixer_common.machine import processor_name
from mixer_common.plan.random import generator
from mixer_common.runs import checkpoint
from mixer_common.runs.folder import read_losses
from mixer_common.weights.canonical import ModelWeights, describe_assumed, with_details
from mixer_common.weights.files import load_weights
from mixer_common.weights.patterns import Source
from mixer_common.weights.pixels import PixelScale

_FRAMEWORKS = ("jax", "torch")


@dataclass(frozen=True)
class SideOptions:
    """What the user states of one side, since its file or its module does not tell."""

    weights: Path | None = None  # of a module: loaded into it; None: its own
    layout: PixelLayout | None = None  # of a module: of the pixels that it takes
    pixels: PixelScale | None = None  # of the pixels that it takes; None: its own, or -1 to 1
    names: Mapping[str, Source] | None = None  # see weights.patterns.read_names
    details: Mapping[str, Any] = field(default_factory=dict)  # gelu, layer_norm_epsilon


@dataclass(frozen=True)
class OpenedModel:
    """A run or a file of weights that is compared."""

    name: str  # as the user wrote it
    description: str  # name and size of the model, its format, and the steps of a run
    framework: str  # "jax" or "torch": the one that computes it
    weights: ModelWeights
    step_losses: np.ndarray | None = None  # (steps,), where it is a run
    run: Mapping[str, Any] = field(default_factory=dict)  # settings.run_settings, where it is a run
    recipe: TrainConfig | None = None  # where it is a run


class WeightsSubject:
    """A run or a file of weights, computed by this project's model in one of the frameworks."""

    def __init__(self, model: OpenedModel, framework: Framework, device: Callable[[str], Any]):
        """device: gives the framework's device, prepared for a precision."""
        self._model, self._framework, self._device = model, framework, device

    @property
    def config(self) -> ModelConfig:
        return self._model.weights.config

    @property
    def weights(self) -> Arrays:
        return self._model.weights.arrays

    @property
    def framework(self) -> str:
        return self._framework.name

    @property
    def trained_in(self) -> str | None:
        """The precision of its training, where it is a run."""
        return self._model.run.get("precision")

    def record(
        self, inputs: Inputs, precision: str, gradients: bool = False, replacements: Arrays | None = None
    ) -> Recording:
        """See recording.Subject."""
        framework, device, model = self._framework, self._device(precision), (self.config, self.weights)
        labels = inputs.labels % self.config.num_classes
        return Recording(
            *model,
            framework.activations(*model, inputs.images, precision, device, replacements),
            inputs,
            self._origin(precision, device),
            framework.gradients(*model, inputs.images, labels, precision, device) if gradients else None,
            framework.activation_gradients(*model, inputs.images, labels, precision, device) if gradients else None,
        )

    def record_to_file(
        self, path: Path, inputs: Inputs, precision: str, gradients: bool = False, progress: Progress = no_progress
    ) -> Origin:
        """Writes the recording of `record` to a file, each activation as soon as it is computed; returns its origin."""
        device = self._device(precision)
        origin = self._origin(precision, device)
        record_to_file(path, self.config, self.weights, inputs, origin, self._framework, device, gradients, progress)
        return origin

    @property
    def recipe(self) -> TrainConfig | None:
        """That of a run; None for weights."""
        return self._model.recipe

    def with_weights(self, arrays: Arrays) -> "WeightsSubject":
        """The same model with other canonical weights."""
        weights = replace(self._model.weights, arrays=dict(arrays))
        return WeightsSubject(replace(self._model, weights=weights), self._framework, self._device)

    def trainer(self, recipe: TrainConfig, images: np.ndarray, labels: np.ndarray) -> Trainer:
        """The model at the beginning of a training, in the recipe's precision; see interface.Framework.trainer."""
        device = self._device(recipe.precision)
        return self._framework.trainer(self.config, recipe, self.weights, images, labels, device=device)

    def _origin(self, precision: str, device: Any) -> Origin:
        return Origin(
            self._model.name,
            self._model.description,
            self._framework.name,
            self._framework.versions,
            self._framework.describe(device),
            precision,
            self._model.step_losses,
            processor=processor_name(),
            run=self._model.run,
        )


def open_sides(
    a: str, b: str, device: str, options_a: SideOptions | None = None, options_b: SideOptions | None = None
) -> tuple[Subject, Subject]:
    """Both sides of a comparison; see open_side. A module is like the other side in what it does not tell."""
    sides: dict[str, Subject] = {}
    texts = {"jax": (a, options_a), "torch": (b, options_b)}  # by the framework that computes weights on this side
    for framework, (text, options) in sorted(texts.items(), key=lambda item: _is_module(item[1][0])):
        other = next(iter(sides.values()), None)
        sides[framework] = open_side(text, framework, device, options, other.config if other else None)
    return sides["jax"], sides["torch"]


def open_side(
    text: str,
    default_framework: str,
    device: str,
    options: SideOptions | None = None,
    like: ModelConfig | None = None,
) -> Subject:
    """One side of a comparison: a run or weights as open_model takes them, somebody's module, or a recording.

    A module is written jax:FILE.py:FUNCTION or torch:PACKAGE.MODULE:FUNCTION; the function is called, so that the
    user's own code runs. default_framework computes weights whose text names none. device: auto, cpu or gpu.
    like: tells the size of a module's images, and its block where shapes do not. Raises UserError where there is no
    complete model.
    """
    options = options or SideOptions()
    if _is_module(text):
        return _open_module(text, device, options, like)
    if recording := open_recording(text):
        return recording
    model = open_model(text, default_framework, options)
    framework = load_framework(model.framework)
    return WeightsSubject(model, framework, partial(framework.prepare, device))


def _is_module(text: str) -> bool:
    """Whether a side is written as somebody's module. Raises UserError where a part of that is missing."""
    framework, place = _parts(text)
    if framework and is_factory(place):
        return True
    file, _, name = place.rpartition(":")
    if file.endswith(".py") and name.isidentifier():
        raise UserError(f"{text} does not tell its framework: write jax:{place} or torch:{place}.")
    if place.endswith(".py"):
        raise UserError(
            f"{text} names a file and no function in it: write {framework or 'torch'}:{place}:FUNCTION, with one that "
            "returns the model."
        )
    return False


def _open_module(text: str, device: str, options: SideOptions, like: ModelConfig | None) -> ModuleSubject:
    name, place = _parts(text)
    framework = load_framework(name)
    framework.prepare(device, "float32")  # before the user's code draws weights
    model = call_factory(place)
    module = framework.open_module(model)
    if module is None:
        expected = {
            "jax": "a flax.nnx.Module, a Flax Linen module or (module, variables)",
            "torch": "a torch.nn.Module",
        }
        raise UserError(f"{text} returned {_described(model)}, but must return {expected[name]}.")
    # The options on pixels and names are about the module; weights of a run or of a format say their own.
    weights = load_weights(options.weights) if options.weights else None
    arrays = weights.arrays if weights else None
    like = weights.config if weights else like
    size, block = (like.image_size, like.block) if like else (None, None)
    given = ModuleOptions(options.layout, options.pixels, arrays, options.names, options.details)
    return ModuleSubject(text, module, framework, partial(framework.prepare, device), given, size, block)


def _described(model: Any) -> str:
    return "nothing" if model is None else f"an object of type {type(model).__module__}.{type(model).__qualname__}"


def _parts(text: str) -> tuple[str, str]:
    """The framework that stands before the first colon, or "", and what follows it."""
    prefix, colon, rest = text.partition(":")
    return (prefix, rest) if colon and prefix in _FRAMEWORKS else ("", text)


def open_model(text: str, default_framework: str, options: SideOptions | None = None) -> OpenedModel:
    """Opens PATH, jax:PATH or torch:PATH, of a run or of weights in any format.

    The prefix says which framework computes it; else a run is computed by the framework that trained it last, and
    weights by `default_framework`. Raises UserError where there is no complete model.
    """
    options = options or SideOptions()
    framework, place = _parts(text)
    path = Path(place)
    if framework and not place:
        raise UserError(f"{text} names a framework and no model: write the path of a run or of weights after it.")
    if not (checkpoint.exists(path / "checkpoint") or (path / "progress.json").exists()):
        weights = load_weights(place, pixels=options.pixels, names=options.names, **options.details)
        description = f"{weights.format} weights of {_size(weights)}"
        if weights.assumed:
            description += f"; assumed: {describe_assumed(weights)}"
        return OpenedModel(text, description, framework or default_framework, weights)
    state = checkpoint.load_run(path)
    weights = ModelWeights(state.config.model, dict(state.weights), "canonical")
    weights = with_details(weights, str(path), **options.details)
    description = f"{_size(weights)}, after {state.progress.step:,} steps on {state.config.dataset_source}"
    losses = read_losses(path) if (path / "step_losses.npy").exists() else None
    settings = run_settings(path, state)
    return OpenedModel(
        text, description, framework or state.last_framework, weights, losses, settings, state.config.train
    )


def recorded_inputs(subjects: Sequence[Subject]) -> Inputs | None:
    """The inputs of the first side that is a recording, which the others must compute, too; None where none is."""
    return next((side.recording.inputs for side in subjects if isinstance(side, RecordingSubject)), None)


def images_to_compare(dataset: Dataset, count: int) -> Inputs:
    """The first test images, and a description of them.

    Where all of them are grey, the last one becomes coloured noise: else colours in the wrong order would not show.
    """
    images, labels = dataset.test_images[:count].copy(), dataset.test_labels[:count]
    many = len(images) > 1
    description = f"{len(images)} test images of {dataset.source}" if many else f"a test image of {dataset.source}"
    if (images == images[..., :1]).all():
        images[-1] = generator(0, 0, "noise").integers(0, 256, images[-1].shape)
        description += "; the last one coloured noise, since they are grey"
    return Inputs(images, labels, description)


def _size(weights: ModelWeights) -> str:
    return f"{model_name(weights.config)}, {weights.config.num_parameters:,} parameters"
