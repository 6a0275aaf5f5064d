"""A comparison printed in a terminal."""

import sys

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mixer_common.comparison.compare import Comparison
from mixer_common.comparison.differences import LayerDifference


def print_comparison(comparison: Comparison) -> None:
    """Prints whether the weights are equal, a table of all layers, and one sentence: they agree, or where they part."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    print(f"Weights    {comparison.weights}")
    first = comparison.first_past_bound
    for title, differences in (("Activations", comparison.activations), ("Gradients", comparison.gradients)):
        if differences:
            console.print(_table(title, differences, first))
    if first:
        size = first.note or f"largest error {first.max_error:.1e}"
        print(
            f"They part at {first.name}: {size}, where rounding explains {first.bound:.1e}."
            if comparison.tolerance is None
            else f"They part at {first.name}: {size}, with a tolerance of {first.bound:g}."
        )
        print(comparison.cause)
    else:
        nearest = comparison.nearest_to_bound
        print(
            f"They agree: the largest error beside its bound is {nearest.max_error:.1e}, at {nearest.name}; rounding "
            f"explains {nearest.bound:.1e} there."
            if comparison.tolerance is None
            else f"They agree: the largest error is {nearest.max_error:.1e}, at {nearest.name}."
        )


def _table(title: str, differences: tuple[LayerDifference, ...], first: LayerDifference | None) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("layer", no_wrap=True)
    for heading in ("max error", "L2 error", "bound"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for difference in differences:
        mark = "<-- first" if difference is first else "past" if difference.past_bound else ""
        table.add_row(
            difference.name,
            *(f"{value:.1e}" for value in (difference.max_error, difference.l2_error, difference.bound)),
            f"{mark} {difference.note}".strip(),
            style="bold red" if difference is first else None,
        )
    return table
