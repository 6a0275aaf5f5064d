"""What is measured between two sets of arrays, and the direction that is taken out."""

import math

import numpy as np
import pytest
from helpers import SMALL, random_weights

from mixer_common.comparison.differences import layer_differences
from mixer_common.comparison.logits import logit_agreement
from mixer_common.comparison.stream import drifting_weights, stream_activations, with_means_of
from mixer_common.comparison.ulp import ulp_distances
from mixer_common.config.model import ModelConfig
from mixer_common.interface import load_framework

TUTORIAL = ModelConfig(hidden_dim=16, image_size=16, tokens_mlp_dim=8, channels_mlp_dim=24, block="tutorial")


def difference(value: np.ndarray, reference: np.ndarray, **options: object):
    (found,) = layer_differences({"stem": value}, {"stem": reference}, {"stem": 1.0}, **options)
    return found


# ---- Units in the last place


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_neighbours_are_one_unit_apart(dtype):
    values = np.array([1, -1, 3.14159, -1e-3, 60000], dtype)
    for towards in (-math.inf, math.inf):
        neighbours = np.nextafter(values, dtype(towards))
        assert (ulp_distances(values, neighbours, np.dtype(dtype).name) == 1).all()
        assert (ulp_distances(neighbours, values, np.dtype(dtype).name) == 1).all()
    assert (ulp_distances(values, values, np.dtype(dtype).name) == 0).all()


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_numbers_are_counted_over_zero(dtype):
    tiny = np.finfo(dtype).smallest_subnormal
    a, b = np.array([-tiny, -0.0, 0.0, -3 * tiny], dtype), np.array([tiny, 0.0, tiny, 4 * tiny], dtype)
    assert ulp_distances(a, b, np.dtype(dtype).name).tolist() == [2, 0, 1, 7]
    one = np.array([1.0], dtype)
    bits = 2 * int(one.view(f"u{one.itemsize}")[0])
    assert int(ulp_distances(one, -one, np.dtype(dtype).name)[0]) == bits


def test_units_of_bfloat16():
    a = np.array([1, 1, -1, 256, 1.001], np.float32)
    b = np.array([1 + 2**-7, 1 - 2**-8, -1 - 2**-6, 258, 1.002], np.float32)
    assert ulp_distances(a, b, "bfloat16").tolist() == [1, 1, 2, 1, 0]


def test_units_are_those_of_the_lower_dtype():
    a, b = np.array([1, 2, 4.0]), np.array([1, np.nextafter(np.float32(2), np.float32(3)), 4], np.float32)
    for value, reference in ((a, b), (b, a)):
        found = difference(value, reference)
        assert (found.ulp_median, found.ulp_max) == (0, 1)


# ---- The other measures


def test_the_largest_difference_is_placed():
    a = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    b = a.copy()
    b[1, 0, 2] += 4
    b[0, 1, 1] -= 1
    found = difference(b, a)
    assert found.largest is not None
    assert (found.largest.index, found.largest.a, found.largest.b) == ((1, 0, 2), 14, 18)
    assert found.max_error == pytest.approx(4 / 23)
    assert found.l2_error == pytest.approx(math.sqrt(17) / np.linalg.norm(a))
    assert found.cosine == pytest.approx(float(np.vdot(a, b)) / np.linalg.norm(a) / np.linalg.norm(b))
    assert difference(a, a).largest is None
    assert difference(a, a).cosine == pytest.approx(1)
    assert difference(-a, a).cosine == pytest.approx(-1)


def test_what_is_not_finite_is_named_by_side():
    a, b = np.ones((2, 3), np.float32), np.ones((2, 3), np.float32)
    b[1, 2] = np.nan
    found = difference(b, a)
    assert found.not_finite == ("NaN in B",)
    assert found.past_bound
    assert found.largest is not None
    assert found.largest.index == (1, 2)
    assert found.ulp_max is None
    a[0, 0] = -np.inf
    assert difference(b, a).not_finite == ("infinity in A", "NaN in B")
    assert difference(a, a).past_bound
    assert difference(np.ones(3), np.ones(3)).not_finite == ()


def test_the_classes_of_logits():
    a = np.array([[9, 8, 7, 6, 5, 4.0], [0, 0, 0, 0, 0, 0]])
    b = np.array([[8, 9, 7, 6, 5, 4.0], [0, 0, 0, 0, 0, 0]])
    c = np.array([[9, 8, 7, 6, 4, 5.0], [0, 0, 0, 0, 0, 1]])
    found = logit_agreement(a, b)
    assert found is not None
    assert (found.images, found.top1, found.top5) == (2, 1, 2)
    found = logit_agreement(a, c)
    assert found is not None
    assert (found.top1, found.top5) == (1, 0)
    few = logit_agreement(a[:, :5], b[:, :5])
    assert few is not None
    assert few.top5 is None
    assert "five" not in str(few)
    assert logit_agreement(a, a[:, :5]) is None


# ---- The direction that no logit depends on


def logits(config: ModelConfig, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    framework = load_framework("torch")
    images = np.random.default_rng(0).integers(0, 256, (2, *config.image_size, 3), np.uint8)
    return framework.activations(config, weights, images, "float64", framework.prepare("cpu", "float64"))


def test_the_biases_that_reach_no_logit_are_those_of_token_mixing():
    """Other numbers in any of them move the activations that are said to carry them, along their means, and no other;
    every other weight moves the logits."""
    before = logits(SMALL, random_weights(SMALL))
    assert drifting_weights(SMALL) == {"blocks.0.token_mixing.fc2.bias", "blocks.1.token_mixing.fc2.bias"}
    moved = set()
    for name in random_weights(SMALL):
        weights = random_weights(SMALL)
        noise = np.random.default_rng(1).standard_normal(weights[name].shape)
        weights[name] = weights[name].astype(np.float64) + noise
        after = logits(SMALL, weights)
        assert np.allclose(after["head"], before["head"], rtol=0, atol=1e-12) == (name in drifting_weights(SMALL)), name
        if name not in drifting_weights(SMALL):
            continue
        differing = {key for key in before if not np.allclose(after[key], before[key], rtol=0, atol=1e-12)}
        assert differing <= stream_activations(SMALL)
        assert all(np.allclose(with_means_of(after[key], before[key]), before[key], atol=1e-12) for key in differing)
        moved |= differing
    assert moved == stream_activations(SMALL)


def test_in_the_tutorials_block_every_bias_reaches_the_logits():
    assert not stream_activations(TUTORIAL)
    before = logits(TUTORIAL, random_weights(TUTORIAL))["head"]
    for name in random_weights(TUTORIAL):
        weights = random_weights(TUTORIAL)
        weights[name] = weights[name] + np.random.default_rng(1).standard_normal(weights[name].shape)
        assert not np.allclose(logits(TUTORIAL, weights)["head"], before, rtol=0, atol=1e-12), name
    # The same number in all entries is the direction that is left.
    weights = random_weights(TUTORIAL)
    weights["blocks.1.token_mixing.fc2.bias"] = weights["blocks.1.token_mixing.fc2.bias"].astype(np.float64) + 0.5
    assert np.allclose(logits(TUTORIAL, weights)["head"], before, rtol=0, atol=1e-12)


def test_means_are_taken_out_and_nothing_else():
    a = np.random.default_rng(0).standard_normal((2, 3, 5)).astype(np.float32)
    b = a + np.arange(6, dtype=np.float32).reshape(2, 3, 1)
    found = difference(b, a, without_means=("stem",))
    assert found.max_error < 1e-6
    assert found.mean_error == pytest.approx(5 / np.abs(a).max(), rel=1e-5)
    assert found.mean_past_bound
    assert not found.past_bound
    assert difference(b, a).past_bound
    b[1, 2, 3] += 1
    assert difference(b, a, without_means=("stem",)).max_error > 0.2
