"""How the C library hands memory out on a CPU."""

import ctypes
import os
import sys
from collections.abc import Mapping

from mixer_common.config import MixerConfig
from mixer_common.recipe import TrainConfig

# How the GNU C library is told: the environment variable, its number in malloc.h, the value.
_SETTINGS = (("MALLOC_ARENA_MAX", -8, 1), ("MALLOC_MMAP_MAX_", -4, 0), ("MALLOC_TRIM_THRESHOLD_", -1, 2**31 - 1))
_LARGE_BYTES = 2**28
_SHARE = 1 / 4  # of the machine's memory: kept, the gaps of one step may not fit the next, and two lie there


def keep_memory(config: MixerConfig, recipe: TrainConfig) -> None:
    """Where steps are large, and the memory larger, lets the process keep what it frees for its next step.

    A step's activations are freed at its end. Handed back to the system, they come again as fresh pages that it fills
    with zeros one by one: up to a third of a step of nano. Of small steps a dispatch of JAX runs many in the same
    memory, and then the library is the faster for being left alone. To be called before the frameworks are imported:
    once a second thread has asked for memory, the number of arenas stays. Nothing happens where the C library is
    another one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt and _kept(config, recipe):
        for _, number, value in _SETTINGS:
            mallopt(number, value)


def keeping(config: MixerConfig, recipe: TrainConfig) -> Mapping[str, str]:
    """The environment in which a new process does so."""
    return {name: str(value) for name, _, value in _SETTINGS} if _kept(config, recipe) else {}


def _kept(config: MixerConfig, recipe: TrainConfig) -> bool:
    """By about what a step holds of a batch's part: each block's norms, branches and hidden layers, float32."""
    block = (config.hidden_dim * (6 * config.num_patches + 2 * config.tokens_mlp_dim)
             + 2 * config.num_patches * config.channels_mlp_dim)
    activations = 4 * recipe.batch_size // recipe.accumulation * config.num_blocks * block
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return _LARGE_BYTES < activations <= _SHARE * memory
