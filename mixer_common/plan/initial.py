"""The start of a run: the same weights, to the bit, in either framework."""

import numpy as np

from mixer_common.config.model import ModelConfig, weight_shapes
from mixer_common.plan.random import generator

# Standard deviation of a unit normal truncated at two deviations; variance-scaling divides by it.
_TRUNCATED_STD = 0.87962566103423978


def initial_weights(config: ModelConfig, seed: int) -> dict[str, np.ndarray]:
    """Canonical weights, float32.

    init="pytorch": weights and biases uniform in ±1/√fan_in, as torch.nn.Linear and Conv2d draw them.
    init="flax": weights lecun-normal (truncated at two deviations), biases and the head zero, as the
    paper's authors have it. Norms start as the identity in both.
    """
    random = generator(seed, 0, "init")
    weights: dict[str, np.ndarray] = {}
    fan_in = 1
    for name, shape in weight_shapes(config).items():
        if "norm" in name:
            array = np.full(shape, float(name.endswith(".weight")))
        else:
            if name.endswith(".weight"):  # a bias follows its weight and shares its fan-in
                fan_in = int(np.prod(shape[1:]))
            if config.init == "pytorch":
                array = random.uniform(-1, 1, shape) / np.sqrt(fan_in)
            elif name.endswith(".bias") or name == "head.weight":
                array = np.zeros(shape)
            else:
                array = _truncated_normal(random, shape) / (_TRUNCATED_STD * np.sqrt(fan_in))
        weights[name] = array.astype(np.float32)
    return weights


def _truncated_normal(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    values = random.standard_normal(shape)
    while (outside := np.abs(values) > 2).any():
        values[outside] = random.standard_normal(int(outside.sum()))
    return values
