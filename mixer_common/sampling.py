"""Every random number of a training run, drawn in NumPy so that both frameworks use the same ones."""

import numpy as np

from mixer_common.config import MixerConfig
from mixer_common.errors import UserError

_PURPOSES = {"init": 0, "order": 1, "stochastic_depth": 2, "noise": 3, "crop": 4, "flip": 5, "trivial_augment": 6,
             "cutout": 7, "mixing": 8}


def generator(seed: int, epoch: int, purpose: str) -> np.random.Generator:
    """A generator that depends on these three alone: any epoch's numbers can be drawn without the others'."""
    key = np.random.SeedSequence((seed, epoch, _PURPOSES[purpose])).generate_state(2, np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def steps_in_epoch(num_images: int, batch_size: int) -> int:
    """Full batches in an epoch; the images left over are another epoch's. Raises UserError if there is none."""
    if batch_size > num_images:
        raise UserError(f"batch_size {batch_size} is larger than the {num_images} training images: "
                        "choose a smaller one.")
    return num_images // batch_size


def batch_indices(num_images: int, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """Which images make up each step of an epoch: int32 (steps, batch_size), none twice."""
    steps = steps_in_epoch(num_images, batch_size)
    order = generator(seed, epoch, "order").permutation(num_images)
    return order[: steps * batch_size].reshape(steps, batch_size).astype(np.int32)


def drop_path_rates(config: MixerConfig) -> np.ndarray:
    """Drop rate of each block, linear from 0 to `stochastic_depth`: float64 (num_blocks,)."""
    return np.linspace(0.0, config.stochastic_depth, config.num_blocks)


def drop_path_scales(config: MixerConfig, steps: int, batch_size: int, seed: int,
                     epoch: int) -> np.ndarray | None:
    """What each branch is multiplied with for each image: float32 (steps, num_blocks, 2, batch_size).

    0 where the branch is dropped, 1 / (1 - rate) where it is kept, so that the expectation is the
    branch itself (Huang et al. 2016, arXiv 1603.09382). None where the config drops nothing.
    """
    if config.stochastic_depth == 0:
        return None
    keep = 1 - drop_path_rates(config)[:, None, None]
    draws = generator(seed, epoch, "stochastic_depth").random((steps, config.num_blocks, 2, batch_size))
    return np.where(draws < keep, 1 / keep, 0).astype(np.float32)
