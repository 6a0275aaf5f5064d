"""Whole training runs are equal, step for step; how a run is cut into dispatches changes no bit."""

import itertools
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
import torch
from helpers import AUGMENTATION, EVERYTHING, assert_runs_equal, trained

import mixer_jax.forward
import mixer_jax.train
import mixer_torch.forward
import mixer_torch.train
from mixer_common.comparison.bounds import UNIT_ROUNDOFF, forward_bounds
from mixer_common.comparison.differences import relative_error
from mixer_common.config.model import ModelConfig
from mixer_common.config.presets import MODELS, RECIPES
from mixer_common.config.train import TrainConfig
from mixer_common.machine import is_memory_exhausted
from mixer_common.plan.epoch import epoch_plan
from mixer_common.plan.initial import initial_weights

TUTORIAL = RECIPES["tutorial"]
# What the project promises of a thousand steps of the tutorial's recipe on CIFAR-10.
PROMISED = {"float64": 1e-11, "float32": 1e-4}


@pytest.mark.parametrize(
    ("model", "precision"),
    [
        pytest.param("tutorial", "float64", marks=pytest.mark.slow),
        ("tiny", "float32"),
        pytest.param("tiny", "float64", marks=pytest.mark.slow),
    ],
)
def test_a_thousand_steps_on_digits(model, precision, digits):
    """Not the tutorial's block in float32: on digits it amplifies a rounding a millionfold, and two runs of one
    framework that start one rounding apart come to differ by 0.1 in a step's loss."""
    jax.config.update("jax_enable_x64", precision == "float64")
    assert_runs_equal(MODELS[model], replace(TUTORIAL, precision=precision), digits, 1000)


@pytest.mark.parametrize("precision", ["float64", pytest.param("float32", marks=pytest.mark.slow)], indirect=True)
def test_a_thousand_steps_on_cifar10(precision, cifar10):
    assert_runs_equal(MODELS["tutorial"], replace(TUTORIAL, precision=precision), cifar10, 1000, PROMISED[precision])


def everything(block: str, precision: str) -> tuple[ModelConfig, TrainConfig]:
    """Schedule, clipping, decay, smoothing and stochastic depth."""
    config = replace(MODELS["tiny"], block=block, stochastic_depth=0.3, num_blocks=3)
    return config, replace(EVERYTHING, precision=precision)


@pytest.mark.slow
@pytest.mark.parametrize(("block", "precision"), [("mixer", "float32"), ("mixer", "float64"), ("tutorial", "float64")])
def test_with_everything_switched_on_for_three_epochs(block, precision, digits):
    jax.config.update("jax_enable_x64", precision == "float64")
    assert_runs_equal(*everything(block, precision), digits, 3 * 179)


def test_sgd_with_momentum(precision, digits):
    recipe = replace(EVERYTHING, optimizer="sgd", learning_rate=0.05, precision=precision)
    assert_runs_equal(MODELS["tiny"], recipe, digits, 200)


@pytest.mark.slow
def test_bfloat16_learns_alike(digits):
    """Every step rounds to three digits, so curves agree only in the mean."""
    recipe = replace(TUTORIAL, precision="bfloat16", batch_size=16)
    losses, losses_torch = (
        trained(module, MODELS["tiny"], recipe, digits, 200)[0] for module in (mixer_jax.train, mixer_torch.train)
    )
    assert losses.dtype == losses_torch.dtype == np.float32
    assert losses[-50:].mean() < losses[:50].mean() - 0.2
    assert abs(losses - losses_torch).mean() < 0.05


MODULES = pytest.mark.parametrize("module", [mixer_jax.train, mixer_torch.train], ids=["jax", "torch"])


@MODULES
@pytest.mark.parametrize(("frozen", "precision"), [(False, "float32"), (True, "float64")])
def test_the_model_is_the_average_of_the_weights(module, frozen, precision, digits):
    """Against the formula in float64; each of its steps rounds three times."""
    jax.config.update("jax_enable_x64", precision == "float64")
    config, steps = replace(MODELS["tiny"], num_blocks=1), 12
    recipe = replace(EVERYTHING, ema_decay=0.4, freeze_backbone=frozen, precision=precision, warmup_epochs=0)
    start = initial_weights(config, 0)
    trainer = module.Trainer(config, recipe, start, digits.train_images, digits.train_labels)
    trainer.begin_epoch(epoch_plan(config, recipe, digits.train_images.shape, 0))
    average = {name: array.astype(np.float64) for name, array in start.items()}
    for t in range(1, steps + 1):
        trainer.train(t - 1, t)
        decay = min(0.4, (1 + t) / (10 + t))  # 0.4 from t = 5 on
        trained, model = trainer.moments()["trained_weights"], trainer.weights()
        average = {name: e + (1 - decay) * (trained[name] - e) for name, e in average.items()}
        for name, e in average.items():
            assert np.abs(model[name] - e).max() <= 3 * steps * UNIT_ROUNDOFF[precision] * np.abs(e).max()
            assert (model[name] != trained[name]).any() == (not frozen or name.startswith("head."))
    resumed = module.Trainer(config, recipe, model, digits.train_images, digits.train_labels, trainer.moments())
    judged, again, alone = (
        trainer.logits(digits.test_images),
        resumed.logits(digits.test_images),
        module.Trainer(config, replace(recipe, ema_decay=0), model, digits.train_images, digits.train_labels).logits(
            digits.test_images
        ),
    )
    bound = forward_bounds(config, precision)["head"]
    assert max(relative_error(again, judged), relative_error(alone, judged)) <= bound


@pytest.mark.parametrize(
    "module",
    [pytest.param(mixer_jax.train, id="jax", marks=pytest.mark.slow), pytest.param(mixer_torch.train, id="torch")],
)
def test_a_batch_in_parts_is_the_same_batch(module, digits):
    """Everything that looks at a whole batch is on: partners, the mean, the norm of the gradients."""
    jax.config.update("jax_enable_x64", True)
    config, whole = everything("mixer", "float64")
    config = replace(config, num_blocks=2)
    whole = replace(
        whole,
        **AUGMENTATION,
        ema_decay=0.9,
        warmup_epochs=0,
    )
    runs = [trained(module, config, replace(whole, accumulation=parts), digits, 20) for parts in (1, 4)]
    difference = np.abs(runs[0][0] / runs[1][0] - 1)
    print(f"{module.__name__}: losses differ by {difference[0]:.1e} at the first of 20 steps, {difference.max():.1e}")
    assert difference[0] <= 8 * UNIT_ROUNDOFF["float64"]
    assert difference.max() <= 1e-11


@MODULES
def test_an_evaluation_that_does_not_fit_goes_on_with_fewer_images(module, digits, monkeypatch):
    forward, name, error = {
        mixer_jax.train: (
            mixer_jax.forward,
            "_compiled_forward",
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: memory"),
        ),
        mixer_torch.train: (mixer_torch.forward, "forward", torch.OutOfMemoryError("CUDA out of memory")),
    }[module]
    trainer = module.Trainer(
        MODELS["tiny"], TUTORIAL, initial_weights(MODELS["tiny"], 0), digits.train_images, digits.train_labels
    )
    expected, original, sizes = trainer.logits(digits.test_images), getattr(forward, name), []

    def limited(*arguments):
        sizes.append(max(len(a) for a in arguments if hasattr(a, "shape")))
        if sizes[-1] > limit:
            raise error
        return original(*arguments)

    program = (lambda *_: limited) if module is mixer_jax.train else limited
    if module is mixer_jax.train:
        original = original(trainer.device, trainer.config, "float32")
    monkeypatch.setattr(forward, name, program)
    limit = 100
    assert np.abs(trainer.logits(digits.test_images) - expected).max() < 1e-5
    assert sizes[:3] == [360, 180, 90]
    limit = 0
    with pytest.raises(type(error)):
        trainer.logits(digits.test_images)


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes."), True),
        (jax.errors.JaxRuntimeError("INTERNAL: something else"), False),
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."), True),
        (RuntimeError("shapes do not match"), False),
        (MemoryError("Unable to allocate"), True),
        (ValueError("RESOURCE_EXHAUSTED"), False),
    ],
)
def test_what_is_no_memory(error, answer):
    assert is_memory_exhausted(error) == answer


@MODULES
def test_the_cuts_between_dispatches_change_no_bit(module, precision, digits):
    config, recipe = MODELS["tiny"], replace(TUTORIAL, precision=precision)
    results = []
    for cuts in ([0, 120], [0, 1, 2, 50, 51, 119, 120]):
        trainer = module.Trainer(config, recipe, initial_weights(config, 0), digits.train_images, digits.train_labels)
        trainer.begin_epoch(epoch_plan(config, recipe, digits.train_images.shape, 0))
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
    trainer = mixer_jax.train.Trainer(
        config, TUTORIAL, initial_weights(config, 0), digits.train_images, digits.train_labels
    )
    first = []
    for epoch in range(3):
        trainer.begin_epoch(epoch_plan(config, TUTORIAL, digits.train_images.shape, epoch))
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
        trainer = mixer_torch.train.Trainer(
            config, TUTORIAL, initial_weights(config, 0), digits.train_images, digits.train_labels, compiled=compiled
        )
        trainer.begin_epoch(epoch_plan(config, TUTORIAL, digits.train_images.shape, 0))
        losses.append(trainer.train(0, 300))
    assert np.abs(losses[0] - losses[1]).max() <= PROMISED["float32"]


@pytest.mark.slow
def test_a_whole_epoch_of_cifar10_in_float64(cifar10):
    jax.config.update("jax_enable_x64", True)
    assert_runs_equal(MODELS["tutorial"], replace(TUTORIAL, precision="float64"), cifar10, 12_500, PROMISED["float64"])
