"""Training in PyTorch: the step functions, and the Trainer that holds their state.

Twin of mixer_jax/train.py.
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mixer_common.config import MixerConfig
from mixer_common.plan import EpochPlan
from mixer_common.recipe import TrainConfig
from mixer_torch import evaluate, optimizer
from mixer_torch.augment import augment, of_step
from mixer_torch.evaluate import WEIGHTS_DTYPE, forward
from mixer_torch.model import create, to_canonical


def loss(logits: Tensor, labels: Tensor, label_smoothing: float, label_weight: Tensor | None = None) -> Tensor:
    """Mean cross-entropy (nats) of logits (B, num_classes) and labels (B,); a smoothed label shares
    `label_smoothing` equally among all classes. Where images are mixed, `label_weight` () is what label i
    counts for, and label B-1-i for the rest."""
    if label_weight is not None:
        return (label_weight * loss(logits, labels, label_smoothing)
                + (1 - label_weight) * loss(logits, labels.flip(0), label_smoothing))
    return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)


def gradients_of_weights(config: MixerConfig, weights: Mapping[str, np.ndarray], images: np.ndarray,
                         labels: np.ndarray, precision: str, device: torch.device) -> dict[str, np.ndarray]:
    """Canonical gradients of the mean cross-entropy of uint8 images (B, H, W, 3), nothing dropped."""
    model = create(config, weights, device, WEIGHTS_DTYPE[precision])
    logits = forward(model, torch.from_numpy(images).to(device), None, precision)
    loss(logits, torch.from_numpy(labels.astype(np.int64)).to(device), 0.0).backward()
    return to_canonical({name: p.grad for name, p in model.named_parameters()})


class Trainer:
    """A model in training: weights, optimizer state and data set on the device.

    Eager by default; `compiled` runs the forward and backward passes through torch.compile.
    """

    def __init__(self, config: MixerConfig, recipe: TrainConfig, weights: Mapping[str, np.ndarray],
                 images: np.ndarray, labels: np.ndarray,
                 moments: Mapping[str, Mapping[str, np.ndarray]] | None = None, step: int = 0,
                 device: torch.device | str = "cpu", compiled: bool = False):
        """weights, moments: canonical, as they are after `step` steps; images: uint8 (N, H, W, 3)."""
        self.config, self.recipe, self.device = config, recipe, torch.device(device)
        self.model = create(config, weights, self.device, WEIGHTS_DTYPE[recipe.precision])
        if recipe.freeze_backbone:
            self.model.requires_grad_(False).head.requires_grad_()
        self.optimizer = optimizer.create(recipe, self.model)
        if moments is not None:
            optimizer.load_moments(self.model, self.optimizer, recipe, moments, step)
        self.images = torch.from_numpy(images).to(self.device)
        self.labels = torch.from_numpy(labels.astype(np.int64)).to(self.device)
        self._objective = torch.compile(self._objective) if compiled else self._objective

    def begin_epoch(self, plan: EpochPlan) -> None:
        """Hands the epoch's numbers to the device."""
        dtype = WEIGHTS_DTYPE[self.recipe.precision]
        self.indices = torch.from_numpy(plan.indices).to(self.device)
        self.learning_rates = plan.learning_rates.tolist()
        self.drop_path = None if plan.drop_path is None else torch.from_numpy(plan.drop_path).to(self.device, dtype)
        self.augmentation = {name: torch.from_numpy(rows).to(self.device, dtype if rows.dtype == np.float64 else None)
                             for name, rows in plan.augmentation.items()}

    def train(self, first: int, last: int) -> np.ndarray:
        """Steps `first` to `last` - 1 of the epoch; the training loss of each, in the weights' dtype."""
        return torch.stack([self._step(i) for i in range(first, last)]).cpu().numpy()

    def augmented(self, i: int) -> np.ndarray:
        """The images of step `i` of the epoch as they are trained on: bytes (B, H, W, 3), as real numbers."""
        batch, draws = self.images[self.indices[i]], of_step(self.augmentation, i)
        return augment(batch, draws, WEIGHTS_DTYPE[self.recipe.precision]).cpu().numpy()

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Logits (N, num_classes) of uint8 images (N, H, W, 3), nothing dropped."""
        return evaluate.logits(self.model, images, self.recipe.precision)

    def weights(self) -> dict[str, np.ndarray]:
        return to_canonical(dict(self.model.named_parameters()))

    def moments(self) -> dict[str, dict[str, np.ndarray]]:
        return optimizer.moments(self.model, self.optimizer, self.recipe)

    def _objective(self, images: Tensor, labels: Tensor, drop_path: Tensor | None, draws: dict[str, Tensor]) -> Tensor:
        augmented = augment(images, draws, WEIGHTS_DTYPE[self.recipe.precision])
        logits = forward(self.model, augmented, drop_path, self.recipe.precision)
        return loss(logits, labels, self.recipe.label_smoothing, draws.get("label_weight"))

    def _step(self, i: int) -> Tensor:
        batch, draws = self.indices[i], of_step(self.augmentation, i)
        drop_path = None if self.drop_path is None else self.drop_path[i]
        value = self._objective(self.images[batch], self.labels[batch], drop_path, draws)
        self.optimizer.zero_grad()
        value.backward()
        optimizer.step(self.optimizer, self.recipe, self.learning_rates[i])
        return value.detach()
