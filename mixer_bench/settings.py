"""TODO docstring."""

from dataclasses import dataclass
from typing import Any

from mixer_common.config.model import ModelConfig
from mixer_common.config.train import TrainConfig

# What can be measured, in the order of the table. The outputs of all are compared with the first one's.
IMPLEMENTATIONS = {
    "torch-eager": "torch",
    "torch-compile": "torch",
    "jax-step": "jax",
    "jax-scan": "jax",
    "timm": "torch",
    "lucidrains": "torch",
    "tutorial-loop": "torch",
}
MODES = {"train": "training steps", "forward": "forward passes"}


@dataclass(frozen=True)
class Benchmark:
    """What is to be measured."""

    model: str
    config: ModelConfig
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


def inapplicable(benchmark: Benchmark, implementation: str) -> str | None:
    """Why this implementation cannot do what is to be measured."""
    if implementation in ("timm", "lucidrains") and benchmark.config.block == "tutorial":
        return "it has the paper's block only, not the tutorial's"
    if implementation == "tutorial-loop" and benchmark.recipe.precision != "float32":
        return f"it is written in float32, not in {benchmark.recipe.precision}"
    return None
