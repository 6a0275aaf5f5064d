"""Models and recipes: sizes and names of the presets, bad values, the way through JSON."""

import json
from dataclasses import asdict, replace

import pytest

from mixer_common.config.fields import by_name, from_dict
from mixer_common.config.model import ModelConfig, layers, weight_shapes
from mixer_common.config.presets import MODELS, RECIPE_MODELS, RECIPES, describe_recipes
from mixer_common.config.train import TrainConfig
from mixer_common.errors import UserError

# Published: the tutorial's, and those the paper's authors test (224 px, 1000 classes).
PARAMETERS = {"tutorial": 78_986, "b16": 59_880_472, "b32": 60_293_428, "l16": 208_196_168}


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS.items())
def test_presets_have_the_published_number_of_parameters(name, parameters):
    assert MODELS[name].num_parameters == parameters


def test_the_presets_that_the_project_sizes_itself():
    assert asdict(MODELS["tiny"]) == asdict(MODELS["tutorial"]) | {"block": "mixer"}
    nano = MODELS["nano"]
    assert (nano.image_size, nano.patch_size, nano.num_blocks) == ((32, 32), 4, 8)
    assert nano.num_parameters <= 670_000


@pytest.mark.parametrize(
    ("change", "message"),
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
def test_a_bad_model_is_a_clear_error(change, message):
    with pytest.raises(UserError, match=message):
        replace(MODELS["tiny"], **change)


@pytest.mark.parametrize(
    ("change", "message"),
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
def test_a_bad_recipe_is_a_clear_error(change, message):
    with pytest.raises(UserError, match=message):
        replace(RECIPES["tutorial"], **change)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match=r"unknown model 'tutoril' \(did you mean tutorial\?\).*h14"):
        by_name("model", MODELS, "tutoril")


def test_configs_survive_json_and_unknown_fields_do_not():
    for config in (*MODELS.values(), *RECIPES.values()):
        assert from_dict(type(config), json.loads(json.dumps(asdict(config))), "here") == config
    with pytest.raises(UserError, match="unknown \\['colour'\\]"):
        from_dict(ModelConfig, asdict(MODELS["tiny"]) | {"colour": 1}, "here")


def test_weight_shapes_follow_the_network():
    assert list(weight_shapes(MODELS["tiny"]))[:3] == ["stem.weight", "stem.bias", "blocks.0.token_norm.weight"]
    assert weight_shapes(MODELS["tutorial"])["blocks.1.token_mixing.fc1.weight"] == (32, 64)
    assert isinstance(RECIPES["tutorial"], TrainConfig)


@pytest.mark.parametrize("block", ["mixer", "tutorial"])
def test_a_layer_over_patches_has_weights_for_each_of_them(block):
    """One more row of patches changes the weights of these layers and of no others."""
    config = ModelConfig(image_size=(12, 20), hidden_dim=24, tokens_mlp_dim=7, channels_mlp_dim=33, block=block)
    taller = replace(config, image_size=(16, 20))
    for layer, grown in zip(layers(config), layers(taller), strict=True):
        assert (layer.name, layer.kind) == (grown.name, grown.kind)
        if layer.weight:
            assert (layer.weight != grown.weight) == layer.over_patches
        elif layer.kind == "pool":
            assert (layer.terms, grown.terms, layer.over_patches) == (15, 20, True)


def test_every_recipe_names_its_model_and_what_it_was_measured_with():
    description = describe_recipes()
    for name in RECIPES:
        assert RECIPE_MODELS[name] in MODELS
        assert f"{name} (for --model {RECIPE_MODELS[name]}): " in description
    assert "67.69% of CIFAR-10's test images in 128 to 143 s" in description
