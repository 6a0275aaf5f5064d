"""What the weights of two models tell of the mistake in one of them."""

import re

import numpy as np

from mixer_common.comparison.mistakes import rounded
from mixer_common.comparison.recording import Arrays
from mixer_common.config.model import Layer


def differing_weights(a: Arrays, b: Arrays) -> list[str]:
    """The weights of A that B does not have, to the bit."""
    return [
        name
        for name, array in a.items()
        if name not in b or array.dtype != b[name].dtype or array.tobytes() != b[name].tobytes()
    ]


def describe_blocks(layer: Layer, a: Arrays, b: Arrays) -> str:
    """A sentence where the block of this layer has all the weights of another block of the other side; else empty."""
    if not layer.name.startswith("blocks.") or set(a) != set(b):
        return ""
    i = int(layer.name.split(".")[1])
    blocks = {"A": _blocks(a), "B": _blocks(b)}
    sources = {
        odd: [_first_equal(block, blocks[good], own) for own, block in enumerate(blocks[odd])]
        for good, odd in (("A", "B"), ("B", "A"))
    }
    order = list(range(len(blocks["A"])))
    # The usual orders first, in either direction: where one side is in such an order, the other is in its inverse.
    for description, usual in (
        ("in the order of their names as text (10 before 2)", sorted(order, key=str)),
        ("from the last to the first", order[::-1]),
        *((f"of block {j} in every block", [j] * len(order)) for j in order),
    ):
        for good, odd in (("A", "B"), ("B", "A")):
            if sources[odd] == usual and usual != order:
                return f"{odd}'s blocks have {good}'s weights {description}."
    for good, odd in (("A", "B"), ("B", "A")):
        source = sources[odd][i]
        if source in (None, i):
            continue
        if None not in sources[odd] and len(set(sources[odd])) == len(order):
            return f"{odd}'s blocks have {good}'s weights in the order {', '.join(map(str, sources[odd]))}."
        return f"{odd}'s block {i} has the weights of {good}'s block {source}."
    return ""


def describe_storage(differing: list[str], a: Arrays, b: Arrays) -> str:
    """A sentence where all weights that differ are the other side's rounded to a lower precision; else empty."""
    if not differing or not all(name in b and a[name].shape == b[name].shape for name in differing):
        return ""
    for good, odd, names in ((a, b, "AB"), (b, a, "BA")):
        for precision, low in (
            ("float32", lambda x: x.astype(np.float32)),
            ("float16", lambda x: x.astype(np.float16)),
            ("bfloat16", lambda x: rounded(x.astype(np.float64), 8)),
        ):
            with np.errstate(over="ignore"):
                if all((low(good[name]) == odd[name]).all() for name in differing):
                    return (
                        f"{len(differing)} arrays of {names[1]}'s weights are {names[0]}'s rounded to {precision}: "
                        "they were stored or loaded in that precision."
                    )
    return ""


def _blocks(weights: Arrays) -> list[dict[str, np.ndarray]]:
    blocks: dict[int, dict[str, np.ndarray]] = {}
    for name, array in weights.items():
        if match := re.fullmatch(r"blocks\.(\d+)\.(.*)", name):
            blocks.setdefault(int(match[1]), {})[match[2]] = array
    return [blocks[i] for i in sorted(blocks)]


def _first_equal(block: dict[str, np.ndarray], others: list[dict[str, np.ndarray]], own: int) -> int | None:
    """The number of the block with the same arrays, its own where that is one; None where none has them."""
    for j in (own, *range(len(others))):
        if block.keys() == others[j].keys() and all(np.array_equal(block[name], others[j][name]) for name in block):
            return j
    return None
