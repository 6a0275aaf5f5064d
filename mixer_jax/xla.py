"""What XLA on the CPU needs besides the mathematics. Without a twin: PyTorch's eager code is not compiled.

Everything here leaves the function as it is and changes only what XLA makes of it. Each part says what XLA does without
it, what it gains, and which test of parity_tests/parity/test_xla.py fails when XLA no longer needs it. Measured with
JAX 0.10.2. The time of a step with and without a change: scripts/benchmark.py --only jax-step jax-scan, with
--model tutorial --batch-size 128 and with --model nano --batch-size 128, before and after in turns.
"""

from functools import cache

import jax
import jax.numpy as jnp
from jax import Array

from mixer_common.config.model import ModelConfig
from mixer_jax.device import Device


def linear(x: Array, kernel: Array, bias: Array) -> Array:
    """x · kernel + bias over the last axis of x (..., in); kernel (in, out).

    Symptom: where x keeps its axes, the weights' gradient is a product over two of them, for which XLA transposes and
    copies a factor first. Gain: in rows, nothing is copied, and that gradient takes a quarter of the time.
    Test: test_a_product_over_two_axes_copies_a_factor.
    """
    rows = x.reshape(-1, x.shape[-1])
    return affine(rows, kernel, bias).reshape(*x.shape[:-1], -1)


@jax.custom_vjp
def affine(x: Array, kernel: Array, bias: Array) -> Array:
    """x · kernel + bias for rows x (N, in) and kernel (in, out), whose bias gradient is a product.

    Symptom: the bias's gradient is a sum over rows, which XLA makes in two passes, of partial sums and of these.
    Gain: a product with ones is one pass; what that is worth in a step, only the benchmark tells.
    Test: test_a_sum_over_rows_takes_two_passes.
    """
    return x @ kernel + bias


def _affine_gradients(factors: tuple[Array, Array], g: Array) -> tuple[Array, Array, Array]:
    x, kernel = factors
    return g @ kernel.T, x.T @ g, jnp.ones(len(g), g.dtype) @ g


affine.defvjp(lambda x, kernel, bias: (affine(x, kernel, bias), (x, kernel)), _affine_gradients)


def opaque_one(scale: Array) -> Array:
    """1 (), made of a LayerNorm's scale (size,) so that XLA does not know that it is 1."""
    return 1 + 0 * scale[0]


@jax.custom_vjp
def materialize_gradient(x: Array, one: Array) -> Array:
    """x, whose gradient is computed once; `one` () is an opaque_one.

    Symptom: the gradient of the residual stream is the sum of the gradients of all branches that follow. XLA computes
    it anew wherever it is read, from all its summands, so that additions grow with the square of the number of blocks.
    A division ends that, since XLA does not compute divisions twice. Gain: 458 instead of 698 additions in the
    gradient of a model of 8 blocks. Test: test_the_residual_gradient_is_computed_again_for_every_reader.
    """
    del one  # read by the gradient alone
    return x


materialize_gradient.defvjp(lambda x, one: (x, one), lambda one, g: (g / one, jnp.zeros_like(one)))


def compiler_options(device: Device, config: ModelConfig) -> dict[str, str]:
    """XLA's options for a program that computes this model on this device.

    Symptom: XLA hands products and sums to a library (YNNPACK) that is faster for large matrices only. Gain: a forward
    pass of nano (128 channels) takes a third longer with it, one of s16 (512 channels) an eighth longer without.
    Test: test_the_library_is_left_out_of_narrow_models sees whether the option still does something; whether it still
    gains, only the benchmark above tells, with --mode forward.
    """
    return _without_library() if device.platform == "cpu" and config.hidden_dim < 256 else {}


@cache
def _without_library() -> dict[str, str]:
    options = {"xla_cpu_experimental_ynn_fusion_type": ""}
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:  # an XLA that has no such option
        return {}
    return options
