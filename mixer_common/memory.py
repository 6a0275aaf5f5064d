"""How the C library hands memory out."""

import ctypes
import sys

# malloc.h of the GNU C library, and the environment variables that say the same to a process that is to be started.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
KEPT_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_MMAP_MAX_": "0", "MALLOC_ARENA_MAX": "1"}


def keep_memory() -> None:
    """Lets the process keep what it frees, for its next step, instead of handing it back to the system.

    A training step's activations are freed at its end. Handed back, they come as fresh pages that the system fills
    with zeros one by one: a third of the time of a step of nano in JAX on two cores. To be called before other
    libraries are imported: once a second thread has asked for memory, the number of arenas stays. Nothing happens
    where the C library is another one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
