"""Recordings: what a model computed on some images, with the weights that it computed it with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixer_common.config.model import ModelConfig
from mixer_common.interface import Framework
from mixer_common.weights.canonical import ModelWeights


@dataclass(frozen=True)
class Recording:
    """The weights of one model, and its activations and gradients on some images."""

    config: ModelConfig
    weights: Mapping[str, np.ndarray]  # canonical
    activations: Mapping[str, np.ndarray]  # by config.model.activation_names, in network order
    gradients: Mapping[str, np.ndarray] | None = None  # canonical; None where they were not asked for


def record(
    framework: Framework,
    device: Any,
    weights: ModelWeights,
    images: np.ndarray,
    labels: np.ndarray,
    precision: str,
    gradients: bool,
) -> Recording:
    """Computes a model on images, uint8 (N, H, W, 3); gradients: those of the mean cross-entropy, too.

    device: as framework.prepare returned it. Labels (N,) that the model has no class for are counted round.
    """
    config, arrays = weights.config, weights.arrays
    return Recording(
        config,
        arrays,
        framework.activations(config, arrays, images, precision, device),
        framework.gradients(config, arrays, images, labels % config.num_classes, precision, device)
        if gradients
        else None,
    )
