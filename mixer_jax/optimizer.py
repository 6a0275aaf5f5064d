"""Adam, AdamW and SGD with momentum; mixer_common/config/train.py has the formulas.

Twin of mixer_torch/optimizer.py.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from mixer_common.config.model import ModelConfig
from mixer_common.config.train import MOMENTS, TrainConfig
from mixer_common.plan.epoch import EpochPlan
from mixer_jax.device import WEIGHTS_DTYPE, Device
from mixer_jax.model import build_model, from_canonical, to_canonical

# optax's names for what the canonical form calls otherwise, and the names in _AdamState below.
_OPTAX_NAMES = {"first_moment": "first_moment", "second_moment": "second_moment", "momentum": "trace"}


def make_optimizer(recipe: TrainConfig) -> optax.GradientTransformationExtraArgs:
    """The recipe's optimizer. Its `update` also takes `learning_rate` () and `bias_corrections` (2,).

    Both come from mixer_common in double precision: optax.adam forms 1 − β₂ᵗ in float32, where the first
    step's is wrong by 6e-5.
    """
    # Arrays of two or more axes decay; biases and norms have one.
    decay = optax.add_decayed_weights(recipe.weight_decay, lambda params: jax.tree.map(lambda p: p.ndim > 1, params))
    decoupled = recipe.optimizer == "adamw"
    return optax.chain(
        optax.clip_by_global_norm(recipe.clip_norm) if recipe.clip_norm else optax.identity(),
        decay if recipe.weight_decay and not decoupled else optax.identity(),
        optax.trace(recipe.momentum) if recipe.optimizer == "sgd" else _scale_by_adam(recipe),
        decay if recipe.weight_decay and decoupled else optax.identity(),
        _descend(),
    )


def moments(
    config: ModelConfig, state: Any, frozen: nnx.State, recipe: TrainConfig
) -> dict[str, dict[str, np.ndarray]]:
    """The moments in the optimizer's state: canonical arrays under the names of mixer_common.config.train.MOMENTS.

    Those of the `frozen` weights are zero.
    """
    zeros = jax.tree.map(jnp.zeros_like, frozen)
    return {
        name: to_canonical(config, nnx.merge_state(optax.tree.get(state, _OPTAX_NAMES[name]), zeros))
        for name in MOMENTS[recipe.optimizer]
    }


def load_moments(
    params: nnx.State, state: Any, recipe: TrainConfig, arrays: Mapping[str, Mapping[str, np.ndarray]]
) -> Any:
    """The optimizer's state with its moments replaced by canonical arrays; `params`: the weights that learn."""
    loaded: dict[str, Any] = {
        _OPTAX_NAMES[name]: from_canonical(params, arrays[name]) for name in MOMENTS[recipe.optimizer]
    }
    return optax.tree.set(state, **loaded)


def update_weights(
    config: ModelConfig,
    recipe: TrainConfig,
    weights: Mapping[str, np.ndarray],
    gradients: Mapping[str, np.ndarray],
    before: Mapping[str, Mapping[str, np.ndarray]] | None,
    plan: EpochPlan,
    i: int,
    device: Device,
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
    """The weights and the moments after step `i` of the epoch with these gradients; all canonical.

    before: the moments before it, None at the start of a run.
    """
    dtype = WEIGHTS_DTYPE[recipe.precision]
    params = nnx.state(build_model(config, weights, device, dtype))
    optimizer = make_optimizer(recipe)
    state = optimizer.init(params)
    if before is not None:
        state = load_moments(params, state, recipe, before)
    updates, state = optimizer.update(
        from_canonical(params, gradients, device, dtype),
        state,
        params,
        learning_rate=jnp.asarray(plan.learning_rates[i], dtype),
        bias_corrections=jnp.asarray(plan.bias_corrections[i], dtype),
    )
    weights = to_canonical(config, optax.apply_updates(params, updates))  # pyright: ignore[reportArgumentType]
    return weights, moments(config, state, nnx.State({}), recipe)


class _AdamState(NamedTuple):
    first_moment: Any
    second_moment: Any


def _scale_by_adam(recipe: TrainConfig) -> optax.GradientTransformationExtraArgs:
    def init(params: Any) -> _AdamState:
        return _AdamState(jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params))

    def update(updates: Any, state: Any, params: Any = None, **rates: Any) -> tuple[Any, _AdamState]:
        del params
        bias_corrections: Array = rates["bias_corrections"]
        beta1, beta2, epsilon = recipe.beta1, recipe.beta2, recipe.adam_epsilon
        m = jax.tree.map(lambda m, g: m + (1 - beta1) * (g - m), state.first_moment, updates)
        v = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, state.second_moment, updates)
        updates = jax.tree.map(
            lambda m, v: m / bias_corrections[0] / (jnp.sqrt(v) / bias_corrections[1] + epsilon), m, v
        )
        return updates, _AdamState(m, v)

    return optax.GradientTransformationExtraArgs(init, update)


def _descend() -> optax.GradientTransformationExtraArgs:
    def init(params: Any) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None, **rates: Any) -> tuple[Any, Any]:
        del params
        learning_rate: Array = rates["learning_rate"]
        return jax.tree.map(lambda u: -learning_rate * u, updates), state

    return optax.GradientTransformationExtraArgs(init, update)
