"""Measures implementations of one Mixer side by side: equal outputs first, then steps in alternating rounds."""

import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mixer_bench.equality import check_equal
from mixer_bench.flops import flops_per_step
from mixer_bench.settings import IMPLEMENTATIONS, Benchmark, Measurement, Result, inapplicable
from mixer_bench.worker import OutOfMemory, Unavailable, Worker
from mixer_bench.workload import Outputs, Runtime, WorkloadConfig
from mixer_common.config.model import activation_bytes
from mixer_common.data import Dataset
from mixer_common.errors import UserError
from mixer_common.machine import describe_machine, malloc_environment, num_threads
from mixer_common.terminal import TurnDisplay

_PYTORCH = ("torch-eager", "torch-compile")  # the better of these is what all are compared with
_MATMULS = {"torch-matmul": "torch", "jax-matmul": "jax"}


def measure(benchmark: Benchmark, dataset: Dataset) -> Measurement:
    """Runs the benchmark, and says on the terminal what it is doing.

    Raises UserError where outputs differ, a device is missing or frameworks have different ones, memory is too
    little, or nothing is left to measure.
    """
    with ExitStack() as stack:
        # The workers end on the way out.
        stack.callback(
            signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
        )
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mixer-benchmark-")))
        display = stack.enter_context(TurnDisplay())
        try:
            return _Course(benchmark, dataset, folder, stack, display).follow()
        except OutOfMemory as error:
            smaller = benchmark.recipe.batch_size // 2
            advice = f"try --batch-size {smaller}" if smaller else "choose a smaller --model"
            raise UserError(
                f"the memory does not suffice for {benchmark.model} with batches of "
                f"{benchmark.recipe.batch_size} ({error}): {advice}."
            ) from None


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
        errors = check_equal(
            self.benchmark, outputs, self.dataset.train_images.shape[1:3] != self.benchmark.config.image_size
        )
        if len(outputs) > 1:
            self.display.line(
                "Equal    " + ", ".join(outputs) + f": logits within {max(errors.values()):.1e} of the largest"
            )
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
        results = [
            self._result(name, rounds[name], best, best_rate, outputs[name], errors[name], self.steps[name])
            for name in outputs
        ]
        versions = {key: value for runtime in self.runtimes.values() for key, value in runtime.versions.items()}
        return Measurement(
            describe_machine(next(iter(self.runtimes.values())).device),
            versions,
            self._settings(),
            best_rate,
            rates,
            results,
            self.left_out,
        )

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
            raise UserError(
                f"nothing is left to measure ({'; '.join(self.left_out.values())}): choose other "
                "implementations with --only, or another --model or --precision."
            )
        return outputs

    def _begin(self, name: str, framework: str) -> None:
        worker = Worker(name, self.folder, self._environment(name))
        self.stack.callback(worker.close)
        self.workers[name] = worker
        benchmark = self.benchmark
        runtime = worker.call(
            "start",
            f"mixer_{framework}.benchmark",
            WorkloadConfig(name, benchmark.mode, benchmark.config, benchmark.recipe, benchmark.device, self.folder),
        )
        kinds = {other.device.split()[0].strip(","): name for name, other in self.runtimes.items()}
        kind = runtime.device.split()[0].strip(",")
        if kinds and kind not in kinds:
            raise UserError(
                f"{name} would run on a {kind}, but {next(iter(kinds.values()))} on a {next(iter(kinds))}: "
                "use --device cpu for both, or install what lets both use the GPU (for JAX the extra "
                "gpu)."
            )
        if not self.runtimes:
            self.display.line(f"Device   {runtime.device}, for every implementation")
        new = {
            key: value
            for key, value in runtime.versions.items()
            if key not in {key for other in self.runtimes.values() for key in other.versions}
        }
        if new:
            self.display.line("Versions " + ", ".join(f"{key} {value}" for key, value in new.items()))
        self.runtimes[name] = runtime

    def _environment(self, name: str) -> dict[str, str]:
        """Equal conditions: as many threads for all, a GPU's memory taken as it is needed, the host's kept as in
        training, nothing compiled beforehand."""
        cache = str(self.folder / f"cache-{name}")
        return {
            **malloc_environment(activation_bytes(self.benchmark.config, self.benchmark.recipe.images_at_once)),
            "OMP_NUM_THREADS": str(num_threads()),
            "MKL_NUM_THREADS": str(num_threads()),
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "XDG_CACHE_HOME": cache,
            "TORCHINDUCTOR_CACHE_DIR": cache,
            "TRITON_CACHE_DIR": cache,
        }

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
            for name in names[number % len(names) :] + names[: number % len(names)]:
                self.display.turn(f"round {number + 1} of {self.benchmark.rounds}: {name}")
                measured[name].append(self.workers[name].call("seconds", self.steps[name]) / self.steps[name])
        return measured

    def _result(
        self,
        name: str,
        rounds: Sequence[float],
        best: float | None,
        best_rate: float,
        outputs: Outputs,
        error: float,
        steps: int,
    ) -> Result:
        benchmark, batch_size = self.benchmark, self.benchmark.recipe.batch_size
        low, median, high = (float(value) for value in np.percentile(rounds, (25, 50, 75)))
        flops = flops_per_step(benchmark.config, batch_size, benchmark.mode)
        return Result(
            name,
            benchmark.mode,
            median,
            (low, high),
            batch_size / median,
            (batch_size / high, batch_size / low),
            best and best / median,
            max(0.0, outputs.first_seconds - outputs.warm_seconds),
            self.workers[name].call("peak_memory_bytes"),
            flops,
            flops / median / best_rate,
            steps,
            tuple(rounds),
            error,
        )

    def _settings(self) -> dict[str, Any]:
        benchmark = self.benchmark
        return {
            "model": benchmark.model,
            "batch_size": benchmark.recipe.batch_size,
            "mode": benchmark.mode,
            "precision": benchmark.recipe.precision,
            "rounds": benchmark.rounds,
            "seconds": benchmark.seconds,
            "dataset": self.dataset.name,
            "dataset_source": self.dataset.source,
            "config": asdict(benchmark.config),
        }
