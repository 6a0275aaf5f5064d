"""A comparison printed in a terminal."""

import math
import sys

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mixer_common.comparison.checkpoint_printing import print_settings
from mixer_common.comparison.compare import Comparison
from mixer_common.comparison.differences import LayerDifference
from mixer_common.comparison.isolate import Isolation
from mixer_common.comparison.judge import FACTOR, JudgeErrors
from mixer_common.comparison.precisions import LIMIT, LayerEffect


def print_comparison(comparison: Comparison) -> None:
    """Prints whether the weights are equal, tables of all layers, and the verdict: they agree, or where they part."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    print(f"Weights    {comparison.weights}")
    print_settings(comparison.settings)
    for observation in comparison.observations:
        print(f"Observed   {observation}")
    first = comparison.first_past_bound
    for title, differences in (
        ("Activations", comparison.activations),
        ("Gradients of activations, from the head back", comparison.activation_gradients),
        ("Gradients", comparison.gradients),
    ):
        if differences:
            console.print(_table(title, differences, first))
    if any(difference.mean_error is not None for difference in comparison.activations):
        print(f"* {MEANS_NOTE}")
    if comparison.logits:
        print(f"Logits     {comparison.logits}")
    if broken := comparison.first_not_finite:
        print(f"Not finite {' and '.join(broken.not_finite)}, first at {comparison.title(broken)}")
    if (furthest := comparison.furthest_from_judge) and furthest.to_judge:
        print(f"Judge      {describe_judge(furthest.to_judge)}, the largest multiple of all, at {furthest.name}")
    _print_verdict(comparison, first)
    if comparison.isolation:
        _print_faults(comparison.isolation)
    if comparison.bfloat16:
        console.print(_bfloat16_table(comparison.bfloat16))
        print(describe_bearing(comparison.bfloat16))


MEANS_NOTE = (
    "Measured without the means over the channels of each token, which every later LayerNorm takes away: token "
    "mixing's last bias reaches no logit."
)


def describe_without_effect(difference: LayerDifference) -> str:
    """One sentence on a difference that reaches no logit."""
    return (
        f"A and B differ along a direction that every later LayerNorm takes away: the means over the channels of a "
        f"token, by {difference.mean_error:.1e} at {difference.name}, which changes no logit."
    )


def describe_judge(errors: JudgeErrors) -> str:
    """For people: how far both sides are from the reference in float64."""
    sentence = f"A is {errors.a:.1e} from the reference in float64, B {errors.b:.1e}"
    if not math.isfinite(errors.factor):
        return sentence
    return f"{sentence}, {_times(errors.factor)} A's error"


def _times(factor: float) -> str:
    return f"{factor:,.0f} times" if factor >= 10 else f"{factor:.2g} times"


def rounded_up(tolerance: float) -> str:
    """The tolerance with two digits, no smaller than it is; it passes where it is given to --tolerance."""
    text = f"{tolerance:.1e}"
    return text if float(text) >= tolerance else f"{float(text) + 10.0 ** (math.floor(math.log10(tolerance)) - 1):.1e}"


def _print_verdict(comparison: Comparison, first: LayerDifference | None) -> None:
    if first is None:
        nearest = comparison.nearest_to_bound
        title = comparison.title(nearest)
        print(
            f"They agree: the largest error beside its bound is {nearest.max_error:.1e}, at {title}; rounding "
            f"explains {nearest.bound:.1e} there."
            if comparison.tolerance is None
            else f"They agree: the largest error is {nearest.max_error:.1e}, at {title}."
        )
    else:
        size = first.note or f"largest error {first.max_error:.1e}"
        title = comparison.title(first)
        print(
            f"They part at {title}: {size}, where rounding explains {first.bound:.1e}."
            if comparison.tolerance is None
            else f"They part at {title}: {size}, with a tolerance of {first.bound:g}."
        )
        if largest := first.largest:
            print(f"There it is largest at {list(largest.index)}: {largest.a:.8g} in A, {largest.b:.8g} in B.")
        if first.to_judge:
            print(f"There {describe_judge(first.to_judge)}.")
        print(comparison.cause)
    if math.isfinite(comparison.passing_tolerance) and comparison.passing_tolerance:
        print(f"They would just pass with --tolerance {rounded_up(comparison.passing_tolerance)}.")
    if comparison.agrees and (difference := comparison.without_effect):
        print(describe_without_effect(difference))


def _print_faults(isolation: Isolation) -> None:
    count = len(isolation.faults)
    if not count:
        print("From A's input, every layer of B gives A's values: no layer is at fault by itself.")
        return
    print(f"From A's input, {count} {'layer gives' if count == 1 else 'layers give'} other values in B:")
    for fault in isolation.faults:
        size = fault.difference.note or f"{fault.difference.max_error:.1e}, bound {fault.difference.bound:.1e}"
        print(f"  {fault.difference.name} ({size}): {fault.cause}")


def _table(title: str, differences: tuple[LayerDifference, ...], first: LayerDifference | None) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("layer", no_wrap=True)
    judge = any(difference.to_judge for difference in differences)
    for heading in ("max error", "L2 error", "ULP", *(("to judge",) if judge else ()), "bound"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for difference in differences:
        mark = "<-- first" if difference is first else "past" if difference.past_bound else ""
        free = "*" if difference.mean_error is not None else ""
        table.add_row(
            difference.name,
            f"{difference.max_error:.1e}",
            f"{difference.l2_error:.1e}",
            "" if difference.ulp_median is None else f"{difference.ulp_median:.3g}",
            *((f"{difference.to_judge.factor:.2g} x A" if difference.to_judge else "",) if judge else ()),
            f"{FACTOR} x A" if difference.judge_decides else f"{difference.bound:.1e}",
            " ".join(filter(None, (free, mark, difference.note))),
            style="bold red" if difference is first else None,
        )
    return table


def describe_bearing(effects: tuple[LayerEffect, ...]) -> str:
    """One sentence: the layers that do not bear bfloat16."""
    *layers, _ = effects
    others = [effect.name for effect in layers if not effect.bears]
    limit = f"{LIMIT:.1e} of the largest"
    if not others:
        return (
            f"Every layer bears bfloat16: computed in it alone, each moves the logits by at most {limit}, and no "
            "highest class becomes another."
        )
    return (
        f"{len(others)} of {len(layers)} layers do not bear bfloat16: computed in it alone, each moves the logits by "
        f"more than {limit}, or a highest class becomes another."
    )


def _bfloat16_table(effects: tuple[LayerEffect, ...]) -> Table:
    title = "A's layers in bfloat16, one at a time"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("layer", no_wrap=True)
    for heading in ("its error", "error of logits", "other classes"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for effect in effects:
        table.add_row(
            effect.name,
            f"{effect.own_error:.1e}",
            f"{effect.logits_error:.1e}",
            str(effect.other_classes),
            "" if effect.bears or effect is effects[-1] else "does not bear it",
        )
    return table
