"""Values of a norm where the layers before it are in another order, in NumPy and float64.

A norm begins every part of a Mixer, so parts in another order show there first: its input is another one.
"""

from collections.abc import Iterator

import numpy as np

from mixer_common.comparison.recording import Arrays
from mixer_common.comparison.reference import Reference
from mixer_common.config.model import Layer

Candidates = Iterator[tuple[str, np.ndarray]]


def order_mistakes(layer: Layer, model: Reference, seen: Arrays) -> Candidates:
    """The activation of a layer with each usual mistake in the order of the layers before it.

    seen: the activations of the side whose values are to be explained.
    """
    block, _, name = layer.name.rpartition(".")
    if layer.kind == "residual" and name == "channel_mixing":
        yield from _other_blocks(int(block.split(".")[1]), model, seen)
    if layer.kind != "norm":
        return
    (stream,) = model.inputs(layer)
    if block:
        own, other = "token_mixing", "channel_mixing"
        if name == "channel_norm":
            own = other
        else:
            yield (
                "channel mixing before it: the order of the two mixers exchanged",
                model.value(layer, stream + model.branch(f"{block}.{other}", stream)),
            )
            exchanged = model.value(model.layers[f"{block}.channel_norm"], stream)
            yield (
                "the two norms of the block exchanged",
                model.value(layer, stream + model.branch(f"{block}.{own}", exchanged, norm=False)),
            )
        branch = model.branch(f"{block}.{own}", stream, norm=False)
        yield (
            f"the norm after {_spaced(own)} and its residual connection instead of before (post-norm)",
            model.value(layer, stream + branch),
        )
        yield (
            f"the norm after {_spaced(own)}, before its residual connection, instead of before the mixing",
            model.value(layer, branch),
        )
    if name != "channel_norm":
        i = int(block.split(".")[1]) if block else model.config.num_blocks
        yield from _block_order_mistakes(layer, model, i)


def side_by_side(layer: Layer, model: Reference, seen: Arrays) -> Candidates:
    """The stream between the two mixers of a block that adds both to its input, as the other side shows it.

    seen: the activations of that side; where the block ends tells such a block from one without token mixing.
    """
    block, _, name = layer.name.rpartition(".")
    end = f"{block}.channel_mixing"
    if name != "token_mixing" or end not in seen or seen[end].shape[1:] != layer.activation:
        return
    branch, stream = model.inputs(layer)
    both = stream + branch + model.branch(end, stream)
    if np.abs(seen[end] - both).max() <= 1e-3 * np.abs(both).max():
        yield "the input of the block for both of its mixers: they stand side by side, not one after the other", stream


def _block_order_mistakes(layer: Layer, model: Reference, i: int) -> Candidates:
    """The first norm of block i, or the last norm (i = num_blocks), with other blocks before it."""
    blocks = list(range(model.config.num_blocks))
    for first in range(i):
        yield f"{_numbered(first, i - 1)} left out", model.value(layer, model.stream(first))
    orders = {
        "in the order of their names as text (10 before 2)": sorted(blocks, key=str),
        "from the last to the first": blocks[::-1],
    }
    if i + 1 in blocks:
        exchanged = [*blocks[:i], i + 1, i, *blocks[i + 2 :]]
        orders[f"with {i} and {i + 1} exchanged"] = exchanged
    for description, order in orders.items():
        sequence = order[: order.index(i)] if i in blocks else order
        if sequence != blocks[:i]:
            yield f"the blocks {description}", model.value(layer, _through(sequence, model))


def _other_blocks(i: int, model: Reference, seen: Arrays) -> Candidates:
    """What follows block i where it, or blocks before it, are left out or computed several times."""
    blocks = range(model.config.num_blocks)
    for first in range(i + 1):
        yield f"{_numbered(first, i)} left out", model.stream(first)
    shown = [block for block in blocks if f"blocks.{block}.token_norm" in seen]
    if len(shown) == 1 < len(blocks):
        yield f"block {shown[0]} in place of every block", _through(shown * len(blocks), model)
    stream = model.block(i, model.stream(i))
    for count in range(2, len(blocks) + 1):
        stream = model.block(i, stream)
        yield f"block {i} computed {count} times", stream


def _numbered(first: int, last: int) -> str:
    return f"block {first}" if first == last else f"blocks {first} to {last}"


def _through(sequence: list[int], model: Reference) -> np.ndarray:
    """What the stem gives after these blocks, in this order."""
    first = 0
    while first < len(sequence) and sequence[first] == first:
        first += 1
    stream = model.stream(first)
    for block in sequence[first:]:
        stream = model.block(block, stream)
    return stream


def _spaced(name: str) -> str:
    return name.replace("_", " ")
