"""A checkpoint: a folder with config.json, model.safetensors, optimizer.safetensors, progress.json and checksums.json.

Arrays have canonical form, so either framework continues what the other began.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from mixer_common.config.fields import from_dict
from mixer_common.config.model import ModelConfig, model_config_from_json, weight_shapes
from mixer_common.config.train import TrainConfig, moment_names
from mixer_common.errors import UserError
from mixer_common.files import (
    check_sum,
    hidden_sibling,
    read_json,
    read_manifest,
    replace_folder,
    write_file,
    write_manifest,
)
from mixer_common.weights.canonical import check_weights

Result = TypeVar("Result")


@dataclass(frozen=True)
class RunConfig:
    """The model of a run, its training and its data: config.json in the run's folder and in its checkpoint."""

    model_name: str  # in MODELS, or "custom"
    recipe_name: str  # in RECIPES
    framework: str  # "jax" or "torch": the one that began the run
    model: ModelConfig
    train: TrainConfig
    dataset: str  # its name
    dataset_source: str  # Dataset.source
    dataset_fingerprint: str  # Dataset.fingerprint
    class_names: tuple[str, ...]
    picture_size: int  # pixels, height and width of the data set's images
    init_from: str = ""  # path or address of the weights that the run began from; empty: the seed drew them

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @staticmethod
    def from_json(path: Path) -> "RunConfig":
        """The config in the file `path`, also an older version's. Raises UserError where it holds none."""
        values = read_json(path)
        if "model" in values and "train" not in values:
            raise UserError(
                f"{path.parent} holds weights that were converted, no run: it has neither classes nor "
                "data; begin a run with --init-from, or look at it with compare.py."
            )
        values["model"] = model_config_from_json(values.get("model"), f"'model' in {path}")
        values["train"] = from_dict(TrainConfig, values.get("train"), f"'train' in {path}")
        return from_dict(RunConfig, values, str(path))


@dataclass(frozen=True)
class TrainingProgress:
    """How far a run has come."""

    step: int  # steps done
    frameworks: tuple[tuple[str, int], ...]  # each framework that trained, in order, and the step it began at
    train_seconds: float = 0.0  # spent in training steps, without compilation, evaluation and writing
    compile_seconds: float = 0.0  # spent in the first dispatch of every process, which compiles
    timed_steps: int = 0  # number of steps that train_seconds covers


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to continue to the same bits, beside the losses and metrics in its folder."""

    config: RunConfig
    progress: TrainingProgress
    weights: Mapping[str, np.ndarray]  # canonical: the model's; with ema_decay, their average
    moments: Mapping[str, Mapping[str, np.ndarray]]  # canonical, by the names of mixer_common.config.train.moment_names
    logs: Mapping[str, str] = field(default_factory=dict)  # SHA-256 of the run's losses and metrics so far, by file

    @property
    def last_framework(self) -> str:
        """The framework that trained last: "jax" or "torch"."""
        return self.progress.frameworks[-1][0]


def save(folder: Path, checkpoint: Checkpoint, previous: Path | None = None) -> None:
    """Writes the folder whole or not at all: whatever happens, a complete checkpoint can be read.

    previous: the folder that the older checkpoint becomes; None deletes it.
    """
    folder = folder.resolve()  # it may be a link to another disk
    new = hidden_sibling(folder, "new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        write_file(new / "config.json", checkpoint.config.to_json().encode())
        write_file(new / "model.safetensors", _to_bytes(checkpoint.weights))
        moments = {
            f"{moment}.{name}": array for moment, arrays in checkpoint.moments.items() for name, array in arrays.items()
        }
        write_file(new / "optimizer.safetensors", _to_bytes(moments))
        write_file(new / "progress.json", (json.dumps(asdict(checkpoint.progress), indent=2) + "\n").encode())
        write_manifest(new, checkpoint.logs)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    replace_folder(new, folder, previous)


def exists(folder: Path) -> bool:
    """Whether a checkpoint was written there; `load` checks whether it is whole."""
    folder = folder.resolve()
    return folder.exists() or hidden_sibling(folder, "old").exists()


def load(folder: Path) -> Checkpoint:
    """Reads a checkpoint. Raises UserError where it is missing, cut short, changed or does not fit together."""
    return consistent(folder, _load)


def _load(folder: Path) -> Checkpoint:
    checkpoint = _load_model(folder)
    config, shapes = checkpoint.config, weight_shapes(checkpoint.config.model)
    path = complete(folder) / "optimizer.safetensors"
    arrays = _read_arrays(path)
    names = moment_names(config.train)
    check_weights(arrays, {f"{moment}.{name}": shape for moment in names for name, shape in shapes.items()}, str(path))
    return replace(
        checkpoint, moments={moment: {name: arrays[f"{moment}.{name}"] for name in shapes} for moment in names}
    )


def load_run(folder: Path) -> Checkpoint:
    """The checkpoint of a run's folder, or the one that the folder itself is, without moments: optimizer.safetensors,
    twice as large as the model, may be missing."""
    if (folder / "model.safetensors").exists():
        return consistent(folder, _load_model)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} is no run: expected a folder that a training script wrote, with config.json "
            "and checkpoint/; name one, for instance of those in runs/."
        )
    return consistent(folder / "checkpoint", _load_model)


def read_progress(path: Path) -> TrainingProgress:
    """The progress in the file `path`. Raises UserError where it is missing or holds something else."""
    values = read_json(path)
    frameworks = values.get("frameworks")
    if (
        not isinstance(values.get("step"), int)
        or not isinstance(frameworks, list)
        or not frameworks
        or not all(
            isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) and isinstance(entry[1], int)
            for entry in frameworks
        )
    ):
        raise UserError(
            f"{path} does not tell how far the run has come: expected the number of its steps and the frameworks that "
            "trained it; use another copy."
        )
    values["frameworks"] = tuple(map(tuple, frameworks))
    return from_dict(TrainingProgress, values, str(path))


def consistent(folder: Path, read: Callable[[Path], Result]) -> Result:
    """What `read` finds in a checkpoint's folder, all of one step: it is called again where a training replaced the
    folder meanwhile."""
    is_sure = False
    while True:
        before = _identity(folder)
        try:
            result = read(folder)
            if _identity(folder) == before:
                return result
        except (UserError, OSError):
            if _identity(folder) == before:
                if is_sure:
                    raise
                is_sure = True  # unless the folder was between two names
                time.sleep(0.05)


def _identity(folder: Path) -> tuple[int, int] | None:
    """What tells one checkpoint from the next; None where there is none."""
    try:
        status = (complete(folder) / "progress.json").stat()
        return status.st_ino, status.st_mtime_ns
    except OSError:
        return None


def complete(folder: Path) -> Path:
    """The checkpoint's folder, or the older one where `save` was stopped between its two renames."""
    folder = folder.resolve()  # it may be a link to another disk
    old = hidden_sibling(folder, "old")
    return old if not folder.exists() and old.exists() else folder


def _load_model(folder: Path) -> Checkpoint:
    """A checkpoint without the optimizer's moments."""
    folder = complete(folder)
    if not folder.is_dir():
        raise UserError(
            f"{folder} is no checkpoint: expected a folder with config.json, model.safetensors, "
            "optimizer.safetensors and progress.json; name a run that wrote one."
        )
    for name in ("config.json", "progress.json"):
        check_sum(folder / name)
    config = RunConfig.from_json(folder / "config.json")
    progress = read_progress(folder / "progress.json")
    shapes = weight_shapes(config.model)
    weights = _read_arrays(folder / "model.safetensors")
    check_weights(weights, shapes, str(folder / "model.safetensors"))
    return Checkpoint(config, progress, {name: weights[name] for name in shapes}, {}, read_manifest(folder)["logs"])


def _to_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The arrays as a safetensors file."""
    # Contiguous, because safetensors writes the memory of a transposed view as it lies there.
    return safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file. Raises UserError where it is missing, broken or changed."""
    try:
        check_sum(path)
        return safetensors.numpy.load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: the checkpoint is incomplete; use another one.") from None
    except SafetensorError as error:
        raise UserError(
            f"{path} is no complete safetensors file ({error}): it was cut short or changed; use another checkpoint."
        ) from None
