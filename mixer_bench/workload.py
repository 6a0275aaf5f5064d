"""What a benchmark measures, as the worker's process sees it; the frameworks' parts are their benchmark.py."""

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
    """What one worker is to measure."""

    implementation: str
    mode: str  # "forward" or "train"
    config: ModelConfig
    recipe: TrainConfig  # batch size, precision and seed; in training all of it
    device: str  # as it was asked for
    folder: Path  # of images.npy, uint8 (N, H, W, 3), and labels.npy, int32 (N,)

    def images(self) -> np.ndarray:
        return np.load(self.folder / "images.npy")

    def labels(self) -> np.ndarray:
        return np.load(self.folder / "labels.npy")

    def weights(self) -> dict[str, np.ndarray]:
        """The seed's start, moved: where the head is still zero, any two models have equal logits."""
        random = generator(self.recipe.seed, 0, "noise")
        return {
            name: (array + 0.05 * random.standard_normal(array.shape)).astype(np.float32)
            for name, array in initial_weights(self.config, self.recipe.seed).items()
        }


@dataclass(frozen=True)
class Runtime:
    """Where a worker computes."""

    device: str  # for people
    versions: dict[str, str]
    matmul_size: int = 0  # of a Matmul


@dataclass(frozen=True)
class Outputs:
    """What an implementation computes in its first steps, and how long the first and a later one take."""

    logits: np.ndarray  # float (N, num_classes), of the first batch; without training of all the steps' batches
    losses: np.ndarray  # float (CHECKED_STEPS,); without training (0,)
    first_seconds: float
    warm_seconds: float


class Workload:
    """Steps of an implementation over the batches of epoch after epoch. `run` is what the clock sees."""

    def __init__(self, setup: WorkloadConfig, runtime: Runtime, shape: tuple[int, ...]):
        """shape: of the training images, (N, H, W, 3)."""
        self.setup, self.runtime, self._shape = setup, runtime, shape
        self._epoch, self._at, self._end = -1, 0, 0

    def begin_epoch(self, plan: EpochPlan) -> None:
        raise NotImplementedError

    def run(self, first: int, last: int) -> np.ndarray:
        """Steps `first` to `last` - 1 of the epoch, finished when it returns.

        Their losses (steps,) in training, else their logits (steps, B, num_classes).
        """
        raise NotImplementedError

    def logits(self, indices: np.ndarray) -> np.ndarray:
        """Logits (B, num_classes) of these training images."""
        raise NotImplementedError

    def device_memory(self) -> int | None:
        """Most bytes ever in use on the device; None where it is the host."""
        raise NotImplementedError

    def outputs(self) -> Outputs:
        """Of the first steps; to be called before `seconds`."""
        plan = self._plan(0)
        training = self.setup.mode == "train"
        logits = self.logits(plan.indices[0]) if training else None
        values, seconds = [], []
        for first, last in (chunk for _ in range(CHECKED_STEPS) for chunk in self._chunks(1)):
            start = time.perf_counter()
            values.append(self.run(first, last))
            seconds.append(time.perf_counter() - start)
        values = np.concatenate(values).astype(np.float64)
        if not training:
            logits, values = values.reshape(-1, self.setup.config.num_classes), np.zeros(0)
        return Outputs(logits.astype(np.float64), values, seconds[0], seconds[-1])

    def seconds(self, steps: int) -> float:
        """Runs so many steps; what lies between two epochs does not count."""
        total = 0.0
        for first, last in self._chunks(steps):
            start = time.perf_counter()
            self.run(first, last)
            total += time.perf_counter() - start
        return total

    def peak_memory_bytes(self) -> int:
        device = self.device_memory()
        return peak_memory() if device is None else device

    def _plan(self, epoch: int) -> EpochPlan:
        return epoch_plan(self.setup.config, self.setup.recipe, self._shape, epoch)

    def _chunks(self, steps: int) -> Iterator[tuple[int, int]]:
        while steps:
            if self._at == self._end:
                self._epoch, self._at = self._epoch + 1, 0
                plan = self._plan(self._epoch)
                self._end = plan.steps
                self.begin_epoch(plan)
            last = min(self._at + steps, self._end)
            yield self._at, last
            steps, self._at = steps - (last - self._at), last


class Matmul:
    """Products of two square matrices, one after the other."""

    def __init__(
        self, device: str, versions: dict[str, str], multiply: Callable[[int], Callable[[int], None]], largest: int
    ):
        """multiply: of a size, gives a function that makes so many products and waits for them."""
        size = 512
        while size < largest:
            timed = multiply(size)
            timed(1)
            start = time.perf_counter()
            timed(1)
            if time.perf_counter() - start > 1 / 8:  # twice the size takes eight times as long
                break
            size *= 2
        self.runtime, self._multiply = Runtime(device, versions, size), multiply(size)
        self._multiply(1)

    def seconds(self, products: int) -> float:
        start = time.perf_counter()
        self._multiply(products)
        return time.perf_counter() - start
