"""Given weights, made to fit the model that a run trains. What image sizes do is in test_image_size.py."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import identical, random_weights

from mixer_common.config.model import ModelConfig
from mixer_common.config.presets import MODELS
from mixer_common.errors import UserError
from mixer_common.training.given_weights import adapt_weights
from mixer_common.weights.canonical import ModelWeights
from mixer_common.weights.image_size import change_image_size

CONFIG = replace(MODELS["tiny"], image_size=16, num_classes=7)


def given(assumed: tuple[str, ...] = (), config: ModelConfig = CONFIG) -> ModelWeights:
    return ModelWeights(config, random_weights(config), "npz", assumed)


def test_weights_that_fit_stay():
    weights, lines = adapt_weights(given(), CONFIG, "here")
    assert weights.config == CONFIG
    assert identical(weights.arrays, given().arrays)
    assert lines == []


def test_other_classes_get_a_head_of_zeros():
    weights, lines = adapt_weights(given(), replace(CONFIG, num_classes=10), "here")
    assert lines == ["head: 7 classes replaced by zeros for 10"]
    assert weights.arrays["head.weight"].shape == (10, 64)
    assert not weights.arrays["head.weight"].any()
    np.testing.assert_array_equal(weights.arrays["stem.weight"], given().arrays["stem.weight"])


def test_another_image_size_carries_the_weights_and_may_widen_the_model():
    weights, lines = adapt_weights(given(), replace(CONFIG, image_size=32), "here")
    carried, sentence = change_image_size(given(), 32)
    assert lines == [f"image size: {sentence}"]
    assert weights.config == replace(CONFIG, image_size=32, tokens_mlp_dim=4 * CONFIG.tokens_mlp_dim)
    assert identical(weights.arrays, carried.arrays)


def test_what_was_assumed_is_told_unless_it_was_stated():
    weights = given(assumed=("gelu", "layer_norm_epsilon", "image_size"))
    _, lines = adapt_weights(weights, CONFIG, "here")
    assert lines == ["assumed, since the file does not tell: gelu exact, layer_norm_epsilon 1e-05, images 16x16"]
    stated, lines = adapt_weights(weights, replace(CONFIG, gelu="tanh"), "here")
    assert lines == ["assumed, since the file does not tell: layer_norm_epsilon 1e-05, images 16x16"]
    assert stated.config.gelu == "tanh"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_dim": 96}, r"here does not fit the model: stem.weight has shape \(64, 3, 4, 4\) instead of \(96,"),
        ({"image_size": (16, 32)}, "image_width 32 cannot be chosen for given weights"),
        ({"image_size": 32, "tokens_mlp_dim": 40}, r"fc1.weight has shape \(128, 64\) instead of \(40, 64\)"),
    ],
)
def test_what_does_not_fit_is_an_error(change, message):
    with pytest.raises(UserError, match=message):
        adapt_weights(given(), replace(CONFIG, **change), "here")
