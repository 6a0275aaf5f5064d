"""The benchmark's workloads in JAX; a worker process imports this file. Counterpart of torch_workloads.py."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from mixer_bench.workload import Matmul, Runtime, Workload, WorkloadConfig
from mixer_common.plan.epoch import EpochPlan
from mixer_jax.device import COMPUTE_DTYPE, WEIGHTS_DTYPE, Device, peak_device_memory
from mixer_jax.forward import forward, logits
from mixer_jax.framework import JaxFramework
from mixer_jax.model import build_model
from mixer_jax.train import Trainer
from mixer_jax.xla import compiler_options


def make_workload(config: WorkloadConfig) -> Workload | Matmul:
    """The workload of config.implementation: jax-step, jax-scan or jax-matmul.

    Raises UserError where the device is missing.
    """
    framework = JaxFramework()
    device = framework.prepare(config.device, config.recipe.precision)
    if config.implementation == "jax-matmul":
        return Matmul(
            framework.describe(device),
            framework.versions,
            partial(multiplier, device, config.recipe.precision),
            2048 if device.platform == "cpu" else 8192,
        )
    runtime = Runtime(framework.describe(device), framework.versions)
    return (Training if config.mode == "train" else Forward)(config, runtime, device)


def multiplier(device: Device, precision: str, size: int) -> Callable[[int], None]:
    """A function that makes so many products of two matrices (size, size), and waits for them."""
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
    """Training steps: each in a dispatch of its own (jax-step), or all of a range in one (jax-scan)."""

    def __init__(self, config: WorkloadConfig, runtime: Runtime, device: Device):
        images = config.images()
        super().__init__(config, runtime, images.shape)
        self.device = device
        self.trainer = Trainer(config.model, config.recipe, config.weights(), images, config.labels(), device=device)

    def begin_epoch(self, plan: EpochPlan) -> None:
        self.trainer.begin_epoch(plan)

    def run(self, first: int, last: int) -> np.ndarray:
        if self.config.implementation == "jax-scan":
            return self.trainer.train(first, last)
        for i in range(first, last):  # unlike `train`, nothing waits for the loss between two steps
            self.trainer.dispatch(i, i + 1)
        return np.asarray(self.trainer.losses)[first:last]

    def logits(self, indices: np.ndarray) -> np.ndarray:
        return self.trainer.logits(np.asarray(self.trainer.images)[indices])

    def device_memory(self) -> int | None:
        return peak_device_memory(self.device)


class Forward(Workload):
    """Forward passes: each in a dispatch of its own (jax-step), or all of a range in one (jax-scan)."""

    def __init__(self, config: WorkloadConfig, runtime: Runtime, device: Device):
        images = config.images()
        super().__init__(config, runtime, images.shape)
        self.device, self.images = device, jax.device_put(images, device)
        self.model = build_model(config.model, config.weights(), device, COMPUTE_DTYPE[config.recipe.precision])
        self.graphdef, self.weights = nnx.split(self.model)
        options = compiler_options(device, config.model)
        self._one = jax.jit(self._step, compiler_options=options)
        self._many = jax.jit(self._steps, donate_argnums=0, compiler_options=options)

    def begin_epoch(self, plan: EpochPlan) -> None:
        self.indices = jax.device_put(plan.indices, self.device)
        dtype = WEIGHTS_DTYPE[self.config.recipe.precision]
        self.values = jnp.zeros((*plan.indices.shape, self.config.model.num_classes), dtype, device=self.device)

    def run(self, first: int, last: int) -> np.ndarray:
        if self.config.implementation == "jax-scan":
            self.values = self._many(self.values, self.weights, self.images, self.indices, first, last)
            return np.asarray(self.values)[first:last]
        return np.stack(
            jax.device_get([self._one(self.weights, self.images, self.indices, i) for i in range(first, last)])
        )

    def logits(self, indices: np.ndarray) -> np.ndarray:
        return logits(self.model, np.asarray(self.images)[indices], self.config.recipe.precision)

    def device_memory(self) -> int | None:
        return peak_device_memory(self.device)

    def _step(self, weights: nnx.State, images: Array, indices: Array, i: Array) -> Array:
        return forward(nnx.merge(self.graphdef, weights), images[indices[i]], None, self.config.recipe.precision)

    def _steps(
        self, values: Array, weights: nnx.State, images: Array, indices: Array, first: Array, last: Array
    ) -> Array:
        return jax.lax.fori_loop(
            first, last, lambda i, values: values.at[i].set(self._step(weights, images, indices, i)), values
        )
