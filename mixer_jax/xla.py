"""What XLA on the CPU needs besides the mathematics. Without a twin: PyTorch's eager code is not compiled."""

from functools import cache

import jax
import jax.numpy as jnp
from jax import Array

from mixer_common.config.model import ModelConfig


def linear(x: Array, kernel: Array, bias: Array) -> Array:
    """x · kernel + bias over the last axis of x (..., in); kernel (in, out)."""
    rows = x.reshape(-1, x.shape[-1])
    return affine(rows, kernel, bias).reshape(*x.shape[:-1], -1)


@jax.custom_vjp
def affine(x: Array, kernel: Array, bias: Array) -> Array:
    """x · kernel + bias for rows x (N, in) and kernel (in, out)."""
    return x @ kernel + bias


def _affine_gradients(factors: tuple[Array, Array], g: Array) -> tuple[Array, Array, Array]:
    # The sum over the rows as a product, too, which XLA on the CPU does faster than a sum.
    x, kernel = factors
    return g @ kernel.T, x.T @ g, jnp.ones(len(g), g.dtype) @ g


affine.defvjp(lambda x, kernel, bias: (affine(x, kernel, bias), (x, kernel)), _affine_gradients)


def opaque_one(scale: Array) -> Array:
    """1, made of a LayerNorm's scale so that XLA does not know it."""
    return 1 + 0 * scale[0]


@jax.custom_vjp
def materialize_gradient(x: Array, one: Array) -> Array:
    """x, whose gradient is computed once; `one` () is 1, which XLA must not know.

    A residual's gradient is the sum of all those of the branches after it. XLA on the CPU computes it anew
    wherever it is read, from all its summands, unless a division is part of it.
    """
    del one
    return x


materialize_gradient.defvjp(lambda x, one: (x, one), lambda one, g: (g / one, jnp.zeros_like(one)))


def compiler_options(device: jax.Device, config: ModelConfig) -> dict[str, str]:
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
