"""The direction of the residual stream along which two equal functions may hold different numbers.

In the paper's block, token mixing's last bias adds one number to all channels of a token. The stream is read by
LayerNorms over the channels alone, and each of them subtracts the mean over the channels. So the mean of a token's
channels reaches no logit, the gradient of that bias is nothing but rounding, and Adam, which divides a gradient by its
own size, makes whole steps of it: the biases of two runs drift apart, and their functions do not.

In the tutorial's block, token mixing acts on the channels, and its bias adds one number to all patches of a channel.
The next LayerNorm, over the channels, does not take that away. One direction is left, the same number added to all
entries of the stream, which either kind of LayerNorm subtracts. But no bias and no row of weights lies along it alone:
every one of them has a gradient that is more than rounding, and two runs do not drift along it. So nothing is taken out
there.
"""

import numpy as np

from mixer_common.config.model import ModelConfig, layers


def stream_activations(config: ModelConfig) -> frozenset[str]:
    """The activations (N, S, C) that carry token mixing's last bias; empty in the tutorial's block.

    Its own output, and the residual stream from there to the final LayerNorm. What channel mixing adds is computed
    behind a LayerNorm, and does not carry it.
    """
    if config.block == "tutorial":
        return frozenset()
    return frozenset(
        layer.name for layer in layers(config) if layer.kind == "residual" or layer.name.endswith("token_mixing.fc2")
    )


def drifting_weights(config: ModelConfig) -> frozenset[str]:
    """The biases (S,) that no logit depends on; empty in the tutorial's block."""
    return frozenset(f"{name}.bias" for name in stream_activations(config) if name.endswith(".fc2"))


def with_means_of(values: np.ndarray, references: np.ndarray) -> np.ndarray:
    """The values with every mean over the last axis replaced by that of the references, in float64."""
    values, references = values.astype(np.float64), references.astype(np.float64)
    return values + (references.mean(-1, keepdims=True) - values.mean(-1, keepdims=True))
