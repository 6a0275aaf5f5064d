"""The likely cause of two trainings that part: the optimizer's step computed anew with the usual mistakes.

Everything is NumPy in float64. Up to the step both sides agree, so what turns one side's values into the other's is the
cause, whichever program made it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from mixer_common.comparison.recording import Arrays
from mixer_common.config.train import TrainConfig
from mixer_common.plan.epoch import EpochPlan

# A mistake explains a difference when it leaves at most this share of it.
_EXPLAINED = 0.02
_EPSILONS = (0.0, 1e-16, 1e-15, 1e-12, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)


@dataclass(frozen=True)
class Step:
    """One side's arrays around a step, by the names in steps.KINDS' values; gradient and moments are those after it."""

    before: Mapping[str, Arrays]
    after: Mapping[str, Arrays]


def gradients_cause(a: Step, b: Step) -> str:
    """One or two sentences where the gradients of a step part."""
    references, values = a.after["gradient"], b.after["gradient"]
    for side, arrays in (("A", references), ("B", values)):
        if lost := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
            return f"In {side} the gradients of {_some(lost)} are infinite or no numbers."
    for side, zero, other in (("B", values, references), ("A", references, values)):
        if missing := [name for name in other if not np.any(zero[name]) and np.any(other[name])]:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            return (
                f"In {side} no gradient arrives at {missing[-1]}{more}: it is detached there, or the weight is frozen."
            )
    reference, value = _joined(references), _joined(values)
    factor = float(reference @ value / (reference @ reference))
    if _explains(factor * reference, value, reference):
        return (
            f"Every gradient of B is {factor:.6g} times A's: the loss is a sum in one and a mean in the other, the "
            "gradients are clipped in one alone, or beta1 or the momentum is another."
        )
    for side, sign in (("B", 1.0), ("A", -1.0)):
        differing = {name: sign * (values[name] - references[name]) for name in references}
        largest = max(float(np.abs(array).max()) for array in differing.values())
        names = [name for name, array in differing.items() if np.abs(array).max() > 1e-6 * largest]
        weights = _joined({name: a.before["weights"][name] for name in names})
        difference = _joined({name: differing[name] for name in names})
        share = float(weights @ difference / (weights @ weights)) if np.any(weights) else 0.0
        if share > 0 and _explains(share * weights, difference, np.zeros_like(difference)):
            return f"{side}'s gradients of {_some(names)} hold {share:.3g} times the weight: its weight decay."
    return "The weights agree until there, so the way back differs, or the images, the labels or the loss of the step."


def moments_cause(recipe: TrainConfig, b: Step) -> str:
    """One sentence where the moments of a step part, and its gradients do not."""
    if recipe.optimizer == "sgd":
        return "The gradients agree, so the momentum differs."
    before, after = _joined(b.before["second_moment"]), _joined(b.after["second_moment"])
    squares = _joined(b.after["gradient"]) ** 2
    beta2 = float((after - squares) @ (before - squares) / ((before - squares) @ (before - squares)))
    explained = beta2 * before + (1 - beta2) * squares
    if abs(beta2 - recipe.beta2) > 1e-6 and _explains(
        explained, after, recipe.beta2 * before + (1 - recipe.beta2) * squares
    ):
        return f"B's second moment decays with beta2 {beta2:.6g} instead of {recipe.beta2:g}."
    return "The gradients agree, so the rates differ with which the moments decay."


def weights_cause(recipe: TrainConfig, plan: EpochPlan, i: int, a: Step, b: Step, names: list[str]) -> str:
    """One sentence where the weights part in step `i` of the epoch, and its gradients and moments do not.

    names: of the weights that have an effect.
    """
    rate = float(plan.learning_rates[i])
    for good, odd, letter in ((a, b, "B"), (b, a, "A")):
        expected, right, value = (
            _joined(array, names) for array in (_change(recipe, plan, i, odd, rate), _moved(good), _moved(odd))
        )
        if np.linalg.norm(expected - right) > _EXPLAINED * np.linalg.norm(value - right):
            continue  # the other side does not do what the recipe says
        candidates = {
            f"adam_epsilon {epsilon:g} instead of {recipe.adam_epsilon:g}": replace(recipe, adam_epsilon=epsilon)
            for epsilon in (_EPSILONS if recipe.optimizer != "sgd" else ())
        }
        changes = {text: _change(other, plan, i, odd, rate) for text, other in candidates.items()}
        if recipe.optimizer == "adamw" and recipe.weight_decay:
            changes["weight decay of biases and norms, too"] = _change(recipe, plan, i, odd, rate, all_decay=True)
            changes["no weight decay"] = _change(replace(recipe, weight_decay=0.0), plan, i, odd, rate)
        if recipe.optimizer != "sgd":
            changes["no bias corrections"] = _change(recipe, plan, i, odd, rate, corrected=False)
        for text, change in changes.items():
            if _explains(_joined(change, names), value, expected):
                return f"{letter}'s step is the other's with {text}."
        factor = float(expected @ value / (expected @ expected)) if np.any(expected) else 0.0
        if _explains(factor * expected, value, expected):
            rates = f"a learning rate of {factor * rate:.6g} instead of {rate:.6g}"
            for near, place in ((i - 1, "before"), (i + 1, "after")):
                if 0 <= near < plan.steps and np.isclose(plan.learning_rates[near], factor * rate):
                    rates += f", that of the step {place} it"
                    break
            return f"{letter}'s step is the other's with {rates}."
    return (
        "Gradients and moments agree, so the optimizer's step differs (learning rate, epsilon, weight decay, bias "
        "corrections), or the average of the weights."
    )


def _change(
    recipe: TrainConfig,
    plan: EpochPlan,
    i: int,
    step: Step,
    rate: float,
    all_decay: bool = False,
    corrected: bool = True,
) -> dict[str, np.ndarray]:
    """What the recipe's optimizer adds to every weight; config.train has the formulas."""
    first, second = plan.bias_corrections[i] if corrected else (1.0, 1.0)
    changes = {}
    for name, weight in step.before["weights"].items():
        if recipe.optimizer == "sgd":
            change = -rate * step.after["momentum"][name].astype(np.float64)
        else:
            m, v = (step.after[moment][name].astype(np.float64) for moment in ("first_moment", "second_moment"))
            root = np.sqrt(v) / second + recipe.adam_epsilon
            change = -rate * np.divide(m / first, root, out=np.zeros_like(m), where=root > 0)
        if recipe.optimizer == "adamw" and (all_decay or weight.ndim > 1):
            change = change - rate * recipe.weight_decay * weight
        changes[name] = change
    return changes


def _moved(step: Step) -> dict[str, np.ndarray]:
    return {
        name: array.astype(np.float64) - step.before["weights"][name] for name, array in step.after["weights"].items()
    }


def _explains(candidate: np.ndarray, value: np.ndarray, expected: np.ndarray) -> bool:
    """Whether the candidate is nearer to the value than what was expected, by far."""
    return bool(np.linalg.norm(value - candidate) <= _EXPLAINED * np.linalg.norm(value - expected))


def _joined(arrays: Arrays, names: list[str] | None = None) -> np.ndarray:
    return np.concatenate([arrays[name].ravel() for name in (names or arrays)]).astype(np.float64)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} others" if len(names) > 3 else "")
