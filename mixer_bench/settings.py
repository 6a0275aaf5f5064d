"""The implementations that a benchmark can measure, and the settings of one benchmark."""

from dataclasses import dataclass

from mixer_common.config.model import ModelConfig
from mixer_common.config.train import TrainConfig

# In the order of the table; the framework of each. The outputs of all are compared with the first one's.
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
    """The settings of a benchmark."""

    model_name: str
    model: ModelConfig
    recipe: TrainConfig  # batch size, precision and seed; in training all of it
    mode: str  # "forward" or "train"
    device: str  # "auto", "cpu" or "gpu"
    seconds: float  # about how long an implementation is measured in one round
    rounds: int
    implementations: tuple[str, ...]  # some of IMPLEMENTATIONS


def inapplicable(benchmark: Benchmark, implementation: str) -> str | None:
    """The reason why an implementation cannot do what the benchmark measures; None where it can."""
    if implementation in ("timm", "lucidrains") and benchmark.model.block == "tutorial":
        return "it has the paper's block only, not the tutorial's"
    if implementation == "tutorial-loop" and benchmark.recipe.precision != "float32":
        return f"it is written in float32, not in {benchmark.recipe.precision}"
    return None
