"""Recordings: what a model computed on some images, with the weights that it computed it with, and where."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np

from mixer_common.config.model import ModelConfig

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Inputs:
    """The images that both sides of a comparison compute, and their labels."""

    images: np.ndarray  # uint8 (N, H, W, 3)
    labels: np.ndarray  # int32 (N,); a label that a model has no class for is counted round
    description: str  # for people: their number and their data set

    @cached_property
    def sha256(self) -> str:
        """The hash of the images, their shape and the labels; two recordings can be compared where it is equal."""
        header = repr((self.images.shape, self.labels.shape)).encode()
        return hashlib.sha256(
            header + np.ascontiguousarray(self.images).tobytes() + self.labels.astype("<i8").tobytes()
        ).hexdigest()


@dataclass(frozen=True)
class Origin:
    """Where a recording comes from."""

    name: str  # as the user wrote it
    model: str  # for people: its name, size, format, and the steps of a run
    framework: str  # "jax" or "torch"
    versions: Mapping[str, str]  # of Python and of the packages that compute, by package
    device: str  # for people: "CPU, 2 threads"
    precision: str  # of mixer_common.interface
    step_losses: np.ndarray | None = None  # (steps,), where it is a run
    notes: tuple[str, ...] = ()  # for people: what was assumed, and how layers were matched

    @property
    def runs_in(self) -> str:
        """Framework, version and device, for people."""
        return f"{self.framework} {self.versions[self.framework]} on {self.device}"


@dataclass(frozen=True)
class Recording:
    """The weights of one model, and its activations and gradients on some images."""

    config: ModelConfig
    weights: Arrays  # canonical
    activations: Arrays  # by config.model.activation_names, in network order
    inputs: Inputs
    origin: Origin
    gradients: Arrays | None = None  # canonical, of the mean cross-entropy; None where they were not asked for
    activation_gradients: Arrays | None = None  # of the same loss, by the names of `activations`
    observations: tuple[str, ...] = field(default=())  # for people: what a module did that no Mixer should do


class Subject(Protocol):
    """A model that can compute images, so that recordings can be made of it."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def weights(self) -> Arrays:
        """Canonical."""
        ...

    @property
    def framework(self) -> str:
        """ "jax" or "torch"."""
        ...

    def record(
        self, inputs: Inputs, precision: str, gradients: bool = False, replacements: Arrays | None = None
    ) -> Recording:
        """The activations on the inputs; gradients: those of the weights and of the activations, too.

        replacements: activations by name, canonical (N, ...), with which the model goes on after it has computed its
        own. So every layer gets the input that another model had there, and one difference does not colour the next.
        """
        ...


@runtime_checkable
class TrainableSubject(Subject, Protocol):
    """A subject that can be given other weights, and so be trained."""

    def with_weights(self, arrays: Arrays) -> "TrainableSubject":
        """The same model with other canonical weights."""
        ...
