"""How far two sets of named arrays are apart, and how far rounding alone may take them."""

import math
from collections.abc import Iterable, Mapping

import numpy as np

from mixer_common.config import MixerConfig

# An error is a sum of many small independent ones, so nearly normal; the largest of a tensor's entries
# reaches about five deviations, and a model amplifies what its first layers did a little.
SAFETY = 8


def relative_error(value: np.ndarray, reference: np.ndarray, scale: float | None = None) -> float:
    """max|value − reference| / max|reference|; the one norm of every comparison.

    `scale` replaces the denominator where the reference alone is no measure.
    """
    scale = float(np.abs(reference).max()) if scale is None else scale
    difference = float(np.abs(value.astype(np.float64) - reference.astype(np.float64)).max())
    return difference / scale if scale else math.inf if difference else 0.0


def relative_errors(values: Mapping[str, np.ndarray], references: Mapping[str, np.ndarray],
                    scales: Mapping[str, float] | None = None) -> dict[str, float]:
    """The relative error of every array, in the order of the references; the names must agree."""
    if values.keys() != references.keys():
        raise KeyError(f"names differ: {sorted(values.keys() ^ references.keys())}")
    scales = scales or {}
    return {name: relative_error(values[name], reference, scales.get(name))
            for name, reference in references.items()}


def first_past(errors: Mapping[str, float], bound: float) -> str | None:
    """Name of the first array whose error is not within the bound (NaN is not), or None."""
    return next((name for name, error in errors.items() if not error <= bound), None)


def forward_bound(config: MixerConfig, unit_roundoff: float) -> float:
    """Largest relative error that rounding explains between two forward passes.

    A sum of n terms rounds n times; the errors behave like a random walk, √n · u rather than n · u
    (Higham & Mary 2019, doi 10.1137/18M1226312). Layers follow each other, so their n add up under the
    root; two implementations err independently, hence the factor 2.
    """
    return 2 * SAFETY * unit_roundoff * math.sqrt(_roundings(config))


def gradient_bound(config: MixerConfig, unit_roundoff: float, batch_size: int) -> float:
    """The same for gradients: the way forward, the way back, and the sum over images and patches."""
    return 2 * SAFETY * unit_roundoff * math.sqrt(3 * _roundings(config) + batch_size * config.num_patches)


def gradient_scales(gradients: Mapping[str, np.ndarray]) -> dict[str, float]:
    """What to measure the error of each gradient against: the largest gradient in its layer.

    The gradients of a layer's weight and bias sum the same terms. Those of a bias often cancel, and its
    error does not: in the paper's block, the second bias of token mixing adds the same to all channels of
    a token, every later LayerNorm takes it away again, and nothing but rounding is left of its gradient.
    """
    layers: dict[str, float] = {}
    for name, array in gradients.items():
        layer = name.rpartition(".")[0]
        layers[layer] = max(layers.get(layer, 0.0), float(np.abs(array).max()))
    return {name: layers[name.rpartition(".")[0]] for name in gradients}


def _roundings(config: MixerConfig) -> int:
    """Terms in the sums from a pixel to a logit: convolution, norms, MLPs, the mean, the head."""
    C, S = config.hidden_dim, config.num_patches
    tutorial = config.block == "tutorial"
    block: Iterable[int] = (S if tutorial else C, C if tutorial else S, config.tokens_mlp_dim, C, C,
                            config.channels_mlp_dim)
    return 3 * config.patch_size**2 + config.num_blocks * sum(block) + C + S + C
