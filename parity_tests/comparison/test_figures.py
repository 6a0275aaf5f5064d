"""compare.py --json holds everything that was measured, in finite numbers."""

import json

import numpy as np
from comparison.planted import CONFIG
from helpers import model_weights, random_weights

from mixer_common.comparison.figures import write_json
from mixer_common.config.model import activation_names
from mixer_common.weights.files import save_weights

SAME = ("--dataset", "digits", "--images", 3)


def refuse(constant: str) -> None:
    raise AssertionError(constant)


def test_every_layer_has_every_measure(script, tmp_path):
    save_weights(tmp_path / "model", model_weights(CONFIG), "canonical")
    weights = model_weights(CONFIG)
    weights.arrays["blocks.1.channel_mixing.fc1.bias"][2] = np.nan
    save_weights(tmp_path / "broken", weights, "canonical")
    file = tmp_path / "figures.json"
    code, out, _ = script(
        "compare", tmp_path / "model", tmp_path / "broken", *SAME, "--gradients", "--isolate", "--json", file
    )
    assert code == 1
    assert f"Figures    {file}" in out
    assert "Not finite NaN in B, first at blocks.1.channel_mixing.fc1" in out
    values = json.loads(file.read_text(), parse_constant=refuse)
    assert values["agrees"] is False
    assert values["first_past_bound"] == values["first_not_finite"] == "blocks.1.channel_mixing.fc1"
    assert values["passing_tolerance"] is None
    assert values["passing_tolerance_is"] == "NaN"
    names = activation_names(CONFIG)
    assert [entry["name"] for entry in values["activations"]] == names
    assert [entry["name"] for entry in values["activation_gradients"]] == names[::-1]
    assert [entry["name"] for entry in values["gradients"]] == list(random_weights(CONFIG))
    assert [entry["name"] for entry in values["isolation"]["activations"]] == names
    assert [fault["layer"] for fault in values["isolation"]["faults"]] == ["blocks.1.channel_mixing.fc1"]
    by_name = {entry["name"]: entry for entry in values["activations"]}
    broken = by_name["blocks.1.channel_mixing.fc1"]
    assert broken["max_error"] is None
    assert broken["max_error_is"] == "NaN"
    assert broken["not_finite"] == ["NaN in B"]
    assert broken["largest"]["b"] is None
    assert broken["largest"]["index"][-1] == 2
    stem = by_name["stem"]
    assert stem["cosine"] == 1 or abs(stem["cosine"] - 1) < 1e-12
    assert stem["ulp_median"] <= stem["ulp_max"]
    assert {"l2_error", "bound", "ratio", "past_bound"} <= stem.keys()
    assert values["logits"]["images"] == 3
    assert values["a"]["framework"] == "jax"
    assert "step_losses" not in values["a"]


def test_numbers_that_json_cannot_hold_have_a_name_beside_them(tmp_path):
    write_json({"a": np.inf, "b": -np.inf, "c": [{"d": np.nan}], "e": 1.5}, tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text(), parse_constant=refuse) == {
        "a": None,
        "a_is": "infinity",
        "b": None,
        "b_is": "-infinity",
        "c": [{"d": None, "d_is": "NaN"}],
        "e": 1.5,
    }


def test_the_tolerance_that_is_printed_passes(script, tmp_path):
    weights = model_weights(CONFIG)
    weights.arrays["head.bias"][0] += 1e-4
    save_weights(tmp_path / "model", model_weights(CONFIG), "canonical")
    save_weights(tmp_path / "near", weights, "canonical")
    code, out, _ = script("compare", tmp_path / "model", tmp_path / "near", *SAME)
    assert code == 1
    tolerance = out.split("They would just pass with --tolerance ")[1].split()[0].rstrip(".")
    assert script("compare", tmp_path / "model", tmp_path / "near", *SAME, "--tolerance", tolerance)[0] == 0
    below = f"{float(tolerance) * 0.9:.3e}"
    assert script("compare", tmp_path / "model", tmp_path / "near", *SAME, "--tolerance", below)[0] == 1
