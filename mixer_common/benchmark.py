"""Measures implementations of one Mixer side by side: equal outputs first, then steps in alternating rounds."""

import math
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mixer_common.compare import forward_bounds, relative_error
from mixer_common.config import MixerConfig
from mixer_common.data import Dataset
from mixer_common.errors import UserError
from mixer_common.measured import Outputs, Runtime, Setup
from mixer_common.memory import keeping
from mixer_common.progress import TurnDisplay
from mixer_common.recipe import TrainConfig
from mixer_common.worker import OutOfMemory, Unavailable, Worker

# What can be measured, in the order of the table. The outputs of all are compared with the first one's.
IMPLEMENTATIONS = {
    "torch-eager": "torch", "torch-compile": "torch", "jax-step": "jax", "jax-scan": "jax", "timm": "torch",
    "lucidrains": "torch", "tutorial-loop": "torch"}
_PYTORCH = ("torch-eager", "torch-compile")  # the better of these is what all are compared with
MODES = {"train": "training steps", "forward": "forward passes"}
_MATMULS = {"torch-matmul": "torch", "jax-matmul": "jax"}


@dataclass(frozen=True)
class Benchmark:
    """What is to be measured."""

    model: str
    config: MixerConfig
    recipe: TrainConfig
    mode: str  # "forward" or "train"
    device: str  # as it was asked for
    seconds: float  # of a turn, about
    rounds: int
    implementations: tuple[str, ...]  # some of IMPLEMENTATIONS


@dataclass(frozen=True)
class Result:
    """What was measured of one implementation. A figure over rounds is their median, its spread the quartiles."""

    implementation: str
    mode: str
    seconds_per_step: float
    seconds_per_step_spread: tuple[float, float]
    images_per_second: float
    images_per_second_spread: tuple[float, float]
    ratio: float | None  # speed beside the best of torch-eager and torch-compile; above 1: faster than it
    compile_seconds: float  # the first call less a later one
    peak_memory_bytes: int  # of the device, or of the process where that is the host
    flops_per_step: int
    matmul_share: float  # of matmul_flops_per_second
    steps_per_round: int
    seconds_per_step_rounds: tuple[float, ...]
    logits_error: float  # largest difference from the first implementation's, over their largest

    @property
    def speed(self) -> str:
        """images_per_second as it is shown."""
        return f"{self.images_per_second:,.0f}" if self.images_per_second >= 100 else f"{self.images_per_second:#.3g}"


@dataclass(frozen=True)
class Measurement:
    """All of a benchmark's figures; `asdict` is its JSON."""

    machine: dict[str, Any]
    versions: dict[str, str]
    settings: dict[str, Any]
    matmul_flops_per_second: float  # the best of `matmul`
    matmul: dict[str, dict[str, Any]]  # by framework: size, flops_per_second
    results: list[Result]
    left_out: dict[str, str]  # by implementation: why

    @property
    def what(self) -> str:
        """Such as: training steps of 128 images, float32."""
        return f"{MODES[self.settings['mode']]} of {self.settings['batch_size']} images, {self.settings['precision']}"


def forward_flops(config: MixerConfig) -> dict[str, int]:
    """Floating-point operations of one image's matmuls, by where they are, all blocks together.

    A product of (m, k) and (k, n) has 2·m·n·k. An MLP over S tokens does C times what one over C channels does S
    times, so both kinds of block have the same.
    """
    tokens = config.num_patches * config.hidden_dim
    return {"stem": 2 * tokens * 3 * config.patch_size**2,
            "token_mixing": config.num_blocks * 4 * tokens * config.tokens_mlp_dim,
            "channel_mixing": config.num_blocks * 4 * tokens * config.channels_mlp_dim,
            "head": 2 * config.hidden_dim * config.num_classes}


def flops_per_step(config: MixerConfig, batch_size: int, mode: str) -> int:
    """Of a batch. Training has two more products for every one of the forward pass: the gradients of its two
    factors; the stem has one more, since nobody needs the pixels' gradient."""
    forward = forward_flops(config)
    total = sum(forward.values())
    return batch_size * (total if mode == "forward" else 3 * total - forward["stem"])


def inapplicable(benchmark: Benchmark, implementation: str) -> str | None:
    """Why this implementation cannot do what is to be measured."""
    if implementation in ("timm", "lucidrains") and benchmark.config.block == "tutorial":
        return "it has the paper's block only, not the tutorial's"
    if implementation == "tutorial-loop" and benchmark.recipe.precision != "float32":
        return f"it is written in float32, not in {benchmark.recipe.precision}"
    return None


def check_equal(benchmark: Benchmark, outputs: Mapping[str, Outputs], resized: bool) -> dict[str, float]:
    """The error of each implementation's logits; UserError where logits or losses differ from the first one's by
    more than rounding explains. resized: whether the images have another size than the model's."""
    names = list(outputs)
    reference = outputs[names[0]]
    scale = float(np.abs(reference.logits).max())
    errors = {}
    for name in names:
        bound = logits_bound(benchmark, name, resized)
        errors[name] = _distance(outputs[name].logits, reference.logits) / scale
        if not errors[name] <= bound:
            raise UserError(f"{name} does not compute what {names[0]} computes: its logits differ by "
                            f"{errors[name]:.1e} of the largest, where rounding explains {bound:.1e}; times of "
                            "different functions say nothing, so leave it out with --only, or repair it.")
        # The loss moves by at most twice what a logit does.
        explained = 2 * bound * scale * np.sqrt(np.arange(1, len(reference.losses) + 1))
        differences = np.abs(outputs[name].losses - reference.losses)
        if not (differences <= explained).all():
            step = int(np.argmin(differences <= explained))
            raise UserError(f"{name} does not train as {names[0]} does: the loss of step {step + 1} differs by "
                            f"{differences[step]:.1e}, where rounding explains {explained[step]:.1e}; times of "
                            "different functions say nothing, so leave it out with --only, or repair it.")
    return errors


def logits_bound(benchmark: Benchmark, implementation: str, resized: bool) -> float:
    """Largest error of logits that rounding explains, of those of the largest."""
    precision = benchmark.recipe.precision
    if implementation == "tutorial-loop" and resized:
        precision = "bfloat16"  # PIL resizes to bytes; half a byte is a rounding of bfloat16
    return forward_bounds(benchmark.config, precision)["head"]


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return relative_error(a, b, 1.0) if a.shape == b.shape else math.inf


def measure(benchmark: Benchmark, dataset: Dataset) -> Measurement:
    """Runs the benchmark, and says on the terminal what it is doing.

    Raises UserError where outputs differ, a device is missing or frameworks have different ones, memory is too
    little, or nothing is left to measure.
    """
    with ExitStack() as stack:
        # The workers end on the way out.
        stack.callback(signal.signal, signal.SIGTERM, signal.signal(
            signal.SIGTERM, lambda number, _: sys.exit(128 + number)))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mixer-benchmark-")))
        display = stack.enter_context(TurnDisplay())
        try:
            return _Course(benchmark, dataset, folder, stack, display).follow()
        except OutOfMemory as error:
            smaller = benchmark.recipe.batch_size // 2
            advice = f"try --batch-size {smaller}" if smaller else "choose a smaller --model"
            raise UserError(f"the memory does not suffice for {benchmark.model} with batches of "
                            f"{benchmark.recipe.batch_size} ({error}): {advice}.") from None


class _Course:
    """One benchmark from the start of its workers to its figures."""

    def __init__(self, benchmark: Benchmark, dataset: Dataset, folder: Path, stack: ExitStack, display: TurnDisplay):
        self.benchmark, self.dataset, self.folder = benchmark, dataset, folder
        self.stack, self.display = stack, display
        self.workers: dict[str, Worker] = {}
        self.runtimes: dict[str, Runtime] = {}
        self.left_out: dict[str, str] = {}

    def follow(self) -> Measurement:
        np.save(self.folder / "images.npy", self.dataset.train_images)
        np.save(self.folder / "labels.npy", self.dataset.train_labels)
        outputs = self._start()
        errors = check_equal(self.benchmark, outputs,
                             self.dataset.train_images.shape[1:3] != self.benchmark.config.image_shape)
        if len(outputs) > 1:
            self.display.line("Equal    " + ", ".join(outputs) + ": logits within "
                              f"{max(errors.values()):.1e} of the largest")
        for name, framework in _MATMULS.items():
            if framework in {IMPLEMENTATIONS[started] for started in outputs}:
                self._begin(name, framework)
        rounds = self._rounds()
        rates = {}
        for name in self.workers.keys() & _MATMULS.keys():
            size = self.runtimes[name].matmul_size
            rates[_MATMULS[name]] = {"size": size, "flops_per_second": 2 * size**3 / float(np.median(rounds[name]))}
        best_rate = max(rate["flops_per_second"] for rate in rates.values())
        best = min((float(np.median(rounds[name])) for name in _PYTORCH if name in outputs), default=None)
        results = [self._result(name, rounds[name], best, best_rate, outputs[name], errors[name],
                                self.steps[name]) for name in outputs]
        versions = {key: value for runtime in self.runtimes.values() for key, value in runtime.versions.items()}
        return Measurement(
            machine(next(iter(self.runtimes.values())).device), versions, self._settings(), best_rate, rates, results,
            self.left_out)

    def _start(self) -> dict[str, Outputs]:
        """Starts the workers, and has each compute its first steps, one after the other."""
        outputs = {}
        names = [name for name in IMPLEMENTATIONS if name in self.benchmark.implementations]
        self.display.begin("starting", len(names))
        for name in names:
            self.display.turn(f"starting {name}")
            try:
                if reason := inapplicable(self.benchmark, name):
                    raise Unavailable(reason)
                self._begin(name, IMPLEMENTATIONS[name])
                outputs[name] = self.workers[name].call("outputs")
            except Unavailable as error:
                self.left_out[name] = str(error)
                self.runtimes.pop(name, None)
                if name in self.workers:
                    self.workers.pop(name).close()
                self.display.line(f"         {name} is left out: {error}")
        if not outputs:
            raise UserError(f"nothing is left to measure ({'; '.join(self.left_out.values())}): choose other "
                            "implementations with --only, or another --model or --precision.")
        return outputs

    def _begin(self, name: str, framework: str) -> None:
        worker = Worker(name, self.folder, self._environment(name))
        self.stack.callback(worker.close)
        self.workers[name] = worker
        benchmark = self.benchmark
        runtime = worker.call("start", f"mixer_{framework}.benchmark", Setup(
            name, benchmark.mode, benchmark.config, benchmark.recipe, benchmark.device, self.folder))
        kinds = {other.device.split()[0].strip(","): name for name, other in self.runtimes.items()}
        kind = runtime.device.split()[0].strip(",")
        if kinds and kind not in kinds:
            raise UserError(f"{name} would run on a {kind}, but {next(iter(kinds.values()))} on a {next(iter(kinds))}: "
                            "use --device cpu for both, or install what lets both use the GPU (for JAX the extra "
                            "gpu).")
        if not self.runtimes:
            self.display.line(f"Device   {runtime.device}, for every implementation")
        new = {key: value for key, value in runtime.versions.items()
               if key not in {key for other in self.runtimes.values() for key in other.versions}}
        if new:
            self.display.line("Versions " + ", ".join(f"{key} {value}" for key, value in new.items()))
        self.runtimes[name] = runtime

    def _environment(self, name: str) -> dict[str, str]:
        """Equal conditions: as many threads for all, a GPU's memory taken as it is needed, the host's kept as in
        training, nothing compiled beforehand."""
        cache = str(self.folder / f"cache-{name}")
        return {**keeping(self.benchmark.config, self.benchmark.recipe),
                "OMP_NUM_THREADS": str(threads()), "MKL_NUM_THREADS": str(threads()),
                "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XDG_CACHE_HOME": cache, "TORCHINDUCTOR_CACHE_DIR": cache,
                "TRITON_CACHE_DIR": cache}

    def _rounds(self) -> dict[str, list[float]]:
        """Seconds per step, or per product, of each worker in each round."""
        names, seconds = list(self.workers), self.benchmark.seconds
        self.display.begin("rounds", len(names) * (self.benchmark.rounds + 1))
        self.steps = {}
        for name in names:
            self.display.turn(f"steps of {name}")
            steps, taken = 1, self.workers[name].call("seconds", 1)
            while taken < seconds / 4:
                steps = max(steps + 1, min(10 * steps, round(seconds / 2 * steps / taken)))
                taken = self.workers[name].call("seconds", steps)
            self.steps[name] = max(1, round(seconds * steps / taken))
        measured: dict[str, list[float]] = {name: [] for name in names}
        for number in range(self.benchmark.rounds):
            for name in names[number % len(names):] + names[:number % len(names)]:
                self.display.turn(f"round {number + 1} of {self.benchmark.rounds}: {name}")
                measured[name].append(self.workers[name].call("seconds", self.steps[name]) / self.steps[name])
        return measured

    def _result(self, name: str, rounds: Sequence[float], best: float | None, best_rate: float, outputs: Outputs,
                error: float, steps: int) -> Result:
        benchmark, batch_size = self.benchmark, self.benchmark.recipe.batch_size
        low, median, high = (float(value) for value in np.percentile(rounds, (25, 50, 75)))
        flops = flops_per_step(benchmark.config, batch_size, benchmark.mode)
        return Result(
            name, benchmark.mode, median, (low, high), batch_size / median, (batch_size / high, batch_size / low),
            best and best / median, max(0.0, outputs.first_seconds - outputs.warm_seconds),
            self.workers[name].call("peak_memory_bytes"), flops, flops / median / best_rate, steps, tuple(rounds),
            error)

    def _settings(self) -> dict[str, Any]:
        benchmark = self.benchmark
        return {"model": benchmark.model, "batch_size": benchmark.recipe.batch_size, "mode": benchmark.mode,
                "precision": benchmark.recipe.precision, "rounds": benchmark.rounds, "seconds": benchmark.seconds,
                "dataset": self.dataset.name, "dataset_source": self.dataset.source, "config": asdict(benchmark.config)}


def threads() -> int:
    """How many threads each implementation gets."""
    return len(os.sched_getaffinity(0))


def machine(device: str) -> dict[str, Any]:
    """The machine, in words and numbers."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    cpu = next((line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")),
               platform.processor() or platform.machine())
    return {"device": device, "cpu": cpu, "threads": threads(), "system": f"{platform.system()} {platform.machine()}",
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")}
