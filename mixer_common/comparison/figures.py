"""Everything that a comparison measured, as a file of JSON."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mixer_common import files
from mixer_common.comparison.compare import Comparison
from mixer_common.comparison.differences import LayerDifference
from mixer_common.comparison.recording import Origin


def write_figures(comparison: Comparison, path: Path) -> None:
    """Writes all figures of a comparison; see write_json."""
    write_json(figures(comparison), path)


def write_json(values: dict[str, Any], path: Path) -> None:
    """Writes plain values whole or not at all.

    The file holds finite numbers only. Where one is infinite or not a number, null stands in its place, and KEY_is
    beside it says which: "infinity", "-infinity" or "NaN".
    """
    text = json.dumps(_finite(values), indent=2, allow_nan=False)
    files.replace_file(path, f"{text}\n".encode())


def figures(comparison: Comparison) -> dict[str, Any]:
    """Plain dicts, lists, texts and numbers, infinite ones and NaN among them."""
    first, isolation = comparison.first_past_bound, comparison.isolation
    return {
        "agrees": comparison.agrees,
        "first_past_bound": first and comparison.title(first),
        "cause": comparison.cause,
        "a": _origin(comparison.a),
        "b": _origin(comparison.b),
        "images": comparison.images,
        "precision": comparison.precision,
        "tolerance": comparison.tolerance,
        "passing_tolerance": comparison.passing_tolerance,
        "weights": comparison.weights,
        "settings": [asdict(setting) for setting in comparison.settings],
        "observations": comparison.observations,
        "logits": comparison.logits and asdict(comparison.logits),
        "first_not_finite": comparison.first_not_finite and comparison.title(comparison.first_not_finite),
        "differs_without_effect_at": comparison.without_effect and comparison.without_effect.name,
        "activations": [_difference(difference) for difference in comparison.activations],
        "activation_gradients": [_difference(difference) for difference in comparison.activation_gradients],
        "gradients": [_difference(difference) for difference in comparison.gradients],
        "isolation": isolation
        and {
            "activations": [_difference(difference) for difference in isolation.activations],
            "faults": [{"layer": fault.difference.name, "cause": fault.cause} for fault in isolation.faults],
        },
        "steps": comparison.steps and comparison.steps.to_dict(),
        "bfloat16": [asdict(effect) | {"bears": effect.bears} for effect in comparison.bfloat16],
    }


def _origin(origin: Origin) -> dict[str, Any]:
    """An origin without its losses, which are as many as the steps of its run."""
    return {name: value for name, value in vars(origin).items() if name != "step_losses"}


def _difference(difference: LayerDifference) -> dict[str, Any]:
    values = asdict(difference) | {"past_bound": difference.past_bound, "ratio": difference.ratio}
    if difference.to_judge:
        values["to_judge"] = {
            "a": difference.to_judge.a,
            "b": difference.to_judge.b,
            "factor": difference.to_judge.factor,
        }
    return values


def _finite(value: Any) -> Any:
    """The value with null for every number that JSON has no form for, and its name beside it."""
    if isinstance(value, dict):
        finite = {}
        for key, item in value.items():
            finite[key] = _finite(item)
            if isinstance(item, float) and not math.isfinite(item):
                finite[f"{key}_is"] = "NaN" if math.isnan(item) else "infinity" if item > 0 else "-infinity"
        return finite
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
