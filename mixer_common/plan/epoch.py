"""The plan of an epoch: everything that its steps take from outside, drawn ahead in NumPy."""

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
    """What each step of an epoch takes from outside; the first axis of every array counts the steps."""

    first_step: int  # steps of the run before this epoch
    indices: np.ndarray  # int32 (steps, batch_size), of the training images
    learning_rates: np.ndarray  # float64 (steps,)
    bias_corrections: np.ndarray  # float64 (steps, 2), Adam's
    ema_rates: np.ndarray | None  # float64 (steps,), the step's share in the average of the weights; None: no average
    drop_path: np.ndarray | None  # float32 (steps, num_blocks, 2, batch_size), factors of the branches; None: no drops
    augmentation: Draws  # see mixer_common/plan/augmentation.py; empty where nothing augments

    @property
    def steps(self) -> int:
        """The number of steps in the epoch."""
        return len(self.indices)


def epoch_plan(config: ModelConfig, recipe: TrainConfig, shape: tuple[int, ...], epoch: int) -> EpochPlan:
    """The plan of epoch `epoch`, counted from 0.

    shape: of the training images, (N, H, W, 3). Raises UserError where they are fewer than a batch.
    """
    num_images, height, width, _ = shape
    indices = batch_indices(num_images, recipe.batch_size, recipe.seed, epoch)
    steps = len(indices)
    first, last = epoch * steps, (epoch + 1) * steps
    return EpochPlan(
        first_step=first,
        indices=indices,
        learning_rates=learning_rates(recipe, steps, first, last),
        bias_corrections=bias_corrections(recipe, first, last),
        ema_rates=ema_rates(recipe, first, last) if recipe.ema_decay else None,
        drop_path=drop_path_scales(config, steps, recipe.batch_size, recipe.seed, epoch),
        augmentation=draw(recipe, (steps, height, width), epoch),
    )
