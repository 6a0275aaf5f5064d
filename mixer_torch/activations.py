"""What a comparison looks at: every activation and every gradient of a model. Twin of mixer_jax/activations.py."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from mixer_common.config.model import ModelConfig
from mixer_common.interface import Sink
from mixer_torch.device import WEIGHTS_DTYPE
from mixer_torch.forward import forward
from mixer_torch.model import build_model, to_canonical
from mixer_torch.train import cross_entropy


@torch.no_grad()
def activations_of_weights(
    config: ModelConfig,
    weights: Mapping[str, np.ndarray],
    images: np.ndarray,
    precision: str,
    device: torch.device,
    replacements: Mapping[str, np.ndarray] | None = None,
    sink: Sink | None = None,
) -> dict[str, np.ndarray]:
    """Every activation of one forward pass, in network order and in the weights' dtype; "head" is the logits.

    replacements: activations, by name, with which the model goes on after it has computed its own.
    sink: gets each activation as soon as it is computed; the result is empty then.
    """
    model = build_model(config, weights, device, WEIGHTS_DTYPE[precision])
    others = {name: torch.tensor(array, device=device) for name, array in (replacements or {}).items()}
    recorded: dict[str, Tensor] = {}

    def record(name: str, x: Tensor) -> Tensor:
        value = x.to(WEIGHTS_DTYPE[precision])
        if sink:
            sink(name, value.cpu().numpy())
        else:
            recorded[name] = value
        return others[name].to(x.dtype) if name in others else x

    forward(model, torch.from_numpy(images).to(device), None, precision, record)
    return to_canonical(recorded)


def gradients_of_weights(
    config: ModelConfig,
    weights: Mapping[str, np.ndarray],
    images: np.ndarray,
    labels: np.ndarray,
    precision: str,
    device: torch.device,
) -> dict[str, np.ndarray]:
    """Canonical gradients of the mean cross-entropy of uint8 images (B, H, W, 3), nothing dropped."""
    model = build_model(config, weights, device, WEIGHTS_DTYPE[precision])
    logits = forward(model, torch.from_numpy(images).to(device), None, precision)
    cross_entropy(logits, torch.from_numpy(labels.astype(np.int64)).to(device), 0.0).backward()
    return to_canonical({name: p.grad for name, p in model.named_parameters() if p.grad is not None})


def gradients_of_activations(
    config: ModelConfig,
    weights: Mapping[str, np.ndarray],
    images: np.ndarray,
    labels: np.ndarray,
    precision: str,
    device: torch.device,
) -> dict[str, np.ndarray]:
    """Gradients of the same loss with respect to every activation, in network order and in the weights' dtype."""
    model = build_model(config, weights, device, WEIGHTS_DTYPE[precision])
    recorded: dict[str, Tensor] = {}

    def retain(name: str, x: Tensor) -> Tensor:
        x.retain_grad()
        recorded[name] = x
        return x

    logits = forward(model, torch.from_numpy(images).to(device), None, precision, retain)
    cross_entropy(logits, torch.from_numpy(labels.astype(np.int64)).to(device), 0.0).backward()
    gradients = {name: x.grad for name, x in recorded.items() if x.grad is not None}
    return to_canonical({name: gradient.to(WEIGHTS_DTYPE[precision]) for name, gradient in gradients.items()})
