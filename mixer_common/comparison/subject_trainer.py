"""The training of a subject that has no trainer of its own, such as somebody's module: its gradients, our optimizer."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mixer_common.comparison.recording import Arrays, Inputs, Subject
from mixer_common.config.model import weight_shapes
from mixer_common.config.train import MOMENTS, TrainConfig
from mixer_common.interface import Framework
from mixer_common.plan.epoch import EpochPlan

# What a subject that is given bytes and labels cannot do, switched off.
_PLAIN: dict[str, Any] = {
    "accumulation": 1,
    "label_smoothing": 0.0,
    "crop_padding": 0,
    "flip": False,
    "trivial_augment": False,
    "operations": (),
    "cutout": 0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "ema_decay": 0.0,
    "freeze_backbone": False,
}


def plain_recipe(recipe: TrainConfig) -> tuple[TrainConfig, tuple[str, ...]]:
    """The recipe without all that SubjectTrainer cannot do, and the settings that were switched off for it."""
    switched_off = tuple(name for name, value in _PLAIN.items() if getattr(recipe, name) != value)
    return replace(recipe, **_PLAIN), switched_off


class SubjectTrainer:
    """A subject in training: each step records its gradients on the batch, and the framework's optimizer updates it.

    The recipe is a plain one, and nothing is dropped.
    """

    def __init__(
        self,
        subject: Subject,
        framework: Framework,
        device: Any,
        recipe: TrainConfig,
        images: np.ndarray,
        labels: np.ndarray,
    ):
        """images: uint8 (N, H, W, 3); labels: (N,)."""
        self._subject, self._framework, self._device = subject, framework, device
        self._recipe, self._images, self._labels = recipe, images, labels
        self._moments: Mapping[str, Arrays] | None = None
        self._plan: EpochPlan | None = None

    def begin_epoch(self, plan: EpochPlan) -> None:
        self._plan = plan

    def train(self, first: int, last: int) -> np.ndarray:
        """Steps `first` to `last` - 1 of the epoch; the mean cross-entropy of each."""
        return np.array([self._step(i) for i in range(first, last)])

    def weights(self) -> dict[str, np.ndarray]:
        return dict(self._subject.weights)

    def moments(self) -> dict[str, dict[str, np.ndarray]]:
        """By the names of mixer_common.config.train.MOMENTS."""
        if self._moments is not None:
            return {name: dict(arrays) for name, arrays in self._moments.items()}
        return {
            name: {weight: np.zeros_like(array) for weight, array in self._subject.weights.items()}
            for name in MOMENTS[self._recipe.optimizer]
        }

    def _step(self, i: int) -> float:
        assert self._plan is not None, "begin_epoch comes first"
        batch = self._plan.indices[i]
        labels = self._labels[batch]
        recording = self._subject.record(Inputs(self._images[batch], labels, "a batch"), self._recipe.precision, True)
        found, weights = recording.gradients or {}, self._subject.weights
        # Where no gradient arrives there is none.
        gradients = {
            name: found[name] if name in found else np.zeros(shape, weights[name].dtype)
            for name, shape in weight_shapes(self._subject.config).items()
        }
        weights, self._moments = self._framework.update_weights(
            self._subject.config, self._recipe, weights, gradients, self._moments, self._plan, i, self._device
        )
        self._subject = self._subject.with_weights(weights)
        return _cross_entropy(recording.activations["head"], labels)


def _cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """The mean cross-entropy in nats of logits (B, num_classes) and labels (B,)."""
    logits = logits.astype(np.float64)
    largest = logits.max(axis=1, keepdims=True)
    normaliser = largest[:, 0] + np.log(np.exp(logits - largest).sum(axis=1))
    return float((normaliser - logits[np.arange(len(labels)), labels]).mean())
