"""compare.py --judge float64, and which layers bear bfloat16."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from comparison.planted import CONFIG, bfloat16_layer, planted
from helpers import model_weights

from mixer_common.comparison.compare import compare
from mixer_common.comparison.judge import FACTOR
from mixer_common.comparison.precisions import LIMIT, layer_effects
from mixer_common.comparison.recording import Inputs, Recording
from mixer_common.comparison.sides import OpenedModel, WeightsSubject
from mixer_common.config.model import ModelConfig, activation_names
from mixer_common.config.presets import MODELS
from mixer_common.interface import load_framework
from mixer_common.weights.files import save_weights

ONE_BLOCK = replace(CONFIG, num_blocks=1)
SAME = ("--dataset", "digits", "--images", 3)


def subject(config: ModelConfig, framework: str, seed: int = 0) -> WeightsSubject:
    model = OpenedModel("model", "a Mixer", framework, model_weights(config, seed))
    return WeightsSubject(model, load_framework(framework), partial(load_framework(framework).prepare, "cpu"))


def inputs_of(config: ModelConfig, count: int = 3) -> Inputs:
    images = np.random.default_rng(0).integers(0, 256, (count, *config.image_size, 3), np.uint8)
    return Inputs(images, np.zeros(count, np.int32), "noise")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", ["tiny", "tutorial", "nano"])
def test_both_frameworks_pass_before_the_judge(model, precision):
    config = MODELS[model]
    inputs, (a, b) = inputs_of(config), (subject(config, name) for name in ("jax", "torch"))
    for first, second in ((a, b), (b, a)):
        comparison = compare(
            first.record(inputs, precision), second.record(inputs, precision), judge=first.record(inputs, "float64")
        )
        errors = [difference.to_judge for difference in comparison.activations]
        assert all(error is not None and error.passes and error.a > 0 for error in errors)
        furthest = comparison.furthest_from_judge
        assert furthest is not None
        assert furthest.to_judge is not None
        assert 1 / FACTOR < furthest.to_judge.factor < FACTOR


def undeclared(recording: Recording) -> Recording:
    return replace(recording, origin=replace(recording.origin, sums_declared=False))


def test_the_judge_decides_where_sums_are_not_declared():
    """Values at 2.9 times the reference's own error pass, at 3.1 times they do not, whatever the bound of the sums."""
    inputs, side = inputs_of(CONFIG), subject(CONFIG, "jax")
    a, judge = side.record(inputs, "float32"), side.record(inputs, "float64")
    for factor, passes in ((2.9, True), (3.1, False)):
        activations = {
            name: right + factor * (a.activations[name].astype(np.float64) - right)
            for name, right in judge.activations.items()
        }
        b = replace(a, activations=activations)
        assert compare(a, b, judge=judge).agrees  # its sums are declared: the bounds are wider
        comparison = compare(a, undeclared(b), judge=judge)
        assert comparison.agrees is passes
        assert all(
            difference.judge_decides and difference.past_bound is not passes for difference in comparison.activations
        )
        assert compare(a, undeclared(b), tolerance=1e-3, judge=judge).agrees
        assert compare(a, undeclared(b)).agrees  # without a judge, the bounds of A's sums


def test_the_script_says_which_side_is_further_from_float64(script, tmp_path, monkeypatch):
    save_weights(tmp_path / "model", model_weights(CONFIG), "canonical")
    sides = (f"jax:{tmp_path / 'model'}", f"torch:{tmp_path / 'model'}")
    code, out, _ = script("compare", *sides, *SAME, "--judge", "float64")
    assert code == 0
    assert "Precision  float32" in out
    assert "to judge" in out
    assert "the largest multiple of all, at " in out
    [(layer, _)] = planted(monkeypatch, (bfloat16_layer, 1))
    figures = tmp_path / "figures.json"
    code, out, _ = script("compare", *sides, *SAME, "--judge", "float64", "--json", figures)
    assert code == 1
    (line,) = [line for line in out.splitlines() if line.startswith("There A is ")]
    assert "times A's error" in line
    found = {entry["name"]: entry["to_judge"] for entry in json.loads(figures.read_text())["activations"]}
    assert found[layer]["factor"] > 1000
    assert found["stem"]["factor"] < FACTOR


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--judge", "float64", "--precision", "float64"), "--judge float64 needs sides of a lower precision"),
        (("--precisions", "--precision", "bfloat16"), "--precisions needs a model of a higher precision"),
    ],
)
def test_precisions_that_make_no_sense_are_refused(script, tmp_path, options, message):
    save_weights(tmp_path / "model", model_weights(CONFIG), "canonical")
    code, _, err = script("compare", tmp_path / "model", tmp_path / "model", *SAME, *options)
    assert code == 2
    assert message in err


# ---- Layers in bfloat16


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_the_effect_of_each_layer(framework):
    inputs, side = inputs_of(ONE_BLOCK), subject(ONE_BLOCK, framework)
    recording = side.record(inputs, "float64")
    effects = list(layer_effects(recording, side))
    assert [effect.name for effect in effects] == [*activation_names(ONE_BLOCK), "all layers"]
    *alone, whole = effects
    assert all(2**-12 < effect.own_error < LIMIT for effect in alone if not effect.name.endswith("_mixing"))
    assert all(0 < effect.logits_error < whole.own_error * 2 for effect in alone)
    assert all(effect.bears for effect in alone)
    head = next(effect for effect in alone if effect.name == "head")
    assert head.own_error == head.logits_error


def test_a_layer_that_does_not_bear_bfloat16_is_named(script, tmp_path):
    """What all channels of the stem have in common is so large that bfloat16 loses what tells them apart."""
    weights = model_weights(ONE_BLOCK)
    weights.arrays["stem.bias"] += 100
    save_weights(tmp_path / "model", weights, "canonical")
    side = f"torch:{tmp_path / 'model'}"
    figures = tmp_path / "figures.json"
    options = ("--precision", "float64", "--precisions", "--json", figures)
    code, out, _ = script("compare", side, side, *SAME, *options)
    assert code == 0
    found = {entry["name"]: entry["bears"] for entry in json.loads(figures.read_text())["bfloat16"]}
    assert not found["stem"]
    assert not found["blocks.0.token_mixing"]  # the stream, which carries it on
    assert not found["norm"]  # it rounds its input
    assert found["pool"]
    assert "do not bear bfloat16" in out
    assert next(line for line in out.splitlines() if line.startswith(" stem ") and "does not bear it" in line)
