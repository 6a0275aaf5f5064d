"""A run's folder: what a training run writes beside its checkpoint."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from mixer_common import files
from mixer_common.errors import UserError
from mixer_common.files import make_folder
from mixer_common.runs import checkpoint
from mixer_common.runs.checkpoint import Checkpoint, RunConfig


def read_losses(run: Path) -> np.ndarray:
    """The training loss of every step of a run: (steps,). Raises UserError where its file is missing or damaged."""
    path = run / "step_losses.npy"
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{path}, the run's losses, cannot be read ({error}): use another copy of the run, or start a new one."
        ) from None


class RunFolder:
    """config.json, metrics.jsonl, step_losses.npy, summary.json, checkpoint/, TensorBoard events, pictures/."""

    def __init__(self, path: Path):
        self.path = path
        self.checkpoint = path / "checkpoint"
        self.pictures = path / "pictures"
        self.metrics: list[dict[str, Any]] = []
        self.step_losses: list[np.ndarray] = []

    def create(self, config: RunConfig, overwrite: bool) -> None:
        """Makes the folder. Raises UserError where a run lies there, unless it is to be overwritten."""
        make_folder(self.path, overwrite, "run", "config.json", "continue it with --resume, ")
        self.pictures.mkdir()
        self.write_config(config)
        self._open_events(0)

    def resume(self) -> Checkpoint:
        """Reads the checkpoint, and takes back what was logged after it. Raises UserError if it is no run."""
        RunConfig.from_json(self.path / "config.json")
        if not checkpoint.exists(self.checkpoint):
            raise UserError(f"{self.path} was stopped before its first checkpoint: begin it anew with --overwrite.")
        state = checkpoint.load(self.checkpoint)
        step = state.progress.step
        losses = read_losses(self.path)
        try:
            lines = self.metrics_path.read_text().splitlines() if self.metrics_path.exists() else []
            rows = [json.loads(line) for line in lines]
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.path} cannot be resumed, its metrics.jsonl is damaged ({error}): start a new run."
            ) from None
        if len(losses) < step:
            raise UserError(
                f"{self.path / 'step_losses.npy'} holds {len(losses)} losses, but the checkpoint is "
                f"at step {step}: start a new run."
            )
        self.step_losses = [losses[:step]]
        self.metrics = [row for row in rows if row["step"] <= step]
        self.pictures.mkdir(exist_ok=True)
        self._open_events(step)
        return state

    def write_config(self, config: RunConfig) -> None:
        files.replace_file(self.path / "config.json", config.to_json().encode())

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    def add_losses(self, losses: np.ndarray, first_step: int) -> None:
        self.step_losses.append(losses)
        for i in range(-first_step % 50, len(losses), 50):
            self.events.add_scalar("loss/step", losses[i], first_step + i)

    def losses(self) -> np.ndarray:
        """Training loss of every step so far: (steps,)."""
        self.step_losses = [np.concatenate(self.step_losses)] if self.step_losses else [np.zeros(0, np.float32)]
        return self.step_losses[0]

    def add_metrics(self, row: dict[str, Any]) -> None:
        self.metrics.append(row)
        for name, tag in (
            ("train_loss", "loss/train"),
            ("test_loss", "loss/test"),
            ("test_accuracy", "accuracy/test"),
            ("learning_rate", "learning_rate"),
        ):
            self.events.add_scalar(tag, row[name], row["step"])

    def save(self, state: Checkpoint) -> None:
        """Writes losses and metrics, then the checkpoint that they belong to."""
        buffer = io.BytesIO()
        np.save(buffer, self.losses())
        files.replace_file(self.path / "step_losses.npy", buffer.getvalue())
        files.replace_file(self.metrics_path, "".join(json.dumps(row) + "\n" for row in self.metrics).encode())
        checkpoint.save(self.checkpoint, state)
        self.events.flush()

    def summarised(self, step: int) -> bool:
        """Whether the summary of the run's first `step` steps is written."""
        path = self.path / "summary.json"
        return path.exists() and files.read_json(path).get("steps") == step

    def write_summary(self, summary: dict[str, Any]) -> None:
        files.replace_file(self.path / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())

    def _open_events(self, step: int) -> None:
        # tensorboardX imports torch where it is installed, for the name of a type; that takes seconds.
        if hidden := "torch" not in sys.modules:
            sys.modules["torch"] = None
        try:
            from tensorboardX import SummaryWriter
        finally:
            if hidden:
                del sys.modules["torch"]

        self.events = SummaryWriter(str(self.path), purge_step=step, write_to_disk=True)
