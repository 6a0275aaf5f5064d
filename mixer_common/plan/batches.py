"""The batches of an epoch: how many there are, and which images each one holds."""

import numpy as np

from mixer_common.errors import UserError
from mixer_common.plan.random import generator


def steps_in_epoch(num_images: int, batch_size: int) -> int:
    """The number of full batches in an epoch; the images that do not fill a batch are left out of it.

    Raises UserError where the images do not fill one batch.
    """
    if batch_size > num_images:
        raise UserError(
            f"batch_size {batch_size} is larger than the {num_images} training images: choose a smaller one."
        )
    return num_images // batch_size


def batch_indices(num_images: int, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """The indices of the images of each step: int32 (steps, batch_size), each image at most once."""
    steps = steps_in_epoch(num_images, batch_size)
    order = generator(seed, epoch, "order").permutation(num_images)
    return order[: steps * batch_size].reshape(steps, batch_size).astype(np.int32)
