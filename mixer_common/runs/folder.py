"""A run's folder: what a training run writes beside its checkpoint."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from mixer_common import files
from mixer_common.errors import UserError
from mixer_common.runs import checkpoint
from mixer_common.runs.checkpoint import Checkpoint, RunConfig, TrainingProgress
from mixer_common.runs.events import open_events

# TensorBoard's tag for each figure of a row of metrics.jsonl that it shows.
_TAGS = {
    "train_loss": "loss/train",
    "test_loss": "loss/test",
    "test_accuracy": "accuracy/test",
    "learning_rate": "learning_rate",
}
_STEPS_BETWEEN_EVENTS = 50


def read_losses(run: Path) -> np.ndarray:
    """The training loss of every step of a run: (steps,). Raises UserError where its file is missing or damaged."""
    path = run / "step_losses.npy"
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{path}, the run's losses, cannot be read ({error}): use another copy of the run, or start a new one."
        ) from None


def read_resumable(path: Path) -> Checkpoint:
    """The checkpoint that the run in the folder `path` goes on from. Raises UserError where there is none."""
    RunConfig.from_json(path / "config.json")
    if not checkpoint.exists(path / "checkpoint"):
        raise UserError(f"{path} was stopped before its first checkpoint: begin it anew with --overwrite.")
    return checkpoint.load(path / "checkpoint")


class RunFolder:
    """The folder of a run that trains: config.json, metrics.jsonl, step_losses.npy, summary.json, checkpoint/,
    pictures/ and TensorBoard's events.

    `begin` and `resume` open one. Use it as a context, which closes the events.
    """

    def __init__(self, path: Path, config: RunConfig, losses: np.ndarray, metrics: list[dict[str, Any]]):
        """losses: of the steps so far, (steps,); metrics: the rows of the epochs so far."""
        self.path = path
        self.checkpoint = path / "checkpoint"
        self.pictures = path / "pictures"
        self.config = config
        self.metrics = metrics
        self._losses = [losses]
        self._events = open_events(path, len(losses))

    @classmethod
    def begin(cls, path: Path, config: RunConfig, overwrite: bool) -> "RunFolder":
        """Makes the folder for a new run. Raises UserError where something lies there, unless it is a run that is to
        be overwritten."""
        files.make_folder(path, overwrite, "run", "config.json", "continue it with --resume, ")
        (path / "pictures").mkdir()
        _write_config(path, config)
        return cls(path, config, np.zeros(0, np.float32), [])

    @classmethod
    def resume(cls, path: Path, config: RunConfig, step: int) -> "RunFolder":
        """Opens the folder of a run whose checkpoint is at `step`, and drops what was logged after it.

        Raises UserError where losses or metrics are damaged.
        """
        losses = read_losses(path)
        try:
            metrics_path = path / "metrics.jsonl"
            lines = metrics_path.read_text().splitlines() if metrics_path.exists() else []
            rows = [json.loads(line) for line in lines]
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} cannot be resumed, its metrics.jsonl is damaged ({error}): start a new run."
            ) from None
        if len(losses) < step:
            raise UserError(
                f"{path / 'step_losses.npy'} holds {len(losses)} losses, but the checkpoint is "
                f"at step {step}: start a new run."
            )
        (path / "pictures").mkdir(exist_ok=True)
        _write_config(path, config)
        return cls(path, config, losses[:step], [row for row in rows if row["step"] <= step])

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._events.close()

    def add_losses(self, losses: np.ndarray, first_step: int) -> None:
        """Adds the training losses of the steps from `first_step` on, counted from 0."""
        self._losses.append(losses)
        for i in range(-first_step % _STEPS_BETWEEN_EVENTS, len(losses), _STEPS_BETWEEN_EVENTS):
            self._events.add_scalar("loss/step", losses[i], first_step + i)

    def losses(self) -> np.ndarray:
        """Training loss of every step so far: (steps,)."""
        self._losses = [np.concatenate(self._losses)]
        return self._losses[0]

    def add_metrics(self, row: dict[str, Any]) -> None:
        """Adds the figures of an epoch, a row of metrics.jsonl."""
        self.metrics.append(row)
        for name, tag in _TAGS.items():
            self._events.add_scalar(tag, row[name], row["step"])

    def save(
        self,
        progress: TrainingProgress,
        weights: Mapping[str, np.ndarray],
        moments: Mapping[str, Mapping[str, np.ndarray]],
    ) -> None:
        """Writes losses and metrics, then the checkpoint that they belong to. weights, moments: see Checkpoint."""
        buffer = io.BytesIO()
        np.save(buffer, self.losses())
        files.replace_file(self.path / "step_losses.npy", buffer.getvalue())
        rows = "".join(json.dumps(row) + "\n" for row in self.metrics)
        files.replace_file(self.path / "metrics.jsonl", rows.encode())
        checkpoint.save(self.checkpoint, Checkpoint(self.config, progress, weights, moments))
        self._events.flush()

    def has_summary(self, step: int) -> bool:
        """Whether the summary of the run's first `step` steps is written."""
        path = self.path / "summary.json"
        return path.exists() and files.read_json(path).get("steps") == step

    def write_summary(self, summary: dict[str, Any]) -> None:
        files.replace_file(self.path / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())


def _write_config(path: Path, config: RunConfig) -> None:
    files.replace_file(path / "config.json", config.to_json().encode())
