"""The command line of the training scripts, and where its defaults come from."""

import sys
from dataclasses import replace

import pytest
from helpers import identical, random_weights

from mixer_common.config.presets import MODELS, RECIPES
from mixer_common.errors import UserError
from mixer_common.training.arguments import TorchTrainArguments, TrainArguments, parse_train
from mixer_common.weights import command_line
from mixer_common.weights.canonical import ModelWeights
from mixer_common.weights.files import load_weights, save_weights


def parse(monkeypatch, *options: object, arguments_type=TrainArguments):
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, options)])
    return parse_train(arguments_type, "Trains.")


def test_without_any_option(monkeypatch):
    assert parse(monkeypatch) == (TrainArguments(config=MODELS["tutorial"], train=RECIPES["tutorial"]), None)


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
    arguments, _ = parse(monkeypatch, *given)
    assert (arguments.model, arguments.recipe) == (model, recipe)
    assert (arguments.config, arguments.train) == (MODELS[model], RECIPES[recipe])


def test_every_field_has_its_option(monkeypatch):
    arguments, _ = parse(
        monkeypatch, "--hidden-dim", 32, "--image_size", 16, 24, "--flip", "--operations", "rotate", "--trivial-augment"
    )
    assert arguments.config == replace(MODELS["tutorial"], hidden_dim=32, image_size=(16, 24))
    assert arguments.train == replace(RECIPES["tutorial"], flip=True, trivial_augment=True, operations=("rotate",))


def test_what_a_recipe_has_on_can_be_switched_off(monkeypatch):
    arguments, _ = parse(monkeypatch, "--recipe", "fast", "--no-flip")
    assert arguments.train == replace(RECIPES["fast"], flip=False)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        (("--image-size", 40), (40, 40)),
        (("--image-size", 40, 20), (40, 20)),
        (("--image-size", 40, "--image-width", 20), (40, 20)),
        (("--image-width", 20, "--image-size", 40), (40, 20)),
        (("--image_width", 20), (32, 20)),
        (("--image-size", 40, "--image-width", 0), (40, 40)),
    ],
)
def test_image_sizes_and_the_older_option_for_the_width(monkeypatch, options, size):
    assert parse(monkeypatch, *options)[0].config.image_size == size


def test_pytorch_s_own_option(monkeypatch):
    arguments, _ = parse(monkeypatch, "--compile", arguments_type=TorchTrainArguments)
    assert arguments.compile


def test_given_weights_are_read_once_and_bring_their_model(monkeypatch, tmp_path):
    config = replace(MODELS["nano"], num_classes=7)
    weights = random_weights(config)
    save_weights(tmp_path / "start", ModelWeights(config, weights, "canonical"), "canonical")
    read = []
    monkeypatch.setattr(command_line, "load_weights", lambda path, **options: read.append(path) or load_weights(path))
    arguments, given = parse(monkeypatch, "--init-from", tmp_path / "start", "--gelu", "exact")
    assert read == [str(tmp_path / "start")]
    assert (arguments.model, arguments.config) == ("nano", replace(config, gelu="exact"))
    assert given.config == config
    assert identical(given.arrays, weights)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--init-from", "a", "--resume"), "leave one of them out"),
        (("--init-from", "a", "--model", "tiny"), "leave --model out"),
        (("--model", "tinny"), "unknown model 'tinny'"),
        (("--recipe", "adam"), "unknown recipe 'adam'"),
    ],
)
def test_a_bad_command_line_is_one_sentence(monkeypatch, options, sentence):
    with pytest.raises(UserError, match=sentence):
        parse(monkeypatch, *options)


def test_a_resumed_run_gives_the_defaults(monkeypatch, tmp_path, config):
    (tmp_path / "config.json").write_text(config.to_json())
    arguments, given = parse(monkeypatch, "--out", tmp_path, "--resume", "--steps", 99)
    assert given is None
    assert (arguments.model, arguments.recipe, arguments.config) == ("tiny", "tutorial", config.model)
    assert arguments.train == replace(config.train, steps=99)
