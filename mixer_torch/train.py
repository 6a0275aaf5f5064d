"""Training in PyTorch: the step functions, and the Trainer that holds their state.

Twin of mixer_jax/train.py.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mixer_common.config.model import ModelConfig
from mixer_common.config.train import TrainConfig
from mixer_common.plan.epoch import EpochPlan
from mixer_torch import optimizer
from mixer_torch.augment import augment, of_step
from mixer_torch.device import WEIGHTS_DTYPE
from mixer_torch.forward import forward, logits
from mixer_torch.model import Mixer, build_model, to_canonical


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """Mean cross-entropy () in nats of logits (B, num_classes) and labels (B,); a smoothed label shares
    `label_smoothing` equally among all classes."""
    return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)


def loss(
    logits: Tensor, labels: Tensor, partners: Tensor, label_weight: Tensor | None, label_smoothing: float
) -> Tensor:
    """The cross-entropy of `labels` (B,); where images are mixed, `label_weight` () is what that counts for, and the
    cross-entropy of the labels of their partners, `partners` (B,), counts for the rest."""
    if label_weight is None:
        return cross_entropy(logits, labels, label_smoothing)
    own, other = (cross_entropy(logits, part, label_smoothing) for part in (labels, partners))
    return label_weight * own + (1 - label_weight) * other


class Trainer:
    """A model in training: weights, optimizer state and data set on the device.

    Eager by default; `compiled` runs the forward and backward passes through torch.compile.
    """

    def __init__(
        self,
        config: ModelConfig,
        recipe: TrainConfig,
        weights: Mapping[str, np.ndarray],
        images: np.ndarray,
        labels: np.ndarray,
        moments: Mapping[str, Mapping[str, np.ndarray]] | None = None,
        device: torch.device | None = None,
        compiled: bool = False,
    ):
        """weights: canonical, the model's; moments: canonical, by the names of mixer_common.config.train.moment_names,
        or None at the start of a run; images: uint8 (N, H, W, 3); labels: (N,)."""
        self.config, self.recipe, self.device = config, recipe, device or torch.get_default_device()
        trained = weights if moments is None else moments.get("trained_weights", weights)
        self.model = build_model(config, trained, self.device, WEIGHTS_DTYPE[recipe.precision])
        self.average = (
            None if not recipe.ema_decay else build_model(config, weights, self.device, WEIGHTS_DTYPE[recipe.precision])
        )
        if recipe.freeze_backbone:
            self.model.requires_grad_(False).head.requires_grad_()
        self._averages: list[Tensor] = []
        self._trained: list[Tensor] = []
        if self.average is not None:
            trained_names = [name for name, p in self.model.named_parameters() if p.requires_grad]
            self._averages += [self.average.get_parameter(name) for name in trained_names]
            self._trained += [self.model.get_parameter(name) for name in trained_names]
        self.optimizer = optimizer.make_optimizer(recipe, self.model)
        if moments is not None:
            optimizer.load_moments(self.model, self.optimizer, recipe, moments)
        self.images = torch.from_numpy(images).to(self.device)
        self.labels = torch.from_numpy(labels.astype(np.int64)).to(self.device)
        self._objective = torch.compile(self._objective) if compiled else self._objective

    def begin_epoch(self, plan: EpochPlan) -> None:
        """Hands the epoch's numbers to the device."""
        self.plan = _on_device(plan, self.device, WEIGHTS_DTYPE[self.recipe.precision])

    def train(self, first: int, last: int) -> np.ndarray:
        """Steps `first` to `last` - 1 of the epoch; the training loss of each, in the weights' dtype."""
        optimizer.set_step(self.optimizer, self.plan["first_step"] + first)
        return torch.stack([self._step(i) for i in range(first, last)]).cpu().numpy()

    def augmented(self, i: int) -> np.ndarray:
        """The images of step `i` of the epoch as they are trained on: bytes (B, H, W, 3), as real numbers."""
        batch, draws = self.images[self.plan["indices"][i]], of_step(self.plan["augmentation"], i)
        return augment(batch, draws, WEIGHTS_DTYPE[self.recipe.precision]).cpu().numpy()

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Logits (N, num_classes) of uint8 images (N, H, W, 3), nothing dropped."""
        return logits(self._eval_model, images, self.recipe.precision)

    def weights(self) -> dict[str, np.ndarray]:
        """The model's weights, canonical: where there is an average, that."""
        return to_canonical(dict(self._eval_model.named_parameters()))

    def moments(self) -> dict[str, dict[str, np.ndarray]]:
        """What the training needs beside the model to continue: canonical arrays, by the names of
        mixer_common.config.train.moment_names."""
        moments = optimizer.moments(self.model, self.optimizer, self.recipe)
        if self.average is not None:
            moments["trained_weights"] = to_canonical(dict(self.model.named_parameters()))
        return moments

    @property
    def _eval_model(self) -> Mixer:
        return self.model if self.average is None else self.average

    def _objective(
        self, draws: dict[str, Tensor], images: Tensor, labels: Tensor, partners: Tensor, drop_path: Tensor | None
    ) -> Tensor:
        augmented = augment(images, draws, WEIGHTS_DTYPE[self.recipe.precision])
        logits = forward(self.model, augmented, drop_path, self.recipe.precision)
        return loss(logits, labels, partners, draws.get("label_weight"), self.recipe.label_smoothing)

    def _step(self, i: int) -> Tensor:
        batch, draws = self.plan["indices"][i], of_step(self.plan["augmentation"], i)
        drop_path = None if self.plan["drop_path"] is None else self.plan["drop_path"][i]
        images, labels = self.images[batch], self.labels[batch]
        if self.recipe.accumulation > 1:  # before the batch is divided: partners may come to lie in two parts
            images = augment(images, draws, WEIGHTS_DTYPE[self.recipe.precision])
            draws = {name: value for name, value in draws.items() if name == "label_weight"}
        self.optimizer.zero_grad()
        value = _mean_over_parts(
            partial(self._objective, draws), self.recipe.accumulation, images, labels, labels.flip(0), drop_path
        )
        optimizer.step(self.optimizer, self.recipe, self.plan["learning_rates"][i])
        if self.average is not None:
            with torch.no_grad():
                torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
                    self._averages, self._trained, self.plan["ema_rates"][i]
                )
        return value


def _on_device(plan: EpochPlan, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What the steps read of the plan, its real numbers in `dtype`; rates as Python's numbers."""
    return {
        "first_step": plan.first_step,
        "indices": torch.from_numpy(plan.indices).to(device),
        "learning_rates": plan.learning_rates.tolist(),
        "ema_rates": None if plan.ema_rates is None else plan.ema_rates.tolist(),
        "drop_path": None if plan.drop_path is None else torch.from_numpy(plan.drop_path).to(device, dtype),
        "augmentation": {
            name: torch.from_numpy(rows).to(device, dtype if rows.dtype == np.float64 else None)
            for name, rows in plan.augmentation.items()
        },
    }


def _mean_over_parts(
    objective: Callable[..., Tensor],
    count: int,
    images: Tensor,
    labels: Tensor,
    partners: Tensor,
    drop_path: Tensor | None,
) -> Tensor:
    """Loss of a batch, worked off in `count` equal parts one after another; adds the gradients to the weights'."""
    if count == 1:
        value = objective(images, labels, partners, drop_path)
        value.backward()
        return value.detach()
    total = images.new_zeros(())
    parts = [array.chunk(count) for array in (images, labels, partners)]
    drop_paths = [None] * count if drop_path is None else drop_path.chunk(count, dim=-1)
    for *part, part_drop_path in zip(*parts, drop_paths, strict=True):
        share = objective(*part, part_drop_path) / count
        share.backward()
        total += share.detach()
    return total
