"""A port of your own, held to this project's model in your tests: the same weights, every layer, every gradient.

Copy this file beside your port, put your class in the place of MyMixer, and run pytest. Where the two part, the message
names the first layer and the likely cause.
"""

import numpy as np
import pytest
from torch import Tensor, nn

import mixer_jax
import mixer_torch
from mixer_common.comparison.compare import compare


class MyBlock(nn.Module):
    def __init__(self, patches: int, channels: int, tokens_hidden: int, channels_hidden: int):
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.tokens = nn.Sequential(nn.Linear(patches, tokens_hidden), nn.GELU(), nn.Linear(tokens_hidden, patches))
        self.features = nn.Sequential(
            nn.Linear(channels, channels_hidden), nn.GELU(), nn.Linear(channels_hidden, channels)
        )

    def forward(self, x: Tensor) -> Tensor:  # (B, S, C)
        x = x + self.tokens(self.ln1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.features(self.ln2(x))


class MyMixer(nn.Module):
    """Takes pixels (B, 3, H, W) from -1 to 1."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 64, kernel_size=4, stride=4)
        self.layers = nn.Sequential(*(MyBlock(64, 64, 32, 256) for _ in range(2)))
        self.ln = nn.LayerNorm(64)
        self.classify = nn.Linear(64, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.embed(pixels).flatten(2).transpose(1, 2)
        return self.classify(self.ln(self.layers(x)).mean(1))


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_my_port_computes_what_the_reference_computes(precision):
    reference = mixer_jax.create("tiny", seed=1)  # or mixer_jax.load("path/to/weights")
    weights = mixer_jax.weights(reference)
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (4, 32, 32, 3), np.uint8), random.integers(0, 10, 4)

    a = mixer_jax.record(reference, images, labels, precision, gradients=True)
    b = mixer_torch.record(MyMixer(), images, labels, precision, gradients=True, weights=weights)

    comparison = compare(a, b)
    assert comparison.agrees, comparison.cause
    assert not b.observations
