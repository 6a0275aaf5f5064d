"""A training of a recipe by the project's own script, in a worker; its figures come from the files that it writes."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mixer_bench.worker import Worker, one_line
from mixer_common.files import read_json
from mixer_common.terminal import SECONDS_BETWEEN_LINES

_SECONDS_BETWEEN_LOOKS = 0.1


@dataclass(frozen=True)
class Training:
    """A training run, complete or not. Seconds count from the start of the script."""

    rows: list[dict[str, Any]]  # of metrics.jsonl, one for each epoch
    epoch_ends: list[float]  # seconds, evaluation included
    summary: dict[str, Any]  # of summary.json; empty where it was not written
    seconds: float  # until the script had ended
    reason: str | None  # why the training is not complete; None where it is

    @property
    def wall_seconds_per_epoch(self) -> float | None:
        """Mean of all epochs but the first, evaluation and checkpoint included; None before the second."""
        if len(self.epoch_ends) < 2 or self.epoch_ends[-1] == self.epoch_ends[0]:
            return None
        return (self.epoch_ends[-1] - self.epoch_ends[0]) / (len(self.epoch_ends) - 1)

    @property
    def train_seconds_per_epoch(self) -> float | None:
        """Median over all epochs but the first of the seconds in training steps; None before the second."""
        return float(np.median([row["train_seconds"] for row in self.rows[1:]])) if len(self.rows) > 1 else None

    def figures(self) -> dict[str, Any]:
        """What a report holds of it; empty before the end of the first epoch."""
        if not self.rows:
            return {}
        return {
            "epochs": len(self.rows),
            "seconds_per_epoch": self.train_seconds_per_epoch,
            "wall_seconds_per_epoch": self.wall_seconds_per_epoch,
            "images_per_second": float(np.median([row["images_per_second"] for row in self.rows[1:] or self.rows])),
            "first_epoch_after_seconds": self.epoch_ends[0],
            "compile_seconds": self.summary.get("compile_seconds"),
            "test_accuracy": self.rows[-1]["test_accuracy"],
            "test_loss": self.rows[-1]["test_loss"],
            "device": self.summary.get("device"),
            "script_seconds": self.seconds,
            "curve": [
                {"minutes": end / 60}
                | {name: row[name] for name in ("epoch", "train_loss", "test_loss", "test_accuracy")}
                for row, end in zip(self.rows, self.epoch_ends, strict=True)
            ],
        }


def run_training(
    script: Path, options: Sequence[str], run: Path, deadline: float, say: Callable[[str], None]
) -> Training:
    """Trains with a training script until it ends, or is stopped at `deadline`, a time.monotonic().

    options: of the script, but --out; run: the folder of the run, beside which a log with its name is written. say: is
    called with a line of text about the latest epoch from time to time. It raises nothing but interruptions: what goes
    wrong is the training's reason.
    """
    run.parent.mkdir(parents=True, exist_ok=True)
    metrics, summary = run / "metrics.jsonl", run / "summary.json"
    rows: list[dict[str, Any]] = []
    epoch_ends: list[float] = []
    reason, start = None, time.time()
    last_line = start
    with Worker(run.name, run.parent, {"PYTHONUNBUFFERED": "1"}, deadline) as worker:
        worker.send("run_script", script, [*options, "--out", str(run)])
        ended = False
        while not ended:
            ended = worker.wait(_SECONDS_BETWEEN_LOOKS)
            rows = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
            if len(rows) > len(epoch_ends):  # the file is written anew at the end of every epoch
                end = metrics.stat().st_mtime - start
                epoch_ends += [end] * (len(rows) - len(epoch_ends))
                if time.time() - last_line > SECONDS_BETWEEN_LINES:
                    last_line = time.time()
                    say(f"    epoch {len(rows)}: {rows[-1]['test_accuracy']:.2%} right")
        seconds = time.time() - start
        try:
            if worker.receive():  # the script's exit code
                reason = f"it was stopped after {seconds:.0f} s, when its time was up"
        except Exception as error:
            reason = one_line(error)
    return Training(rows, epoch_ends, read_json(summary) if summary.exists() else {}, seconds, reason)


def epochs_that_fit(probe: Training, seconds: float) -> int:
    """How many epochs a longer training like this one can have in so many seconds; 0 where its own epochs do not show
    how long one takes."""
    wall = probe.wall_seconds_per_epoch
    if wall is None:
        return 0
    start_and_end = probe.seconds - len(probe.epoch_ends) * wall
    return max(0, int((seconds - max(start_and_end, 0)) / (1.05 * wall)))
