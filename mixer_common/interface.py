"""The interface between mixer_common and a framework: the Protocols Framework, Trainer and OpenedModule.

mixer_jax/framework.py and mixer_torch/framework.py implement the first, their train.py the second, their modules.py
the third. Shapes: N images
of H x W pixels, B of them in a batch. "Canonical" arrays have the names, shapes and order of
mixer_common.config.model.weight_shapes. A precision is "float32", "bfloat16" or "float64"; the dtype of its weights
is float64 for "float64", else float32.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mixer_common.config.model import ModelConfig
from mixer_common.config.train import TrainConfig
from mixer_common.plan.epoch import EpochPlan
from mixer_common.plugins import load_plugin

Arrays = Mapping[str, np.ndarray]
Sink = Callable[[str, np.ndarray], None]  # takes a name and an array, which may change after the call


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


@dataclass(frozen=True)
class ModuleCall:
    """One call of a submodule. Arrays are copies, of the weights' dtype; None where the value is no array of
    floating-point numbers."""

    path: str  # of the submodule in its module, "" for the module itself; what stands before its arrays' names
    number: int  # of the calls of this submodule before
    kind: str  # the name of its class
    input: np.ndarray | None  # its first argument that is an array
    output: np.ndarray | None  # what it returned, or the first of several
    dtype: str = ""  # of the output, as the module computed it
    input_gradient: np.ndarray | None = None  # of the loss; None where none was asked for, or none arrives
    output_gradient: np.ndarray | None = None


@dataclass(frozen=True)
class ModuleRun:
    """What a module computed in one forward pass."""

    calls: tuple[ModuleCall, ...]  # in the order in which they ended, the module itself last
    gradients: Arrays | None = None  # of its own arrays by their names; None where none were asked for
    random: tuple[str, ...] = ()  # the submodules that computed other values when they were called again
    lost: tuple[str, ...] = ()  # the submodules whose values cannot be seen, since a transformation traces them


# The input and the output of a submodule that take the place of its own; None leaves its own.
ModuleReplacements = Mapping[tuple[str, int], tuple[np.ndarray | None, np.ndarray | None]]


class OpenedModule(Protocol):
    """Somebody's module, whose submodules can be watched while it computes. It is left as it is."""

    @property
    def kind(self) -> str:
        """For people: "a torch.nn.Module (Net)"."""
        ...

    def initialised(self, pixels: np.ndarray) -> bool:
        """Draws weights with seed 0 where the module has none; pixels as in `run`. Returns whether it did."""
        ...

    def arrays(self) -> dict[str, np.ndarray]:
        """Its parameters by their names, in the order in which it was built, and what it holds of a scale of pixels.

        Empty where it has no weights yet."""
        ...

    def load(self, arrays: Arrays) -> "OpenedModule":
        """The same module with other values for some of its arrays, of the same shapes and names."""
        ...

    def run(
        self,
        pixels: np.ndarray,
        precision: str,
        device: Any,
        labels: np.ndarray | None = None,
        replacements: ModuleReplacements | None = None,
    ) -> ModuleRun:
        """One forward pass, nothing dropped, with what every submodule was given and returned.

        pixels: floating-point numbers in the layout that the module takes. labels (N,): also compute the gradients of
        the mean cross-entropy. replacements: by path and number of a call. Without either the module is called twice.
        Raises ModuleError where the module raises.
        """
        ...


class ModuleError(Exception):
    """A module that cannot be called; `path` is that of the submodule that raised, `__cause__` what it raised."""

    def __init__(self, path: str):
        super().__init__(path)
        self.path = path


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
        sink: Sink | None = None,
    ) -> dict[str, np.ndarray]:
        """Every activation of one forward pass, (N, ...) in the weights' dtype, named and ordered as
        mixer_common.config.model.activation_names; "head" is the logits.

        replacements: activations, by name, with which the model goes on after it has computed its own.
        sink: gets each activation as soon as it is computed, in network order and to the same bits, so that they are
        never in memory together; the result is empty then. What it raises, this raises."""
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

    def open_module(self, model: Any) -> OpenedModule | None:
        """A module of this framework, made ready for being watched; None where the object is no such module."""
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
