"""The measurement of a GPU: the benchmark and trainings of recipes, one after another, within a given time."""

import json
import math
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from mixer_bench.recipe_training import Training, epochs_that_fit, run_training
from mixer_bench.report import write_json
from mixer_bench.results import Measurement
from mixer_bench.session import BatchTooLarge, measure
from mixer_bench.settings import IMPLEMENTATIONS, Benchmark
from mixer_bench.worker import SECONDS_TO_STOP, OutOfTime, one_line
from mixer_common import files
from mixer_common.config.fields import by_name
from mixer_common.config.model import activation_bytes
from mixer_common.config.presets import MODELS, RECIPES
from mixer_common.data import Dataset, default_data_dir, load_dataset
from mixer_common.errors import UserError
from mixer_common.machine import describe_machine, versions

SCRIPTS = Path(__file__).parents[1] / "scripts"
PRECISION = "bfloat16"
PROBE_EPOCHS = 3  # the first compiles, the others show how long one takes
SECONDS_TO_REPORT = 5.0
LEAST_SECONDS = 10.0  # with less, nothing is begun
_SHARES = {"benchmark": 2}  # of the time that is left, beside the parts that are left; a recipe: 1


@dataclass(frozen=True)
class Settings:
    """The settings of a measurement. Raises UserError on a bad value."""

    parts: tuple[str, ...] = ("benchmark", "nano", "strong")
    """What is measured, in this order: benchmark, or the name of a recipe that is trained in bfloat16."""
    minutes: float = 9.5
    """Minutes that all of it may take."""
    framework: Literal["jax", "torch"] = "jax"
    """The framework that trains the recipes."""
    device: Literal["gpu", "cpu"] = "gpu"
    """cpu: to try the script out."""
    benchmark_model: str = "s16"
    """The model of the benchmark; a recipe brings its own."""
    batch_size: int = 1024
    """The benchmark's images a step, halved until all implementations fit into memory together."""
    only: tuple[str, ...] = ("torch-eager", "torch-compile", "jax-step", "jax-scan")
    """The benchmark's implementations."""
    rounds: int = 3
    """Turns of each implementation in the benchmark."""
    seconds: float = 1.0
    """Seconds of a turn, about; at least one step."""
    out: Path = Path("runs/gpu")
    """Folder for the report, the pictures and the runs."""
    overwrite: bool = False
    """Delete the measurement in --out and begin anew."""
    dataset: Literal["cifar10", "digits"] = "cifar10"
    """cifar10 must be at hand."""
    data_dir: Path | None = None
    """Folder that holds CIFAR-10. Default: $MLP_MIXER_DATA, else ~/.cache/mlp-mixer."""

    def __post_init__(self):
        part_names = {"benchmark": None, **RECIPES}
        for kind, table, names in (("part", part_names, self.parts), ("implementation", IMPLEMENTATIONS, self.only)):
            for name in names:
                by_name(kind, table, name)
            if not names or len(set(names)) < len(names):
                raise UserError(
                    f"{' '.join(names) or 'nothing'} was given, but each {kind} is named once, and at "
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
class Session:
    """What all parts of a measurement share."""

    settings: Settings
    dataset: Dataset
    gpus: list[dict[str, Any]]  # of nvidia_gpus
    say: Callable[[str], None]  # is called with a line of text for whatever begins or has ended


def measure_gpu(settings: Settings, say: Callable[[str], None]) -> dict[str, Any]:
    """Measures all parts, and returns the report, which is also written to report.json before and after every part.

    say: is called with a line of text for whatever begins or has ended. Raises UserError where the data or the place
    for the output are missing. Where a part fails, its report holds the reason, and the next part follows.
    """
    start = time.monotonic()
    end = start + 60 * settings.minutes - SECONDS_TO_STOP - SECONDS_TO_REPORT
    dataset = load_dataset(settings.dataset, settings.data_dir, None)
    files.make_folder(settings.out, settings.overwrite, "measurement of a GPU", "report.json")
    gpus = nvidia_gpus() if settings.device == "gpu" else []
    session = Session(settings, dataset, gpus, say)
    parts: dict[str, Any] = {part: {"reason": "it was not begun"} for part in settings.parts}
    report: dict[str, Any] = {
        "begun": datetime.now().astimezone().isoformat(timespec="seconds"),
        "seconds": 0.0,
        "machine": describe_machine(gpus[0]["name"] if gpus else settings.device.upper()) | {"gpus": gpus},
        "versions": versions("jax", "jaxlib", "jax-cuda13-plugin", "flax", "optax", "torch", "triton"),
        "settings": asdict(settings),
        "parts": parts,
    }
    shares = [_SHARES.get(part, 1) for part in settings.parts]
    for i, part in enumerate(settings.parts):
        part_start = time.monotonic()
        deadline = part_start + (end - part_start) * shares[i] / sum(shares[i:])
        parts[part] = {"reason": "it was interrupted"}
        _write_report(report, settings, start)
        say(f"{part}: up to {max(0.0, deadline - part_start):.0f} s")
        try:
            _check_time(deadline)
            figures = (
                measure_benchmark(session, deadline) if part == "benchmark" else measure_recipe(session, part, deadline)
            )
        except Exception as error:  # whatever it is, the next part follows
            figures = {"reason": one_line(error)}
        if figures["reason"]:
            say(f"{part}: failed: {figures['reason']}")
        parts[part] = figures | {"seconds": time.monotonic() - part_start}
        _write_report(report, settings, start)
    return report


def measure_benchmark(session: Session, deadline: float) -> dict[str, Any]:
    """The figures of all implementations together; where that fails, of each alone, and "reason", why it failed."""
    settings = session.settings
    figures: dict[str, Any] = {"reason": None, "model": settings.benchmark_model, "precision": PRECISION}
    rows: list[dict[str, Any]] = []
    for names in dict.fromkeys([settings.only, *((name,) for name in settings.only)]):
        try:
            measurement = measure_halving(session, names, deadline)
        except Exception as error:
            session.say(f"  failed: {one_line(error)}")
            figures["reason"] = figures["reason"] or one_line(error)
            continue
        together = names == settings.only
        path = settings.out / ("benchmark.json" if together else f"benchmark-{names[0]}.json")
        write_json(measurement, path)
        from mixer_bench import pictures

        pictures.speeds(measurement, path.with_suffix(".png"))
        batch_size = {"batch_size": measurement.settings["batch_size"]}
        rows += [batch_size | asdict(result) for result in measurement.results]
        figures |= {
            "device": measurement.machine["device"],
            "matmul_flops_per_second": measurement.matmul_flops_per_second,
            "left_out": measurement.left_out,
        }
        if together:
            break
    return figures | {"implementations": rows}


def measure_halving(session: Session, implementations: tuple[str, ...], deadline: float) -> Measurement:
    """The benchmark of these implementations with the largest batch that fits into memory.

    Batches are tried from --batch-size down, by halves. On a GPU the first is the largest of which the activations of
    all implementations, in float32, fit into its free memory: it takes minutes to start them all.

    Raises OutOfTime where the time does not suffice, and whatever else `measure` raises.
    """
    settings = session.settings
    batch_size = settings.batch_size
    model = replace(MODELS[settings.benchmark_model], num_classes=len(session.dataset.class_names))
    free = session.gpus[0]["free_memory_bytes"] if session.gpus else math.inf
    while batch_size > 1 and len(implementations) * activation_bytes(model, batch_size) > free:
        batch_size //= 2
    while True:
        _check_time(deadline)
        session.say(f"  {', '.join(implementations)}: batches of {batch_size}")
        recipe = replace(RECIPES["tutorial"], batch_size=batch_size, precision=PRECISION)
        benchmark = Benchmark(
            settings.benchmark_model,
            model,
            recipe,
            "train",
            settings.device,
            settings.seconds,
            settings.rounds,
            implementations,
        )
        try:
            return measure(benchmark, session.dataset, deadline)
        except BatchTooLarge as error:
            if batch_size == 1:
                raise
            session.say(f"  failed: {error}")
            batch_size //= 2


def measure_recipe(session: Session, recipe: str, deadline: float) -> dict[str, Any]:
    """The figures of a recipe: a few epochs show how long one takes, then as many as fit are trained.

    "reason" is why they were not trained, or None.
    """
    total = RECIPES[recipe].epochs
    framework = session.settings.framework
    figures: dict[str, Any] = {"framework": framework, "precision": PRECISION, "epochs_of_recipe": total}
    probe = _train(session, recipe, f"{recipe}-probe", PROBE_EPOCHS, deadline)
    figures["probe"] = probe.figures()
    if probe.wall_seconds_per_epoch is None:
        reason = f"the first {PROBE_EPOCHS} epochs did not show how long one takes: {probe.reason}"
        return figures | {"reason": reason}
    seconds = deadline - time.monotonic()
    epochs = min(total, epochs_that_fit(probe, seconds))
    if not epochs:
        reason = (
            f"{seconds:.0f} s were left, too few to start again and train for an epoch of "
            f"{probe.wall_seconds_per_epoch:.1f} s"
        )
        return figures | {"reason": reason}
    training = _train(session, recipe, recipe, epochs, deadline)
    reason = training.reason and f"{len(training.rows)} of {epochs} epochs were trained: {training.reason}"
    return figures | training.figures() | {"reason": reason}


def _train(session: Session, recipe: str, name: str, epochs: int, deadline: float) -> Training:
    settings = session.settings
    options = {
        "recipe": recipe,
        "epochs": epochs,
        "precision": PRECISION,
        "device": settings.device,
        "dataset": settings.dataset,
        "data-dir": settings.data_dir or default_data_dir(),
    }
    training = run_training(
        SCRIPTS / f"train_{settings.framework}.py",
        [text for option, value in options.items() for text in (f"--{option}", str(value))],
        settings.out / "runs" / name,
        deadline,
        session.say,
    )
    line = f"  {len(training.rows)} of {epochs} epochs: {training.seconds:.0f} s"
    if training.rows:
        line += f"; {training.rows[-1]['test_accuracy']:.2%} right"
    if training.wall_seconds_per_epoch is not None:
        line += (
            f"; {training.wall_seconds_per_epoch:.2f} s an epoch, "
            f"{training.train_seconds_per_epoch:.2f} s of them in training steps"
        )
    session.say(line)
    return training


def _check_time(deadline: float) -> None:
    if deadline - time.monotonic() < LEAST_SECONDS:
        raise OutOfTime("no time was left for it")


def _write_report(report: dict[str, Any], settings: Settings, start: float) -> None:
    """Writes report.json, and curves.png where there are any."""
    report["seconds"] = time.monotonic() - start
    files.replace_file(settings.out / "report.json", (json.dumps(report, indent=2, default=str) + "\n").encode())
    curves = {
        f"{part} in {settings.framework}": figures["curve"]
        for part, figures in report["parts"].items()
        if figures.get("curve")
    }
    if curves:
        title = f"Training on {settings.dataset}, {PRECISION}, {report['machine']['device']}"
        from mixer_bench import pictures

        pictures.accuracies(curves, title, settings.out / "curves.png")


def nvidia_gpus() -> list[dict[str, Any]]:
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
