"""A run's folder: what a training run writes beside its checkpoint."""

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from mixer_common import checkpoint
from mixer_common.checkpoint import Checkpoint, RunConfig
from mixer_common.errors import UserError


def read_losses(run: Path) -> np.ndarray:
    """The training loss of every step of a run: (steps,). Raises UserError where its file is missing or damaged."""
    path = run / "step_losses.npy"
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}, the run's losses, cannot be read ({error}): use another copy of the run, "
                        "or start a new one.") from None


def make_folder(path: Path, overwrite: bool, kind: str, marker: str, other: str = "") -> None:
    """Makes the folder, empty. Raises UserError where something lies there, unless it is to be overwritten and holds
    the file `marker`, by which a `kind` is known. other: what else could be done with it."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        if not overwrite:
            raise UserError(f"{path} exists already: {other}replace it with --overwrite, or choose another --out.")
        if not (path / marker).is_file():
            raise UserError(f"{path} is no {kind}, so --overwrite does not delete it: choose another --out.")
        shutil.rmtree(path)
    path.mkdir(parents=True, exist_ok=True)


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
            raise UserError(f"{self.path} cannot be resumed, its metrics.jsonl is damaged ({error}): "
                            "start a new run.") from None
        if len(losses) < step:
            raise UserError(f"{self.path / 'step_losses.npy'} holds {len(losses)} losses, but the checkpoint is "
                            f"at step {step}: start a new run.")
        self.step_losses = [losses[:step]]
        self.metrics = [row for row in rows if row["step"] <= step]
        self.pictures.mkdir(exist_ok=True)
        self._open_events(step)
        return state

    def write_config(self, config: RunConfig) -> None:
        checkpoint.replace(self.path / "config.json", config.to_json().encode())

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
        for name, tag in (("train_loss", "loss/train"), ("test_loss", "loss/test"),
                          ("test_accuracy", "accuracy/test"), ("learning_rate", "learning_rate")):
            self.events.add_scalar(tag, row[name], row["step"])

    def save(self, state: Checkpoint) -> None:
        """Writes losses and metrics, then the checkpoint that they belong to."""
        buffer = io.BytesIO()
        np.save(buffer, self.losses())
        checkpoint.replace(self.path / "step_losses.npy", buffer.getvalue())
        checkpoint.replace(self.metrics_path, "".join(json.dumps(row) + "\n" for row in self.metrics).encode())
        checkpoint.save(self.checkpoint, state)
        self.events.flush()

    def summarised(self, step: int) -> bool:
        """Whether the summary of the run's first `step` steps is written."""
        path = self.path / "summary.json"
        return path.exists() and checkpoint.read_json(path).get("steps") == step

    def write_summary(self, summary: dict[str, Any]) -> None:
        checkpoint.replace(self.path / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())

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
