"""Tables for a terminal: what differs between two checkpoints, and between the settings of two sides."""

import sys

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mixer_common.comparison.checkpoints import ArrayDifference, CheckpointComparison
from mixer_common.comparison.settings import SettingDifference


def print_checkpoints(comparison: CheckpointComparison) -> None:
    """Prints the sides, the settings and the arrays that differ, and one sentence: equal, or how many are not."""
    for letter, stored in (("A", comparison.a), ("B", comparison.b)):
        print(f"{letter}          {stored.name}: {stored.description}")
    print_settings(comparison.settings)
    differing = [array for array in comparison.arrays if not array.equal]
    for group in dict.fromkeys(array.group for array in differing):
        _console().print(_table(group, [array for array in differing if array.group == group], comparison.tolerance))
    if any(array.reaches_no_logit for array in differing):
        print("* No logit depends on this bias: every later LayerNorm takes away what it adds, and rounding moves it.")
    for letter, other, groups in (("A", "B", comparison.only_in_a), ("B", "A", comparison.only_in_b)):
        if groups:
            print(f"{letter} holds {' and '.join(groups)}, too, and {other} does not.")
    print(_verdict(comparison, differing))


def print_settings(settings: tuple[SettingDifference, ...]) -> None:
    """Prints what differs in settings, versions and data; nothing where nothing does."""
    if not settings:
        return
    table = Table(title="Settings that differ", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("", "A", "B"):
        table.add_column(heading, overflow="fold")
    for setting in settings:
        table.add_row(setting.name, setting.a, setting.b)
    _console().print(table)


def _verdict(comparison: CheckpointComparison, differing: list[ArrayDifference]) -> str:
    count = len(comparison.arrays)
    if not differing:
        all_equal = f"All {count} arrays are equal to the bit"
        return f"{all_equal}." if comparison.agrees else f"{all_equal}, but one side holds more."
    differ = f"{len(differing)} of {count} arrays differ"
    largest = max(differing, key=lambda array: array.difference.max_error)
    sizes = f"most {_full_name(largest)}, by {largest.difference.note or f'{largest.difference.max_error:.1e}'}"
    if comparison.tolerance is None:
        return f"{differ}, {sizes}; the others are equal to the bit."
    past = sum(array.past_bound for array in differing)
    return f"{differ}, {sizes}; {past or 'none'} by more than the tolerance of {comparison.tolerance:g}."


def _table(group: str, differing: list[ArrayDifference], tolerance: float | None) -> Table:
    table = Table(title=f"{group}: arrays that differ", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("array", no_wrap=True)
    for heading in ("max error", "L2 error", "ULP, largest", "there in A", "in B"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for array in differing:
        difference, largest = array.difference, array.difference.largest
        free = "*" if array.reaches_no_logit else ""
        mark = "past" if tolerance is not None and array.past_bound else ""
        table.add_row(
            difference.name,
            *(f"{value:.1e}" for value in (difference.max_error, difference.l2_error)),
            "" if difference.ulp_max is None else f"{difference.ulp_median:.3g}, {difference.ulp_max:.3g}",
            *(("", "") if largest is None else (f"{largest.a:.6g}", f"{largest.b:.6g}")),
            " ".join(filter(None, (free, mark, difference.note))),
        )
    return table


def _full_name(array: ArrayDifference) -> str:
    return array.difference.name if array.group == "weights" else f"{array.group}.{array.difference.name}"


def _console() -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() else 120)
