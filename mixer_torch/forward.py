"""The forward pass from bytes to logits. Twin of mixer_jax/forward.py."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from mixer_common.config.model import ModelConfig
from mixer_common.machine import is_memory_exhausted
from mixer_torch.device import COMPUTE_DTYPE, WEIGHTS_DTYPE
from mixer_torch.hooks import Recorder
from mixer_torch.model import Mixer, build_model
from mixer_torch.pixels import bytes_to_pixels

BATCH_SIZE = 500


def forward(
    model: Mixer, images: Tensor, drop_path: Tensor | None, precision: str, recorder: Recorder | None = None
) -> Tensor:
    """Logits (B, num_classes) of images (B, H, W, 3), uint8 or augmented, in the dtype of the weights.

    drop_path, recorder: see Mixer.
    """
    dtype, compute = WEIGHTS_DTYPE[precision], COMPUTE_DTYPE[precision]
    pixels = bytes_to_pixels(images, model.config.image_size, dtype).to(compute)
    drop_path = None if drop_path is None else drop_path.to(compute)
    if compute == dtype:
        return model(pixels, drop_path, recorder)
    weights = {name: p.to(compute) for name, p in model.named_parameters()}
    return torch.func.functional_call(model, weights, (pixels, drop_path, recorder)).to(dtype)


@torch.no_grad()
def logits(model: Mixer, images: np.ndarray, precision: str, size: int = BATCH_SIZE) -> np.ndarray:
    """Logits (N, num_classes) of uint8 images (N, H, W, 3), nothing dropped; `size` images at a time, or half as
    many as often as they do not fit into memory."""
    device = model.head.weight.device
    size = min(size, len(images))
    try:
        return np.concatenate(
            [
                forward(model, torch.from_numpy(images[start : start + size]).to(device), None, precision).cpu().numpy()
                for start in range(0, len(images), size)
            ]
        )
    except Exception as error:
        if size == 1 or not is_memory_exhausted(error):
            raise
    return logits(model, images, precision, size // 2)


def logits_of_weights(
    config: ModelConfig, weights: Mapping[str, np.ndarray], images: np.ndarray, precision: str, device: torch.device
) -> np.ndarray:
    """Logits (N, num_classes) of uint8 images (N, H, W, 3), in the weights' dtype, of canonical weights."""
    return logits(build_model(config, weights, device, WEIGHTS_DTYPE[precision]), images, precision)
