"""The NumPy core: sizes, names, errors, the common start, the batches."""

import json
import os
import platform
import resource
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from mixer_common.config.fields import by_name, from_dict
from mixer_common.config.model import ModelConfig, activation_bytes, weight_shapes
from mixer_common.config.presets import MODELS, RECIPES
from mixer_common.config.train import TrainConfig
from mixer_common.errors import UserError
from mixer_common.machine import malloc_environment
from mixer_common.plan.batches import batch_indices, steps_in_epoch
from mixer_common.plan.drop_paths import drop_path_rates, drop_path_scales
from mixer_common.plan.epoch import epoch_plan
from mixer_common.plan.initial import initial_weights
from mixer_common.training.arguments import TrainArguments, parse_train
from mixer_common.training.metrics import accuracy, confusion_matrix, cross_entropy

# Published: the tutorial's, and those the paper's authors test (224 px, 1000 classes).
PARAMETERS = {"tutorial": 78_986, "b16": 59_880_472, "b32": 60_293_428, "l16": 208_196_168}

# What seed 1 draws for the tiny model's head.bias, as bits, and seed 0 for the first batch of CIFAR-10.
FROZEN_BIAS = np.array([0xBCB16EEB, 0x3C23B803, 0xBC1A5BD2], np.uint32)
FROZEN_BATCH = [14297, 15288, 3723, 15431]


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS.items())
def test_presets_have_the_published_number_of_parameters(name, parameters):
    assert MODELS[name].num_parameters == parameters


def test_the_presets_that_the_project_sizes_itself():
    assert asdict(MODELS["tiny"]) == asdict(MODELS["tutorial"]) | {"block": "mixer"}
    nano = MODELS["nano"]
    assert (nano.image_size, nano.patch_size, nano.num_blocks) == ((32, 32), 4, 8)
    assert nano.num_parameters <= 670_000


@pytest.mark.parametrize(
    ("given", "model", "recipe"),
    [
        (("--recipe", "fast"), "tiny", "fast"),
        (("--recipe", "nano"), "nano", "nano"),
        (("--recipe", "fast", "--model", "tutorial"), "tutorial", "fast"),
        (("--model", "nano"), "nano", "tutorial"),
        (("--recipe", "adamw"), "tutorial", "adamw"),
    ],
)
def test_a_recipe_brings_its_model(monkeypatch, given, model, recipe):
    monkeypatch.setattr(sys, "argv", ["train_jax.py", *given])
    arguments, _ = parse_train(TrainArguments, "")
    assert (arguments.model, arguments.recipe) == (model, recipe)
    assert (arguments.config, arguments.train) == (MODELS[model], RECIPES[recipe])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_size": 30}, "image_size 30 is not a multiple of patch_size 4"),
        ({"hidden_dim": -64}, "hidden_dim is -64"),
        ({"num_blocks": 0}, "num_blocks is 0"),
        ({"hidden_dim": 1.5}, "whole number"),
        ({"block": "conv"}, "choose one of mixer, tutorial"),
        ({"gelu": "relu"}, "choose one of exact, tanh"),
        ({"layer_norm_epsilon": 0.0}, "layer_norm_epsilon"),
        ({"stochastic_depth": 1.0}, "stochastic_depth"),
    ],
)
def test_a_bad_model_is_a_clear_error(change, words):
    with pytest.raises(UserError, match=words):
        replace(MODELS["tiny"], **change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"learning_rate": -1.0}, "learning_rate is -1"),
        ({"learning_rate": float("nan")}, "finite"),
        ({"optimizer": "lion"}, "choose one of adam, adamw, sgd"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"seed": -1}, "seed is -1"),
        ({"precision": "float16"}, "choose one of float32, bfloat16, float64"),
    ],
)
def test_a_bad_recipe_is_a_clear_error(change, words):
    with pytest.raises(UserError, match=words):
        replace(RECIPES["tutorial"], **change)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match=r"unknown model 'tutoril' \(did you mean tutorial\?\).*h14"):
        by_name("model", MODELS, "tutoril")


def test_configs_survive_json_and_foreign_fields_do_not():
    for config in (*MODELS.values(), *RECIPES.values()):
        assert from_dict(type(config), json.loads(json.dumps(asdict(config))), "here") == config
    with pytest.raises(UserError, match="unknown \\['colour'\\]"):
        from_dict(ModelConfig, asdict(MODELS["tiny"]) | {"colour": 1}, "here")


def test_pytorch_s_start_is_pytorch_s_distribution():
    config = MODELS["b32"]
    weights = initial_weights(config, 0)
    torch.manual_seed(0)
    for module, name in (
        (torch.nn.Linear(768, 3072), "blocks.3.channel_mixing.fc1"),
        (torch.nn.Conv2d(3, 768, 32, 32), "stem"),
    ):
        ours = initial_weights(replace(config, init="pytorch"), 0)
        for leaf, parameter in module.named_parameters():
            array = ours[f"{name}.{leaf}"]
            assert array.shape == parameter.shape
            limit = module.weight[0].numel() ** -0.5
            for values in (array, parameter.detach().numpy()):
                assert 0.98 * limit < abs(values).max() <= limit
                assert values.std() == pytest.approx(limit / 3**0.5, rel=0.1)
    assert not weights["head.weight"].any()
    fc1 = weights["blocks.0.channel_mixing.fc1.weight"]
    assert fc1.std() == pytest.approx(768**-0.5, rel=0.01)  # lecun-normal
    assert abs(fc1).max() <= 2 * 768**-0.5 / 0.8796 + 1e-6
    assert not weights["blocks.0.channel_mixing.fc1.bias"].any()


def test_the_start_depends_on_the_seed_alone():
    config = MODELS["tiny"]
    first, again, other = (initial_weights(config, seed) for seed in (1, 1, 2))
    assert all((first[name] == again[name]).all() for name in first)
    assert (first["head.weight"] != other["head.weight"]).all()
    assert {array.dtype for array in first.values()} == {np.dtype(np.float32)}
    # Frozen: the same numbers on every machine and every version of NumPy.
    np.testing.assert_array_equal(first["head.bias"][:3].view(np.uint32), FROZEN_BIAS)


def test_an_epoch_shows_every_image_once_in_an_order_of_its_own():
    batches = batch_indices(103, 10, seed=0, epoch=3)
    assert batches.shape == (10, 10)
    assert len(np.unique(batches)) == 100
    assert batches.dtype == np.int32
    assert (batches != batch_indices(103, 10, seed=0, epoch=4)).any()
    assert (batches == batch_indices(103, 10, seed=0, epoch=3)).all()
    assert batch_indices(50_000, 4, seed=0, epoch=0)[0].tolist() == FROZEN_BATCH
    with pytest.raises(UserError, match="batch_size 104 is larger than the 103 training images"):
        steps_in_epoch(103, 104)


def test_stochastic_depth_grows_linearly_and_keeps_the_expectation():
    config = replace(MODELS["nano"], stochastic_depth=0.4)
    rates = drop_path_rates(config)
    assert rates[0] == 0
    assert rates[-1] == 0.4
    scales = drop_path_scales(config, 200, 64, seed=0, epoch=0)
    assert scales.shape == (200, 8, 2, 64)
    dropped = (scales == 0).mean(axis=(0, 2, 3))
    np.testing.assert_allclose(dropped, rates, atol=0.015)  # 25,600 draws: five deviations
    np.testing.assert_allclose(scales.mean(axis=(0, 2, 3)), 1, atol=0.03)
    assert drop_path_scales(MODELS["nano"], 1, 1, 0, 0) is None


def test_the_plan_of_an_epoch_continues_the_one_before():
    recipe = replace(RECIPES["adamw"], batch_size=10)
    plans = [epoch_plan(MODELS["tiny"], recipe, (105, 32, 32, 3), epoch) for epoch in (0, 1)]
    assert [plan.steps for plan in plans] == [10, 10]
    assert plans[0].learning_rates[-1] == plans[1].learning_rates[0] == recipe.learning_rate
    assert plans[1].bias_corrections[0, 0] == 1 - 0.9**11


def test_metrics():
    logits = np.array([[2.0, 1.0, 0.0], [0.0, 5.0, 1.0], [0.0, 1.0, 0.5]])
    labels = np.array([0, 1, 2])
    assert accuracy(logits, labels) == pytest.approx(2 / 3)
    assert confusion_matrix(logits, labels).tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0]]
    expected = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels)).item()
    assert cross_entropy(logits, labels) == pytest.approx(expected, rel=1e-14)


def test_weight_shapes_follow_the_network():
    assert list(weight_shapes(MODELS["tiny"]))[:3] == ["stem.weight", "stem.bias", "blocks.0.token_norm.weight"]
    assert weight_shapes(MODELS["tutorial"])["blocks.1.token_mixing.fc1.weight"] == (32, 64)
    assert isinstance(RECIPES["tutorial"], TrainConfig)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only the GNU C library can be told")
@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("model", ["tutorial", "nano"])
def test_large_steps_keep_their_memory_for_the_next(model, told):
    """A second thread asks for it, as in XLA: the second time, its pages are there, and only where steps are large."""
    config, recipe = MODELS[model], RECIPES[model]
    step_bytes = activation_bytes(config, recipe.images_at_once)
    call = f"reuse_freed_memory({step_bytes})" if told else ""
    use = f"""
import resource, threading
from mixer_common.machine import reuse_freed_memory
{call}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target=lambda: b"x" * 2**26)
    thread.start()
    thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults(), faults())"""
    process = subprocess.run(
        [sys.executable, "-c", use],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | ({} if told else malloc_environment(step_bytes)),
    )
    first, second = map(int, process.stdout.split())
    pages = 2**26 // resource.getpagesize()
    assert first >= pages / 2
    assert second <= pages / 100 if model == "nano" else second >= pages / 2


@pytest.mark.parametrize(
    ("model", "gigabytes", "kept"),
    [("tutorial", 24, False), ("nano", 24, True), ("nano", 2, False), ("strong", 24, False), ("strong", 128, True)],
)
def test_memory_is_kept_where_there_is_enough(monkeypatch, model, gigabytes, kept):
    """Kept, six steps of strong with 64 images took 5.4 GB, else 3.0."""
    monkeypatch.setattr("mixer_common.machine.total_memory", lambda: gigabytes * 10**9)
    step_bytes = activation_bytes(MODELS[model], RECIPES[model].images_at_once)
    assert bool(malloc_environment(step_bytes)) == kept
