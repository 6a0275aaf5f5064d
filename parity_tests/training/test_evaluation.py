"""The figures of an epoch."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mixer_common.config.train import TrainConfig
from mixer_common.errors import UserError
from mixer_common.training.dispatch import DispatchClock
from mixer_common.training.evaluation import check_finite, evaluate_epoch
from mixer_common.training.metrics import images_per_second


class FixedLogits:
    def logits(self, images: np.ndarray) -> np.ndarray:
        return np.eye(3, dtype=np.float32)[[0, 0, 1, 1, 2, 2]][: len(images)]


@pytest.mark.parametrize(("step", "epoch"), [(1, 1), (5, 1), (6, 2), (10, 2), (13, 3)])
def test_the_row_of_an_epoch(dataset, step, epoch):
    clock = DispatchClock(is_compiled=True)
    clock.add(4, 2.0)
    recipe = TrainConfig(batch_size=2, learning_rate=0.25)
    losses = np.array([1.0, 2.0, 6.0], np.float32)
    row, logits = evaluate_epoch(FixedLogits(), dataset, recipe, step, losses, clock)
    np.testing.assert_array_equal(logits, FixedLogits().logits(dataset.test_images))
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits).double(), torch.from_numpy(dataset.test_labels).long()
    )
    assert row == {
        "epoch": epoch,
        "step": step,
        "train_loss": 3.0,
        "test_loss": pytest.approx(expected.item(), rel=1e-14),
        "test_accuracy": np.mean(dataset.test_labels == [0, 0, 1, 1, 2, 2]),
        "learning_rate": 0.25,
        "train_seconds": 2.0,
        "images_per_second": 4.0,
    }


def test_the_learning_rate_is_that_of_the_last_step(dataset):
    recipe = TrainConfig(batch_size=2, learning_rate=1.0, warmup_epochs=2.0)
    losses, clock = np.ones(5, np.float32), DispatchClock(is_compiled=True)
    rates = [
        evaluate_epoch(FixedLogits(), dataset, recipe, step, losses, clock)[0]["learning_rate"] for step in (5, 10)
    ]
    assert rates == [0.5, 1.0]


def test_the_mean_of_an_epoch_does_not_lose_small_losses(dataset):
    """A float32 sum of so many equal losses would be off in its fourth digit."""
    losses = np.full(2**22 + 1, 0.1, np.float32)
    recipe = replace(TrainConfig(), batch_size=2)
    row, _ = evaluate_epoch(FixedLogits(), dataset, recipe, 5, losses, DispatchClock(is_compiled=True))
    assert row["train_loss"] == pytest.approx(float(np.float32(0.1)), rel=1e-12)


def test_images_per_second():
    assert images_per_second(32, 10, 4.0) == 80
    assert images_per_second(32, 0, 0.0) == 0


@pytest.mark.parametrize(("value", "name"), [(np.nan, "nan"), (np.inf, "inf")])
def test_a_loss_that_is_no_number_is_an_error_that_names_its_step(value, name):
    losses = np.ones(5, np.float32)
    check_finite(losses, 1000)
    losses[[2, 4]] = value
    with pytest.raises(UserError, match=f"^the training loss is {name} at step 1,003: lower --learning-rate"):
        check_finite(losses, 1000)
