"""The measurement of a GPU: the project's own scripts, one after another, within a given time."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mixer_bench.settings import IMPLEMENTATIONS
from mixer_common import files
from mixer_common.config.fields import by_name
from mixer_common.config.presets import MODELS, RECIPES
from mixer_common.data import default_data_dir
from mixer_common.data.cifar10 import find_cifar10
from mixer_common.errors import UserError
from mixer_common.files import make_folder
from mixer_common.machine import describe_machine

ROOT = Path(__file__).parents[1]
PRECISION = "bfloat16"
GOALS = {
    "benchmark": 0.45,  # least share of the measured rate of matmuls
    "nano": 1.0,
}  # most seconds of training steps an epoch
PROBE_EPOCHS = 3
SECONDS_TO_STOP = 12.0  # what a script gets after SIGTERM for its checkpoint
SECONDS_TO_REPORT = 5.0
LEAST_SECONDS = 10.0  # with less, nothing is begun
USED_MEMORY = 0.6  # of what is free on the GPU, for all implementations at once
_SHARES = {"benchmark": 6, "nano": 3}  # of the time, beside the other parts that are left; any other recipe: 2
_MEMORY = re.compile(
    "memory does not suffice|not enough memory|out of memory|resource_exhausted|alloc_failed|failed to allocate",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Settings:
    """What is to be measured. Raises UserError on a bad value."""

    parts: tuple[str, ...] = ("benchmark", "nano", "strong")
    """What is measured, in this order: benchmark, or the name of a recipe that is trained in bfloat16."""
    minutes: float = 9.5
    """How long all of it may take."""
    framework: Literal["jax", "torch"] = "jax"
    """Which one trains the recipes."""
    device: Literal["gpu", "cpu"] = "gpu"
    """cpu: to try the script out."""
    benchmark_model: str = "s16"
    """The model of the benchmark; a recipe brings its own."""
    batch_size: int = 1024
    """The benchmark's images a step, halved until all implementations fit into memory together."""
    only: tuple[str, ...] = ("torch-eager", "torch-compile", "jax-step", "jax-scan")
    """The benchmark's implementations."""
    rounds: int = 3
    """How many turns each implementation has in the benchmark."""
    seconds: float = 1.0
    """How long a turn is, about; at least one step."""
    out: Path = Path("runs/gpu")
    """Folder for the report, the pictures and the runs."""
    overwrite: bool = False
    """Delete the measurement in --out and begin anew."""
    dataset: Literal["cifar10", "digits"] = "cifar10"
    """cifar10 must be at hand."""
    data_dir: Path | None = None
    """Folder that holds CIFAR-10. Default: $MLP_MIXER_DATA, else ~/.cache/mlp-mixer."""

    def __post_init__(self):
        kinds = {"benchmark": None, **RECIPES}
        for name, table, given in (("part", kinds, self.parts), ("implementation", IMPLEMENTATIONS, self.only)):
            for value in given:
                by_name(name, table, value)
            if not given or len(set(given)) < len(given):
                raise UserError(
                    f"{' '.join(given) or 'nothing'} was given, but each {name} is named once, and at "
                    f"least one: choose among {', '.join(table)}."
                )
        by_name("model", MODELS, self.benchmark_model)
        for option, value in (("minutes", self.minutes), ("seconds", self.seconds)):
            if not 0 < value < float("inf"):
                raise UserError(f"--{option} is {value}, but must be a number above 0.")
        for option, value in (("batch-size", self.batch_size), ("rounds", self.rounds)):
            if value < 1:
                raise UserError(f"--{option} is {value}, but must be at least 1.")


@dataclass(frozen=True)
class Ended:
    """A script that has ended. Seconds count from its start."""

    code: int
    seconds: float
    stopped: bool  # because its time was up
    lines: list[tuple[float, str]]  # when it printed what

    @property
    def reason(self) -> str | None:
        """Why it failed, in one line; None where it did not."""
        if not self.stopped and self.code == 0:
            return None
        said = [line.strip() for _, line in self.lines if line.strip()] or ["nothing"]
        if self.stopped:
            return f"stopped after {self.seconds:.0f} s, when its time was up; it said last: {said[-1][:200]}"
        errors = [line for line in said if re.match(r"error: |[\w.]*(Error|Exception|Exhausted)\b", line)]
        return (errors or said)[-1].removeprefix("error: ")[:400]

    @property
    def too_little_memory(self) -> bool:
        return self.code != 0 and any(_MEMORY.search(line) for _, line in self.lines[-80:])


def run(command: Sequence[str | os.PathLike], seconds: float, log: Path, watch: Callable[[str], None]) -> Ended:
    """Runs a command with the project on its path, its output appended to `log`; `watch` gets its latest line.

    After `seconds` it is sent SIGTERM, and killed SECONDS_TO_STOP later, and so it is when an exception ends the wait.
    """
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    lines: list[tuple[float, str]] = []
    with log.open("a") as file:
        file.write(f"\n$ {' '.join(map(str, command))}\n")
        file.flush()
        start = time.monotonic()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )

        def read() -> None:
            for line in process.stdout:
                lines.append((time.monotonic() - start, line.rstrip()))
                file.write(line)
                file.flush()

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        stopped = False
        try:
            while process.poll() is None and not stopped:
                time.sleep(0.05)
                stopped = time.monotonic() - start > seconds
                watch(next((line for _, line in reversed(lines[-20:]) if line.strip()), ""))
        finally:
            if process.poll() is None:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(SECONDS_TO_STOP)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with what it may have started
            process.wait()
            reader.join(2)
    return Ended(process.returncode, time.monotonic() - start, stopped, lines)


@dataclass(frozen=True)
class Trained:
    """A training run, complete or not."""

    ended: Ended
    rows: list[dict[str, Any]]  # of metrics.jsonl
    summary: dict[str, Any]  # empty where it was not written

    @property
    def times(self) -> list[float]:
        """When each epoch ended, evaluation included: seconds since the start of the script."""
        return [when for when, line in self.ended.lines if re.match(r"epoch +\d+/\d+ ", line)]

    @property
    def wall_seconds_per_epoch(self) -> float | None:
        """Median of all epochs but the first, with evaluation and checkpoint; None before the second."""
        return float(np.median(np.diff(self.times))) if len(self.times) > 1 else None

    @property
    def seconds_per_epoch(self) -> float | None:
        """The same of the training steps alone."""
        return float(np.median([row["train_seconds"] for row in self.rows[1:]])) if len(self.rows) > 1 else None

    def figures(self) -> dict[str, Any]:
        """For the report; seconds, but for minutes since the start of the script."""
        return (
            {
                "epochs": len(self.rows),
                "seconds_per_epoch": self.seconds_per_epoch,
                "wall_seconds_per_epoch": self.wall_seconds_per_epoch,
                "images_per_second": float(np.median([row["images_per_second"] for row in self.rows[1:] or self.rows])),
                "first_epoch_after_seconds": self.times[0],
                "compile_seconds": self.summary.get("compile_seconds"),
                "test_accuracy": self.rows[-1]["test_accuracy"],
                "test_loss": self.rows[-1]["test_loss"],
                "device": self.summary.get("device"),
                "script_seconds": self.ended.seconds,
                "curve": [
                    {
                        "epoch": row["epoch"],
                        "minutes": when / 60,
                        "train_loss": row["train_loss"],
                        "test_loss": row["test_loss"],
                        "test_accuracy": row["test_accuracy"],
                    }
                    for when, row in zip(self.times, self.rows, strict=False)
                ],
            }
            if self.rows
            else {}
        )


def epochs_that_fit(trained: Trained, seconds: float) -> int:
    """How many epochs a longer run like this one can have in so many seconds."""
    wall = trained.wall_seconds_per_epoch
    # All that is no epoch: start, compilation, pictures. What is compiled comes from the disk the second time; half is
    # left for what is done anew.
    rest = trained.ended.seconds - len(trained.times) * wall - trained.summary.get("compile_seconds", 0) / 2
    return max(0, int((seconds - max(rest, 0)) / (1.05 * wall)))


class PartFailed(Exception):
    """The message is one line that says why."""


def measure(settings: Settings, say: Callable[[str], None], watch: Callable[[str], None]) -> dict[str, Any]:
    """Measures, and returns the report that lies in report.json, too: it is written before and after every part.

    say: gets a line for each thing that is begun or has ended; watch: the latest line of the script that runs.
    Raises UserError where the data or the place for the output are missing. What goes wrong later is a part's reason.
    """
    return _Course(settings, say, watch).follow()


class _Course:
    """One measurement from its first part to its pictures."""

    def __init__(self, settings: Settings, say: Callable[[str], None], watch: Callable[[str], None]):
        self.settings, self.say, self.watch = settings, say, watch
        self.start = time.monotonic()
        self.end = self.start + 60 * settings.minutes - SECONDS_TO_STOP - SECONDS_TO_REPORT
        data_dir = (settings.data_dir or default_data_dir()).expanduser()
        if settings.dataset == "cifar10" and find_cifar10(data_dir) is None:
            raise UserError(
                f"there is no CIFAR-10 in {data_dir}: name the folder that holds it with --data-dir, or "
                "use --dataset digits."
            )
        self.common = [
            "--precision",
            PRECISION,
            "--device",
            settings.device,
            "--dataset",
            settings.dataset,
            "--data-dir",
            data_dir,
        ]
        make_folder(settings.out, settings.overwrite, "measurement of a GPU", "report.json")
        self.gpus = gpus() if settings.device == "gpu" else []
        self.report: dict[str, Any] = {
            "begun": datetime.now().astimezone().isoformat(timespec="seconds"),
            "seconds": 0.0,
            "machine": describe_machine(self._device) | {"gpus": self.gpus},
            "versions": versions(),
            "settings": asdict(settings) | {"out": str(settings.out), "data_dir": str(data_dir)},
            "parts": {part: {"reason": "it was not begun"} for part in settings.parts},
        }

    def follow(self) -> dict[str, Any]:
        parts = self.settings.parts
        for i, part in enumerate(parts):
            start = time.monotonic()
            shares = [_SHARES.get(name, 2) for name in parts[i:]]
            self.part_end = start + (self.end - start) * shares[0] / sum(shares)
            self.result = {"goal": GOALS.get(part), "met": None, "reason": "it was interrupted"}
            self.report["parts"][part] = self.result
            self._write()
            self.say(f"{part}: up to {max(0.0, self.left):.0f} s")
            try:
                if self.left < LEAST_SECONDS:
                    raise PartFailed("no time was left for it")
                self._benchmark() if part == "benchmark" else self._training(part)
                self.result["reason"] = None
            except Exception as error:  # whatever it is, the next part goes on
                self.result["reason"] = (
                    str(error) if isinstance(error, PartFailed) else f"{type(error).__name__}: {error}"
                )
                self.say(f"{part}: failed: {self.result['reason']}")
            self.result["seconds"] = time.monotonic() - start
            self._write()
        return self.report

    @property
    def left(self) -> float:
        """Seconds until the current part is to end."""
        return self.part_end - time.monotonic()

    def _benchmark(self) -> None:
        """All implementations together; where they fail, the last alone."""
        names, batch_size = self.settings.only, self.settings.batch_size
        self.result |= {"attempts": [], "implementations": []}
        memory = self.gpus[0]["free_memory_bytes"] if self.gpus else 0
        if memory and len(names) > 1:
            # To start them all takes minutes, so the first one alone says which batch can do for all. An allocator
            # holds more than is ever in use at once.
            measured, batch_size = self._halving(names[:1], batch_size)
            if measured:
                needed = len(names) * measured["results"][0]["peak_memory_bytes"] / batch_size
                while batch_size > 1 and batch_size * needed > USED_MEMORY * memory:
                    batch_size //= 2
        measured, batch_size = self._halving(names, batch_size)
        if not measured:
            reason = self.result["attempts"][-1]["reason"]
            if len(names) > 1:
                self._halving(names[-1:], batch_size)
            raise PartFailed(reason)

    def _halving(self, names: Sequence[str], batch_size: int) -> tuple[dict[str, Any] | None, int]:
        """The benchmark of these with the largest batch that fits, from this one down; None where it fails."""
        settings = self.settings
        whole = len(names) == len(settings.only)
        file = settings.out / ("benchmark.json" if whole else f"benchmark-{names[0]}.json")
        while True:
            what = f"{', '.join(names)}, batches of {batch_size}"
            if self.left < LEAST_SECONDS:
                reason, seconds, smaller = "no time was left for it", 0.0, False
            else:
                ended = run(
                    [
                        sys.executable,
                        ROOT / "scripts" / "benchmark.py",
                        *self.common,
                        "--model",
                        settings.benchmark_model,
                        "--mode",
                        "train",
                        "--batch-size",
                        str(batch_size),
                        "--rounds",
                        str(settings.rounds if whole else 1),
                        "--seconds",
                        str(settings.seconds),
                        "--only",
                        *names,
                        "--json",
                        file,
                        *(["--plot", file.with_suffix(".png")] if whole else []),
                    ],
                    self.left,
                    self._log,
                    self.watch,
                )
                reason, seconds, smaller = ended.reason, ended.seconds, ended.too_little_memory and batch_size > 1
            self.result["attempts"].append(
                {"implementations": list(names), "batch_size": batch_size, "seconds": seconds, "reason": reason}
            )
            if reason is None:
                measured = json.loads(file.read_text())
                self._take(measured, batch_size, whole)
                best = max(result["matmul_share"] for result in measured["results"])
                self.say(f"  {what}: {seconds:.0f} s; best matmul share {best:.1%}")
                return measured, batch_size
            self.say(f"  {what}: {seconds:.0f} s; failed: {reason}")
            if not smaller:
                return None, batch_size
            batch_size //= 2

    def _take(self, measured: Mapping[str, Any], batch_size: int, whole: bool) -> None:
        """Puts a benchmark's figures into the report; those of all together replace those of one alone."""
        rows = [
            {"batch_size": batch_size}
            | {
                name: result[name]
                for name in (
                    "implementation",
                    "images_per_second",
                    "seconds_per_step",
                    "matmul_share",
                    "ratio",
                    "compile_seconds",
                    "peak_memory_bytes",
                )
            }
            for result in measured["results"]
        ]
        before = [] if whole else self.result["implementations"]
        self.result |= {
            "model": self.settings.benchmark_model,
            "precision": PRECISION,
            "device": measured["machine"]["device"],
            "matmul_flops_per_second": measured["matmul_flops_per_second"],
            "left_out": measured["left_out"],
            "implementations": [*before, *rows],
        }
        self.result["met"] = max(row["matmul_share"] for row in self.result["implementations"]) >= GOALS["benchmark"]

    def _training(self, recipe: str) -> None:
        """A few epochs to learn how long one takes, then as many as fit."""
        most = RECIPES[recipe].epochs
        self.result |= {"framework": self.settings.framework, "precision": PRECISION, "epochs_of_recipe": most}
        probe = self._train(recipe, f"{recipe}-probe", min(PROBE_EPOCHS, most), 0.8 * self.left)
        self.result["probe"] = probe.figures()
        self._judge(recipe, probe)
        if probe.wall_seconds_per_epoch is None:
            raise PartFailed(
                f"the first {PROBE_EPOCHS} epochs did not show how long one takes: "
                f"{probe.ended.reason or 'the recipe has only one'}"
            )
        epochs = min(most, epochs_that_fit(probe, self.left))
        if not epochs:
            raise PartFailed(
                f"{self.left:.0f} s were left, too few to start again and train for an epoch of "
                f"{probe.wall_seconds_per_epoch:.1f} s"
            )
        trained = self._train(recipe, recipe, epochs, self.left)
        self.result |= trained.figures()
        self._judge(recipe, trained)
        self._draw()
        if trained.ended.reason:
            raise PartFailed(f"{len(trained.rows)} of {epochs} epochs were trained: {trained.ended.reason}")

    def _train(self, recipe: str, name: str, epochs: int, seconds: float) -> Trained:
        folder = self.settings.out / "runs" / name
        ended = run(
            [
                sys.executable,
                ROOT / "scripts" / f"train_{self.settings.framework}.py",
                *self.common,
                "--recipe",
                recipe,
                "--epochs",
                str(epochs),
                "--out",
                folder,
            ],
            seconds,
            self._log,
            self.watch,
        )
        metrics, summary = folder / "metrics.jsonl", folder / "summary.json"
        trained = Trained(
            ended,
            [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else [],
            files.read_json(summary) if summary.exists() else {},
        )
        wall = trained.wall_seconds_per_epoch
        self.say(
            f"  {len(trained.rows)} of {epochs} epochs: {ended.seconds:.0f} s"
            + (f"; {trained.rows[-1]['test_accuracy']:.2%} right" if trained.rows else "")
            + (
                f"; {wall:.2f} s an epoch, {trained.seconds_per_epoch:.2f} s of them in training steps"
                if wall and trained.seconds_per_epoch
                else ""
            )
            + (f"; {ended.reason}" if ended.reason else "")
        )
        return trained

    def _judge(self, recipe: str, trained: Trained) -> None:
        if recipe in GOALS and trained.seconds_per_epoch is not None:
            self.result["met"] = trained.seconds_per_epoch <= GOALS[recipe]

    def _draw(self) -> None:
        curves = {
            f"{part} in {self.settings.framework}": result["curve"]
            for part, result in self.report["parts"].items()
            if result.get("curve")
        }
        if curves:
            from mixer_bench import pictures

            pictures.accuracies(
                curves,
                f"Training on {self.settings.dataset}, {PRECISION}, {self._device}",
                self.settings.out / "curves.png",
            )

    def _write(self) -> None:
        self.report["seconds"] = time.monotonic() - self.start
        files.replace_file(self.settings.out / "report.json", (json.dumps(self.report, indent=2) + "\n").encode())

    @property
    def _device(self) -> str:
        return self.gpus[0]["name"] if self.gpus else self.settings.device.upper()

    @property
    def _log(self) -> Path:
        return self.settings.out / "log.txt"


def gpus() -> list[dict[str, Any]]:
    """The NVIDIA GPUs of the machine as its driver names them, memory in bytes; none where it does not answer."""
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,memory.total,memory.free,driver_version", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        ).stdout
        rows = [[field.strip() for field in line.split(",")] for line in answer.strip().splitlines()]
        return [
            {"name": name, "memory_bytes": int(total) * 2**20, "free_memory_bytes": int(free) * 2**20, "driver": driver}
            for name, total, free, driver in rows
        ]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []


def versions() -> dict[str, str]:
    """Of Python and of the packages that compute, where they are installed."""
    found = {"python": sys.version.split()[0]}
    for name in ("numpy", "jax", "jaxlib", "jax-cuda13-plugin", "flax", "optax", "torch", "triton"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
