"""Two models trained side by side from the same weights: in which step, and in which layer, they part first."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from mixer_common.comparison.bounds import UNIT_ROUNDOFF
from mixer_common.comparison.recording import Arrays, RecordingSubject, Subject
from mixer_common.comparison.sides import WeightsSubject
from mixer_common.comparison.steps_cause import Step, gradients_cause, moments_cause, weights_cause
from mixer_common.comparison.stream import drifting_weights
from mixer_common.comparison.subject_trainer import SubjectTrainer, plain_recipe
from mixer_common.config.model import ModelConfig, describe_differences, weight_shapes
from mixer_common.config.presets import RECIPES
from mixer_common.config.train import MOMENTS, TrainConfig
from mixer_common.data import Dataset
from mixer_common.errors import UserError
from mixer_common.interface import load_framework
from mixer_common.plan.epoch import EpochPlan, epoch_plan

# The sets of arrays of each kind that a step leaves, and the kinds in the order in which the step computes them.
KINDS = {
    "gradients": ("gradient",),
    "moments": tuple(dict.fromkeys(name for names in MOMENTS.values() for name in names)),
    "weights": ("weights", "average"),
}
# Chosen. Two frameworks round apart in every layer of every step, so they differ by more than what one rounding of
# the first weights becomes: `tiny` in 100 steps by up to 5 times, and a bias that the moved weights do not reach (the
# head's of `nano`, which begins at zero) by 18 roundings. The rest is room.
MANY_ROUNDINGS = 100
_NO_LOSSES = np.zeros(0), np.zeros(0)


class StepTrainer(Protocol):
    """The part of interface.Trainer that a comparison of steps uses."""

    def begin_epoch(self, plan: EpochPlan) -> None: ...

    def train(self, first: int, last: int) -> np.ndarray: ...

    def weights(self) -> dict[str, np.ndarray]: ...

    def moments(self) -> dict[str, dict[str, np.ndarray]]: ...


@dataclass(frozen=True)
class StepDifference:
    """The distance of side B from side A in one array of one step."""

    step: int  # counted from 1
    name: str  # of the weight, canonical
    arrays: str  # a name in KINDS' values: "gradient", "second_moment"
    error: float  # see rms_errors
    rounding: float  # what one rounding of A's first weights became up to this step
    bound: float
    others: int  # the number of other weights past their bound in this step

    @property
    def ratio(self) -> float:
        """The error as a multiple of its bound."""
        return self.error / self.bound


@dataclass(frozen=True)
class StepsComparison:
    """The distances of two trainings, step by step. printing and page show it."""

    a: str  # as the user wrote it
    b: str
    recipe: TrainConfig  # of both
    description: str  # of the recipe: whose it is, and what was assumed
    names: tuple[str, ...]  # of the weights, canonical, in network order
    without_effect: frozenset[str]  # the weights that the model's outputs do not depend on
    errors: Mapping[str, np.ndarray]  # by the names in KINDS' values: (steps, weights), of B from A; see rms_errors
    rounding: Mapping[str, np.ndarray]  # the same errors of A from A with its first weights moved by one rounding
    losses: tuple[np.ndarray, np.ndarray]  # of A and of B: (steps,)
    cause: str = ""  # one or two sentences on where they part first; empty where they do not

    @property
    def steps(self) -> int:
        return len(self.losses[0])

    @cached_property
    def bounds(self) -> dict[str, np.ndarray]:
        """The largest errors that rounding explains: (steps, weights), by the names of `errors`.

        What one rounding became up to the step, and one rounding of the step's own, MANY_ROUNDINGS times.
        """
        unit = UNIT_ROUNDOFF[self.recipe.precision]
        return {
            name: MANY_ROUNDINGS * (np.fmax.accumulate(rounding, axis=0) + unit)
            for name, rounding in self.rounding.items()
        }

    def ratios(self, kind: str) -> np.ndarray:
        """The errors of a kind as multiples of their bounds: (steps, weights), the largest of its sets of arrays."""
        return np.max([self.errors[name] / self.bounds[name] for name in KINDS[kind] if name in self.errors], axis=0)

    def past_bound(self, kind: str) -> np.ndarray:
        """Whether anything of the kind is past its bound: (steps, weights).

        A weight without effect drifts by rounding alone, so it never is.
        """
        past = ~(self.ratios(kind) <= 1)
        if kind == "weights":
            past[:, [name in self.without_effect for name in self.names]] = False
        return past

    def first_past_bound(self, kind: str) -> StepDifference | None:
        """The first step in which anything of the kind is past its bound.

        Of several weights in that step: of gradients the last one of the network, since they are computed from the
        head back; else the one that is the largest multiple of its bound.
        """
        past = self.past_bound(kind)
        if not past.any():
            return None
        step = int(past.any(axis=1).argmax())
        ratios = np.nan_to_num(self.ratios(kind)[step], nan=np.inf)
        column = int(
            np.flatnonzero(past[step])[-1] if kind == "gradients" else np.where(past[step], ratios, -1).argmax()
        )
        return replace(self._difference(kind, step, column), others=int(past[step].sum()) - 1)

    @cached_property
    def first(self) -> tuple[str, StepDifference] | None:
        """The kind and the place where the trainings part first; None where they do not."""
        found = [(kind, first) for kind in KINDS if (first := self.first_past_bound(kind))]
        return min(found, key=lambda item: item[1].step, default=None)

    def nearest_to_bound(self, kind: str) -> StepDifference:
        """The difference that is the largest multiple of its bound, weights without effect left out."""
        ratios = np.nan_to_num(self.ratios(kind), nan=np.inf)
        if kind == "weights":
            ratios[:, [name in self.without_effect for name in self.names]] = -1
        step, column = np.unravel_index(ratios.argmax(), ratios.shape)
        return self._difference(kind, int(step), int(column))

    @property
    def drifts(self) -> tuple[StepDifference, ...]:
        """The largest distance in every weight without effect."""
        return tuple(
            self._difference("weights", int(np.nan_to_num(self.errors["weights"][:, i]).argmax()), i)
            for i, name in enumerate(self.names)
            if name in self.without_effect
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, texts and numbers; errors and bounds are lists of steps, each one of weights."""
        return {
            "recipe": self.description,
            "agrees": self.first is None,
            "cause": self.cause,
            "first_past_bound": {kind: (first := self.first_past_bound(kind)) and asdict(first) for kind in KINDS},
            "weights": self.names,
            "without_effect": [name for name in self.names if name in self.without_effect],
            "losses": {"a": self.losses[0].tolist(), "b": self.losses[1].tolist()},
            **{
                title: {name: array.tolist() for name, array in arrays.items()}
                for title, arrays in (("errors", self.errors), ("rounding", self.rounding), ("bounds", self.bounds))
            },
        }

    def _difference(self, kind: str, step: int, column: int) -> StepDifference:
        def ratio(name: str) -> float:
            return float(np.nan_to_num(self.errors[name][step, column] / self.bounds[name][step, column], nan=np.inf))

        arrays = max((name for name in KINDS[kind] if name in self.errors), key=ratio)
        return StepDifference(
            step + 1,
            self.names[column],
            arrays,
            float(self.errors[arrays][step, column]),
            float(np.fmax.accumulate(self.rounding[arrays][:, column])[step]),
            float(self.bounds[arrays][step, column]),
            others=0,
        )


def choose_recipe(a: TrainConfig | None, b: TrainConfig | None, precision: str, plain: bool) -> tuple[TrainConfig, str]:
    """The recipe that both sides are trained with, and a description of it.

    a and b: those of the sides that are runs. It is A's, else B's, else that named "tutorial". plain: whether a side
    is trained by SubjectTrainer.
    """
    found, origin = (a, "of A") if a else (b, "of B") if b else (RECIPES["tutorial"], '"tutorial", assumed')
    recipe = replace(found, precision=precision)
    switched_off: tuple[str, ...] = ()
    if plain:
        recipe, switched_off = plain_recipe(recipe)
    description = (
        f"the recipe {origin}: {recipe.optimizer}, learning rate {recipe.learning_rate:g}, {recipe.batch_size} images "
        f"a step, seed {recipe.seed}"
    )
    if switched_off:
        description += f"; without {', '.join(switched_off)}, since a module is given images and labels alone"
    if a and b and (differing := [name for name, value in vars(a).items() if value != vars(b)[name]]):
        description += f"; B's run has another {', '.join(differing)}"
    return recipe, description


def train_and_compare(
    a: Subject, b: Subject, names: tuple[str, str], dataset: Dataset, steps: int, precision: str, device: str
) -> StepsComparison:
    """Trains both sides from A's weights with one recipe on the same images in the same order, and compares each step.

    A third training, A's with every first weight moved by one rounding, shows what the run makes of rounding.
    names: of the sides, as the user wrote them. device: "auto", "cpu" or "gpu". Raises UserError where a side cannot
    be trained or the models have different shapes.
    """
    sides = _trainable(a, names[0]), _trainable(b, names[1])
    shapes = weight_shapes(a.config)
    if shapes != weight_shapes(b.config):
        raise UserError(
            f"--steps trains {names[1]} from the weights of {names[0]}, but the models have different shapes "
            f"({describe_differences(a.config, b.config)}): name two models of the same sizes."
        )
    if missing := a.weights.keys() ^ b.weights.keys():
        raise UserError(
            f"--steps trains {names[1]} from the weights of {names[0]}, but only one of them has "
            f"{', '.join(sorted(missing))}: name two models with the same layers."
        )
    plain = not all(isinstance(side, WeightsSubject) for side in sides)
    recipe_a, recipe_b = (side.recipe if isinstance(side, WeightsSubject) else None for side in sides)
    recipe, description = choose_recipe(recipe_a, recipe_b, precision, plain)
    dtype = np.float64 if precision == "float64" else np.float32
    start = {name: np.asarray(array, dtype) for name, array in a.weights.items()}
    moved = moved_by_one_rounding(start, precision)
    trainers = [
        _trainer(side.with_weights(weights), recipe, dataset, device)
        for side, weights in zip((*sides, sides[0]), (start, start, moved), strict=True)
    ]
    config = replace(a.config, stochastic_depth=0.0) if plain else a.config
    errors, rounding, losses, cause = [], [], [], ""
    drifting = drifting_weights(config)
    counted = [name for name in shapes if name not in drifting]
    shape = dataset.train_images.shape
    for step_losses, (a_step, b_step, moved_step), plan, i in _train(trainers, config, recipe, shape, steps):
        arrays_a, arrays_b, arrays_moved = a_step.after, b_step.after, moved_step.after
        errors.append({name: rms_errors(arrays_b[name], arrays_a[name]) for name in arrays_a})
        rounding.append({name: rms_errors(arrays_moved[name], arrays_a[name]) for name in arrays_a})
        losses.append(step_losses[:2])
        if not cause:
            so_far = {name: np.fmax.reduce([row[name] for row in rounding])[np.newaxis] for name in arrays_a}
            now = {name: error[np.newaxis] for name, error in errors[-1].items()}
            step = StepsComparison(*names, recipe, description, tuple(shapes), drifting, now, so_far, losses=_NO_LOSSES)
            if step.first:
                cause = _cause(step.first[0], recipe, plan, i, a_step, b_step, counted)
    losses_a, losses_b = np.array(losses).T
    return StepsComparison(
        *names,
        recipe,
        description,
        tuple(shapes),
        drifting,
        *({name: np.array([row[name] for row in rows]) for name in rows[0]} for rows in (errors, rounding)),
        losses=(losses_a, losses_b),
        cause=cause,
    )


def _cause(kind: str, recipe: TrainConfig, plan: EpochPlan, i: int, a: Step, b: Step, names: list[str]) -> str:
    if kind == "gradients":
        return gradients_cause(a, b)
    return moments_cause(recipe, b) if kind == "moments" else weights_cause(recipe, plan, i, a, b, names)


def moved_by_one_rounding(weights: Arrays, precision: str) -> dict[str, np.ndarray]:
    """Every weight moved up or down by the distance from 1 to the next number, times the weight."""
    direction = np.random.default_rng(0)
    spacing = 2 * UNIT_ROUNDOFF[precision]
    return {
        name: (array + spacing * direction.choice([-1.0, 1.0], array.shape) * array).astype(array.dtype)
        for name, array in weights.items()
    }


def rms_errors(arrays: Arrays, references: Arrays) -> np.ndarray:
    """The root mean square of the difference in each array, over that of its layer's reference: (weights,).

    The mean over an array, because Adam divides by the root of the second moment: a single entry whose gradient is
    little more than rounding moves by a large part of a step, and would decide the largest error. The larger root
    mean square of a layer's weight and bias, for the reason in bounds.gradient_scales. Entries that are no number on
    both sides are equal.
    """
    scales: dict[str, float] = {}
    for name, reference in references.items():
        layer = name.rpartition(".")[0]
        scales[layer] = max(scales.get(layer, 0.0), _rms(reference[np.isfinite(reference)]))
    errors = []
    for name, reference in references.items():
        with np.errstate(invalid="ignore"):
            difference = arrays[name].astype(np.float64) - reference.astype(np.float64)
        same = (arrays[name] == reference) | (np.isnan(arrays[name]) & np.isnan(reference))
        error, scale = _rms(np.where(same, 0.0, difference)), scales[name.rpartition(".")[0]]
        errors.append(error / scale if scale else np.inf if error else 0.0)
    return np.array(errors)


def _trainable(subject: Subject, name: str) -> Subject:
    if isinstance(subject, RecordingSubject):
        raise UserError(
            f"--steps trains both sides, and {name} is a recording, which computes nothing: name a run, weights or a "
            "module."
        )
    return subject


def _trainer(subject: Subject, recipe: TrainConfig, dataset: Dataset, device: str) -> StepTrainer:
    images, labels = dataset.train_images, dataset.train_labels % subject.config.num_classes
    if isinstance(subject, WeightsSubject):
        return subject.trainer(recipe, images, labels)
    framework = load_framework(subject.framework)
    return SubjectTrainer(subject, framework, framework.prepare(device, recipe.precision), recipe, images, labels)


def _rms(array: np.ndarray) -> float:
    return float(np.sqrt(np.square(array, dtype=np.float64).mean())) if array.size else 0.0


def _train(
    trainers: list[StepTrainer], config: ModelConfig, recipe: TrainConfig, shape: tuple[int, ...], steps: int
) -> Iterator[tuple[list[float], list[Step], EpochPlan, int]]:
    """The loss and the arrays of each trainer in every step, and which step of which epoch's plan it is."""
    states = [_state(trainer) for trainer in trainers]
    epoch = 0
    while steps:
        plan = epoch_plan(config, recipe, shape, epoch)
        for trainer in trainers:
            trainer.begin_epoch(plan)
        for i in range(min(steps, plan.steps)):
            losses = [float(trainer.train(i, i + 1)[0]) for trainer in trainers]
            after = [_state(trainer) for trainer in trainers]
            done = [
                Step(before, {"gradient": _gradient(before, arrays, recipe)} | arrays)
                for before, arrays in zip(states, after, strict=True)
            ]
            yield losses, done, plan, i
            states = after
        steps, epoch = steps - min(steps, plan.steps), epoch + 1


def _state(trainer: StepTrainer) -> dict[str, Arrays]:
    weights, moments = trainer.weights(), trainer.moments()
    if "trained_weights" not in moments:
        return {**moments, "weights": weights}
    trained = moments.pop("trained_weights")
    return {**moments, "weights": trained, "average": weights}


def _gradient(before: Mapping[str, Arrays], after: Mapping[str, Arrays], recipe: TrainConfig) -> dict[str, np.ndarray]:
    """The gradients that the optimizer took into its moments in a step: clipped, and of adam and sgd with their decay.

    The moment's change holds them: m ← β₁m + (1−β₁)g, and of sgd b ← momentum · b + g.
    """
    name, decay, share = ("momentum", recipe.momentum, 1.0)
    if recipe.optimizer != "sgd":
        name, decay, share = ("first_moment", recipe.beta1, 1 - recipe.beta1)
    return {
        weight: (array.astype(np.float64) - decay * before[name][weight]) / share
        for weight, array in after[name].items()
    }
