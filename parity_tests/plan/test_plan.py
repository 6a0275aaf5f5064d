"""What is drawn ahead of a run and of an epoch: the initial weights, the batches, the dropped paths, the rates."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mixer_common.config.presets import MODELS, RECIPES
from mixer_common.errors import UserError
from mixer_common.plan.batches import batch_indices, steps_in_epoch
from mixer_common.plan.drop_paths import drop_path_rates, drop_path_scales
from mixer_common.plan.epoch import epoch_plan
from mixer_common.plan.initial import initial_weights

# What seed 1 draws for the tiny model's head.bias, as bits, and seed 0 for the first batch of CIFAR-10.
FROZEN_BIAS = np.array([0xBCB16EEB, 0x3C23B803, 0xBC1A5BD2], np.uint32)
FROZEN_BATCH = [14297, 15288, 3723, 15431]


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
    assert [(plan.first_step, plan.steps) for plan in plans] == [(0, 10), (10, 10)]
    assert plans[0].learning_rates[-1] == plans[1].learning_rates[0] == recipe.learning_rate
    assert plans[1].bias_corrections[0, 0] == 1 - 0.9**11
