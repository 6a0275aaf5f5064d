"""Weights, gradients and moments move freely between the frameworks, exact to the bit."""

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from helpers import identical, random_weights

import mixer_jax.model
import mixer_torch.model
from mixer_common.config.model import weight_shapes
from mixer_common.config.presets import MODELS
from mixer_common.errors import UserError
from mixer_common.plan.initial import initial_weights
from mixer_common.weights.canonical import from_flax, to_flax


@pytest.mark.parametrize("name", ["tutorial", "tiny", "nano"])
def test_weights_round_trip_through_both_models(precision, name):
    config = MODELS[name]
    weights = {key: array.astype(precision) for key, array in random_weights(config).items()}
    through_jax = mixer_jax.model.to_canonical(config, nnx.state(mixer_jax.model.build_model(config, weights)))
    assert identical(through_jax, weights)
    through_torch = mixer_torch.model.to_canonical(mixer_torch.model.build_model(config, through_jax).state_dict())
    assert identical(through_torch, weights)


def test_special_values_survive():
    config = MODELS["tiny"]
    weights = random_weights(config)
    weights["head.weight"].flat[:6] = [np.nan, np.inf, -np.inf, -0.0, 1e-45, 3.4e38]
    through = mixer_jax.model.to_canonical(config, nnx.state(mixer_jax.model.build_model(config, weights)))
    assert identical(through, weights)
    assert identical(
        mixer_torch.model.to_canonical(mixer_torch.model.build_model(config, weights).state_dict()), weights
    )


@pytest.mark.parametrize("name", MODELS)
def test_canonical_names_and_shapes_are_the_pytorch_model_s(name):
    config = MODELS[name]
    with torch.device("meta"):
        model = mixer_torch.model.Mixer(config)
    shapes = {key: tuple(p.shape) for key, p in model.state_dict().items()}
    assert list(shapes.items()) == list(weight_shapes(config).items())
    assert sum(p.numel() for p in model.parameters()) == config.num_parameters


@pytest.mark.parametrize("name", MODELS)
def test_the_table_names_every_flax_parameter(name):
    config = MODELS[name]
    state = nnx.state(nnx.eval_shape(lambda: mixer_jax.model.Mixer(config)))
    flax = {".".join(map(str, path)): variable.shape for path, variable in nnx.to_flat_state(state)}
    empty = {key: np.broadcast_to(np.float32(0), shape) for key, shape in weight_shapes(config).items()}
    assert {key: array.shape for key, array in to_flax(empty).items()} == flax


def test_flax_layouts_are_the_standard_ones():
    """kernel (in, out) and (height, width, in, out): what flax.nnx.Linear and Conv hold."""
    config = MODELS["tiny"]
    flax = to_flax(initial_weights(config, 0))
    assert flax["stem.kernel"].shape == nnx.Conv(3, 64, (4, 4), rngs=nnx.Rngs(0)).kernel.shape
    assert flax["head.kernel"].shape == nnx.Linear(64, 10, rngs=nnx.Rngs(0)).kernel.shape
    assert flax["norm.scale"].shape == nnx.LayerNorm(64, rngs=nnx.Rngs(0)).scale.shape
    assert identical(from_flax(flax, weight_shapes(config)), initial_weights(config, 0))


def test_the_stem_is_the_convolution():
    config = MODELS["tiny"]
    weights = random_weights(config)
    flax = to_flax(weights)
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    convolution = jax.lax.conv_general_dilated(
        pixels, flax["stem.kernel"], (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    ours = mixer_jax.model.build_model(config, weights).stem(pixels)
    np.testing.assert_allclose(ours, convolution.reshape(2, 64, 64) + weights["stem.bias"], rtol=0, atol=2e-6)


def test_what_does_not_fit_is_listed_at_once():
    config = MODELS["tiny"]
    weights = initial_weights(config, 0)
    weights["other.weight"] = weights.pop("head.weight")
    weights["norm.bias"] = weights["norm.bias"][:5]
    for create in (mixer_jax.model.build_model, mixer_torch.model.build_model):
        with pytest.raises(UserError) as error:
            create(config, weights)
        for part in ("head.weight is missing", "other.weight is not expected", "norm.bias has shape (5,)"):
            assert part in str(error.value)
