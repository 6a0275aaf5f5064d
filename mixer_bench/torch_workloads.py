"""The benchmark's workloads in PyTorch; a worker process imports this file. Counterpart of jax_workloads.py."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from typing import cast

import numpy as np
import torch
from torch import Tensor

from mixer_bench import other_models
from mixer_bench.worker import Unavailable
from mixer_bench.workload import Matmul, Outputs, Runtime, Workload, WorkloadConfig
from mixer_common.plan.epoch import EpochPlan
from mixer_torch import optimizer
from mixer_torch.device import COMPUTE_DTYPE, WEIGHTS_DTYPE, peak_device_memory
from mixer_torch.forward import forward
from mixer_torch.framework import TorchFramework
from mixer_torch.model import Mixer, build_model
from mixer_torch.pixels import bytes_to_pixels
from mixer_torch.train import Trainer


def make_workload(config: WorkloadConfig) -> Workload | Matmul:
    """The workload of config.implementation: one of torch-eager, torch-compile, timm, lucidrains, tutorial-loop and
    torch-matmul.

    Raises UserError where the device is missing, Unavailable where a package is.
    """
    framework = TorchFramework()
    device = framework.prepare(config.device, config.recipe.precision)
    if config.implementation == "torch-matmul":
        return Matmul(
            framework.describe(device),
            framework.versions,
            partial(multiplier, device, config.recipe.precision),
            2048 if device.type == "cpu" else 8192,
        )
    runtime = Runtime(framework.describe(device), framework.versions)
    if config.implementation == "tutorial-loop":
        from mixer_bench.tutorial_loop import TutorialLoop

        return TutorialLoop(config, runtime, device)
    workload = (Training if config.mode == "train" else Forward)(config, runtime, device)
    if package := other_models.PACKAGES.get(config.implementation):
        runtime.versions[package] = version(package)
    return workload


def multiplier(device: torch.device, precision: str, size: int) -> Callable[[int], None]:
    """A function that makes so many products of two matrices (size, size), and waits for them."""
    factors = np.random.default_rng(0).standard_normal((2, size, size)) / np.sqrt(size)
    x, y = torch.from_numpy(factors).to(device, COMPUTE_DTYPE[precision])

    def multiply(products: int) -> None:
        z = x
        for _ in range(products):
            z = z @ y
        z[0, 0].item()

    return multiply


class Training(Workload):
    """Training steps of this project's model, eager or through torch.compile, or of another project's model."""

    def __init__(self, config: WorkloadConfig, runtime: Runtime, device: torch.device):
        images = config.images()
        super().__init__(config, runtime, images.shape)
        self.device = device
        weights = config.weights()
        self.trainer = Trainer(
            config.model,
            config.recipe,
            weights,
            images,
            config.labels(),
            device=device,
            compiled=config.implementation == "torch-compile",
        )
        if config.implementation in other_models.PACKAGES:
            other_model = other_models.build_other_model(
                config.implementation, config.model, weights, device, WEIGHTS_DTYPE[config.recipe.precision]
            )
            self.trainer.model = cast(Mixer, other_model)
            self.trainer.optimizer = optimizer.make_optimizer(config.recipe, self.trainer.model)

    def begin_epoch(self, plan: EpochPlan) -> None:
        self.trainer.begin_epoch(plan)

    def run(self, first: int, last: int) -> np.ndarray:
        return self.trainer.train(first, last)

    @torch.no_grad()
    def logits(self, indices: np.ndarray) -> np.ndarray:
        images = self.trainer.images[torch.from_numpy(indices).to(self.device)]
        return forward(self.trainer.model, images, None, self.config.recipe.precision).cpu().numpy()

    def outputs(self) -> Outputs:
        with _compilation():
            return super().outputs()

    def device_memory(self) -> int | None:
        return peak_device_memory(self.device)


class Forward(Workload):
    """Forward passes of this project's model, eager or through torch.compile, or of another project's model."""

    def __init__(self, config: WorkloadConfig, runtime: Runtime, device: torch.device):
        images = config.images()
        super().__init__(config, runtime, images.shape)
        self.device, self.images = device, torch.from_numpy(images).to(device)
        build = build_model
        if config.implementation in other_models.PACKAGES:
            build = partial(other_models.build_other_model, config.implementation)
        self.model = build(config.model, config.weights(), device, COMPUTE_DTYPE[config.recipe.precision])
        self.model.eval()
        self._one = torch.compile(self._step) if config.implementation == "torch-compile" else self._step

    def begin_epoch(self, plan: EpochPlan) -> None:
        self.indices = torch.from_numpy(plan.indices).to(self.device)

    @torch.inference_mode()
    def run(self, first: int, last: int) -> np.ndarray:
        return torch.stack([self._one(self.images[self.indices[i]]) for i in range(first, last)]).cpu().numpy()

    @torch.inference_mode()
    def logits(self, indices: np.ndarray) -> np.ndarray:
        return self._step(self.images[torch.from_numpy(indices).to(self.device)]).cpu().numpy()

    def outputs(self) -> Outputs:
        with _compilation():
            return super().outputs()

    def device_memory(self) -> int | None:
        return peak_device_memory(self.device)

    def _step(self, images: Tensor) -> Tensor:
        precision = self.config.recipe.precision
        pixels = bytes_to_pixels(images, self.config.model.image_size, WEIGHTS_DTYPE[precision])
        return self.model(pixels.to(COMPUTE_DTYPE[precision])).to(WEIGHTS_DTYPE[precision])


@contextmanager
def _compilation() -> Iterator[None]:
    """Raises Unavailable where torch.compile does not work, such as without a C compiler."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise Unavailable(f"torch.compile failed: {str(error).strip().splitlines()[0]}") from error
