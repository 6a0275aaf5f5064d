"""Names and layouts of weights: the canonical form and Flax's, and the checks on the way in.

The canonical form is a flat dict of NumPy arrays with the PyTorch model's names and layouts; weights,
gradients and optimizer moments all have it. Transposing moves values, it never changes a bit.
"""

from collections.abc import Mapping

import numpy as np

from mixer_common.errors import UserError

# canonical layout -> Flax: last part of the name, and the axes in Flax's order.
_STEM = ("kernel", (2, 3, 1, 0))  # O,I,H,W -> H,W,I,O
_LINEAR = ("kernel", (1, 0))  # out,in -> in,out
_NORM = ("scale", (0,))
_BIAS = ("bias", (0,))


def flax_rule(name: str, ndim: int) -> tuple[str, tuple[int, ...]]:
    """The Flax path ("blocks.0.norm.scale") of a canonical name, and the axes that transpose into it."""
    parent, leaf = name.rsplit(".", 1)
    last, axes = _BIAS if leaf == "bias" else {4: _STEM, 2: _LINEAR, 1: _NORM}[ndim]
    return f"{parent}.{last}", axes


def to_flax(canonical: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Canonical arrays under Flax's names and in Flax's layouts; views, no copies."""
    flax = {}
    for name, array in canonical.items():
        path, axes = flax_rule(name, array.ndim)
        flax[path] = array.transpose(axes)
    return flax


def from_flax(flax: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The way back, in the order of `shapes` (canonical names and shapes); contiguous arrays."""
    canonical = {}
    for name, shape in shapes.items():
        path, axes = flax_rule(name, len(shape))
        canonical[name] = np.ascontiguousarray(np.asarray(flax[path]).transpose(np.argsort(axes)))
    return canonical


def check_weights(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Raises one UserError that lists every missing, extra or misshapen array; `what` names their origin."""
    wrong = [f"{name} is missing" for name in shapes if name not in arrays]
    wrong += [f"{name} is not expected" for name in arrays if name not in shapes]
    wrong += [f"{name} has shape {arrays[name].shape} instead of {tuple(shape)}"
              for name, shape in shapes.items() if name in arrays and arrays[name].shape != tuple(shape)]
    if wrong:
        raise UserError(f"{what} does not fit the model: {'; '.join(wrong)}.")
