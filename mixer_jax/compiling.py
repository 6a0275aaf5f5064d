"""How XLA is asked to compile. Without a twin: PyTorch's eager code is not compiled."""

from functools import cache

import jax

from mixer_common.config import MixerConfig


def compiler_options(device: jax.Device, config: MixerConfig) -> dict[str, str]:
    """XLA's options for a program that computes this model on this device."""
    # XLA on the CPU hands products and sums to a library that is faster for large matrices only: measured, a
    # forward pass of nano (128 channels) takes a third longer with it, one of s16 (512) an eighth longer without.
    return _without_library() if device.platform == "cpu" and config.hidden_dim < 256 else {}


@cache
def _without_library() -> dict[str, str]:
    options = {"xla_cpu_experimental_ynn_fusion_type": ""}
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:  # an XLA that has no such option
        return {}
    return options
