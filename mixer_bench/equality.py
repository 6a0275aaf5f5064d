"""Whether implementations compute the same: without that, their times say nothing."""

import math
from collections.abc import Mapping

import numpy as np

from mixer_bench.settings import Benchmark
from mixer_bench.workload import Outputs
from mixer_common.comparison.bounds import forward_bounds
from mixer_common.comparison.differences import relative_error
from mixer_common.errors import UserError


def check_equal(benchmark: Benchmark, outputs: Mapping[str, Outputs], resized: bool) -> dict[str, float]:
    """The error of each implementation's logits: the largest difference from the first one's over the largest of those.

    resized: whether the images have another size than the model's. Raises UserError where logits or losses differ from
    the first one's by more than rounding explains.
    """
    names = list(outputs)
    reference = outputs[names[0]]
    scale = float(np.abs(reference.logits).max())
    errors = {}
    for name in names:
        bound = logits_bound(benchmark, name, resized)
        errors[name] = _largest_difference(outputs[name].logits, reference.logits) / scale
        if not errors[name] <= bound:
            raise UserError(
                f"{name} does not compute what {names[0]} computes: its logits differ by "
                f"{errors[name]:.1e} of the largest, where rounding explains {bound:.1e}; times of "
                "different functions say nothing, so leave it out with --only, or repair it."
            )
        # The loss moves by at most twice what a logit does.
        explained = 2 * bound * scale * np.sqrt(np.arange(1, len(reference.losses) + 1))
        differences = np.abs(outputs[name].losses - reference.losses)
        if not (differences <= explained).all():
            step = int(np.argmin(differences <= explained))
            raise UserError(
                f"{name} does not train as {names[0]} does: the loss of step {step + 1} differs by "
                f"{differences[step]:.1e}, where rounding explains {explained[step]:.1e}; times of "
                "different functions say nothing, so leave it out with --only, or repair it."
            )
    return errors


def logits_bound(benchmark: Benchmark, implementation: str, resized: bool) -> float:
    """The largest error of logits that rounding explains, as a share of the largest logit."""
    precision = benchmark.recipe.precision
    if implementation == "tutorial-loop" and resized:
        precision = "bfloat16"  # PIL resizes to bytes; half a byte is a rounding of bfloat16
    return forward_bounds(benchmark.model, precision)["head"]


def _largest_difference(a: np.ndarray, b: np.ndarray) -> float:
    """Infinite where the shapes differ."""
    return relative_error(a, b, 1.0) if a.shape == b.shape else math.inf
