"""The page of a comparison: one file of HTML that needs nothing else."""

import bisect
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from mixer_common import files
from mixer_common.comparison.compare import Comparison
from mixer_common.comparison.differences import LayerDifference, describe_losses
from mixer_common.comparison.judge import FACTOR
from mixer_common.comparison.printing import (
    MEANS_NOTE,
    describe_bearing,
    describe_judge,
    describe_without_effect,
    rounded_up,
)

# The upper limit of each colour in the heat maps, as a multiple of the bound, and its text. The steps widen, because
# mistakes span many more decades than rounding does.
COLOUR_LIMITS = {0.01: "0.01", 0.1: "0.1", 1: "1", 1e2: "100", 1e6: "10⁶", 1e10: "10¹⁰"}
_TEMPLATE = Path(__file__).with_name("page.html.jinja")


@dataclass(frozen=True)
class Part:
    """A set of differences, which has a heat map and a table of figures."""

    title: str
    column: str  # head of the column of names
    differences: tuple[LayerDifference, ...]
    prefix: str  # of the anchors of its rows; names are not unique among the parts

    @property
    def heat_map(self) -> dict[str, Any]:
        return _heat_map(self.differences)

    @property
    def has_judge(self) -> bool:
        return any(difference.to_judge for difference in self.differences)


def write_page(comparison: Comparison, path: Path) -> None:
    """Writes the page whole or not at all."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATE.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "figure": _figure,
        "multiple": _multiple,
        "colour": _colour,
        "cosine": _cosine,
        "count": _count,
        "rounded_up": rounded_up,
        "without_effect": describe_without_effect,
        "to_judge": describe_judge,
        "bearing": describe_bearing,
    }
    parts = _parts(comparison)
    page = environment.from_string(_TEMPLATE.read_text("utf-8")).render(
        comparison=comparison,
        first=comparison.first_past_bound,
        colour_limits=COLOUR_LIMITS,
        explained_by="rounding" if comparison.tolerance is None else "the tolerance",
        nearest=comparison.nearest_to_bound,
        parts=parts,
        anchors={id(difference): part.prefix + difference.name for part in parts for difference in part.differences},
        id=id,
        means_note=MEANS_NOTE,
        judge_factor=FACTOR,
        losses=_losses(comparison),
        steps=_steps(comparison),
    )
    files.replace_file(path, page.encode())


def _parts(comparison: Comparison) -> list[Part]:
    isolated = comparison.isolation.activations if comparison.isolation else ()
    parts = [
        Part("Activations", "Layer", comparison.activations, ""),
        Part("Activations of B, each from A\u2019s input", "Layer", isolated, "isolated:"),
        Part("Gradients of activations", "Layer", comparison.activation_gradients, "gradient:"),
        Part("Gradients", "Weight", comparison.gradients, ""),
    ]
    return [part for part in parts if part.differences]


def _heat_map(differences: tuple[LayerDifference, ...]) -> dict[str, Any]:
    """The number of blocks, and rows: a name, and its difference in each block or the only one outside the blocks."""
    matches = [(re.fullmatch(r"blocks\.(\d+)\.(.+)", difference.name), difference) for difference in differences]
    blocks = max((int(match[1]) + 1 for match, _ in matches if match), default=1)
    rows: dict[str, list[LayerDifference | None]] = {}
    for match, difference in matches:
        if match:
            rows.setdefault(match[2], [None] * blocks)[int(match[1])] = difference
        else:
            rows[difference.name] = [difference]
    return {"blocks": blocks, "rows": list(rows.items())}


def _losses(comparison: Comparison) -> dict[str, Any] | None:
    """The curves of the losses and a description of them; None unless both sides are runs."""
    a, b = comparison.a.step_losses, comparison.b.step_losses
    if a is None or b is None:
        return None
    from mixer_common.comparison.loss_curves import loss_curves_svg

    return {
        "description": describe_losses(a, b),
        "svg": loss_curves_svg(a, b, (comparison.a.name, comparison.b.name)),
    }


def _steps(comparison: Comparison) -> dict[str, Any] | None:
    """What steps.html.jinja shows; None where nothing was trained."""
    if comparison.steps is None:
        return None
    from mixer_common.comparison.steps_drawing import steps_of_page

    return steps_of_page(comparison.steps)


def _colour(difference: LayerDifference) -> str:
    """The colour of a difference: "exact", "none" where it is not finite, else its index in COLOUR_LIMITS."""
    if not math.isfinite(difference.max_error):
        return "none"
    return str(bisect.bisect_left(list(COLOUR_LIMITS), difference.ratio)) if difference.max_error else "exact"


def _figure(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}" if math.isfinite(value) else "NaN" if math.isnan(value) else "∞"


def _cosine(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.8f}"


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}" if value < 1e5 else f"{value:.1e}"


def _multiple(difference: LayerDifference) -> str:
    ratio = difference.ratio
    if not math.isfinite(ratio):
        return _figure(ratio)
    return f"{ratio:,.0f}" if 10 <= ratio < 1e5 else f"{ratio:.3g}"
