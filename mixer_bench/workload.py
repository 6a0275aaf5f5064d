"""What the benchmark measures, as a worker's process sees it: steps of an implementation, or matrix products.

jax_workloads.py and torch_workloads.py make the workloads of each framework.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mixer_common.config.model import ModelConfig
from mixer_common.config.train import TrainConfig
from mixer_common.machine import peak_memory
from mixer_common.plan.epoch import EpochPlan, epoch_plan
from mixer_common.plan.initial import initial_weights
from mixer_common.plan.random import generator

CHECKED_STEPS = 3


@dataclass(frozen=True)
class WorkloadConfig:
    """The settings of one worker."""

    implementation: str  # of mixer_bench.settings.IMPLEMENTATIONS, or "jax-matmul" or "torch-matmul"
    mode: str  # "forward" or "train"
    model: ModelConfig
    recipe: TrainConfig  # batch size, precision and seed; in training all of it
    device: str  # "auto", "cpu" or "gpu"
    folder: Path  # holds images.npy, uint8 (N, H, W, 3), and labels.npy, int32 (N,)

    def images(self) -> np.ndarray:
        """Training images, uint8 (N, H, W, 3)."""
        return np.load(self.folder / "images.npy")

    def labels(self) -> np.ndarray:
        """Labels of the training images, int32 (N,)."""
        return np.load(self.folder / "labels.npy")

    def weights(self) -> dict[str, np.ndarray]:
        """Canonical weights, float32: the seed's initial ones plus noise, since with a head of zeros any two models
        have equal logits."""
        random = generator(self.recipe.seed, 0, "noise")
        return {
            name: (array + 0.05 * random.standard_normal(array.shape)).astype(np.float32)
            for name, array in initial_weights(self.model, self.recipe.seed).items()
        }


@dataclass(frozen=True)
class Runtime:
    """Where a worker computes."""

    device: str  # for people, such as "CPU, 2 threads"
    versions: dict[str, str]  # of the packages that compute
    matmul_size: int = 0  # rows of a Matmul's matrices; 0 for a Workload


@dataclass(frozen=True)
class Outputs:
    """What an implementation computes in its first steps, and how long the first and the last of them take."""

    logits: np.ndarray  # float64 (B, num_classes) of the first batch; in mode "forward" those of all the steps' batches
    losses: np.ndarray  # float64 (CHECKED_STEPS,); in mode "forward" (0,)
    first_seconds: float  # compilation included
    warm_seconds: float


class Workload:
    """Steps of an implementation over the batches of epoch after epoch. `run` is what is timed."""

    def __init__(self, config: WorkloadConfig, runtime: Runtime, shape: tuple[int, ...]):
        """shape: of the training images, (N, H, W, 3)."""
        self.config, self.runtime, self._shape = config, runtime, shape
        self._epoch, self._next_step, self._steps_in_epoch = -1, 0, 0

    def begin_epoch(self, plan: EpochPlan) -> None:
        """Hands an epoch's indices and rates to the implementation; before its first `run`."""
        raise NotImplementedError

    def run(self, first: int, last: int) -> np.ndarray:
        """Runs steps `first` to `last` - 1 of the epoch, and waits for them.

        Returns their losses (steps,) in mode "train", else their logits (steps, B, num_classes).
        """
        raise NotImplementedError

    def logits(self, indices: np.ndarray) -> np.ndarray:
        """Logits (B, num_classes) of the training images with these indices (B,)."""
        raise NotImplementedError

    def device_memory(self) -> int | None:
        """Most bytes ever in use on the device; None where the device is the host."""
        raise NotImplementedError

    def outputs(self) -> Outputs:
        """Runs the first CHECKED_STEPS steps; to be called once, before `seconds`."""
        plan = self._plan(0)
        training = self.config.mode == "train"
        logits = self.logits(plan.indices[0]) if training else np.zeros(0)
        values, seconds = [], []
        for first, last in (chunk for _ in range(CHECKED_STEPS) for chunk in self._chunks(1)):
            start = time.perf_counter()
            values.append(self.run(first, last))
            seconds.append(time.perf_counter() - start)
        values = np.concatenate(values).astype(np.float64)
        if not training:
            logits, values = values.reshape(-1, self.config.model.num_classes), np.zeros(0)
        return Outputs(logits.astype(np.float64), values, seconds[0], seconds[-1])

    def seconds(self, steps: int) -> float:
        """Runs so many steps and returns how long they take; what happens between two epochs does not count."""
        total = 0.0
        for first, last in self._chunks(steps):
            start = time.perf_counter()
            self.run(first, last)
            total += time.perf_counter() - start
        return total

    def peak_memory_bytes(self) -> int:
        """Most bytes ever in use on the device, or held by this process where the device is the host."""
        device_bytes = self.device_memory()
        return peak_memory() if device_bytes is None else device_bytes

    def _plan(self, epoch: int) -> EpochPlan:
        return epoch_plan(self.config.model, self.config.recipe, self._shape, epoch)

    def _chunks(self, steps: int) -> Iterator[tuple[int, int]]:
        """The next so many steps as ranges of steps of one epoch: the first, and the last plus one."""
        while steps:
            if self._next_step == self._steps_in_epoch:
                self._epoch, self._next_step = self._epoch + 1, 0
                plan = self._plan(self._epoch)
                self._steps_in_epoch = plan.steps
                self.begin_epoch(plan)
            last = min(self._next_step + steps, self._steps_in_epoch)
            yield self._next_step, last
            steps, self._next_step = steps - (last - self._next_step), last


class Matmul:
    """Products of two square matrices, one after another; their rate is what a step's is compared with.

    The matrices are the smallest, from 512 rows on, whose product takes more than an eighth of a second, or have
    `largest` rows.
    """

    def __init__(
        self, device: str, versions: dict[str, str], multiply: Callable[[int], Callable[[int], None]], largest: int
    ):
        """multiply: takes a size and returns a function that makes so many products and waits for them."""
        size = 512
        while size < largest:
            products = multiply(size)
            products(1)
            start = time.perf_counter()
            products(1)
            if time.perf_counter() - start > 1 / 8:  # twice the size takes eight times as long
                break
            size *= 2
        self.runtime, self._multiply = Runtime(device, versions, size), multiply(size)
        self._multiply(1)

    def seconds(self, products: int) -> float:
        """Makes so many products and returns how long they take."""
        start = time.perf_counter()
        self._multiply(products)
        return time.perf_counter() - start
