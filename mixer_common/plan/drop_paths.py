"""Stochastic depth: which branches a training step drops for each image (Huang et al. 2016, arXiv 1603.09382)."""

import numpy as np

from mixer_common.config.model import ModelConfig
from mixer_common.plan.random import generator


def drop_path_rates(config: ModelConfig) -> np.ndarray:
    """Drop rate of each block, linear from 0 to `stochastic_depth`: float64 (num_blocks,)."""
    return np.linspace(0.0, config.stochastic_depth, config.num_blocks)


def drop_path_scales(config: ModelConfig, steps: int, batch_size: int, seed: int, epoch: int) -> np.ndarray | None:
    """The factor of each branch for each image: float32 (steps, num_blocks, 2, batch_size).

    It is 0 where the branch is dropped, else 1 / (1 - rate), so that its expectation is 1. None where the config
    drops nothing.
    """
    if config.stochastic_depth == 0:
        return None
    survival = 1 - drop_path_rates(config)[:, None, None]
    draws = generator(seed, epoch, "stochastic_depth").random((steps, config.num_blocks, 2, batch_size))
    return np.where(draws < survival, 1 / survival, 0).astype(np.float32)
