"""What the benchmark measures in PyTorch, run in a process of its own. Twin of mixer_jax/benchmark.py."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor

from mixer_bench import other_models
from mixer_bench.worker import Unavailable
from mixer_bench.workload import Matmul, Outputs, Runtime, Workload, WorkloadConfig
from mixer_common.plan.epoch import EpochPlan
from mixer_torch import optimizer
from mixer_torch.device import COMPUTE_DTYPE, WEIGHTS_DTYPE, describe, prepare
from mixer_torch.forward import forward
from mixer_torch.framework import TorchFramework
from mixer_torch.model import build_model as create_model
from mixer_torch.pixels import bytes_to_pixels
from mixer_torch.train import Trainer


def make_workload(setup: WorkloadConfig) -> Workload | Matmul:
    """What `setup.implementation` names: torch-eager, torch-compile, timm, lucidrains, tutorial-loop, torch-matmul.

    Raises UserError where the device is missing, Unavailable where a package is.
    """
    device = prepare(setup.device, setup.recipe.precision)
    if setup.implementation == "torch-matmul":
        return Matmul(
            describe(device),
            TorchFramework().versions,
            partial(multiplier, device, setup.recipe.precision),
            2048 if device.type == "cpu" else 8192,
        )
    runtime = Runtime(describe(device), TorchFramework().versions)
    if setup.implementation == "tutorial-loop":
        from mixer_bench.tutorial_loop import TutorialLoop

        return TutorialLoop(setup, runtime, device)
    measured = (Training if setup.mode == "train" else Forward)(setup, runtime, device)
    if package := other_models.PACKAGES.get(setup.implementation):
        runtime.versions[package] = version(package)
    return measured


def multiplier(device: torch.device, precision: str, size: int) -> Callable[[int], None]:
    """A function that makes so many products of two matrices of (size, size), and waits for them."""
    factors = np.random.default_rng(0).standard_normal((2, size, size)) / np.sqrt(size)
    x, y = torch.from_numpy(factors).to(device, COMPUTE_DTYPE[precision])

    def multiply(products: int) -> None:
        z = x
        for _ in range(products):
            z = z @ y
        z[0, 0].item()

    return multiply


class Training(Workload):
    """Training steps, eager or through torch.compile, of this project's model or another's."""

    def __init__(self, setup: WorkloadConfig, runtime: Runtime, device: torch.device):
        images = setup.images()
        super().__init__(setup, runtime, images.shape)
        self.device = device
        weights = setup.weights()
        self.trainer = Trainer(
            setup.config,
            setup.recipe,
            weights,
            images,
            setup.labels(),
            device=device,
            compiled=setup.implementation == "torch-compile",
        )
        if setup.implementation in other_models.PACKAGES:
            self.trainer.model = other_models.build_other_model(
                setup.implementation, setup.config, weights, device, WEIGHTS_DTYPE[setup.recipe.precision]
            )
            self.trainer.optimizer = optimizer.make_optimizer(setup.recipe, self.trainer.model)

    def begin_epoch(self, plan: EpochPlan) -> None:
        self.trainer.begin_epoch(plan)

    def run(self, first: int, last: int) -> np.ndarray:
        return self.trainer.train(first, last)

    @torch.no_grad()
    def logits(self, indices: np.ndarray) -> np.ndarray:
        images = self.trainer.images[torch.from_numpy(indices).to(self.device)]
        return forward(self.trainer.model, images, None, self.setup.recipe.precision).cpu().numpy()

    def outputs(self) -> Outputs:
        with _compilation():
            return super().outputs()

    def device_memory(self) -> int | None:
        return device_memory(self.device)


class Forward(Workload):
    """Forward passes, eager or through torch.compile, of this project's model or another's."""

    def __init__(self, setup: WorkloadConfig, runtime: Runtime, device: torch.device):
        images = setup.images()
        super().__init__(setup, runtime, images.shape)
        self.device, self.images = device, torch.from_numpy(images).to(device)
        given = setup.config, setup.weights(), device, COMPUTE_DTYPE[setup.recipe.precision]
        foreign_one = setup.implementation in other_models.PACKAGES
        self.model = (
            other_models.build_other_model(setup.implementation, *given) if foreign_one else create_model(*given)
        )
        self.model.eval()
        self._one = torch.compile(self._step) if setup.implementation == "torch-compile" else self._step

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
        return device_memory(self.device)

    def _step(self, images: Tensor) -> Tensor:
        precision = self.setup.recipe.precision
        pixels = bytes_to_pixels(images, self.setup.config.image_size, WEIGHTS_DTYPE[precision])
        return self.model(pixels.to(COMPUTE_DTYPE[precision])).to(WEIGHTS_DTYPE[precision])


def device_memory(device: torch.device) -> int | None:
    """Most bytes ever in use on the device; None where it is the host."""
    return None if device.type == "cpu" else torch.cuda.max_memory_allocated(device)


@contextmanager
def _compilation() -> Iterator[None]:
    """Turns what torch.compile raises where it does not work, such as without a C compiler, into Unavailable."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise Unavailable(f"torch.compile failed: {str(error).strip().splitlines()[0]}") from error
