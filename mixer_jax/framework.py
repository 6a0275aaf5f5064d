"""JAX as the scripts see it. Twin of mixer_torch/framework.py."""

import os
from importlib.metadata import version
from pathlib import Path

import jax

from mixer_common.errors import UserError
from mixer_common.loop import Framework, common_versions
from mixer_jax.data import download_cifar10
from mixer_jax.evaluate import activations_of_weights, logits_of_weights, out_of_memory
from mixer_jax.train import Trainer, gradients_of_weights


def framework() -> Framework:
    return Framework(
        name="jax", versions=common_versions() | {name: version(name) for name in ("jax", "flax", "optax")},
        prepare=prepare, describe=describe, trainer=Trainer, logits=logits_of_weights,
        activations=activations_of_weights, gradients=gradients_of_weights, download=download_cifar10,
        out_of_memory=out_of_memory)


def prepare(asked: str, precision: str) -> jax.Device:
    """The device `asked` for ("auto", "cpu", "gpu"), with JAX set up for the precision."""
    jax.config.update("jax_enable_x64", precision == "float64")
    # Without it a GPU rounds the factors of float32 matmuls to TF32.
    jax.config.update("jax_default_matmul_precision", "highest")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlp-mixer" / "jax"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    if asked == "cpu":
        jax.config.update("jax_platforms", "cpu")
    device = jax.devices()[0]
    if asked == "gpu" and device.platform != "gpu":
        raise UserError("--device gpu was asked for, but JAX finds no GPU: install the extra gpu "
                        "(uv run --extra gpu ...) on a machine with an NVIDIA GPU, or use --device cpu.")
    return device


def describe(device: jax.Device) -> str:
    if device.platform == "cpu":
        return f"CPU, {len(os.sched_getaffinity(0))} threads"
    return f"GPU {device.device_kind}"
