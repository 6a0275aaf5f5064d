"""Recordings: what a model computed on some images, with the weights that it computed it with, and where."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NoReturn, Protocol

import numpy as np

from mixer_common.config.model import ModelConfig
from mixer_common.errors import UserError

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
    processor: str = ""  # its model name
    run: Mapping[str, Any] = field(default_factory=dict)  # settings.run_settings of it, where it is a run
    sums_declared: bool = True  # whether its sums are those of config.model.layers, which bounds are derived from

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

    def with_weights(self, arrays: Arrays) -> "Subject":
        """The same model with other canonical weights. Raises UserError where it cannot be computed anew."""
        ...

    def record(
        self, inputs: Inputs, precision: str, gradients: bool = False, replacements: Arrays | None = None
    ) -> Recording:
        """The activations on the inputs; gradients: those of the weights and of the activations, too.

        replacements: activations by name, canonical (N, ...), with which the model goes on after it has computed its
        own. So every layer gets the input that another model had there, and one difference does not colour the next.
        """
        ...


class RecordingSubject:
    """A recording in the place of a model that computes: it gives what was recorded and nothing else."""

    def __init__(self, recording: Recording):
        self.recording = recording

    @property
    def config(self) -> ModelConfig:
        return self.recording.config

    @property
    def weights(self) -> Arrays:
        return self.recording.weights

    @property
    def framework(self) -> str:
        return self.recording.origin.framework

    def with_weights(self, arrays: Arrays) -> NoReturn:
        """Raises UserError: there is nothing that could be computed with other weights."""
        del arrays
        raise UserError(
            f"{self.recording.origin.name} is a recording, which cannot be computed with other weights: name the model "
            "itself on that side."
        )

    def record(
        self, inputs: Inputs, precision: str, gradients: bool = False, replacements: Arrays | None = None
    ) -> Recording:
        """The recording.

        Raises UserError where it was made on other inputs or in another precision, holds no gradients, or would have to
        compute anew.
        """
        recording, name = self.recording, self.recording.origin.name
        if inputs.sha256 != recording.inputs.sha256:
            raise UserError(
                f"{name} was recorded on {recording.inputs.description} (SHA-256 {recording.inputs.sha256[:12]}), not "
                f"on {inputs.description} (SHA-256 {inputs.sha256[:12]}): compare what was computed on the same images "
                "and labels."
            )
        if precision != recording.origin.precision:
            raise UserError(
                f"{name} was recorded in {recording.origin.precision}, not in {precision}: record it again with "
                f"--precision {precision}, or name the model itself on that side."
            )
        if replacements is not None:
            raise UserError(
                f"{name} is a recording, which cannot go on from the activations of another model: name the model "
                "itself on that side."
            )
        if gradients and recording.gradients is None:
            raise UserError(
                f"{name} was recorded without gradients: leave out --gradients, or record it again with --gradients."
            )
        return recording
