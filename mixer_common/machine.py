"""The machine that a run or a benchmark uses: threads, memory, versions, and the C library's handling of memory."""

import ctypes
import os
import platform
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

# Parts of the messages in which JAX, PyTorch and their libraries report exhausted memory, in lower case.
_EXHAUSTED_MESSAGES = (
    "resource_exhausted",
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "failed to allocate",
    "alloc_failed",
)
# Settings of the GNU C library's malloc: environment variable, number in malloc.h, value.
_MALLOC_SETTINGS = (("MALLOC_ARENA_MAX", -8, 1), ("MALLOC_MMAP_MAX_", -4, 0), ("MALLOC_TRIM_THRESHOLD_", -1, 2**31 - 1))
_LARGE_STEP_BYTES = 2**28
_MMAP_THRESHOLD = -3  # the number of malloc.h
# Freed memory that is not given back can leave gaps that the next step does not fit into, so that a step takes twice
# its memory at worst; it is reused only where a step takes no more than this share of the machine's memory.
_LARGEST_SHARE = 1 / 4


def describe_machine(device: str) -> dict[str, Any]:
    """The machine as a benchmark's report describes it: device, processor, threads, system, memory in bytes."""
    return {
        "device": device,
        "cpu": processor_name(),
        "threads": num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "memory_bytes": total_memory(),
    }


@cache
def processor_name() -> str:
    """The processor's model name where the system tells it, else its architecture."""
    with suppress(OSError):  # psutil does not know the name; platform.processor() is empty on many Linux systems
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def num_threads() -> int:
    """The number of processors that this process may use, which is the number of threads that compute."""
    process = psutil.Process()
    return len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else psutil.cpu_count() or 1


def total_memory() -> int:
    """Bytes of memory of the machine."""
    return psutil.virtual_memory().total


def peak_memory() -> int:
    """The most bytes of memory that this process ever held."""
    info = psutil.Process().memory_info()
    if peak := getattr(info, "peak_wset", None):  # Windows
        return peak
    with suppress(OSError, StopIteration):  # Linux; its ru_maxrss would start from the parent process's peak
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def is_memory_exhausted(error: BaseException | str) -> bool:
    """Whether an error, or its message, reports exhausted memory of the device or of the machine."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, str | RuntimeError) and any(part in str(error).lower() for part in _EXHAUSTED_MESSAGES)


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python, NumPy and those of the given packages that are installed."""
    found = {"python": platform.python_version()}
    for name in ("numpy", *packages):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def reuse_freed_memory(step_bytes: int) -> None:
    """Where steps are large, and the memory larger, lets the process reuse what a step frees for the next one.

    step_bytes: about what one step holds at once. A step's activations are freed at its end. Given back to the
    system, they return as fresh pages that it fills with zeros one by one, which takes up to a third of a step of
    nano. Small steps are faster without it, since JAX runs many of them in one dispatch, in the same memory.

    Call it before the frameworks are imported: once a second thread has allocated memory, the number of arenas is
    fixed. It does nothing where the C library is not GNU's.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt and _is_worth_reusing(step_bytes):
        for _, number, value in _MALLOC_SETTINGS:
            mallopt(number, value)


def return_freed_memory() -> None:
    """Lets every block of a megabyte and more that the process frees go back to the system at once.

    By itself, the GNU C library keeps blocks of up to 32 MB for later ones, in several arenas and with gaps between
    them: where thousands of blocks are allocated and freed in turn, the process grows and grows. It does nothing where
    the C library is not GNU's.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(_MMAP_THRESHOLD, 2**20)


def malloc_environment(step_bytes: int) -> Mapping[str, str]:
    """The environment variables with which a new process starts as if `reuse_freed_memory` had been called."""
    return {name: str(value) for name, _, value in _MALLOC_SETTINGS} if _is_worth_reusing(step_bytes) else {}


def _is_worth_reusing(step_bytes: int) -> bool:
    return _LARGE_STEP_BYTES < step_bytes <= _LARGEST_SHARE * total_memory()


def cache_dir() -> Path:
    """The folder for what may be deleted at any time: $XDG_CACHE_HOME/mlp-mixer, else ~/.cache/mlp-mixer.

    A user without a home, as in a container that runs under a foreign number, gets one of his own below the folder for
    temporary files.
    """
    if parent := os.environ.get("XDG_CACHE_HOME"):
        return Path(parent) / "mlp-mixer"
    try:
        return Path.home() / ".cache" / "mlp-mixer"
    except RuntimeError:
        folder = Path(tempfile.gettempdir()) / f"mlp-mixer-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        # Another user may have made it, to put something into the cache.
        is_own = folder.stat(follow_symlinks=False).st_uid == os.getuid()
        return folder if is_own else Path(tempfile.mkdtemp(prefix="mlp-mixer-"))
