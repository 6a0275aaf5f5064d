"""The interface between mixer_common and a framework: two Protocols, Framework and Trainer.

mixer_jax/framework.py and mixer_torch/framework.py implement the first, their train.py the second. Shapes: N images
of H x W pixels, B of them in a batch. "Canonical" arrays have the names, shapes and order of
mixer_common.config.model.weight_shapes. A precision is "float32", "bfloat16" or "float64"; the dtype of its weights
is float64 for "float64", else float32.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mixer_common.config.model import ModelConfig
from mixer_common.config.train import TrainConfig
from mixer_common.plan.epoch import EpochPlan
from mixer_common.plugins import load_plugin

Arrays = Mapping[str, np.ndarray]


class Trainer(Protocol):
    """A model in training: weights, optimizer state and training images on the device."""

    def begin_epoch(self, plan: EpochPlan) -> None:
        """Hands an epoch's indices, rates and random draws to the device; before its first `train` and `augmented`.

        plan.first_step tells how many steps of the run lie before the epoch.
        """
        ...

    def train(self, first: int, last: int) -> np.ndarray:
        """Runs steps `first` to `last` - 1 of the epoch, counted from 0, and waits for them.

        Returns the training loss of each: (last - first,), in the weights' dtype. The bits of the result do not
        depend on how an epoch is divided into calls. Exhausted memory raises whatever the framework raises
        (mixer_common.machine.is_memory_exhausted recognises it).
        """
        ...

    def augmented(self, i: int) -> np.ndarray:
        """The images of step `i` of the epoch as it trains on them: (B, H, W, 3) bytes as real numbers, 0 to 255."""
        ...

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Logits (N, num_classes) of uint8 images (N, H, W, 3), nothing dropped, in the weights' dtype."""
        ...

    def weights(self) -> dict[str, np.ndarray]:
        """The model's canonical weights, copied; where it is an average of weights (ema_decay), that average."""
        ...

    def moments(self) -> dict[str, dict[str, np.ndarray]]:
        """Canonical arrays, copied, by the names of mixer_common.config.train.moment_names.

        With `weights`, everything that a run needs to continue to the same bits.
        """
        ...


class Framework(Protocol):
    """JAX or PyTorch, as the scripts see it. A device is whatever `prepare` returns; nobody else looks inside."""

    @property
    def name(self) -> str:
        """Its name in the scripts and in a run's files: "jax" or "torch"."""
        ...

    @property
    def versions(self) -> dict[str, str]:
        """Versions of Python and of the packages that compute, by package."""
        ...

    def prepare(self, name: str, precision: str) -> Any:
        """The device named "auto", "cpu" or "gpu"; sets the framework up for the precision. Called before all else.

        Raises UserError where there is no such device.
        """
        ...

    def describe(self, device: Any) -> str:
        """The device for people: "CPU, 2 threads"."""
        ...

    def trainer(
        self,
        config: ModelConfig,
        recipe: TrainConfig,
        weights: Arrays,
        images: np.ndarray,
        labels: np.ndarray,
        moments: Mapping[str, Arrays] | None = None,
        device: Any = None,
    ) -> Trainer:
        """A Trainer whose weights and moments are canonical arrays, as they were where the training goes on.

        images: uint8 (N, H, W, 3); labels: int32 (N,); moments: None at the start of a run, else by
        moment_names. Raises UserError where the arrays do not fit the model.
        """
        ...

    def logits(
        self, config: ModelConfig, weights: Arrays, images: np.ndarray, precision: str, device: Any
    ) -> np.ndarray:
        """Logits (N, num_classes) of uint8 images (N, H, W, 3), in the weights' dtype."""
        ...

    def activations(
        self,
        config: ModelConfig,
        weights: Arrays,
        images: np.ndarray,
        precision: str,
        device: Any,
        replacements: Arrays | None = None,
    ) -> dict[str, np.ndarray]:
        """Every activation of one forward pass, (N, ...) in the weights' dtype, named and ordered as
        mixer_common.config.model.activation_names; "head" is the logits.

        replacements: activations, by name, with which the model goes on after it has computed its own."""
        ...

    def gradients(
        self, config: ModelConfig, weights: Arrays, images: np.ndarray, labels: np.ndarray, precision: str, device: Any
    ) -> dict[str, np.ndarray]:
        """Canonical gradients, in the weights' dtype, of the mean cross-entropy of uint8 images (N, H, W, 3) and
        labels (N,), nothing dropped."""
        ...

    def activation_gradients(
        self, config: ModelConfig, weights: Arrays, images: np.ndarray, labels: np.ndarray, precision: str, device: Any
    ) -> dict[str, np.ndarray]:
        """Gradients of the same loss with respect to every activation, by the names and in the order of
        `activations`, in the weights' dtype."""
        ...

    def update_weights(
        self,
        config: ModelConfig,
        recipe: TrainConfig,
        weights: Arrays,
        gradients: Arrays,
        before: Mapping[str, Arrays] | None,
        plan: EpochPlan,
        i: int,
        device: Any,
    ) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
        """Weights and moments after step `i` of the epoch, counted from 0, by the recipe's optimizer with these
        gradients of a batch.

        All are canonical; before: the moments before the step, by mixer_common.config.train.MOMENTS, None at the start
        of a run. No weight is frozen or averaged.
        """
        ...

    def download(self, data_dir: Path) -> None:
        """Puts CIFAR-10 into the folder. Raises DownloadError where it cannot be had; then nothing is left behind."""
        ...


def load_framework(name: str) -> Framework:
    """The framework "jax" or "torch"; only that one is imported. Raises UserError where it is not installed."""
    return load_plugin("mlp_mixer.frameworks", name)()
