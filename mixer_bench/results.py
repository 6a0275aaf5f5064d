"""The figures of a benchmark, and how they follow from the seconds that were measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixer_bench.flops import flops_per_step
from mixer_bench.settings import MODES, Benchmark
from mixer_bench.workload import Outputs

_PYTORCH = ("torch-eager", "torch-compile")  # the better of these is what all are compared with


@dataclass(frozen=True)
class Result:
    """The figures of one implementation. A figure over rounds is their median, its spread the quartiles."""

    implementation: str
    mode: str
    seconds_per_step: float
    seconds_per_step_spread: tuple[float, float]
    images_per_second: float
    images_per_second_spread: tuple[float, float]
    ratio: float | None  # speed beside the better of torch-eager and torch-compile; above 1: faster than it
    compile_seconds: float  # the first step less a later one
    peak_memory_bytes: int  # of the device, or of the process where the device is the host
    flops_per_step: int
    matmul_share: float  # of matmul_flops_per_second
    steps_per_round: int
    seconds_per_step_rounds: tuple[float, ...]
    logits_error: float  # largest difference from the first implementation's logits, over the largest of those

    @property
    def speed(self) -> str:
        """images_per_second as it is shown."""
        return f"{self.images_per_second:,.0f}" if self.images_per_second >= 100 else f"{self.images_per_second:#.3g}"


@dataclass(frozen=True)
class Measurement:
    """All figures of a benchmark; `dataclasses.asdict` of it is the JSON that is written."""

    machine: dict[str, Any]
    versions: dict[str, str]
    settings: dict[str, Any]
    matmul_flops_per_second: float  # the best of `matmul`
    matmul: dict[str, dict[str, Any]]  # by framework: size, flops_per_second
    results: list[Result]
    left_out: dict[str, str]  # by implementation: the reason

    @property
    def title(self) -> str:
        """Such as: training steps of 128 images, float32."""
        return f"{MODES[self.settings['mode']]} of {self.settings['batch_size']} images, {self.settings['precision']}"


def matmul_rate(size: int, seconds_per_product: Sequence[float]) -> dict[str, Any]:
    """How fast products of two matrices of (size, size) are, by the seconds of one in each round."""
    return {"size": size, "flops_per_second": 2 * size**3 / float(np.median(seconds_per_product))}


def make_results(
    benchmark: Benchmark,
    outputs: Mapping[str, Outputs],
    errors: Mapping[str, float],
    steps: Mapping[str, int],
    seconds: Mapping[str, Sequence[float]],
    peak_memory: Mapping[str, int],
    matmul_flops_per_second: float,
) -> list[Result]:
    """The figures of every implementation that has outputs.

    All mappings are by implementation. errors: of the logits; steps: in a round; seconds: of one step in each round;
    peak_memory: bytes.
    """
    batch_size = benchmark.recipe.batch_size
    flops = flops_per_step(benchmark.model, batch_size, benchmark.mode)
    best = min((float(np.median(seconds[name])) for name in _PYTORCH if name in outputs), default=None)
    results = []
    for name in outputs:
        low, median, high = (float(value) for value in np.percentile(seconds[name], (25, 50, 75)))
        results.append(
            Result(
                implementation=name,
                mode=benchmark.mode,
                seconds_per_step=median,
                seconds_per_step_spread=(low, high),
                images_per_second=batch_size / median,
                images_per_second_spread=(batch_size / high, batch_size / low),
                ratio=best and best / median,
                compile_seconds=max(0.0, outputs[name].first_seconds - outputs[name].warm_seconds),
                peak_memory_bytes=peak_memory[name],
                flops_per_step=flops,
                matmul_share=flops / median / matmul_flops_per_second,
                steps_per_round=steps[name],
                seconds_per_step_rounds=tuple(seconds[name]),
                logits_error=errors[name],
            )
        )
    return results
