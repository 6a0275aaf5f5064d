"""The reference in float64 as the judge of both sides: which of them is further from it, and by what factor."""

import math
from dataclasses import dataclass

import numpy as np

# A side passes at up to so many times the reference's own error, measured by the norm of a whole activation. Measured:
# JAX and PyTorch on one CPU, each as the reference of the other, every layer of `tiny`, `nano` and `tutorial` (6 seeds,
# 1 and 8 images), `s32`, `s16` (3 seeds) and `b32` of 2 images, and two small models of odd sizes (6 seeds each): 5,240
# factors in float32, median 1.00, of 99 % below 1.60, of 99.9 % below 2.37, the largest 2.46; as many in bfloat16, the
# largest 1.75. timm's `mixer_s32_224`, `mixer_s16_224` and `mixer_b32_224` (7 models) against both: 2,244 factors, of
# 99 % below 1.90, the largest 2.41. So 3 lets all of them pass. By the largest entry instead of the norm, some reach
# 5.04: the worst of many entries is a matter of luck, the norm is not.
FACTOR = 3


@dataclass(frozen=True)
class JudgeErrors:
    """How far an activation of both sides is from that of the reference in float64."""

    a: float  # norm of A's difference from the judge over the judge's norm
    b: float  # that of B

    @property
    def factor(self) -> float:
        """B's error as a multiple of A's."""
        return self.b / self.a if self.a else math.inf if self.b else 1.0

    @property
    def passes(self) -> bool:
        """Whether B's error is at most FACTOR times A's; NaN is not."""
        return self.factor <= FACTOR


def l2_error(value: np.ndarray, reference: np.ndarray) -> float:
    """‖value − reference‖ / ‖reference‖."""
    value, reference = value.astype(np.float64), reference.astype(np.float64)
    length, distance = float(np.linalg.norm(reference)), float(np.linalg.norm(value - reference))
    return distance / length if length else math.inf if distance else 0.0
