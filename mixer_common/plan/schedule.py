"""The rates of each step: the learning rate, Adam's bias corrections, the step's share in the average of weights."""

import math

import numpy as np

from mixer_common.config.train import TrainConfig


def total_steps(recipe: TrainConfig, steps_per_epoch: int) -> int:
    """The number of steps of the whole run."""
    return recipe.steps or recipe.epochs * steps_per_epoch


def learning_rates(recipe: TrainConfig, steps_per_epoch: int, first: int, last: int) -> np.ndarray:
    """The learning rates of steps `first` to `last` - 1, counted from 0 over the whole run: float64 (steps,).

    A linear warm-up that reaches the full rate at its last step, then constant, or half a cosine that
    would reach 0 one step after the run's last (Loshchilov & Hutter 2017, arXiv 1608.03983).
    """
    step = np.arange(first, last, dtype=np.float64)
    warmup = round(recipe.warmup_epochs * steps_per_epoch)
    rates = np.full(step.shape, recipe.learning_rate)
    if recipe.schedule == "cosine":
        length = max(total_steps(recipe, steps_per_epoch) - warmup, 1)
        rates *= 0.5 * (1 + np.cos(math.pi * np.clip((step - warmup) / length, 0, 1)))
    if warmup:
        rates = np.where(step < warmup, recipe.learning_rate * (step + 1) / warmup, rates)
    return rates


def bias_corrections(recipe: TrainConfig, first: int, last: int) -> np.ndarray:
    """Adam's 1 − β₁ᵗ and √(1 − β₂ᵗ) of steps `first` to `last` - 1 (t = step + 1): float64 (steps, 2).

    In float32 the difference 1 − 0.999 alone would be wrong by 6e-5.
    """
    t = np.arange(first + 1, last + 1, dtype=np.float64)
    return np.stack([1 - recipe.beta1**t, np.sqrt(1 - recipe.beta2**t)], axis=1)


def ema_rates(recipe: TrainConfig, first: int, last: int) -> np.ndarray:
    """1 − dₜ, the share of steps `first` to `last` - 1 in the average of the weights: float64 (steps,).

    dₜ = min(ema_decay, (1 + t) / (10 + t)) with t = step + 1, the rule of TensorFlow's ExponentialMovingAverage
    with num_updates.
    """
    t = np.arange(first + 1, last + 1, dtype=np.float64)
    return 1 - np.minimum(recipe.ema_decay, (1 + t) / (10 + t))
