"""Whole training runs are equal, step for step; how a run is cut into dispatches changes no bit."""

import itertools
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest

import mixer_jax.train
import mixer_torch.train
from mixer_common import metrics
from mixer_common.config import MODELS, MixerConfig
from mixer_common.data import Dataset
from mixer_common.init import initial_weights
from mixer_common.plan import epoch_plan
from mixer_common.recipe import RECIPES, TrainConfig

TUTORIAL = RECIPES["tutorial"]
EVERYTHING = replace(RECIPES["adamw"], batch_size=8, epochs=3, clip_norm=0.5)
# A run is a chain of steps, each of which passes on and amplifies what rounding did before. float64 has
# nine digits to spare for a thousand of them; the float32 figure is what the project promises.
LOSS_BOUND = {"float64": 1e-11, "float32": 1e-4}


def trained(module, config: MixerConfig, recipe: TrainConfig, dataset: Dataset, steps: int):
    """All step losses and the trainer after `steps` steps."""
    trainer = module.Trainer(config, recipe, initial_weights(config, recipe.seed), dataset.train_images,
                             dataset.train_labels)
    losses, epoch = [], 0
    while steps:
        plan = epoch_plan(config, recipe, len(dataset.train_images), epoch)
        trainer.begin_epoch(plan)
        count = min(steps, plan.steps)
        losses.append(trainer.train(0, count))
        steps, epoch = steps - count, epoch + 1
    return np.concatenate(losses), trainer


def assert_runs_equal(config: MixerConfig, recipe: TrainConfig, dataset: Dataset, steps: int) -> None:
    (losses, ours), (losses_torch, theirs) = (
        trained(module, config, recipe, dataset, steps) for module in (mixer_jax.train, mixer_torch.train))
    difference = np.abs(losses - losses_torch).max()
    print(f"{dataset.name}, {recipe.precision}: {steps} steps, largest difference of a loss {difference:.1e}")
    assert losses.dtype == losses_torch.dtype == np.dtype(recipe.precision)
    assert losses[-100:].mean() < losses[:100].mean() - 0.1  # it learns
    assert difference <= LOSS_BOUND[recipe.precision]
    logits, logits_torch = (trainer.logits(dataset.test_images) for trainer in (ours, theirs))
    changed = int((logits.argmax(axis=1) != logits_torch.argmax(axis=1)).sum())
    assert changed <= {"float64": 0, "float32": len(logits) // 1000}[recipe.precision]
    accuracy = metrics.accuracy(logits, dataset.test_labels)
    assert accuracy == pytest.approx(metrics.accuracy(logits_torch, dataset.test_labels), abs=0.003)


@pytest.mark.parametrize("model", ["tutorial", "tiny"])
def test_a_thousand_steps_on_digits(precision, model, digits):
    assert_runs_equal(MODELS[model], replace(TUTORIAL, precision=precision), digits, 1000)


def test_a_thousand_steps_on_cifar10(precision, cifar10):
    assert_runs_equal(MODELS["tutorial"], replace(TUTORIAL, precision=precision), cifar10, 1000)


@pytest.mark.parametrize("block", ["mixer", "tutorial"])
def test_with_schedule_clipping_decay_smoothing_and_stochastic_depth(precision, block, digits):
    config = replace(MODELS["tiny"], block=block, stochastic_depth=0.3, num_blocks=3)
    assert_runs_equal(config, replace(EVERYTHING, precision=precision), digits, 3 * 179)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_other_optimizers(precision, optimizer, digits):
    recipe = replace(EVERYTHING, optimizer=optimizer, precision=precision,
                     learning_rate={"adamw": 1e-3, "sgd": 0.05}[optimizer])
    assert_runs_equal(MODELS["tiny"], recipe, digits, 400)


def test_bfloat16_learns_alike(digits):
    """Every step rounds to three digits, so curves agree only in the mean."""
    recipe = replace(TUTORIAL, precision="bfloat16", batch_size=16)
    losses, losses_torch = (trained(module, MODELS["tiny"], recipe, digits, 200)[0]
                            for module in (mixer_jax.train, mixer_torch.train))
    assert losses.dtype == losses_torch.dtype == np.float32
    assert losses[-50:].mean() < losses[:50].mean() - 0.2
    assert abs(losses - losses_torch).mean() < 0.05


@pytest.mark.parametrize("module", [mixer_jax.train, mixer_torch.train], ids=["jax", "torch"])
def test_the_cuts_between_dispatches_change_no_bit(module, precision, digits):
    config, recipe = MODELS["tiny"], replace(TUTORIAL, precision=precision)
    results = []
    for cuts in ([0, 120], [0, 1, 2, 50, 51, 119, 120]):
        trainer = module.Trainer(config, recipe, initial_weights(config, 0), digits.train_images,
                                 digits.train_labels)
        trainer.begin_epoch(epoch_plan(config, recipe, len(digits.train_images), 0))
        losses = [trainer.train(first, last) for first, last in itertools.pairwise(cuts)]
        results.append({"losses": np.concatenate(losses)} | trainer.weights() | trainer.moments()["first_moment"])
    assert all(results[0][name].tobytes() == results[1][name].tobytes() for name in results[0])


def test_nothing_is_compiled_twice(digits):
    """The loop is compiled once for all chunks and epochs, the evaluation once for all batches."""
    compiled: list[str] = []
    counting = [True]

    def listen(event: str, duration: float, **details: object) -> None:
        if counting[0] and "backend_compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    config = MODELS["tiny"]
    trainer = mixer_jax.train.Trainer(config, TUTORIAL, initial_weights(config, 0), digits.train_images,
                                      digits.train_labels)
    first = []
    for epoch in range(3):
        trainer.begin_epoch(epoch_plan(config, TUTORIAL, len(digits.train_images), epoch))
        for start, end in ((0, 1), (1, 7), (7, 30)):
            trainer.train(start, end)
        trainer.logits(digits.test_images)
        first.append(len(compiled))
    counting[0] = False
    assert first[0] > 0
    assert first == [first[0]] * 3


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_torch_compile_draws_the_same_curve(digits):
    config = MODELS["tiny"]
    losses = []
    for compiled in (False, True):
        trainer = mixer_torch.train.Trainer(config, TUTORIAL, initial_weights(config, 0), digits.train_images,
                                            digits.train_labels, compiled=compiled)
        trainer.begin_epoch(epoch_plan(config, TUTORIAL, len(digits.train_images), 0))
        losses.append(trainer.train(0, 300))
    assert np.abs(losses[0] - losses[1]).max() <= LOSS_BOUND["float32"]


@pytest.mark.slow
def test_a_whole_epoch_of_cifar10_in_float64(cifar10):
    jax.config.update("jax_enable_x64", True)
    assert_runs_equal(MODELS["tutorial"], replace(TUTORIAL, precision="float64"), cifar10, 12_500)
