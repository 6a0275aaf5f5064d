"""A checkpoint: a folder with config.json, model.safetensors, optimizer.safetensors and progress.json.

Arrays have canonical form, so either framework continues what the other began.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mixer_common.config import MixerConfig, weight_shapes
from mixer_common.errors import UserError
from mixer_common.fields import from_dict
from mixer_common.recipe import TrainConfig, moment_names
from mixer_common.weights import check_weights


@dataclass(frozen=True)
class RunConfig:
    """What a run is: its model, its training and its data. config.json in the run and in its checkpoint."""

    model_name: str
    recipe_name: str
    framework: str  # the one that began the run
    model: MixerConfig
    train: TrainConfig
    dataset: str  # its name
    dataset_source: str
    dataset_fingerprint: str
    class_names: tuple[str, ...]
    picture_size: int  # pixels, height and width of the data set's images
    init_from: str = ""  # the weights that the run began from; empty: those that the seed draws

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @staticmethod
    def from_json(path: Path) -> "RunConfig":
        values = read_json(path)
        if "model" in values and "train" not in values:
            raise UserError(f"{path.parent} holds weights that were converted, no run: it has neither classes nor "
                            "data; begin a run with --init-from, or look at it with compare.py.")
        values["model"] = from_dict(MixerConfig, values.get("model"), f"'model' in {path}")
        values["train"] = from_dict(TrainConfig, values.get("train"), f"'train' in {path}")
        return from_dict(RunConfig, values, str(path))


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    step: int
    frameworks: tuple[tuple[str, int], ...]  # who trained, from which step on
    train_seconds: float = 0.0  # in training steps, without compilation, evaluation and writing
    compile_seconds: float = 0.0  # the first dispatch of every start
    timed_steps: int = 0  # the steps that train_seconds covers


@dataclass(frozen=True)
class Checkpoint:
    config: RunConfig
    progress: Progress
    weights: Mapping[str, np.ndarray]  # canonical: the model's, with ema_decay averaged ones
    moments: Mapping[str, Mapping[str, np.ndarray]]  # canonical, by recipe.moment_names


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes the folder whole or not at all: whatever happens, a complete checkpoint can be read."""
    from safetensors.numpy import save as to_bytes

    new = beside(folder, "new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        write(new / "config.json", checkpoint.config.to_json().encode())
        # Contiguous, because safetensors writes the memory of a transposed view as it lies there.
        write(new / "model.safetensors", to_bytes({
            name: np.ascontiguousarray(array) for name, array in checkpoint.weights.items()}))
        write(new / "optimizer.safetensors", to_bytes({
            f"{moment}.{name}": np.ascontiguousarray(array) for moment, arrays in checkpoint.moments.items()
            for name, array in arrays.items()}))
        write(new / "progress.json", (json.dumps(asdict(checkpoint.progress), indent=2) + "\n").encode())
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    put_in_place(new, folder)


def put_in_place(new: Path, folder: Path) -> None:
    """Gives the complete folder `new` the name of `folder`, whose old content goes when that is done."""
    old = beside(folder, "old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def exists(folder: Path) -> bool:
    return folder.exists() or beside(folder, "old").exists()


def load(folder: Path) -> Checkpoint:
    """Reads a checkpoint. Raises UserError where it is missing, cut short or does not fit together."""
    if not folder.exists() and beside(folder, "old").exists():  # stopped between the two renames of `save`
        folder = beside(folder, "old")
    if not folder.is_dir():
        raise UserError(f"{folder} is no checkpoint: expected a folder with config.json, model.safetensors, "
                        "optimizer.safetensors and progress.json; name a run that wrote one.")
    config = RunConfig.from_json(folder / "config.json")
    values = read_json(folder / "progress.json")
    values["frameworks"] = tuple(map(tuple, values.get("frameworks", ())))
    progress = from_dict(Progress, values, str(folder / "progress.json"))
    shapes = weight_shapes(config.model)
    weights = read_arrays(folder / "model.safetensors")
    check_weights(weights, shapes, str(folder / "model.safetensors"))
    arrays = read_arrays(folder / "optimizer.safetensors")
    names = moment_names(config.train)
    check_weights(arrays, {f"{moment}.{name}": shape for moment in names for name, shape in shapes.items()},
                  str(folder / "optimizer.safetensors"))
    moments = {moment: {name: arrays[f"{moment}.{name}"] for name in shapes} for moment in names}
    return Checkpoint(config, progress, {name: weights[name] for name in shapes}, moments)


def load_run(folder: Path) -> Checkpoint:
    """The checkpoint of a run's folder, or the one that the folder itself is."""
    if (folder / "model.safetensors").exists():
        return load(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is no run: expected a folder that a training script wrote, with config.json "
                        "and checkpoint/; name one, for instance of those in runs/.")
    return load(folder / "checkpoint")


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file. Raises UserError where it is missing or broken."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: the checkpoint is incomplete; use another one.") from None
    except SafetensorError as error:
        raise UserError(f"{path} is no complete safetensors file ({error}): it was cut short or changed; "
                        "use another checkpoint.") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises UserError where the file is missing or holds something else."""
    try:
        values = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} is missing: {path.parent} is not a run or checkpoint of this project; "
                        "name the folder that a training script wrote.") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): it was cut short or changed; "
                        "use another copy.") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a {type(values).__name__}, expected a JSON object: use another copy.")
    return values


def write(path: Path, data: bytes) -> None:
    """Writes a file and waits until it lies on the disk."""
    try:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = str(path)  # a full disk does not name it
        raise


def replace(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all."""
    new = beside(path, "new")
    try:
        write(new, data)
        new.replace(path)
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise
    finally:
        new.unlink(missing_ok=True)


def beside(path: Path, suffix: str) -> Path:
    """A hidden name for what is not complete yet, or about to go."""
    return path.with_name(f".{path.name}.{suffix}")
