"""A framework of NumPy alone and a small data set, for tests of everything around a framework."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mixer_common.config.presets import MODELS
from mixer_common.config.train import TrainConfig, moment_names
from mixer_common.data import Dataset
from mixer_common.runs.checkpoint import RunConfig


class NumpyTrainer:
    """Implements mixer_common.interface.Trainer without a model. A step adds its learning rate to the bias of
    the head; its loss is the mean of its images' bytes, from 0 to 1."""

    def __init__(self, config, recipe, weights, images, labels, moments=None, device=None):
        self.images, self.dispatches = images, []
        self._weights = {name: array.copy() for name, array in weights.items()}
        if moments is None:
            moments = {
                moment: {name: np.zeros_like(weights[name]) for name in weights} for moment in moment_names(recipe)
            }
        self._moments = {moment: {name: array.copy() for name, array in moments[moment].items()} for moment in moments}

    def begin_epoch(self, plan) -> None:
        self.plan = plan

    def train(self, first: int, last: int) -> np.ndarray:
        self.dispatches.append((first, last))
        for i in range(first, last):
            self._weights["head.bias"] += np.float32(self.plan.learning_rates[i])
            for arrays in self._moments.values():
                arrays["head.bias"] += 1
        losses = [self.images[self.plan.indices[i]].mean() / 255 for i in range(first, last)]
        return np.array(losses, np.float32)

    def augmented(self, i: int) -> np.ndarray:
        return self.images[self.plan.indices[i]].astype(np.float32)

    def logits(self, images: np.ndarray) -> np.ndarray:
        brightness = images.mean(axis=(1, 2, 3), dtype=np.float32)[:, None] / 255
        return brightness * np.arange(len(self._weights["head.bias"])) + self._weights["head.bias"]

    def weights(self):
        return {name: array.copy() for name, array in self._weights.items()}

    def moments(self):
        return {
            moment: {name: array.copy() for name, array in arrays.items()} for moment, arrays in self._moments.items()
        }


class NumpyFramework:
    """The part of mixer_common.interface.Framework that a training calls."""

    name = "numpy"
    versions = {"python": "3", "numpy": np.__version__}  # noqa: RUF012
    trainer = NumpyTrainer

    def prepare(self, name: str, precision: str) -> str:
        return name

    def describe(self, device: str) -> str:
        return "an abacus"

    def download(self, data_dir: Path) -> None:
        raise AssertionError("nothing is downloaded in these tests")


@pytest.fixture
def framework() -> NumpyFramework:
    return NumpyFramework()


@pytest.fixture
def dataset() -> Dataset:
    """10 training images and 6 test images of 8x8 pixels, in 3 classes."""
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (16, 8, 8, 3), np.uint8), np.arange(16, dtype=np.int32) % 3
    classes = ("cat", "dog", "owl")
    return Dataset("digits", "noise", images[:10], labels[:10], images[10:], labels[10:], classes)


@pytest.fixture
def config(dataset: Dataset) -> RunConfig:
    """5 steps an epoch; 3 epochs, the last one cut short after 3 steps."""
    model = replace(MODELS["tiny"], num_classes=3, image_size=8, num_blocks=1)
    recipe = TrainConfig(batch_size=2, epochs=3, steps=13)
    return RunConfig(
        model_name="tiny",
        recipe_name="tutorial",
        framework="numpy",
        model=model,
        train=recipe,
        dataset=dataset.name,
        dataset_source=dataset.source,
        dataset_fingerprint=dataset.fingerprint,
        class_names=dataset.class_names,
        picture_size=8,
    )
