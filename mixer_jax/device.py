"""The device and the precision that JAX computes in. Twin of mixer_torch/device.py."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from mixer_common.errors import UserError
from mixer_common.machine import cache_dir, num_threads

Device: TypeAlias = Any  # a jax.Device, of which JAX declares no type

WEIGHTS_DTYPE = {"float32": np.float32, "bfloat16": np.float32, "float64": np.float64}
COMPUTE_DTYPE = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}


def prepare(name: str, precision: str) -> Device:
    """The device "auto", "cpu" or "gpu", with JAX set up for the precision."""
    jax.config.update("jax_enable_x64", precision == "float64")
    # Without it a GPU rounds the factors of float32 matmuls to TF32.
    jax.config.update("jax_default_matmul_precision", "highest")
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "jax"))
    if name == "cpu":
        jax.config.update("jax_platforms", "cpu")
    device = _first_device()
    if name == "gpu" and device.platform != "gpu":
        raise UserError(
            "--device gpu was asked for, but JAX finds no GPU: install the extra gpu "
            "(uv run --extra gpu ...) on a machine with an NVIDIA GPU, or use --device cpu."
        )
    return device


def _first_device() -> Device:
    """Raises UserError where an environment variable names a platform that JAX does not find here."""
    try:
        return jax.devices()[0]
    except (RuntimeError, AssertionError):  # an assertion without a text where NVIDIA's library is missing
        for variable in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME"):
            if value := os.environ.get(variable):
                raise UserError(
                    f"the environment variable {variable} is {value!r}, but JAX finds no such device here: unset it, "
                    "set it to cpu, or use --device cpu."
                ) from None
        raise


@contextmanager
def preserve_settings() -> Iterator[None]:
    """A context after which JAX is set up as before it, whatever `prepare` did inside."""
    x64, precision = jax.config.jax_enable_x64, jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", x64)
        jax.config.update("jax_default_matmul_precision", precision)


def describe(device: Device) -> str:
    if device.platform == "cpu":
        return f"CPU, {num_threads()} threads"
    return f"GPU {device.device_kind}"


def peak_device_memory(device: Device) -> int | None:
    """Most bytes ever in use on the device; None where the device is the host."""
    return None if device.platform == "cpu" else (device.memory_stats() or {}).get("peak_bytes_in_use", 0)
