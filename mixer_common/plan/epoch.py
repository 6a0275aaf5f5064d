"""What an epoch consists of: everything its steps take from outside, drawn ahead."""

from dataclasses import dataclass

import numpy as np

from mixer_common.config.model import ModelConfig
from mixer_common.config.train import TrainConfig
from mixer_common.plan.augmentation import Draws, draw
from mixer_common.plan.batches import batch_indices
from mixer_common.plan.drop_paths import drop_path_scales
from mixer_common.plan.schedule import bias_corrections, ema_rates, learning_rates

PIXEL_SCALE = 1 / 255  # pixel = (2 · byte − 255) · PIXEL_SCALE, in [-1, 1]


@dataclass(frozen=True)
class EpochPlan:
    """One row per step of the epoch. `first_step` counts the run's steps before this epoch."""

    first_step: int
    indices: np.ndarray  # int32 (steps, batch_size)
    learning_rates: np.ndarray  # float64 (steps,)
    bias_corrections: np.ndarray  # float64 (steps, 2), Adam's
    ema_rates: np.ndarray | None  # float64 (steps,), the step's share in the average of the weights
    drop_path: np.ndarray | None  # float32 (steps, num_blocks, 2, batch_size)
    augmentation: Draws  # arrays of (steps, ...), none where nothing is on; see mixer_common/augment.py

    @property
    def steps(self) -> int:
        return len(self.indices)


def epoch_plan(config: ModelConfig, recipe: TrainConfig, shape: tuple[int, ...], epoch: int) -> EpochPlan:
    """The plan of epoch `epoch`, counted from 0. shape: of the training images, (N, H, W, 3)."""
    indices = batch_indices(shape[0], recipe.batch_size, recipe.seed, epoch)
    steps = len(indices)
    first, last = epoch * steps, (epoch + 1) * steps
    return EpochPlan(
        first,
        indices,
        learning_rates(recipe, steps, first, last),
        bias_corrections(recipe, first, last),
        ema_rates(recipe, first, last) if recipe.ema_decay else None,
        drop_path_scales(config, steps, recipe.batch_size, recipe.seed, epoch),
        draw(recipe, (steps, *shape[1:3]), epoch),
    )
