"""A run's folder: what a training run writes beside its checkpoint."""

import hashlib
import io
import json
import math
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from filelock import FileLock

from mixer_common import files
from mixer_common.errors import UserError
from mixer_common.runs import checkpoint, history, lock
from mixer_common.runs.checkpoint import Checkpoint, RunConfig, TrainingProgress
from mixer_common.runs.events import Events
from mixer_common.runs.history import Keep
from mixer_common.runs.overwriting import check_free, remove_run

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


def lock_resumable(path: Path) -> FileLock:
    """Locks the folder of a run that goes on. Raises UserError where there is none, or another process trains it."""
    RunConfig.from_json(path / "config.json")
    return lock.lock_run(path)


def read_resumable(path: Path, step: int | None = None) -> Checkpoint:
    """The checkpoint that the run in the folder `path` goes on from, and prints a line where it is not the newest.

    step: of the checkpoint to go on from; None: the newest that is whole. Raises UserError where there is none.
    """
    if not checkpoint.exists(path / "checkpoint") and not history.older(path):
        raise UserError(f"{path} was stopped before its first checkpoint: begin it anew with --overwrite.")
    state, lines = history.load(path, step)
    print("".join(f"{line}\n" for line in lines), end="", flush=True)
    return state


class RunFolder:
    """The folder of a run that trains: config.json, metrics.jsonl, step_losses.npy, summary.json, checkpoint/,
    checkpoints/, pictures/, TensorBoard's events and a lock.

    `begin` and `resume` open one. Use it as a context, which waits for the last checkpoint, closes the events and gives
    back the lock.
    """

    def __init__(
        self,
        path: Path,
        config: RunConfig,
        losses: np.ndarray,
        metrics: list[dict[str, Any]],
        folder_lock: FileLock,
        keep: Keep = 2,
    ):
        """losses: of the steps so far, (steps,); metrics: the rows of the epochs so far; folder_lock: held on it;
        keep: which checkpoints are kept."""
        self.path = path
        self.checkpoint = path / "checkpoint"
        self.pictures = path / "pictures"
        self.config = config
        self.metrics = metrics
        self._losses = [losses]
        self._lock = folder_lock
        self._keep: Keep = keep
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._written: Future[None] | None = None  # the checkpoint that is being written
        self._events = Events(path, len(losses))

    @classmethod
    def begin(cls, path: Path, config: RunConfig, overwrite: bool, keep: Keep = 2) -> "RunFolder":
        """Makes the folder for a new run, and locks it.

        Raises UserError where something lies there, unless it is a run that is to be overwritten; then what that run
        wrote is removed, and nothing else. Raises UserError where another process trains it.
        """
        check_free(path, overwrite)
        path.mkdir(parents=True, exist_ok=True)
        folder_lock = lock.lock_run(path)
        check_free(path, overwrite)  # another process may have been faster
        remove_run(path)
        (path / "pictures").mkdir(exist_ok=True)
        _write_config(path, config)
        return cls(path, config, np.zeros(0, np.float32), [], folder_lock, keep)

    @classmethod
    def resume(
        cls,
        path: Path,
        config: RunConfig,
        step: int,
        folder_lock: FileLock,
        keep: Keep = 2,
        logs: Mapping[str, str] | None = None,
    ) -> "RunFolder":
        """Opens the folder of a run whose checkpoint is at `step`, and drops what was logged after it.

        What is damaged in losses and metrics does not matter for the steps to come: a line says what is left out of
        the history, and each loss that is lost is NaN. folder_lock: of lock_run, taken before the checkpoint was read;
        logs: the checkpoint's.
        """
        losses, rows = _history(path, step, np.float64 if config.train.precision == "float64" else np.float32)
        for name, content in _log_contents(losses, rows).items():
            if (logs or {}).get(name, digest := hashlib.sha256(content).hexdigest()) != digest:
                print(f"warning: {path / name} is not as the checkpoint's training left it: it was changed or damaged.")
        (path / "pictures").mkdir(exist_ok=True)
        _write_config(path, config)
        return cls(path, config, losses, rows, folder_lock, keep)

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except Exception:
            if error is None:  # else that one tells what ended the run
                raise
        finally:
            self._writer.shutdown()
            self._events.close()
            self._lock.release()

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
        """Writes losses and metrics, then the checkpoint that they belong to, beside the steps that follow.

        One is written at a time: the next call waits for it, and raises what went wrong, as `wait` does. weights,
        moments: see Checkpoint; they must not change.
        """
        self.wait()
        accuracies = [row["test_accuracy"] for row in self.metrics]
        is_best = bool(accuracies) and self.metrics[-1]["step"] == progress.step and accuracies[-1] == max(accuracies)
        contents = _log_contents(self.losses(), self.metrics)
        sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        state = Checkpoint(self.config, progress, weights, moments, sums)
        self._written = self._writer.submit(self._write, contents, state, is_best)

    def wait(self) -> None:
        """Waits until the last checkpoint is written. Raises OSError where it cannot be."""
        if self._written:
            written, self._written = self._written, None
            written.result()
            self._events.flush()

    def _write(self, logs: Mapping[str, bytes], state: Checkpoint, is_best: bool) -> None:
        for name, content in logs.items():
            files.replace_file(self.path / name, content)
        history.save(self.path, state, self._keep, is_best)

    def has_summary(self, step: int) -> bool:
        """Whether the summary of the run's first `step` steps is written."""
        path = self.path / "summary.json"
        try:
            return path.exists() and files.read_json(path).get("steps") == step
        except UserError:  # damaged: it is written anew
            return False

    def write_summary(self, summary: dict[str, Any]) -> None:
        files.replace_file(self.path / "summary.json", (json.dumps(summary, indent=2, allow_nan=False) + "\n").encode())


def _log_contents(losses: np.ndarray, rows: list[dict[str, Any]]) -> dict[str, bytes]:
    """The contents of step_losses.npy and metrics.jsonl."""
    buffer = io.BytesIO()
    np.save(buffer, losses)
    lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    return {"step_losses.npy": buffer.getvalue(), "metrics.jsonl": lines.encode()}


def _history(path: Path, step: int, dtype: type) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """The losses (step,) and the rows of metrics of a run's first `step` steps; prints a line on what is damaged."""
    try:
        losses = read_losses(path)[:step]
        if losses.ndim != 1 or losses.dtype.kind != "f":
            raise UserError(f"{path / 'step_losses.npy'} holds {losses.dtype} of shape {losses.shape}, no losses.")
    except UserError as error:
        print(f"warning: {error} The run goes on without the history of its losses.")
        losses = np.zeros(0, dtype)
    if len(losses) < step:
        if len(losses):
            print(f"warning: {path / 'step_losses.npy'} holds {len(losses)} losses of the {step} steps so far.")
        losses = np.concatenate([losses, np.full(step - len(losses), np.nan, dtype)])
    metrics_path, rows, damaged = path / "metrics.jsonl", [], 0
    try:
        lines = metrics_path.read_bytes().splitlines() if metrics_path.exists() else []
    except OSError as error:
        print(f"warning: {metrics_path} cannot be read ({error.strerror}); the run goes on without it.")
        lines = []
    for line in lines:
        row = _metrics_row(line)
        if row is None:
            damaged += 1
        elif row["step"] <= step:
            rows.append(row)
    if damaged:
        print(f"warning: {damaged} of {len(lines)} lines of {metrics_path} are damaged; the run goes on without them.")
    return losses, rows


def _metrics_row(line: bytes) -> dict[str, Any] | None:
    """A row of metrics.jsonl; None where it is damaged."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    numbers = ("epoch", "step", *_TAGS)
    is_row = isinstance(row, dict) and all(
        isinstance(row.get(name), int | float) and math.isfinite(row[name]) for name in numbers
    )
    return row if is_row else None


def _write_config(path: Path, config: RunConfig) -> None:
    files.replace_file(path / "config.json", config.to_json().encode())
