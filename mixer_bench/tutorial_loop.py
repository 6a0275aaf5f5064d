"""The tutorial's training loop as people write it: a data set of pictures, a loader with workers, eager, plain Adam.

It stands for the code that this project is compared with, so it has no twin in JAX. The model is the project's own.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler
from torchvision import transforms

from mixer_bench.workload import Runtime, Workload, WorkloadConfig
from mixer_common.config.model import ModelConfig
from mixer_common.data import Dataset
from mixer_common.plan.epoch import EpochPlan
from mixer_torch.device import peak_device_memory
from mixer_torch.model import build_model

NUM_WORKERS = 2
QUEUE = 2 * NUM_WORKERS  # batches that a loader's workers prepare ahead: DataLoader's default


class Pictures(torch.utils.data.Dataset):
    """Training pictures as torchvision's data sets give them: each goes through PIL and the transforms when it is read.

    images: uint8 (N, H, W, 3); labels: int32 (N,).
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, config: ModelConfig):
        self.images, self.labels = images, labels
        resize = [] if images.shape[1:3] == config.image_size else [transforms.Resize(config.image_size)]
        self.transform: Callable[[Image.Image], Tensor] = transforms.Compose(
            [*resize, transforms.ToTensor(), transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[i])), int(self.labels[i])


class Loop:
    """A model with its criterion and optimizer. A batch is pixels (B, 3, H, W) and labels (B,)."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, np.ndarray], device: torch.device):
        self.model, self.device = build_model(config, weights, device), device
        self.criterion = nn.CrossEntropyLoss()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)

    def train(self, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        """Makes one step for each batch and returns the sum of their losses."""
        self.model.train()
        running_loss = 0.0
        for x, y in batches:
            x, y = x.to(self.device), y.to(self.device)
            self.optimizer.zero_grad()
            loss = self.criterion(self.model(_channels_last(x)), y)
            loss.backward()
            self.optimizer.step()
            running_loss += loss.item()
        return running_loss

    @torch.no_grad()
    def predict(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits (B, num_classes) and labels (B,) of every batch."""
        self.model.eval()
        for x, y in batches:
            yield self.model(_channels_last(x.to(self.device))), y.to(self.device)


def train_tutorial_loop(
    config: ModelConfig,
    weights: Mapping[str, np.ndarray],
    dataset: Dataset,
    epochs: int,
    batch_size: int,
    device: torch.device,
    on_epoch: Callable[[int, float, float], None],
) -> float:
    """Trains a model from canonical weights and returns its accuracy on the test images, 0 to 1.

    on_epoch: is called after each epoch with its number, its seconds and its mean training loss.
    """
    loop = Loop(config, weights, device)
    batches = DataLoader(
        Pictures(dataset.train_images, dataset.train_labels, config), batch_size, shuffle=True, num_workers=NUM_WORKERS
    )
    for epoch in range(epochs):
        start = time.perf_counter()
        running_loss = loop.train(batches)
        on_epoch(epoch + 1, time.perf_counter() - start, running_loss / len(batches))
    test_pictures = Pictures(dataset.test_images, dataset.test_labels, config)
    test_batches = DataLoader(test_pictures, batch_size, num_workers=NUM_WORKERS)
    correct = sum((logits.argmax(dim=1) == y).sum().item() for logits, y in loop.predict(test_batches))
    return correct / len(dataset.test_labels)


class TutorialLoop(Workload):
    """The loop's steps for the benchmark. The loader's workers start before each turn and end with it."""

    def __init__(self, config: WorkloadConfig, runtime: Runtime, device: torch.device):
        self.pictures = Pictures(config.images(), config.labels(), config.model)
        super().__init__(config, runtime, self.pictures.images.shape)
        self.device = device
        self.loop = Loop(config.model, config.weights(), device)

    def begin_epoch(self, plan: EpochPlan) -> None:
        self.indices = plan.indices

    def run(self, first: int, last: int) -> np.ndarray:
        return np.array([self._run(self._batches(self.indices[i : i + 1])) for i in range(first, last)])

    def logits(self, indices: np.ndarray) -> np.ndarray:
        return next(self.loop.predict(self._batches(indices[None])))[0].cpu().numpy()

    def seconds(self, steps: int) -> float:
        """Runs so many steps and returns how long they take in the middle of an epoch.

        There, the loader's workers are ahead by as many batches at the end as at the beginning.
        """
        ahead, batch_size = min(steps, QUEUE + 1), self.config.recipe.batch_size
        shuffled = RandomSampler(self.pictures, num_samples=(ahead + steps + QUEUE) * batch_size)
        batches = iter(DataLoader(self.pictures, batch_size, sampler=shuffled, num_workers=NUM_WORKERS))
        self._run(islice(batches, ahead))
        start = time.perf_counter()
        self._run(islice(batches, steps))
        return time.perf_counter() - start

    def device_memory(self) -> int | None:
        return peak_device_memory(self.device)

    def _batches(self, indices: np.ndarray) -> DataLoader:
        return DataLoader(self.pictures, batch_sampler=indices.tolist(), num_workers=NUM_WORKERS)

    def _run(self, batches: Iterable[tuple[Tensor, Tensor]]) -> float | np.ndarray:
        if self.config.mode == "train":
            return self.loop.train(batches)
        for logits, _ in self.loop.predict(batches):
            values = logits.cpu().numpy()
        return values


def _channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)
