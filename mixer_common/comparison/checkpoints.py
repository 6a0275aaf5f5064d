"""The arrays of two checkpoints compared without running anything: weights, moments, averaged weights."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mixer_common.comparison.differences import LayerDifference, layer_differences
from mixer_common.comparison.recording_files import is_recording, load_recording
from mixer_common.comparison.settings import SettingDifference, differing_runs, run_settings
from mixer_common.config.model import ModelConfig
from mixer_common.config.presets import model_name
from mixer_common.errors import UserError
from mixer_common.runs import checkpoint
from mixer_common.weights.files import load_weights

Arrays = Mapping[str, np.ndarray]
WEIGHTS = "weights"


@dataclass(frozen=True)
class StoredArrays:
    """All arrays of a checkpoint, of a file of weights, or the weights of a recording."""

    name: str  # as the user wrote it
    description: str  # for people
    config: ModelConfig
    groups: Mapping[str, Arrays]  # canonical arrays: "weights", and the names of config.train.moment_names
    run: Mapping[str, Any] = field(default_factory=dict)  # settings.run_settings, where it is a run


@dataclass(frozen=True)
class ArrayDifference:
    """One array of both sides."""

    group: str  # "weights", or a name of config.train.moment_names
    difference: LayerDifference
    equal: bool  # to the bit: the same dtype, shape and bytes
    past_bound: bool  # whether it differs by more than the tolerance; where there is none, whether it differs at all


@dataclass(frozen=True)
class CheckpointComparison:
    """The result; print_checkpoints prints it."""

    a: StoredArrays
    b: StoredArrays
    arrays: tuple[ArrayDifference, ...]  # those of both sides and those that one side lacks, group by group
    only_in_a: tuple[str, ...]  # groups that B does not have at all
    only_in_b: tuple[str, ...]
    settings: tuple[SettingDifference, ...]
    tolerance: float | None = None  # None: to the bit

    @property
    def agrees(self) -> bool:
        """Whether no array differs by more than the tolerance, and both sides have the same arrays.

        Moments need a counterpart where both sides are checkpoints; a file of weights cannot hold any.
        """
        lacks_group = self.a.run and self.b.run and (self.only_in_a or self.only_in_b)
        return not (lacks_group or any(array.past_bound for array in self.arrays))

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON can hold it; a number that is not finite is a text."""
        return _finite(
            {
                "agrees": self.agrees,
                "tolerance": self.tolerance,
                **{
                    side: {"name": stored.name, "description": stored.description, "groups": list(stored.groups)}
                    for side, stored in (("a", self.a), ("b", self.b))
                },
                "only_in_a": self.only_in_a,
                "only_in_b": self.only_in_b,
                "settings": [asdict(setting) for setting in self.settings],
                "arrays": [
                    {
                        "group": array.group,
                        "equal": array.equal,
                        "past_bound": array.past_bound,
                        **asdict(array.difference),
                    }
                    for array in self.arrays
                ],
            }
        )


def compare_checkpoints(a: StoredArrays, b: StoredArrays, tolerance: float | None = None) -> CheckpointComparison:
    """Compares all arrays of two sides. tolerance: the largest relative error of any; None: equal to the bit."""
    arrays: list[ArrayDifference] = []
    for group in a.groups:
        if group not in b.groups:
            continue
        values, references = b.groups[group], a.groups[group]
        bounds = dict.fromkeys((*references, *values), tolerance or 0.0)
        for difference in layer_differences(values, references, bounds):
            equal = _equal(references.get(difference.name), values.get(difference.name))
            past_bound = not equal if tolerance is None else not equal and difference.past_bound
            arrays.append(ArrayDifference(group, difference, equal, past_bound))
    return CheckpointComparison(
        a,
        b,
        tuple(arrays),
        tuple(group for group in a.groups if group not in b.groups),
        tuple(group for group in b.groups if group not in a.groups),
        differing_runs(a.config, b.config, a.run, b.run),
        tolerance,
    )


def open_arrays(text: str, open_weights: Callable[[Path], Any] = load_weights) -> StoredArrays:
    """Opens a run, a checkpoint, a file of weights or a recording; "jax:" or "torch:" before it means nothing here.

    Raises UserError where there is none, or it is damaged.
    """
    prefix, colon, rest = text.partition(":")
    path = Path(rest) if colon and prefix in ("jax", "torch") else Path(text)
    if is_recording(path):
        recording = load_recording(path)
        if not recording.weights:
            raise UserError(f"{path} is a recording without weights: name a run or a file of weights.")
        return StoredArrays(
            text,
            f"the weights of a recording of {recording.origin.model}",
            recording.config,
            {WEIGHTS: recording.weights},
            recording.origin.run,
        )
    if checkpoint.exists(path / "checkpoint") or (path / "progress.json").exists():
        folder = path / "checkpoint"
        state = checkpoint.load(folder if checkpoint.exists(folder) else path)  # with moments
        return StoredArrays(
            text,
            f"{_size(state.config.model)}, after {state.progress.step:,} steps on {state.config.dataset_source}",
            state.config.model,
            {WEIGHTS: state.weights, **state.moments},
            run_settings(path, state),
        )
    weights = open_weights(path)
    return StoredArrays(
        text, f"{weights.format} weights of {_size(weights.config)}", weights.config, {WEIGHTS: weights.arrays}
    )


def _size(config: ModelConfig) -> str:
    return f"{model_name(config)}, {config.num_parameters:,} parameters"


def _equal(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    if a is None or b is None:
        return False
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def _finite(value: Any) -> Any:
    """The value with every number that JSON cannot hold as a text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
