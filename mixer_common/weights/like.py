"""Writing weights under the names and in the layouts of a file that somebody's model reads."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mixer_common.errors import UserError
from mixer_common.weights import containers
from mixer_common.weights.canonical import ModelWeights
from mixer_common.weights.containers import ByteCallback
from mixer_common.weights.patterns import Source, file_arrays
from mixer_common.weights.reading import flatten
from mixer_common.weights.recognition import recognise_weights
from mixer_common.weights.stacking import unstack
from mixer_common.weights.wrapping import choose_weights, find_weights


def arrays_like(
    weights: ModelWeights, model: Path, names: Mapping[str, Source] | None, progress: ByteCallback
) -> tuple[dict[str, np.ndarray], ModelWeights]:
    """The arrays of `weights` as the file `model` has them, in its order, and that file's own weights.

    names: what the user states of the file's names; see patterns.read_names. Keys of dicts around a state dict of
    torch's are left out. Raises UserError where the file holds no Mixer, or one of another block or depth.
    """
    if model.is_dir():
        raise UserError(f"{model} is a folder: name the file of weights in it.")
    arrays, container = containers.read(model, progress)
    if notes := unstack(flatten(arrays))[1]:
        raise UserError(
            f"{model} holds {' and '.join(notes)}, which is read and not written: name another file, or state a format "
            "with --to."
        )
    theirs = recognise_weights(arrays, str(model), names=names, without_head=True, block=weights.config.block)
    ours = weights.config
    if theirs.config.num_blocks != ours.num_blocks:
        raise UserError(
            f"{model} has {theirs.config.num_blocks} blocks, and the weights to write have {ours.num_blocks}: name a "
            "file of a model of the same depth."
        )
    if theirs.names:
        written = file_arrays(weights.arrays, theirs.names, str(model))
    else:
        wrapped, _ = choose_weights(find_weights(list(flatten(arrays))), None, str(model))
        inner = wrapped.table.to_file(weights.arrays, ours.num_blocks)
        written = {wrapped.prefix + name: array for name, array in inner.items()}
    order = {name: place for place, name in enumerate(arrays)}
    written = dict(sorted(written.items(), key=lambda item: order.get(item[0], len(order))))
    if container == "torch":
        written = {name.rpartition("/")[2]: array for name, array in written.items()}
    return written, theirs
