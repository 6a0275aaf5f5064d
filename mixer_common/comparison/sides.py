"""The input of a comparison: models opened by their paths, and the images that both compute."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mixer_common.comparison.recording import Arrays, Inputs, Origin, Recording
from mixer_common.config.model import ModelConfig
from mixer_common.config.presets import model_name
from mixer_common.config.train import TrainConfig
from mixer_common.data import Dataset
from mixer_common.errors import UserError
from mixer_common.interface import Framework, Trainer
from mixer_common.plan.random import generator
from mixer_common.runs import checkpoint
from mixer_common.runs.folder import read_losses
from mixer_common.weights.canonical import ModelWeights, describe_assumed
from mixer_common.weights.files import load_weights


@dataclass(frozen=True)
class OpenedModel:
    """A run or a file of weights that is compared."""

    name: str  # as the user wrote it
    description: str  # name and size of the model, its format, and the steps of a run
    framework: str  # "jax" or "torch": the one that computes it
    weights: ModelWeights
    step_losses: np.ndarray | None = None  # (steps,), where it is a run
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
            Origin(
                self._model.name,
                self._model.description,
                framework.name,
                framework.versions,
                framework.describe(device),
                precision,
                self._model.step_losses,
            ),
            framework.gradients(*model, inputs.images, labels, precision, device) if gradients else None,
            framework.activation_gradients(*model, inputs.images, labels, precision, device) if gradients else None,
        )

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


def open_model(text: str, default_framework: str) -> OpenedModel:
    """Opens PATH, jax:PATH or torch:PATH, of a run or of weights in any format.

    The prefix says which framework computes it; else a run is computed by the framework that trained it last, and
    weights by `default_framework`. Raises UserError where there is no complete model.
    """
    prefix, colon, rest = text.partition(":")
    framework, path = (prefix, Path(rest)) if colon and prefix in ("jax", "torch") else (None, Path(text))
    if framework and not rest:
        raise UserError(f"{text} names a framework and no model: write the path of a run or of weights after it.")
    if not (checkpoint.exists(path / "checkpoint") or (path / "progress.json").exists()):
        weights = load_weights(path)
        description = f"{weights.format} weights of {_size(weights)}"
        if weights.assumed:
            description += f"; assumed: {describe_assumed(weights)}"
        return OpenedModel(text, description, framework or default_framework, weights)
    state = checkpoint.load_run(path)
    weights = ModelWeights(state.config.model, dict(state.weights), "canonical")
    description = f"{_size(weights)}, after {state.progress.step:,} steps on {state.config.dataset_source}"
    losses = read_losses(path) if (path / "step_losses.npy").exists() else None
    return OpenedModel(text, description, framework or state.last_framework, weights, losses, state.config.train)


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
