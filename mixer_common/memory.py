"""How the C library hands memory out on a CPU."""

import ctypes
import sys
from collections.abc import Mapping

from mixer_common.config import MixerConfig
from mixer_common.recipe import TrainConfig

# malloc.h of the GNU C library, and the environment variables that say the same to a process that is to be started.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_KEPT = {"MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_MMAP_MAX_": "0", "MALLOC_ARENA_MAX": "1"}
_LARGE_BYTES = 2**28


def keep_memory(config: MixerConfig, recipe: TrainConfig) -> None:
    """Where steps are large, lets the process keep what it frees for its next step.

    A step's activations are freed at its end. Handed back to the system, they come again as fresh pages that it fills
    with zeros one by one: up to a third of a step of nano. Of small steps a dispatch of JAX runs many in the same
    memory, and then the library is the faster for being left alone. To be called before the frameworks are imported:
    once a second thread has asked for memory, the number of arenas stays. Nothing happens where the C library is
    another one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt and activation_bytes(config, recipe) > _LARGE_BYTES:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def keeping(config: MixerConfig, recipe: TrainConfig) -> Mapping[str, str]:
    """The environment in which a new process does so."""
    return _KEPT if activation_bytes(config, recipe) > _LARGE_BYTES else {}


def activation_bytes(config: MixerConfig, recipe: TrainConfig) -> int:
    """About what a step holds of a batch's part: each block's norms, branches and hidden layers, float32."""
    block = (config.hidden_dim * (6 * config.num_patches + 2 * config.tokens_mlp_dim)
             + 2 * config.num_patches * config.channels_mlp_dim)
    return 4 * recipe.batch_size // recipe.accumulation * config.num_blocks * block
