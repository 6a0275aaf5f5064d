"""What XLA on the CPU does without the workarounds of mixer_jax/xla.py.

A test here that fails after an update of JAX says that XLA no longer does it: take the workaround out, run
scripts/benchmark.py before and after, as mixer_jax/xla.py says, and leave it out where nothing is lost.
"""

import re
from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import Array

import mixer_jax.hooks
from mixer_common.config.presets import MODELS
from mixer_common.plan.initial import initial_weights
from mixer_jax.model import build_model
from mixer_jax.xla import affine, compiler_options, linear

pytestmark = pytest.mark.skipif(jax.default_backend() != "cpu", reason="the workarounds are for XLA on the CPU")

NARROW, WIDE = MODELS["tiny"], MODELS["s16"]


def operations(function: Callable, *arguments: object) -> list[str]:
    """The operations of the compiled program, those inside its fusions, too, with a narrow model's options."""
    options = compiler_options(jax.devices("cpu")[0], NARROW)
    text = jax.jit(function, compiler_options=options).lower(*arguments).compile().as_text()
    return re.findall(r" ([a-z][a-z-]*)\(", text)


def gradient_operations(layer: Callable[[Array, Array, Array], Array], x: Array) -> list[str]:
    """Those of the gradients of x (..., 64), a kernel and a bias."""

    def objective(x: Array, kernel: Array, bias: Array) -> Array:
        return jnp.sin(layer(x, kernel, bias)).sum()

    return operations(jax.grad(objective, argnums=(0, 1, 2)), x, jnp.ones((64, 256)), jnp.ones(256))


def plain(x: Array, kernel: Array, bias: Array) -> Array:
    return x @ kernel + bias


def test_a_sum_over_rows_takes_two_passes():
    rows = jnp.ones((512, 64))
    without, with_affine = gradient_operations(plain, rows), gradient_operations(affine, rows)
    assert (without.count("reduce-window"), without.count("reduce")) == (1, 1)
    assert not {"reduce-window", "reduce"} & set(with_affine)
    assert (without.count("dot"), with_affine.count("dot")) == (3, 4)


def test_a_product_over_two_axes_copies_a_factor():
    x = jnp.ones((8, 64, 64))
    without, with_linear = gradient_operations(plain, x), gradient_operations(linear, x)
    assert {"transpose", "copy"} <= set(without)
    assert not {"transpose", "copy"} & set(with_linear)


def test_the_residual_gradient_is_computed_again_for_every_reader(monkeypatch):
    """The additions of two more blocks: as many as those of the two before, or more and more."""

    def additions(num_blocks: int) -> int:
        config = replace(NARROW, num_blocks=num_blocks)
        graphdef, params = nnx.split(build_model(config, initial_weights(config, 0)))

        def objective(params: nnx.State, pixels: Array) -> Array:
            return nnx.merge(graphdef, params)(pixels).sum()

        return operations(jax.grad(objective), params, jnp.ones((8, 32, 32, 3))).count("add")

    two, four, six = (additions(num_blocks) for num_blocks in (2, 4, 6))
    assert six - four == four - two
    monkeypatch.setattr(mixer_jax.hooks, "materialize_gradient", lambda x, one: x)
    two, four, six = (additions(num_blocks) for num_blocks in (2, 4, 6))
    assert six - four > four - two + 10


def test_the_library_is_left_out_of_narrow_models():
    """Whether the option still changes something. Whether it still gains, only scripts/benchmark.py tells."""

    def compiled(options: dict[str, str]) -> str:
        x = jnp.ones((64, 64))
        return jax.jit(jnp.matmul, compiler_options=options).lower(x, x).compile().as_text()

    (device,) = jax.devices("cpu")[:1]
    assert compiler_options(device, NARROW)
    assert not compiler_options(device, WIDE)
    assert "ynn" in compiled(compiler_options(device, WIDE))
    assert "ynn" not in compiled(compiler_options(device, NARROW))
