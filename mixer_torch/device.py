"""The device and the precision that PyTorch computes in. Twin of mixer_jax/device.py."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mixer_common.errors import UserError

WEIGHTS_DTYPE = {"float32": torch.float32, "bfloat16": torch.float32, "float64": torch.float64}
COMPUTE_DTYPE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def prepare(name: str, precision: str) -> torch.device:
    """The device "auto", "cpu" or "gpu", with PyTorch set up for the precision."""
    del precision  # PyTorch computes in any without being set up for it
    # Otherwise a GPU rounds the factors of float32 matmuls and convolutions to TF32.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    available = torch.cuda.is_available()
    if name == "gpu" and not available:
        raise UserError(
            "--device gpu was asked for, but PyTorch finds no GPU: run on a machine with an NVIDIA "
            "GPU and its driver, or use --device cpu."
        )
    return torch.device("cuda" if available and name != "cpu" else "cpu")


@contextmanager
def preserve_settings() -> Iterator[None]:
    """A context after which PyTorch is set up as before it, whatever `prepare` did inside."""
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn


def describe(device: torch.device) -> str:
    if device.type == "cpu":
        return f"CPU, {torch.get_num_threads()} threads"
    return f"GPU {torch.cuda.get_device_name(device)}"


def peak_device_memory(device: torch.device) -> int | None:
    """Most bytes ever in use on the device; None where the device is the host."""
    return None if device.type == "cpu" else torch.cuda.max_memory_allocated(device)
