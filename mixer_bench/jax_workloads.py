"""What the benchmark measures in JAX, run in a process of its own. Twin of mixer_torch/benchmark.py."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from mixer_bench.workload import Matmul, Runtime, Workload, WorkloadConfig
from mixer_common.plan.epoch import EpochPlan
from mixer_jax.device import COMPUTE_DTYPE, WEIGHTS_DTYPE, describe, prepare
from mixer_jax.forward import forward, logits
from mixer_jax.framework import JaxFramework
from mixer_jax.model import build_model as create_model
from mixer_jax.train import Trainer
from mixer_jax.xla import compiler_options


def make_workload(setup: WorkloadConfig) -> Workload | Matmul:
    """What `setup.implementation` names: jax-step, jax-scan or jax-matmul. UserError where the device is missing."""
    device = prepare(setup.device, setup.recipe.precision)
    if setup.implementation == "jax-matmul":
        return Matmul(
            describe(device),
            JaxFramework().versions,
            partial(multiplier, device, setup.recipe.precision),
            2048 if device.platform == "cpu" else 8192,
        )
    runtime = Runtime(describe(device), JaxFramework().versions)
    return (Training if setup.mode == "train" else Forward)(setup, runtime, device)


def multiplier(device: jax.Device, precision: str, size: int) -> Callable[[int], None]:
    """A function that makes so many products of two matrices of (size, size), and waits for them."""
    factors = np.random.default_rng(0).standard_normal((2, size, size)) / np.sqrt(size)
    x, y = jax.device_put(list(factors.astype(COMPUTE_DTYPE[precision])), device)
    product = jax.jit(jnp.matmul)

    def multiply(products: int) -> None:
        z = x
        for _ in range(products):
            z = product(z, y)
        z.block_until_ready()

    return multiply


class Training(Workload):
    """Training steps: one in a dispatch (jax-step), or all that are asked for (jax-scan)."""

    def __init__(self, setup: WorkloadConfig, runtime: Runtime, device: jax.Device):
        images = setup.images()
        super().__init__(setup, runtime, images.shape)
        self.device = device
        self.trainer = Trainer(setup.config, setup.recipe, setup.weights(), images, setup.labels(), device=device)

    def begin_epoch(self, plan: EpochPlan) -> None:
        self.trainer.begin_epoch(plan)

    def run(self, first: int, last: int) -> np.ndarray:
        if self.setup.implementation == "jax-scan":
            return self.trainer.train(first, last)
        for i in range(first, last):  # as `train` does it, but that nobody waits for the loss between two steps
            self.trainer.dispatch(i, i + 1)
        return np.asarray(self.trainer.losses)[first:last]

    def logits(self, indices: np.ndarray) -> np.ndarray:
        return self.trainer.logits(np.asarray(self.trainer.images)[indices])

    def device_memory(self) -> int | None:
        return device_memory(self.device)


class Forward(Workload):
    """Forward passes: one in a dispatch (jax-step), or all that are asked for (jax-scan)."""

    def __init__(self, setup: WorkloadConfig, runtime: Runtime, device: jax.Device):
        images = setup.images()
        super().__init__(setup, runtime, images.shape)
        self.device, self.images = device, jax.device_put(images, device)
        self.model = create_model(setup.config, setup.weights(), device, COMPUTE_DTYPE[setup.recipe.precision])
        self.graphdef, self.weights = nnx.split(self.model)
        options = compiler_options(device, setup.config)
        self._one = jax.jit(self._step, compiler_options=options)
        self._many = jax.jit(self._steps, donate_argnums=0, compiler_options=options)

    def begin_epoch(self, plan: EpochPlan) -> None:
        self.indices = jax.device_put(plan.indices, self.device)
        dtype = WEIGHTS_DTYPE[self.setup.recipe.precision]
        self.values = jnp.zeros((*plan.indices.shape, self.setup.config.num_classes), dtype, device=self.device)

    def run(self, first: int, last: int) -> np.ndarray:
        if self.setup.implementation == "jax-scan":
            self.values = self._many(self.values, self.weights, self.images, self.indices, first, last)
            return np.asarray(self.values)[first:last]
        return np.stack(
            jax.device_get([self._one(self.weights, self.images, self.indices, i) for i in range(first, last)])
        )

    def logits(self, indices: np.ndarray) -> np.ndarray:
        return logits(self.model, np.asarray(self.images)[indices], self.setup.recipe.precision)

    def device_memory(self) -> int | None:
        return device_memory(self.device)

    def _step(self, weights: nnx.State, images: Array, indices: Array, i: Array) -> Array:
        return forward(nnx.merge(self.graphdef, weights), images[indices[i]], None, self.setup.recipe.precision)

    def _steps(
        self, values: Array, weights: nnx.State, images: Array, indices: Array, first: Array, last: Array
    ) -> Array:
        return jax.lax.fori_loop(
            first, last, lambda i, values: values.at[i].set(self._step(weights, images, indices, i)), values
        )


def device_memory(device: jax.Device) -> int | None:
    """Most bytes ever in use on the device; None where it is the host."""
    return None if device.platform == "cpu" else (device.memory_stats() or {}).get("peak_bytes_in_use", 0)
