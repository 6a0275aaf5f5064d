"""TODO docstring."""

import numpy as np

from mixer_common.errors import UserError
from mixer_common.plan.random import generator


def steps_in_epoch(num_images: int, batch_size: int) -> int:
    """Full batches in an epoch; the images left over are another epoch's. Raises UserError if there is none."""
    if batch_size > num_images:
        raise UserError(
            f"batch_size {batch_size} is larger than the {num_images} training images: choose a smaller one."
        )
    return num_images // batch_size


def batch_indices(num_images: int, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """Which images make up each step of an epoch: int32 (steps, batch_size), none twice."""
    steps = steps_in_epoch(num_images, batch_size)
    order = generator(seed, epoch, "order").permutation(num_images)
    return order[: steps * batch_size].reshape(steps, batch_size).astype(np.int32)
