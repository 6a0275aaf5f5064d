"""compare.py --isolate names every layer that is at fault, however many there are."""

import json
from dataclasses import replace

import numpy as np
import pytest
from comparison.planted import (
    CONFIG,
    SQUARE,
    dropped_bias,
    other_epsilon,
    planted,
    swapped_norms,
    tanh_gelu,
    transposed_matrix,
)
from helpers import model_weights

from mixer_common.comparison.bounds import layer_bounds
from mixer_common.comparison.differences import layer_differences
from mixer_common.comparison.stream import stream_activations
from mixer_common.config.model import activation_names
from mixer_common.config.presets import MODELS
from mixer_common.interface import load_framework
from mixer_common.weights.files import save_weights

SAME = ("--dataset", "digits", "--images", 3)


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_every_fault_is_found_in_one_call(script, tmp_path, monkeypatch, precision):
    save_weights(tmp_path / "model", model_weights(SQUARE), "canonical")
    for faults in (
        ((tanh_gelu, 0), (dropped_bias, 2)),
        ((swapped_norms, 0), (transposed_matrix, 1), (tanh_gelu, 2)),
    ):
        with monkeypatch.context() as patch:
            expected = planted(patch, *faults)
            for sides in (("jax", "torch"), ("torch", "jax")):
                code, out, _ = script(
                    "compare",
                    *(f"{side}:{tmp_path / 'model'}" for side in sides),
                    *(*SAME, "--isolate", "--precision", precision, "--json", tmp_path / "figures.json"),
                )
                assert code == 1
                found = json.loads((tmp_path / "figures.json").read_text())["isolation"]["faults"]
                layers = [layer for layer, _ in expected]
                if (swapped_norms, 0) in faults:
                    layers.insert(1, "blocks.0.channel_norm")  # the other one of the two
                assert [fault["layer"] for fault in found] == layers
                for layer, cause in expected:
                    assert any(fault["layer"] == layer and cause in fault["cause"] for fault in found)
                    assert f"  {layer} (" in out
                assert f"{len(layers)} layers give other values in B" in out


def test_a_fault_below_the_bound_of_the_whole_is_found(script, tmp_path, monkeypatch):
    """In float32, another epsilon moves a layer by less than the bound of all roundings before it."""
    weights = model_weights(CONFIG)
    for name in weights.arrays:
        if name.startswith("stem"):
            weights.arrays[name] *= np.float32(0.05)  # a small variance, so that an epsilon matters more
    save_weights(tmp_path / "model", weights, "canonical")
    planted(monkeypatch, (other_epsilon, 0))
    assert script("compare", tmp_path / "model", tmp_path / "model", *SAME, "--isolate")[0] == 1
    code, out, _ = script(
        "compare", tmp_path / "model", tmp_path / "model", *SAME, "--precision", "float32", "--isolate"
    )
    assert code == 1
    assert "  blocks.0.token_norm (" in out


def test_equal_models_have_no_fault(script, tmp_path):
    save_weights(tmp_path / "model", model_weights(CONFIG), "canonical")
    for precision in ("float64", "float32", "bfloat16"):
        code, out, _ = script(
            "compare", tmp_path / "model", tmp_path / "model", *SAME, "--isolate", "--precision", precision
        )
        assert code == 0, (precision, out)
        assert "no layer is at fault by itself" in out


def test_another_depth_is_no_crash(script, tmp_path):
    save_weights(tmp_path / "model", model_weights(CONFIG), "canonical")
    save_weights(tmp_path / "deeper", model_weights(replace(CONFIG, num_blocks=4)), "canonical")
    for sides in ((tmp_path / "model", tmp_path / "deeper"), (tmp_path / "deeper", tmp_path / "model")):
        code, out, _ = script("compare", *sides, *SAME, "--isolate")
        assert code == 1
        assert "blocks.3.token_norm (only in " in out


@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("model", ["tiny", "nano", "tutorial"])
def test_the_bounds_of_single_layers_hold(model, precision):
    """Either framework computes every layer from the other's activations within its bound, and not far below it."""
    config = MODELS[model]
    weights = model_weights(config).arrays
    images = np.random.default_rng(0).integers(0, 256, (4, *config.image_size, 3), np.uint8)
    frameworks = [load_framework(name) for name in ("jax", "torch")]
    bounds = layer_bounds(config, precision)
    assert list(bounds) == activation_names(config)
    for first, second in (frameworks, frameworks[::-1]):
        a = first.activations(config, weights, images, precision, first.prepare("cpu", precision))
        b = second.activations(config, weights, images, precision, second.prepare("cpu", precision), a)
        differences = layer_differences(b, a, bounds, without_means=stream_activations(config))
        assert [difference.name for difference in differences if difference.past_bound] == []
        assert max(difference.ratio for difference in differences) > 0.02
