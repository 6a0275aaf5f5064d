"""One step, and ten, of every optimizer with schedule, clipping and decay: the same weights and moments."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from helpers import random_weights

import mixer_jax.model
import mixer_jax.optimizer
import mixer_torch.model
import mixer_torch.optimizer
from mixer_common.comparison.bounds import UNIT_ROUNDOFF
from mixer_common.comparison.differences import relative_error
from mixer_common.config.model import weight_shapes
from mixer_common.config.presets import MODELS, RECIPES
from mixer_common.config.train import MOMENTS, TrainConfig
from mixer_common.plan.schedule import bias_corrections, learning_rates

CONFIG = replace(MODELS["tiny"], num_blocks=1)
STEPS = 10
PLAIN = TrainConfig(learning_rate=0.01)
FULL = replace(PLAIN, schedule="cosine", warmup_epochs=0.3, weight_decay=0.1, clip_norm=0.5)
CASES = {
    f"{optimizer}-{name}": replace(recipe, optimizer=optimizer)
    for optimizer in MOMENTS
    for name, recipe in (("plain", PLAIN), ("full", FULL))
}
cases = pytest.mark.parametrize("recipe", CASES.values(), ids=CASES)


def gradients_of(step: int) -> dict[str, np.ndarray]:
    """Arbitrary gradients of very different sizes, the same for both frameworks."""
    random = np.random.default_rng(step)
    return {
        name: random.standard_normal(shape) * 10.0 ** random.uniform(-4, 1)
        for name, shape in weight_shapes(CONFIG).items()
    }


@functools.cache
def compiled_optimizer(recipe: TrainConfig):
    optimizer = mixer_jax.optimizer.make_optimizer(recipe)

    @jax.jit
    def update(grads, state, params, rate, correction):
        updates, state = optimizer.update(grads, state, params, learning_rate=rate, bias_corrections=correction)
        return optax.apply_updates(params, updates), state

    return optimizer, update


def in_jax(recipe: TrainConfig, dtype: str, steps: int, start: int = 0, weights=None, moments=None):
    model = mixer_jax.model.build_model(CONFIG, weights or random_weights(CONFIG), dtype=np.dtype(dtype))
    params = nnx.state(model)
    optimizer, update = compiled_optimizer(recipe)
    state = optimizer.init(params)
    if moments:
        state = mixer_jax.optimizer.load_moments(params, state, recipe, moments)
    rates = learning_rates(recipe, STEPS, start, start + steps).astype(dtype)
    corrections = bias_corrections(recipe, start, start + steps).astype(dtype)
    for i in range(steps):
        grads = mixer_jax.model.from_canonical(params, gradients_of(start + i), dtype=np.dtype(dtype))
        params, state = update(grads, state, params, rates[i], corrections[i])
    weights = mixer_jax.model.to_canonical(CONFIG, params)
    return weights, mixer_jax.optimizer.moments(CONFIG, state, nnx.State({}), recipe)


def in_torch(recipe: TrainConfig, dtype: str, steps: int, start: int = 0, weights=None, moments=None):
    model = mixer_torch.model.build_model(CONFIG, weights or random_weights(CONFIG), dtype=getattr(torch, dtype))
    optimizer = mixer_torch.optimizer.make_optimizer(recipe, model)
    if moments:
        mixer_torch.optimizer.load_moments(model, optimizer, recipe, moments)
        mixer_torch.optimizer.set_step(optimizer, start)
    rates = learning_rates(recipe, STEPS, start, start + steps)
    for i in range(steps):
        grads = gradients_of(start + i)
        for name, p in model.named_parameters():
            p.grad = torch.tensor(grads[name], dtype=p.dtype)
        mixer_torch.optimizer.step(optimizer, recipe, rates[i])
    weights = mixer_torch.model.to_canonical(dict(model.named_parameters()))
    return weights, mixer_torch.optimizer.moments(model, optimizer, recipe)


def assert_equal(results, references, unit_roundoff: float) -> None:
    """Each step makes about ten roundings of either number; the clip's norm sums all gradients pairwise."""
    bound = 2 * 10 * STEPS * unit_roundoff
    (weights, moments), (weights_torch, moments_torch) = results, references
    for name in weights:
        assert relative_error(weights[name], weights_torch[name]) <= bound, name
        for moment in moments:
            assert relative_error(moments[moment][name], moments_torch[moment][name]) <= bound, (moment, name)


@cases
@pytest.mark.parametrize("steps", [1, STEPS])
def test_weights_and_moments_are_equal(precision, recipe, steps):
    assert_equal(in_jax(recipe, precision, steps), in_torch(recipe, precision, steps), UNIT_ROUNDOFF[precision])


@cases
def test_moments_carried_over_go_on_to_the_same_bits(precision, recipe):
    """Five steps, out through the canonical form, in again, five more: as ten in a row."""
    for run in (in_jax, in_torch):
        whole = run(recipe, precision, STEPS)
        weights, moments = run(recipe, precision, STEPS // 2)
        halves = run(recipe, precision, STEPS // 2, STEPS // 2, weights, moments)
        for name in whole[0]:
            assert (whole[0][name] == halves[0][name]).all(), (run.__name__, name)
            for moment in whole[1]:
                assert (whole[1][moment][name] == halves[1][moment][name]).all()


@cases
def test_moments_cross_between_the_frameworks(precision, recipe):
    weights, moments = in_torch(recipe, precision, STEPS // 2)
    crossed = in_jax(recipe, precision, STEPS // 2, STEPS // 2, weights, moments)
    assert_equal(crossed, in_torch(recipe, precision, STEPS), UNIT_ROUNDOFF[precision])
    weights, moments = in_jax(recipe, precision, STEPS // 2)
    crossed = in_torch(recipe, precision, STEPS // 2, STEPS // 2, weights, moments)
    assert_equal(crossed, in_jax(recipe, precision, STEPS), UNIT_ROUNDOFF[precision])


@cases
def test_they_are_optax_s_own_optimizers(recipe):
    """Against optax's ready-made optimizers, which form the bias corrections themselves, in float64."""
    jax.config.update("jax_enable_x64", True)
    rates = learning_rates(recipe, STEPS, 0, STEPS)
    mask = {name: len(shape) > 1 for name, shape in weight_shapes(CONFIG).items()}
    if recipe.optimizer == "adamw":
        ready = optax.adamw(lambda i: jnp.asarray(rates)[i], weight_decay=recipe.weight_decay, mask=mask)
    else:
        inner = optax.adam if recipe.optimizer == "adam" else lambda rate: optax.sgd(rate, recipe.momentum)
        ready = optax.chain(
            optax.add_decayed_weights(recipe.weight_decay, mask), inner(lambda i: jnp.asarray(rates)[i])
        )
    if recipe.clip_norm:
        ready = optax.chain(optax.clip_by_global_norm(recipe.clip_norm), ready)
    params = {name: jnp.asarray(array, jnp.float64) for name, array in random_weights(CONFIG).items()}
    state = ready.init(params)
    for i in range(STEPS):
        updates, state = ready.update(gradients_of(i), state, params)
        params = optax.apply_updates(params, updates)
    ours, _ = in_jax(recipe, "float64", STEPS)
    for name in ours:
        # 1 - 0.999 alone loses ten bits, in optax as in mixer_common
        assert relative_error(ours[name], np.asarray(params[name])) <= 1e-12


@pytest.mark.parametrize("optimizer", MOMENTS)
def test_only_matrices_decay(optimizer):
    """With zero gradients, decay is all that moves a weight."""
    recipe = replace(PLAIN, optimizer=optimizer, weight_decay=0.1, momentum=0.0)
    before = random_weights(CONFIG)
    model = mixer_torch.model.build_model(CONFIG, before)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    mixer_torch.optimizer.step(mixer_torch.optimizer.make_optimizer(recipe, model), recipe, 0.01)
    jax_model = mixer_jax.model.build_model(CONFIG, before)
    params = nnx.state(jax_model)
    transformation = mixer_jax.optimizer.make_optimizer(recipe)
    updates, _ = transformation.update(
        jax.tree.map(jnp.zeros_like, params),
        transformation.init(params),
        params,
        learning_rate=jnp.float32(0.01),
        bias_corrections=jnp.asarray(bias_corrections(recipe, 0, 1)[0], jnp.float32),
    )
    after = (
        mixer_torch.model.to_canonical(dict(model.named_parameters())),
        mixer_jax.model.to_canonical(CONFIG, optax.apply_updates(params, updates)),
    )
    for weights in after:
        moved = {name for name in before if (weights[name] != before[name]).any()}
        assert moved == {name for name, array in before.items() if array.ndim > 1}


def test_the_first_bias_correction_is_exact_in_float32():
    """optax's float32 1 - 0.999**1 is off by 6e-5 relative; ours is rounded once."""
    exact = np.sqrt(1 - 0.999)
    assert abs(bias_corrections(PLAIN, 0, 1).astype(np.float32)[0, 1] / exact - 1) < 2.0**-23


def test_schedules():
    assert (learning_rates(PLAIN, 100, 0, 1000) == PLAIN.learning_rate).all()
    recipe = replace(RECIPES["adamw"], epochs=4, warmup_epochs=1.0, learning_rate=0.5)
    rates = learning_rates(recipe, 100, 0, 400)
    assert rates[0] == 0.5 / 100
    assert rates[99] == rates[100] == 0.5
    assert rates[250] == pytest.approx(0.25)
    assert (np.diff(rates[100:]) < 0).all()
    assert 0 < rates[-1] < 1e-4
    assert (learning_rates(recipe, 100, 137, 291) == rates[137:291]).all()
