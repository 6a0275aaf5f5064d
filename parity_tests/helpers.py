"""What several test files share."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import mixer_jax.model
import mixer_jax.train
import mixer_torch.model
import mixer_torch.state_dict_files
import mixer_torch.train
from mixer_common.comparison.bounds import UNIT_ROUNDOFF
from mixer_common.config.model import ModelConfig
from mixer_common.config.presets import MODELS, RECIPES
from mixer_common.config.train import TrainConfig, moment_names
from mixer_common.data import Dataset
from mixer_common.plan.epoch import epoch_plan
from mixer_common.plan.initial import initial_weights
from mixer_common.runs.checkpoint import Checkpoint, RunConfig, TrainingProgress
from mixer_common.weights.canonical import ModelWeights

SCRIPTS = Path(__file__).parents[1] / "scripts"

FRAMEWORKS = pytest.mark.parametrize("framework", ["jax", "torch"])
TRAINERS = {"jax": mixer_jax.train.Trainer, "torch": mixer_torch.train.Trainer}
# A script's options for the smallest run, and the steps that its epoch has with the recipe tutorial's batches of 4.
DIGITS = ("--dataset", "digits", "--model", "tiny")
DIGITS_EPOCH = 1437 // 4


TINY = MODELS["tiny"]
# All its sizes differ, so that no axis can stand for another.
SMALL = ModelConfig(
    image_size=(12, 20), patch_size=4, num_classes=5, hidden_dim=24, num_blocks=2, tokens_mlp_dim=7, channels_mlp_dim=33
)
# A recipe with every part of the optimizer's step switched on.
EVERYTHING = replace(RECIPES["adamw"], batch_size=8, epochs=3, clip_norm=0.5)
# Settings that switch all of the augmentation on.
AUGMENTATION = {
    "crop_padding": 4,
    "flip": True,
    "trivial_augment": True,
    "cutout": 8,
    "mixup": 0.2,
    "cutmix": 1.0,
}

# A run amplifies what rounding does in each of its steps, by factors that depend on data and recipe. How
# much is measured: two runs of JAX alone that start one rounding apart differ by the amplification of that
# one. The frameworks round apart in every layer of every step, so their difference is about ten times that; the
# bound allows a hundred.
MANY_ROUNDINGS = 100


# ---- Weights and checkpoints


def random_weights(config: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """The initial weights plus noise, so that no weight is zero and every path matters."""
    random = np.random.default_rng(seed)
    return {
        name: (array + 0.05 * random.standard_normal(array.shape)).astype(np.float32)
        for name, array in initial_weights(config, seed).items()
    }


def model_weights(config: ModelConfig, seed: int = 0) -> ModelWeights:
    return ModelWeights(config, random_weights(config, seed), "canonical")


def identical(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> bool:
    """Whether two dicts hold the same names in the same order, and arrays of the same dtypes and bits."""
    return list(a) == list(b) and all(
        a[name].dtype == b[name].dtype and a[name].tobytes() == b[name].tobytes() for name in a
    )


def tree(arrays: Mapping[str, np.ndarray]) -> dict:
    """The nested dicts that names such as "head/kernel" are the paths of."""
    nested: dict = {}
    for name, array in arrays.items():
        *parents, leaf = name.split("/")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = array
    return nested


def example(step: int = 7, optimizer: str = "adam", dtype: str = "float64", **changes: object) -> Checkpoint:
    """A checkpoint of `tiny`, begun in JAX and continued in PyTorch; changes: fields of its TrainConfig."""
    config = MODELS["tiny"]
    run = RunConfig(
        "tiny",
        "tutorial",
        "jax",
        config,
        replace(RECIPES["tutorial"], optimizer=optimizer, **changes),
        "digits",
        "somewhere",
        "0123456789abcdef",
        tuple("0123456789"),
        32,
    )
    arrays = [
        {name: array.astype(dtype) / 3 for name, array in random_weights(config, seed).items()} for seed in range(4)
    ]
    moments = dict(zip(moment_names(run.train), arrays[1:], strict=False))
    return Checkpoint(run, TrainingProgress(step, (("jax", 0), ("torch", 3)), 1.5, 0.25, 6), arrays[0], moments)


# ---- Runs


def trained(module, config: ModelConfig, recipe: TrainConfig, dataset: Dataset, steps: int, nudged: bool = False):
    """All step losses and the trainer after `steps` steps; nudged: from weights one rounding away."""
    weights = initial_weights(config, recipe.seed)
    if nudged:
        up = np.random.default_rng(0)
        weights = {
            name: np.nextafter(array, up.choice([-np.inf, np.inf], array.shape).astype(array.dtype))
            for name, array in ((name, array.astype(recipe.precision)) for name, array in weights.items())
        }
    trainer = module.Trainer(config, recipe, weights, dataset.train_images, dataset.train_labels)
    losses, epoch = [], 0
    while steps:
        plan = epoch_plan(config, recipe, dataset.train_images.shape, epoch)
        trainer.begin_epoch(plan)
        count = min(steps, plan.steps)
        losses.append(trainer.train(0, count))
        steps, epoch = steps - count, epoch + 1
    return np.concatenate(losses), trainer


def explained_by_rounding(config: ModelConfig, recipe: TrainConfig, dataset: Dataset, losses: np.ndarray) -> np.ndarray:
    """How far another framework's losses may be from JAX's at each step."""
    nudged, _ = trained(mixer_jax.train, config, recipe, dataset, len(losses), nudged=True)
    rounding = UNIT_ROUNDOFF[recipe.precision] * losses[0]
    return MANY_ROUNDINGS * np.maximum.accumulate(np.abs(losses - nudged) + rounding)


def assert_runs_equal(
    config: ModelConfig, recipe: TrainConfig, dataset: Dataset, steps: int, promised: float | None = None
) -> None:
    """At every step the losses differ by no more than promised, or else by what rounding explains so far."""
    (losses, ours), (losses_torch, theirs) = (
        trained(module, config, recipe, dataset, steps) for module in (mixer_jax.train, mixer_torch.train)
    )
    bound = explained_by_rounding(config, recipe, dataset, losses) if promised is None else np.full(steps, promised)
    difference = np.abs(losses - losses_torch)
    print(
        f"{dataset.name}, {recipe.precision}, {steps} steps: losses differ by {difference.max():.1e}, bound "
        f"{bound[0]:.1e} at the first and {bound[-1]:.1e} at the last step"
    )
    assert (difference <= bound).all()
    assert losses.dtype == losses_torch.dtype == np.dtype(recipe.precision)
    assert losses[-100:].mean() < losses[:100].mean() - 0.1  # it learns
    logits, logits_torch = (trainer.logits(dataset.test_images) for trainer in (ours, theirs))
    changed = int((logits.argmax(axis=1) != logits_torch.argmax(axis=1)).sum())
    assert changed <= {"float64": 0, "float32": len(logits) // 20}[recipe.precision]
