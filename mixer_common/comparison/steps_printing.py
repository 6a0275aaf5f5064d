"""Two trainings that were compared step by step, printed in a terminal."""

import sys

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mixer_common.comparison.steps import KINDS, StepDifference, StepsComparison


def print_steps(comparison: StepsComparison) -> None:
    """Prints where gradients, moments and weights part first, and one sentence: the trainings agree, or where not."""
    print(f"Training   {comparison.description}")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    table = Table(title=f"{comparison.steps:,} steps", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("", "first past its bound", "step", "error", "rounding", "bound"):
        table.add_column(heading, justify="left" if heading in ("", "first past its bound") else "right", no_wrap=True)
    for kind in KINDS:
        difference = comparison.first_past_bound(kind)
        if difference is None:
            nearest = comparison.nearest_to_bound(kind)
            table.add_row(kind, f"none; nearest is {nearest.name}", *figures(nearest))
        else:
            more = f", and {difference.others} more" if difference.others else ""
            table.add_row(kind, difference.name + more, *figures(difference), style="bold red")
    console.print(table)
    a, b = comparison.losses
    print(f"Losses     they differ by up to {np.abs(a - b).max():.1e} nats.")
    if comparison.drifts:
        print(f"Drift      {describe_drifts(comparison)}")
    print(verdict(comparison))
    if comparison.cause:
        print(comparison.cause)


def figures(difference: StepDifference) -> tuple[str, ...]:
    """Step, error, rounding and bound of a difference, for people."""
    return f"{difference.step:,}", *(
        f"{value:.1e}" for value in (difference.error, difference.rounding, difference.bound)
    )


def verdict(comparison: StepsComparison) -> str:
    """One sentence: the trainings agree, or where they part first."""
    if comparison.first is None:
        return f"The trainings agree for {comparison.steps:,} steps: rounding explains every difference."
    kind, first = comparison.first
    return (
        f"The trainings part in the {kind} of step {first.step:,}, at {first.name}: error {first.error:.1e}, where "
        f"rounding explains {first.bound:.1e}."
    )


def describe_drifts(comparison: StepsComparison) -> str:
    """Sentences on the weights without effect."""
    largest = max(comparison.drifts, key=lambda drift: drift.error)
    return (
        f"{largest.name} differs by {largest.error:.1e} in step {largest.step:,}, and by {largest.rounding:.1e} from "
        "rounding alone. It adds the same number to all channels of a token, which every later LayerNorm takes away: "
        "the model's outputs do not depend on it."
    )
