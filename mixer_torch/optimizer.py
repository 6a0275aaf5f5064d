"""Adam, AdamW and SGD with momentum; mixer_common/config/train.py has the formulas.

Twin of mixer_jax/optimizer.py.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from mixer_common.config.model import ModelConfig
from mixer_common.config.train import MOMENTS, TrainConfig
from mixer_common.plan.epoch import EpochPlan
from mixer_torch.device import WEIGHTS_DTYPE
from mixer_torch.model import Mixer, build_model, to_canonical

# torch.optim's names for what the canonical form calls otherwise.
_TORCH_NAMES = {"first_moment": "exp_avg", "second_moment": "exp_avg_sq", "momentum": "momentum_buffer"}


def make_optimizer(recipe: TrainConfig, model: Mixer) -> torch.optim.Optimizer:
    """The recipe's optimizer, fused, for the weights that learn. `step` below gives it each learning rate."""
    # Arrays of two or more axes decay; biases and norms have one.
    weights = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in weights if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in weights if p.ndim == 1], "weight_decay": 0.0},
    ]
    if recipe.weight_decay == 0:
        groups = [{"params": weights}]
    # Its learning rate is a placeholder, set before every step.
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=recipe.momentum, fused=True)
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(
        groups, lr=0.0, betas=(recipe.beta1, recipe.beta2), eps=recipe.adam_epsilon, weight_decay=0.0, fused=True
    )


def moments(model: Mixer, optimizer: torch.optim.Optimizer, recipe: TrainConfig) -> dict[str, dict[str, np.ndarray]]:
    """The moments in the optimizer's state: canonical arrays under the names of mixer_common.config.train.MOMENTS.

    Those of weights that do not learn are zero.
    """
    return {
        name: to_canonical(
            {
                weight: optimizer.state[p].get(_TORCH_NAMES[name], torch.zeros_like(p))
                if p in optimizer.state
                else torch.zeros_like(p)
                for weight, p in model.named_parameters()
            }
        )
        for name in MOMENTS[recipe.optimizer]
    }


def load_moments(
    model: Mixer,
    optimizer: torch.optim.Optimizer,
    recipe: TrainConfig,
    arrays: Mapping[str, Mapping[str, np.ndarray]],
) -> None:
    """Replaces the optimizer's state by canonical moments; `set_step` then says of which step they are."""
    for weight, p in model.named_parameters():
        if not p.requires_grad:
            continue
        optimizer.state[p] = {
            _TORCH_NAMES[name]: torch.tensor(arrays[name][weight], dtype=p.dtype, device=p.device)
            for name in MOMENTS[recipe.optimizer]
        }
        if recipe.optimizer != "sgd":
            optimizer.state[p]["step"] = torch.zeros((), dtype=torch.float32, device=p.device)


def update_weights(
    config: ModelConfig,
    recipe: TrainConfig,
    weights: Mapping[str, np.ndarray],
    gradients: Mapping[str, np.ndarray],
    before: Mapping[str, Mapping[str, np.ndarray]] | None,
    plan: EpochPlan,
    i: int,
    device: torch.device,
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
    """The weights and the moments after step `i` of the epoch with these gradients; all canonical.

    before: the moments before it, None at the start of a run.
    """
    dtype = WEIGHTS_DTYPE[recipe.precision]
    model = build_model(config, weights, device, dtype)
    for name, p in model.named_parameters():
        p.grad = torch.tensor(gradients[name], dtype=dtype, device=device)
    optimizer = make_optimizer(recipe, model)
    if before is not None:
        load_moments(model, optimizer, recipe, before)
    set_step(optimizer, plan.first_step + i)
    step(optimizer, recipe, float(plan.learning_rates[i]))
    return to_canonical(dict(model.named_parameters())), moments(model, optimizer, recipe)


def set_step(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Says that `step` steps were made so far, from which Adam's bias corrections follow."""
    for state in optimizer.state.values():
        if "step" in state:
            state["step"].fill_(step)


def step(optimizer: torch.optim.Optimizer, recipe: TrainConfig, learning_rate: float) -> None:
    """One step down the gradients that lie at the weights, clipped by their norm over all of them."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    if recipe.clip_norm:
        clip([p.grad for group in optimizer.param_groups for p in group["params"]], recipe.clip_norm)
    optimizer.step()


def clip(grads: list[Tensor], max_norm: float) -> None:
    """Scales the gradients in place to a common norm of at most `max_norm`.

    torch.nn.utils.clip_grad_norm_ adds 1e-6 to the norm, which optax does not.
    """
    norm = torch.nn.utils.get_total_norm(grads)
    torch._foreach_mul_(grads, max_norm / norm.clamp(min=max_norm))  # pyright: ignore[reportPrivateImportUsage]
