"""Training in JAX: pure step functions, and the Trainer that holds their state.

Twin of mixer_torch/train.py.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from mixer_common.config.model import ModelConfig
from mixer_common.config.train import TrainConfig
from mixer_common.plan.epoch import EpochPlan
from mixer_jax import optimizer
from mixer_jax.augment import augment, of_step
from mixer_jax.device import WEIGHTS_DTYPE, Device
from mixer_jax.forward import forward, logits
from mixer_jax.model import Mixer, build_model, to_canonical
from mixer_jax.xla import compiler_options


def cross_entropy(logits: Array, labels: Array, label_smoothing: float) -> Array:
    """Mean cross-entropy () in nats of logits (B, num_classes) and labels (B,); a smoothed label shares
    `label_smoothing` equally among all classes."""
    log_probabilities = jax.nn.log_softmax(logits)
    nll = -jnp.take_along_axis(log_probabilities, labels[:, None], axis=1).mean()
    if label_smoothing == 0:
        return nll
    return (1 - label_smoothing) * nll - label_smoothing * log_probabilities.mean()


def loss(logits: Array, labels: Array, partners: Array, label_weight: Array | None, label_smoothing: float) -> Array:
    """The cross-entropy of `labels` (B,); where images are mixed, `label_weight` () is what that counts for, and the
    cross-entropy of the labels of their partners, `partners` (B,), counts for the rest."""
    if label_weight is None:
        return cross_entropy(logits, labels, label_smoothing)
    own, other = (cross_entropy(logits, part, label_smoothing) for part in (labels, partners))
    return label_weight * own + (1 - label_weight) * other


class Trainer:
    """A model in training: weights, optimizer state and data set on the device.

    The precision float64 asks for jax_enable_x64. The steps of an epoch run on the device, as many as the
    caller likes per dispatch, in one loop that is compiled once for the whole run.
    """

    def __init__(
        self,
        config: ModelConfig,
        recipe: TrainConfig,
        weights: Mapping[str, np.ndarray],
        images: np.ndarray,
        labels: np.ndarray,
        moments: Mapping[str, Mapping[str, np.ndarray]] | None = None,
        device: Device | None = None,
    ):
        """weights: canonical, the model's; moments: canonical, by the names of mixer_common.config.train.moment_names,
        or None at the start of a run; images: uint8 (N, H, W, 3); labels: (N,)."""
        self.config, self.recipe, self.device = config, recipe, device or jax.devices()[0]
        is_trained = (lambda path, _: path[0] == "head") if recipe.freeze_backbone else nnx.Param
        trained = weights if moments is None else moments.get("trained_weights", weights)
        self.graphdef, self.params, self.frozen = nnx.split(
            build_model(config, trained, self.device, WEIGHTS_DTYPE[recipe.precision]), is_trained, ...
        )
        self.average = (
            None
            if not recipe.ema_decay
            else nnx.state(build_model(config, weights, self.device, WEIGHTS_DTYPE[recipe.precision]), is_trained)
        )
        self.optimizer = optimizer.make_optimizer(recipe)
        opt_state = self.optimizer.init(self.params)
        if moments is not None:
            opt_state = optimizer.load_moments(self.params, opt_state, recipe, moments)
        # On the device as the loop will return it, or the second call would compile anew.
        self.opt_state = jax.device_put(opt_state, self.device)
        self.images, self.labels = jax.device_put((images, labels.astype(np.int32)), self.device)
        self._run = jax.jit(self._steps, donate_argnums=0, compiler_options=compiler_options(self.device, config))

    def begin_epoch(self, plan: EpochPlan) -> None:
        """Hands the epoch's numbers to the device."""
        dtype = WEIGHTS_DTYPE[self.recipe.precision]
        self.plan = _on_device(plan, self.device, dtype)
        self.losses = jnp.zeros(plan.steps, dtype, device=self.device)

    def train(self, first: int, last: int) -> np.ndarray:
        """Steps `first` to `last` - 1 of the epoch; the training loss of each, in the weights' dtype."""
        self.dispatch(first, last)
        return np.asarray(self.losses)[first:last]

    def dispatch(self, first: int, last: int) -> None:
        """Starts steps `first` to `last` - 1 of the epoch and does not wait for them; `losses` will hold theirs."""
        self.params, self.opt_state, self.average, self.losses = self._run(
            (self.params, self.opt_state, self.average, self.losses),
            self.frozen,
            self.images,
            self.labels,
            self.plan,
            first,
            last,
        )

    def augmented(self, i: int) -> np.ndarray:
        """The images of step `i` of the epoch as they are trained on: bytes (B, H, W, 3), as real numbers."""
        batch, draws = self.images[self.plan["indices"][i]], of_step(self.plan["augmentation"], i)
        return np.asarray(jax.jit(augment, static_argnums=2)(batch, draws, WEIGHTS_DTYPE[self.recipe.precision]))

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Logits (N, num_classes) of uint8 images (N, H, W, 3), nothing dropped."""
        return logits(self._eval_model, images, self.recipe.precision)

    def weights(self) -> dict[str, np.ndarray]:
        """The model's weights, canonical: where there is an average, that."""
        return to_canonical(self.config, nnx.state(self._eval_model))

    def moments(self) -> dict[str, dict[str, np.ndarray]]:
        """What the training needs beside the model to continue: canonical arrays, by the names of
        mixer_common.config.train.moment_names."""
        moments = optimizer.moments(self.config, self.opt_state, self.frozen, self.recipe)
        if self.average is not None:
            moments["trained_weights"] = to_canonical(self.config, nnx.merge_state(self.params, self.frozen))
        return moments

    @property
    def _eval_model(self) -> Mixer:
        return nnx.merge(self.graphdef, self.params if self.average is None else self.average, self.frozen)

    def _steps(
        self, state: tuple, frozen: nnx.State, images: Array, labels: Array, plan: dict, first: Array, last: Array
    ) -> tuple:
        # A loop whose bounds are arguments: one program serves every chunk, so a run's bits do not depend on where it
        # was cut into dispatches, or interrupted.
        return jax.lax.fori_loop(first, last, partial(self._step, frozen, images, labels, plan), state)

    def _step(self, frozen: nnx.State, images: Array, labels: Array, plan: dict, i: Array, state: tuple) -> tuple:
        params, opt_state, average, losses = state
        batch, draws = plan["indices"][i], of_step(plan["augmentation"], i)
        drop_path = None if plan["drop_path"] is None else plan["drop_path"][i]
        augmented = augment(images[batch], draws, WEIGHTS_DTYPE[self.recipe.precision])

        def objective(
            params: nnx.State, images: Array, labels: Array, partners: Array, drop_path: Array | None
        ) -> Array:
            logits = forward(nnx.merge(self.graphdef, params, frozen), images, drop_path, self.recipe.precision)
            return loss(logits, labels, partners, draws.get("label_weight"), self.recipe.label_smoothing)

        value, grads = _mean_over_parts(
            objective, self.recipe.accumulation, params, augmented, labels[batch], labels[batch][::-1], drop_path
        )
        updates, opt_state = self.optimizer.update(
            grads,
            opt_state,
            params,
            learning_rate=plan["learning_rates"][i],
            bias_corrections=plan["bias_corrections"][i],
        )
        params = optax.apply_updates(params, updates)
        if average is not None:
            average = jax.tree.map(lambda e, w: e + plan["ema_rates"][i] * (w - e), average, params)
        return params, opt_state, average, losses.at[i].set(value)


def _on_device(plan: EpochPlan, device: Device, dtype: np.dtype) -> dict[str, Any]:
    """What the steps read of the plan, its real numbers in `dtype`."""
    return jax.device_put(
        {
            "indices": plan.indices,
            "learning_rates": plan.learning_rates.astype(dtype),
            "bias_corrections": plan.bias_corrections.astype(dtype),
            "ema_rates": None if plan.ema_rates is None else plan.ema_rates.astype(dtype),
            "drop_path": None if plan.drop_path is None else plan.drop_path.astype(dtype),
            "augmentation": {
                name: rows.astype(dtype) if rows.dtype == np.float64 else rows
                for name, rows in plan.augmentation.items()
            },
        },
        device,
    )


def _mean_over_parts(
    objective: Callable[..., Array],
    count: int,
    params: nnx.State,
    images: Array,
    labels: Array,
    partners: Array,
    drop_path: Array | None,
) -> tuple[Array, nnx.State]:
    """Loss and gradients of a batch, worked off in `count` equal parts one after another."""
    if count == 1:
        return jax.value_and_grad(objective)(params, images, labels, partners, drop_path)

    def add(total: tuple[Array, nnx.State], part: tuple) -> tuple[tuple[Array, nnx.State], None]:
        share = jax.value_and_grad(lambda params: objective(params, *part) / count)(params)
        return jax.tree.map(jnp.add, total, share), None

    parts = [array.reshape(count, -1, *array.shape[1:]) for array in (images, labels, partners)]
    drop_paths = None if drop_path is None else jnp.stack(jnp.split(drop_path, count, axis=-1))
    nothing = jnp.zeros((), images.dtype), jax.tree.map(jnp.zeros_like, params)
    return jax.lax.scan(add, nothing, (*parts, drop_paths))[0]
