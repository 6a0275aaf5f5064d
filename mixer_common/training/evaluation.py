"""The figures of an epoch: its training loss, and the model's loss and accuracy on the test images after it."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from mixer_common.config.train import TrainConfig
from mixer_common.data import Dataset
from mixer_common.errors import UserError
from mixer_common.interface import Trainer
from mixer_common.plan.batches import steps_in_epoch
from mixer_common.plan.schedule import learning_rates
from mixer_common.training.dispatch import DispatchClock
from mixer_common.training.metrics import accuracy, cross_entropy, images_per_second

_ADVICE = "lower --learning-rate or set --clip-norm; an epoch's checkpoint stays as it was"


def check_finite(losses: np.ndarray, first_step: int) -> None:
    """Raises UserError where a training loss is infinite or no number. first_step: steps of the run before them."""
    is_finite = np.isfinite(losses)
    if not is_finite.all():
        raise UserError(
            f"the training loss is {losses[~is_finite][0]} at step {first_step + int(np.argmin(is_finite)) + 1:,}: "
            f"{_ADVICE}."
        )


def check_before_checkpoint(
    weights: Mapping[str, np.ndarray], moments: Mapping[str, Mapping[str, np.ndarray]], row: dict[str, Any] | None
) -> None:
    """Raises UserError where weights, moments or the test loss are not finite, so that they replace no checkpoint.

    weights, moments: of the trainer; row: of metrics.jsonl, where an epoch has ended.
    """
    if row and not math.isfinite(row["test_loss"]):
        raise UserError(f"the test loss is {row['test_loss']} after step {row['step']:,}: {_ADVICE}.")
    for kind, arrays in {"weights": weights, **moments}.items():
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise UserError(f"{kind} of {name} are infinite or no numbers after these steps: {_ADVICE}.")


def evaluate_epoch(
    trainer: Trainer, dataset: Dataset, recipe: TrainConfig, step: int, losses: np.ndarray, clock: DispatchClock
) -> tuple[dict[str, Any], np.ndarray]:
    """Evaluates the model on the test images at the end of an epoch, or of the run in the middle of one.

    step: steps of the run so far; losses: training losses of the epoch's steps, (steps,); clock: timed those of them
    that this process ran.

    Returns the row of metrics.jsonl, and the logits of the test images, (N, num_classes).
    """
    steps_per_epoch = steps_in_epoch(len(dataset.train_images), recipe.batch_size)
    logits = trainer.logits(dataset.test_images)
    row = {
        "epoch": math.ceil(step / steps_per_epoch),
        "step": step,
        "train_loss": float(np.nanmean(losses, dtype=np.float64)),  # NaN: lost with a damaged file
        "test_loss": cross_entropy(logits, dataset.test_labels),
        "test_accuracy": accuracy(logits, dataset.test_labels),
        "learning_rate": float(learning_rates(recipe, steps_per_epoch, step - 1, step)[0]),
        "train_seconds": clock.train_seconds,
        "images_per_second": images_per_second(recipe.batch_size, clock.timed_steps, clock.train_seconds),
    }
    return row, logits
