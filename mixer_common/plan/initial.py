"""The initial weights of a run, the same bits in either framework."""

import numpy as np

from mixer_common.config.model import ModelConfig, layers
from mixer_common.plan.random import generator

# Standard deviation of a unit normal truncated at two deviations; variance-scaling divides by it.
_TRUNCATED_STD = 0.87962566103423978


def initial_weights(config: ModelConfig, seed: int) -> dict[str, np.ndarray]:
    """The weights that a run with this seed starts from: canonical, float32.

    init="pytorch": weights and biases uniform in ±1/√fan_in, as torch.nn.Linear and Conv2d draw them.
    init="flax": weights lecun-normal (truncated at two deviations), biases and the head zero, as the
    paper's authors have it. Norms start as the identity in both.
    """
    random = generator(seed, 0, "init")
    weights: dict[str, np.ndarray] = {}
    for layer in layers(config):
        fan_in = layer.terms  # a bias shares its weight's
        for name, shape in layer.weight_shapes.items():
            is_bias = name.endswith(".bias")
            if layer.kind == "norm":
                array = np.zeros(shape) if is_bias else np.ones(shape)
            elif config.init == "pytorch":
                array = random.uniform(-1, 1, shape) / np.sqrt(fan_in)
            elif is_bias or layer.name == "head":
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
