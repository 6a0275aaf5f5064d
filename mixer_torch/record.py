"""What a comparison looks at: every activation and every gradient of a model. Twin of mixer_jax/record.py."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from mixer_common.config.model import ModelConfig
from mixer_torch.device import WEIGHTS_DTYPE
from mixer_torch.forward import forward
from mixer_torch.model import build_model, to_canonical
from mixer_torch.train import cross_entropy


@torch.no_grad()
def activations_of_weights(
    config: ModelConfig, weights: Mapping[str, np.ndarray], images: np.ndarray, precision: str, device: torch.device
) -> dict[str, np.ndarray]:
    """Every activation of one forward pass, in network order and in the weights' dtype; "head" is the logits."""
    model = build_model(config, weights, device, WEIGHTS_DTYPE[precision])
    recorded: dict[str, Tensor] = {}
    forward(model, torch.from_numpy(images).to(device), None, precision, recorded.__setitem__)
    return to_canonical({name: value.to(WEIGHTS_DTYPE[precision]) for name, value in recorded.items()})


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
