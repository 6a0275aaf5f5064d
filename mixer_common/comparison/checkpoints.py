"""The arrays of two checkpoints compared without running anything: weights, moments, averaged weights."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mixer_common.comparison.differences import LayerDifference, layer_differences
from mixer_common.comparison.recording_files import is_recording, load_recording
from mixer_common.comparison.settings import SettingDifference, differing_runs, run_settings
from mixer_common.comparison.stream import drifting_weights
from mixer_common.config.model import ModelConfig
from mixer_common.config.presets import model_name
from mixer_common.runs import checkpoint
from mixer_common.runs.checkpoint import Checkpoint
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
    reaches_no_logit: bool = False  # whether it is of a bias that every later LayerNorm takes away: rounding moves it


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

    def figures(self) -> dict[str, Any]:
        """Everything as plain dicts, lists, texts and numbers, for figures.write_json."""
        return {
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
                    "reaches_no_logit": array.reaches_no_logit,
                    **asdict(array.difference),
                }
                for array in self.arrays
            ],
        }


def compare_checkpoints(a: StoredArrays, b: StoredArrays, tolerance: float | None = None) -> CheckpointComparison:
    """Compares all arrays of two sides. tolerance: the largest relative error of any; None: equal to the bit."""
    arrays: list[ArrayDifference] = []
    drifting = drifting_weights(a.config)
    for group in a.groups:
        if group not in b.groups:
            continue
        values, references = b.groups[group], a.groups[group]
        bounds = dict.fromkeys((*references, *values), tolerance or 0.0)
        for difference in layer_differences(values, references, bounds):
            equal = _equal(references.get(difference.name), values.get(difference.name))
            past_bound = not equal if tolerance is None else not equal and difference.past_bound
            arrays.append(ArrayDifference(group, difference, equal, past_bound, difference.name in drifting))
    return CheckpointComparison(
        a,
        b,
        tuple(arrays),
        tuple(group for group in a.groups if group not in b.groups),
        tuple(group for group in b.groups if group not in a.groups),
        differing_runs(a.config, b.config, a.run, b.run),
        tolerance,
    )


def open_arrays(text: str) -> StoredArrays:
    """Opens a run, a checkpoint, weights in any format, or a recording; "jax:" or "torch:" before it has no effect.

    Raises UserError where there is none, or it is damaged.
    """
    prefix, colon, rest = text.partition(":")
    address = rest if colon and prefix in ("jax", "torch") else text
    path = Path(address)
    if is_recording(path):
        recording = load_recording(path)
        model = f"the weights of a recording of {recording.origin.model}"
        return StoredArrays(text, model, recording.config, {WEIGHTS: recording.weights}, recording.origin.run)
    if checkpoint.exists(path / "checkpoint") or (path / "progress.json").exists():
        state = _load_checkpoint(path)
        return StoredArrays(
            text,
            f"{_size(state.config.model)}, after {state.progress.step:,} steps on {state.config.dataset_source}",
            state.config.model,
            {WEIGHTS: state.weights, **state.moments},
            run_settings(path, state),
        )
    weights = load_weights(address)
    return StoredArrays(
        text, f"{weights.format} weights of {_size(weights.config)}", weights.config, {WEIGHTS: weights.arrays}
    )


def _load_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint of a run's folder, or the one that the folder itself is; without moments where it holds none."""
    folder = path if (path / "progress.json").exists() else path / "checkpoint"
    has_moments = not folder.exists() or (folder / "optimizer.safetensors").exists()  # else an older one is whole
    return checkpoint.load(folder) if has_moments else checkpoint.load_run(path)


def _size(config: ModelConfig) -> str:
    return f"{model_name(config)}, {config.num_parameters:,} parameters"


def _equal(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    if a is None or b is None:
        return False
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
