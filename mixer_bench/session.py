"""Measures implementations of one Mixer side by side: equal outputs first, then steps in alternating rounds."""

import math
import signal
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mixer_bench.equality import check_equal
from mixer_bench.results import Measurement, make_results, matmul_rate
from mixer_bench.settings import IMPLEMENTATIONS, Benchmark, inapplicable
from mixer_bench.worker import OutOfMemory, Unavailable, Worker
from mixer_bench.workload import Outputs, Runtime, WorkloadConfig
from mixer_common.config.model import activation_bytes
from mixer_common.data import Dataset
from mixer_common.errors import UserError
from mixer_common.machine import describe_machine, malloc_environment, num_threads
from mixer_common.terminal import TurnDisplay

_MATMULS = {"torch-matmul": "torch", "jax-matmul": "jax"}


class BatchTooLarge(UserError):
    """The memory does not suffice for the benchmark; a smaller batch may fit."""


def measure(benchmark: Benchmark, dataset: Dataset, deadline: float = math.inf) -> Measurement:
    """Runs the benchmark, and shows on the terminal how far it is.

    deadline: the time.monotonic() at which it ends with OutOfTime where it is not finished.

    Raises BatchTooLarge where memory is too little; UserError where outputs differ, a device is missing or frameworks
    have different ones, or nothing is left to measure.
    """
    with ExitStack() as stack:
        # SIGTERM ends the process as an exception does, so that the workers end on the way out.
        handler = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
        stack.callback(signal.signal, signal.SIGTERM, handler)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mixer-benchmark-")))
        display = stack.enter_context(TurnDisplay())
        np.save(folder / "images.npy", dataset.train_images)
        np.save(folder / "labels.npy", dataset.train_labels)
        try:
            return _measure(benchmark, dataset, WorkerPool(benchmark, folder, deadline, stack, display), display)
        except OutOfMemory as error:
            smaller = benchmark.recipe.batch_size // 2
            advice = f"try --batch-size {smaller}" if smaller else "choose a smaller --model"
            raise BatchTooLarge(
                f"the memory does not suffice for {benchmark.model_name} with batches of "
                f"{benchmark.recipe.batch_size} ({error}): {advice}."
            ) from None


class WorkerPool:
    """The running workers of a benchmark by name, in the order of their start. They end with the stack."""

    def __init__(self, benchmark: Benchmark, folder: Path, deadline: float, stack: ExitStack, display: TurnDisplay):
        self._benchmark, self._folder, self._deadline = benchmark, folder, deadline
        self._stack, self._display = stack, display
        self.workers: dict[str, Worker] = {}
        self.runtimes: dict[str, Runtime] = {}

    def start(self, name: str, framework: str) -> None:
        """Starts the worker of an implementation, or of a matmul.

        Raises UserError where its device is missing, or another kind of device than that of the other workers;
        Unavailable where it does not run here.
        """
        benchmark = self._benchmark
        worker = Worker(name, self._folder, self._environment(name), self._deadline)
        self.workers[name] = self._stack.enter_context(worker)
        runtime = worker.call(
            "start",
            f"mixer_bench.{framework}_workloads",
            WorkloadConfig(name, benchmark.mode, benchmark.model, benchmark.recipe, benchmark.device, self._folder),
        )
        self._check_device(name, runtime)
        self._show(runtime)
        self.runtimes[name] = runtime

    def stop(self, name: str) -> None:
        """Ends a worker, where it runs, and forgets it."""
        self.runtimes.pop(name, None)
        if worker := self.workers.pop(name, None):
            worker.close()

    @property
    def device(self) -> str:
        """The device of all workers."""
        return next(iter(self.runtimes.values())).device

    @property
    def versions(self) -> dict[str, str]:
        """The versions of all packages that compute in any worker."""
        return {package: version for runtime in self.runtimes.values() for package, version in runtime.versions.items()}

    def _check_device(self, name: str, runtime: Runtime) -> None:
        if not self.runtimes:
            return
        first = next(iter(self.runtimes))
        kind, first_kind = _kind_of_device(runtime.device), _kind_of_device(self.device)
        if kind != first_kind:
            raise UserError(
                f"{name} would run on a {kind}, but {first} on a {first_kind}: "
                "use --device cpu for both, or install what lets both use the GPU (for JAX the extra "
                "gpu)."
            )

    def _show(self, runtime: Runtime) -> None:
        if not self.runtimes:
            self._display.line(f"Device   {runtime.device}, for every implementation")
        shown = self.versions
        new = [f"{package} {version}" for package, version in runtime.versions.items() if package not in shown]
        if new:
            self._display.line("Versions " + ", ".join(new))

    def _environment(self, name: str) -> dict[str, str]:
        """Equal conditions: as many threads for all, a GPU's memory taken as it is needed, the host's reused as in
        training, nothing compiled beforehand."""
        cache = str(self._folder / f"cache-{name}")
        return {
            **malloc_environment(activation_bytes(self._benchmark.model, self._benchmark.recipe.images_at_once)),
            "OMP_NUM_THREADS": str(num_threads()),
            "MKL_NUM_THREADS": str(num_threads()),
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "XDG_CACHE_HOME": cache,
            "TORCHINDUCTOR_CACHE_DIR": cache,
            "TRITON_CACHE_DIR": cache,
        }


def _kind_of_device(description: str) -> str:
    return description.split()[0].strip(",")


def _measure(benchmark: Benchmark, dataset: Dataset, pool: WorkerPool, display: TurnDisplay) -> Measurement:
    implementations = start_implementations(benchmark, pool, display)
    outputs = implementations.outputs
    errors = check_equal(benchmark, outputs, dataset.train_images.shape[1:3] != benchmark.model.image_size)
    if len(outputs) > 1:
        display.line("Equal    " + ", ".join(outputs) + f": logits within {max(errors.values()):.1e} of the largest")
    matmuls = start_matmuls({IMPLEMENTATIONS[name] for name in outputs}, pool)
    display.begin("rounds", len(pool.workers) * (benchmark.rounds + 1))
    steps = calibrate(pool.workers, benchmark.seconds, display)
    seconds = alternate(pool.workers, steps, benchmark.rounds, display)
    rates = {
        framework: matmul_rate(pool.runtimes[name].matmul_size, seconds[name]) for name, framework in matmuls.items()
    }
    best_rate = max(rate["flops_per_second"] for rate in rates.values())
    peak_memory = {name: pool.workers[name].call("peak_memory_bytes") for name in outputs}
    return Measurement(
        machine=describe_machine(pool.device),
        versions=pool.versions,
        settings=_settings(benchmark, dataset),
        matmul_flops_per_second=best_rate,
        matmul=rates,
        results=make_results(benchmark, outputs, errors, steps, seconds, peak_memory, best_rate),
        left_out=implementations.left_out,
    )


@dataclass(frozen=True)
class Implementations:
    """What the start of the implementations gave, by name."""

    outputs: dict[str, Outputs]  # of those that run
    left_out: dict[str, str]  # the reason, of those that do not


def start_implementations(benchmark: Benchmark, pool: WorkerPool, display: TurnDisplay) -> Implementations:
    """Starts the workers and has each compute its first steps, one after the other.

    Raises UserError where none runs.
    """
    outputs, left_out = {}, {}
    names = [name for name in IMPLEMENTATIONS if name in benchmark.implementations]
    display.begin("starting", len(names))
    for name in names:
        display.turn(f"starting {name}")
        try:
            if reason := inapplicable(benchmark, name):
                raise Unavailable(reason)
            pool.start(name, IMPLEMENTATIONS[name])
            outputs[name] = pool.workers[name].call("outputs")
        except Unavailable as error:
            left_out[name] = str(error)
            pool.stop(name)
            display.line(f"         {name} is left out: {error}")
    if not outputs:
        raise UserError(
            f"nothing is left to measure ({'; '.join(left_out.values())}): choose other "
            "implementations with --only, or another --model or --precision."
        )
    return Implementations(outputs, left_out)


def start_matmuls(frameworks: set[str], pool: WorkerPool) -> dict[str, str]:
    """Starts a worker for the matrix products of each framework; the frameworks by the workers' names."""
    matmuls = {name: framework for name, framework in _MATMULS.items() if framework in frameworks}
    for name, framework in matmuls.items():
        pool.start(name, framework)
    return matmuls


def calibrate(workers: Mapping[str, Worker], seconds: float, display: TurnDisplay) -> dict[str, int]:
    """How many steps, or products, each worker makes in about so many seconds; at least 1."""
    steps_of = {}
    for name, worker in workers.items():
        display.turn(f"steps of {name}")
        steps, elapsed = 1, worker.call("seconds", 1)
        while elapsed < seconds / 4:
            steps = max(steps + 1, min(10 * steps, round(seconds / 2 * steps / elapsed)))
            elapsed = worker.call("seconds", steps)
        steps_of[name] = max(1, round(seconds * steps / elapsed))
    return steps_of


def alternate(
    workers: Mapping[str, Worker], steps: Mapping[str, int], rounds: int, display: TurnDisplay
) -> dict[str, list[float]]:
    """Seconds per step, or per product, of each worker in each round. Every round begins with the next worker."""
    names = list(workers)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            display.turn(f"round {i + 1} of {rounds}: {name}")
            seconds[name].append(workers[name].call("seconds", steps[name]) / steps[name])
    return seconds


def _settings(benchmark: Benchmark, dataset: Dataset) -> dict[str, Any]:
    return {
        "model": benchmark.model_name,
        "batch_size": benchmark.recipe.batch_size,
        "mode": benchmark.mode,
        "precision": benchmark.recipe.precision,
        "rounds": benchmark.rounds,
        "seconds": benchmark.seconds,
        "dataset": dataset.name,
        "dataset_source": dataset.source,
        "config": asdict(benchmark.model),
    }
