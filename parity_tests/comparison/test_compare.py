"""compare.py finds where two models part first, whatever was done to one of them."""

import json
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest
from comparison.planted import CONFIG, PROGRAM_FAULTS, SQUARE, other_epsilon, planted, transposed_matrix
from helpers import random_weights

import mixer_torch.activations
import mixer_torch.framework
from mixer_common.comparison.bounds import forward_bounds
from mixer_common.comparison.diagnosis import describe_weights, likely_cause
from mixer_common.comparison.differences import layer_differences
from mixer_common.comparison.recording import Inputs
from mixer_common.comparison.sides import OpenedModel, WeightsSubject
from mixer_common.config.model import ModelConfig, activation_names
from mixer_common.interface import load_framework
from mixer_common.weights.canonical import ModelWeights
from mixer_common.weights.files import save_weights

SAME = ("--dataset", "digits", "--images", 3)


def weights_of(config: ModelConfig, seed: int = 0) -> ModelWeights:
    return ModelWeights(config, random_weights(config, seed), "canonical")


@pytest.fixture
def folder(tmp_path):
    save_weights(tmp_path / "model", weights_of(CONFIG), "canonical")
    return tmp_path / "model"


# At a variance near 1, an epsilon of 1e-5 for 1e-6 moves float32 by less than its rounding: float64 shows it.
@pytest.mark.parametrize(
    ("fault", "precision"),
    [
        (fault, precision)
        for fault in PROGRAM_FAULTS
        for precision in ("float64", "float32")
        if (fault, precision) != (other_epsilon, "float32")
    ],
)
def test_a_fault_in_a_program_is_found(script, tmp_path, monkeypatch, fault, precision):
    """In the first block and in the last, in either side, through the script."""
    save_weights(tmp_path / "model", weights_of(SQUARE if fault is transposed_matrix else CONFIG), "canonical")
    for i in (0, CONFIG.num_blocks - 1):
        with monkeypatch.context() as patch:
            [(layer, cause)] = planted(patch, (fault, i))
            for sides in (("jax", "torch"), ("torch", "jax")):
                code, out, _ = script(
                    "compare", *(f"{side}:{tmp_path / 'model'}" for side in sides), *SAME, "--precision", precision
                )
                assert code == 1
                assert f"They part at {layer}: " in out
                assert next(line for line in out.splitlines() if "<--" in line).split()[0] == layer
                assert cause in out
                assert "Weights    the same on both sides" in out
    code, out, _ = script("compare", tmp_path / "model", tmp_path / "model", *SAME, "--precision", precision)
    assert code == 0
    assert "They agree" in out


# ---- Faults in a file of weights.


def file_transposed(weights):
    arrays = weights.arrays
    arrays["blocks.1.token_mixing.fc1.weight"] = arrays["blocks.1.token_mixing.fc1.weight"].T.copy()
    return "blocks.1.token_mixing.fc1", "its weight transposed"


def file_swapped_norms(weights):
    arrays = weights.arrays
    for part in ("weight", "bias"):
        a, b = f"blocks.1.token_norm.{part}", f"blocks.1.channel_norm.{part}"
        arrays[a], arrays[b] = arrays[b], arrays[a]
    return "blocks.1.token_norm", "the weights of blocks.1.channel_norm, as if the two were swapped"


def file_dropped_bias(weights):
    weights.arrays["blocks.2.channel_mixing.fc2.bias"][:] = 0
    return "blocks.2.channel_mixing.fc2", "no bias"


def file_blue_green_red(weights):
    weights.arrays["stem.weight"] = weights.arrays["stem.weight"][:, ::-1].copy()
    return "stem", "the colours in the order blue, green, red"


def file_other_weights(weights):
    weights.arrays["blocks.1.channel_mixing.fc1.weight"][3, 5] += 0.125
    return "blocks.1.channel_mixing.fc1", "The weights differ here: blocks.1.channel_mixing.fc1.weight, by "


@pytest.mark.parametrize(
    "fault", [file_transposed, file_swapped_norms, file_dropped_bias, file_blue_green_red, file_other_weights]
)
def test_a_fault_in_a_file_is_found(script, tmp_path, fault):
    save_weights(tmp_path / "good", weights_of(SQUARE), "canonical")
    weights = weights_of(SQUARE)
    layer, cause = fault(weights)
    save_weights(tmp_path / "faulty", weights, "canonical")
    for prefixes in (("jax", "torch"), ("jax", "jax")):
        code, out, _ = script(
            "compare", f"{prefixes[0]}:{tmp_path / 'good'}", f"{prefixes[1]}:{tmp_path / 'faulty'}", *SAME
        )
        assert code == 1
        assert f"They part at {layer}: " in out
        assert cause in out
        assert "arrays differ, the first is" in out


@pytest.mark.parametrize("isolate", [(), ("--isolate",)])
def test_a_bias_that_reaches_no_logit_is_reported_as_what_it_is(script, tmp_path, isolate):
    save_weights(tmp_path / "good", weights_of(CONFIG), "canonical")
    weights = weights_of(CONFIG)
    weights.arrays["blocks.1.token_mixing.fc2.bias"][:] = 0
    save_weights(tmp_path / "other", weights, "canonical")
    for precision in ("float64", "float32"):
        code, out, _ = script(
            "compare", tmp_path / "good", tmp_path / "other", *SAME, *isolate, "--precision", precision
        )
        assert code == 0
        assert "They agree: " in out
        assert " arrays differ, the first is blocks.1.token_mixing.fc2.bias" in out
        assert "A and B differ along a direction that every later LayerNorm takes away: " in out
        assert "at blocks.1.token_mixing.fc2, which changes no logit." in out
    assert "which changes no logit" not in script("compare", tmp_path / "good", tmp_path / "good", *SAME)[1]


def test_the_bias_of_the_tutorials_token_mixing_reaches_the_logits(script, tmp_path):
    config = replace(CONFIG, block="tutorial")
    save_weights(tmp_path / "good", weights_of(config), "canonical")
    weights = weights_of(config)
    weights.arrays["blocks.1.token_mixing.fc2.bias"][:] = 0
    save_weights(tmp_path / "other", weights, "canonical")
    code, out, _ = script("compare", tmp_path / "good", tmp_path / "other", *SAME)
    assert code == 1
    assert "They part at blocks.1.token_mixing.fc2: " in out
    assert "no bias" in out
    assert "which changes no logit" not in out


def test_a_head_off_by_one_class_is_found(script, tmp_path, folder):
    other = replace(CONFIG, num_classes=11)
    arrays = random_weights(CONFIG)
    for name in ("head.weight", "head.bias"):
        arrays[name] = np.concatenate([arrays[name][:1], arrays[name]])
    save_weights(tmp_path / "eleven", ModelWeights(other, arrays, "canonical"), "canonical")
    code, out, _ = script("compare", folder, tmp_path / "eleven", *SAME, "--gradients")
    assert code == 1
    assert "They part at head: shape (3, 10) in A, (3, 11) in B" in out
    assert "A tells 10 classes apart, B 11" in out


def test_other_architectures_are_named(script, tmp_path, folder):
    deeper = replace(CONFIG, num_blocks=4, hidden_dim=24)
    save_weights(tmp_path / "deeper", weights_of(deeper), "canonical")
    code, out, _ = script("compare", tmp_path / "deeper", folder, *SAME)
    assert code == 1
    assert "They part at stem: shape (3, 24, 24) in A, (3, 24, 20) in B" in out
    assert "hidden_dim 24 in A, 20 in B; num_blocks 4 in A, 3 in B" in out
    assert "only in A" in out


def test_a_deeper_model_of_other_weights_is_named(script, tmp_path, folder):
    """The first layers have the same shapes, and the weights of the last block no counterpart."""
    save_weights(tmp_path / "deeper", weights_of(replace(CONFIG, num_blocks=4), seed=1), "canonical")
    for sides in ((folder, tmp_path / "deeper"), (tmp_path / "deeper", folder)):
        code, out, _ = script("compare", *sides, *SAME)
        assert code == 1
        assert "They part at stem: " in out
        assert "The weights are others, " in out
        assert "the models have different layers" in out
        assert " inf of their largest" not in out


def test_formats_that_compute_otherwise_are_told_apart(script, tmp_path):
    """The same arrays as the authors compute them, with tanh GELU, and as timm does."""
    weights = weights_of(replace(CONFIG, image_size=16))
    save_weights(tmp_path / "mixer.npz", weights, "npz")
    save_weights(tmp_path / "mixer.safetensors", weights, "timm")
    code, out, _ = script("compare", tmp_path / "mixer.npz", tmp_path / "mixer.safetensors", *SAME)
    assert code == 1
    assert "npz weights of custom" in out
    assert "gelu tanh" in out
    assert "They part at blocks.0.token_mixing.gelu: " in out
    assert "B's values are A's with the exact form of GELU instead of the tanh form" in out


def test_gradients_that_part_alone_are_found(script, folder, monkeypatch):
    gradients = mixer_torch.activations.gradients_of_weights

    def faulty(*arguments):
        return gradients(*arguments) | {"blocks.1.channel_mixing.fc1.weight": np.zeros((36, 20), np.float64)}

    monkeypatch.setattr(mixer_torch.framework.TorchFramework, "gradients", staticmethod(faulty))
    code, out, _ = script("compare", folder, folder, *SAME, "--gradients")
    assert code == 1
    assert "They part at blocks.1.channel_mixing.fc1.weight: largest error" in out
    assert "Every activation agrees" in out


def test_bfloat16_does_not_excuse_another_model(script, tmp_path, folder):
    arrays = random_weights(CONFIG)
    arrays["head.weight"][:] = 0
    save_weights(tmp_path / "headless", ModelWeights(CONFIG, arrays, "canonical"), "canonical")
    code, out, _ = script("compare", folder, tmp_path / "headless", *SAME, "--precision", "bfloat16")
    assert code == 1
    assert "They part at head: " in out
    assert script("compare", folder, folder, *SAME, "--precision", "bfloat16")[0] == 0


def test_runs_that_drifted_apart_are_not_called_faulty(script, tmp_path, folder):
    random = np.random.default_rng(1)
    drifted = {
        name: (array * (1 + 1e-6 * random.standard_normal(array.shape))).astype(np.float32)
        for name, array in random_weights(CONFIG).items()
    }
    save_weights(tmp_path / "drifted", ModelWeights(CONFIG, drifted, "canonical"), "canonical")
    code, out, _ = script("compare", folder, tmp_path / "drifted", *SAME)
    assert code == 1
    assert "The weights are others, " in out
    assert "one run trained twice" in out


def test_the_tolerance_decides(script, tmp_path, folder):
    weights = weights_of(CONFIG)
    weights.arrays["head.bias"][0] += 1e-4
    save_weights(tmp_path / "near", weights, "canonical")
    for tolerance, expected in ((1e-2, 0), (1e-9, 1)):
        code, out, _ = script("compare", folder, tmp_path / "near", *SAME, "--tolerance", tolerance)
        assert code == expected
    assert "with a tolerance of 1e-09" in out
    assert "rounding explains" not in out


def test_every_layer_is_printed_in_network_order(script, folder):
    code, out, _ = script("compare", folder, folder, *SAME, "--gradients")
    assert code == 0
    printed = [line.split()[0] for line in out.splitlines() if "e-" in line and not line.startswith("They")]
    activations = activation_names(CONFIG)
    assert printed == activations + activations[::-1] + list(random_weights(CONFIG))
    assert "A          " in out
    assert "; jax " in out
    assert "; torch " in out


def test_two_runs_of_one_seed_agree(script, tmp_path, monkeypatch):
    """Trained in float32, the bias of token mixing drifts by much more than rounding, and reaches no logit."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for framework in ("jax", "torch"):
        options = ("--dataset", "digits", "--model", "tiny", "--steps", 100, "--out", tmp_path / framework)
        assert script(f"train_{framework}", *options)[0] == 0
    runs = (tmp_path / "jax", tmp_path / "torch", "--dataset", "digits", "--picture", tmp_path / "losses.png")
    code, out, _ = script("compare", *runs, "--gradients", "--isolate")
    assert code == 0
    assert "Precision  float32, as the runs were trained" in out
    assert "They agree: " in out
    assert "30 of 30 arrays differ" in out
    assert "A and B differ along a direction that every later LayerNorm takes away: " in out
    assert "no layer is at fault by itself" in out
    # In float64 the rounding of the weights is past every bound, and one run in both frameworks is compared in it.
    assert script("compare", *runs, "--precision", "float64")[0] == 1
    code, out, _ = script("compare", f"jax:{runs[0]}", f"torch:{runs[0]}", *runs[2:])
    assert code == 0
    assert "Precision  float64\n" in out


def test_two_runs_are_drawn(script, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for framework in ("jax", "torch"):
        code, _, _ = script(
            f"train_{framework}",
            "--dataset",
            "digits",
            "--model",
            "tiny",
            "--steps",
            60,
            "--precision",
            "float64",
            "--out",
            tmp_path / framework,
        )
        assert code == 0
    page, picture = tmp_path / "page.html", tmp_path / "losses.png"
    code, out, _ = script(
        "compare",
        tmp_path / "jax",
        tmp_path / "torch",
        *SAME,
        "--html",
        page,
        "--picture",
        picture,
        "--tolerance",
        1e-6,
    )
    assert code == 0
    assert "after 60 steps on scikit-learn's bundled handwritten digits" in out
    assert "; jax " in out
    assert "; torch " in out
    assert picture.stat().st_size > 10_000
    assert "channel_mixing" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing", "nothing"), "nothing"),
        (("{model}", "jax:nothing"), "nothing"),
        (("{model}", "jax:"), "jax: names a framework and no model"),
        (("{model}", "{model}", "--html", "{model}"), "is a folder, but a file is written there"),
        (("{model}", "{model}", "--images", "0"), "--images is 0"),
        (("{model}", "{model}", "--tolerance", "-1"), "--tolerance is -1"),
        (("{model}", "{model}", "--dataset", "letters"), "unknown data set 'letters'"),
    ],
)
def test_bad_input_is_one_sentence(script, folder, arguments, message):
    code, _, err = script("compare", *(argument.format(model=folder) for argument in arguments))
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_a_damaged_config_is_named(script, folder):
    (folder / "config.json").write_text(json.dumps({"model": asdict(CONFIG) | {"hidden_dim": 21}}))
    code, _, err = script("compare", folder, folder, *SAME)
    assert code == 2
    assert "stem.weight has shape (20, 3, 4, 4) instead of (21, 3, 4, 4)" in err


# ---- The parts.


def test_bounds_grow_along_the_network():
    bounds = forward_bounds(CONFIG, "float32")
    assert list(bounds) == activation_names(CONFIG)
    assert list(bounds.values()) == sorted(bounds.values())


def test_a_nan_is_past_every_bound():
    reference = {"stem": np.ones(3)}
    (error,) = layer_differences({"stem": np.array([1, np.nan, 1])}, reference, {"stem": 1e9})
    assert error.past_bound


@pytest.mark.parametrize("block", ["mixer", "tutorial"])
def test_no_mistake_explains_what_has_none(block):
    """Every candidate differs from the right value, so that a cause is never named for a rounding."""
    config = replace(CONFIG, block=block)
    weights, images = random_weights(config), np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), np.uint8)
    inputs = Inputs(images, np.zeros(2, np.int32), "noise")
    model = OpenedModel("a", "a Mixer", "", ModelWeights(config, weights, "canonical"))
    a, b = (
        WeightsSubject(model, load_framework(name), partial(load_framework(name).prepare, "cpu")).record(
            inputs, "float64"
        )
        for name in ("jax", "torch")
    )
    assert describe_weights(a, b) == "the same on both sides, to the bit"
    for error in layer_differences(b.activations, a.activations, forward_bounds(config, "float64")):
        assert not error.past_bound
        cause = likely_cause(error, a, b)
        assert "values are" not in cause, (error.name, cause)
