"""The heat map of two trainings, weight by step, drawn as a PNG file or for a page."""

import bisect
import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path as Outline

from mixer_common.comparison.page import COLOUR_LIMITS
from mixer_common.comparison.steps import KINDS, MANY_ROUNDINGS, StepsComparison
from mixer_common.comparison.steps_printing import describe_drifts, verdict
from mixer_common.drawing import COLOURS, STYLE, save_figure

# The colours of the page's heat maps, by the name of the CSS variable that they have there.
HEAT_COLOURS = {
    "exact": "#f6f8fa",
    "l0": "#dbe9f8",
    "l1": "#b3d2f0",
    "l2": "#6fa8dc",
    "l3": "#fbc78d",
    "l4": "#f2913d",
    "l5": "#c9540f",
    "l6": "#7c2d0a",
}
MAX_COLUMNS = 60
_WIDTH, _LABELS, _GAP = 4.6, 1.42, 0.12  # inches: as wide as a phone, so that the text is readable there
_ROW, _TOP, _BOTTOM = 0.085, 0.5, 1.2


def save_heat_map(comparison: StepsComparison, path: Path) -> None:
    """Writes the heat map as a PNG file."""
    with rc_context(STYLE):
        save_figure(_figure(comparison), path)


def heat_map_svg(comparison: StepsComparison) -> str:
    """The heat map as an <svg> element; the page around it sets CSS variables for COLOURS and HEAT_COLOURS."""
    file = io.StringIO()
    with rc_context(STYLE):
        FigureCanvasSVG(_figure(comparison)).print_svg(
            file, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    svg = file.getvalue()
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg[svg.index("<svg") :])  # HTML knows the namespaces
    for name, colour in {**HEAT_COLOURS, **COLOURS}.items():
        svg = svg.replace(f": {colour}", f": var(--{name})")
    return svg


def steps_of_page(comparison: StepsComparison) -> dict[str, Any]:
    """What steps.html.jinja shows."""
    return {
        "verdict": verdict(comparison),
        "cause": comparison.cause,
        "parts": comparison.first is not None,
        "steps": f"{comparison.steps:,}",
        "first": [(kind, comparison.first_past_bound(kind)) for kind in KINDS],
        "svg": heat_map_svg(comparison),
        "drift": describe_drifts(comparison) if comparison.drifts else "",
        "description": comparison.description,
        "many_roundings": MANY_ROUNDINGS,
    }


def bins(steps: int) -> np.ndarray:
    """The first step of every column, counted from 0."""
    width = -(-steps // MAX_COLUMNS)
    return np.arange(0, steps, width)


def colours(comparison: StepsComparison, kind: str) -> np.ndarray:
    """The colour of every weight in every column: (weights, columns), indices of HEAT_COLOURS.

    A column of several steps has that of the largest multiple of the bound among them.
    """
    ratios = np.nan_to_num(comparison.ratios(kind), nan=math.inf)
    largest = np.maximum.reduceat(ratios, bins(comparison.steps), axis=0).T
    limits = list(COLOUR_LIMITS)
    return np.vectorize(lambda ratio: 1 + bisect.bisect_left(limits, ratio) if ratio else 0, otypes=[int])(largest)


def _figure(comparison: StepsComparison) -> Figure:
    rows = len(comparison.names)
    height = _TOP + rows * _ROW + _BOTTOM
    figure = Figure(figsize=(_WIDTH, height))
    width = (_WIDTH - _LABELS - len(KINDS) * _GAP) / len(KINDS)
    for i, kind in enumerate(KINDS):
        left = _LABELS + i * (width + _GAP)
        axes = figure.add_axes(
            (left / _WIDTH, _BOTTOM / height, width / _WIDTH, rows * _ROW / height)  # pyright: ignore[reportArgumentType]
        )
        _draw(axes, comparison, kind)
        if i == 0:
            _label_rows(axes, comparison)
    _draw_legend(figure, comparison, height)
    return figure


def _draw(axes: Axes, comparison: StepsComparison, kind: str) -> None:
    """The panel of one kind."""
    starts = bins(comparison.steps)
    edges = np.append(starts, comparison.steps)
    table = colours(comparison, kind)
    for index, (name, colour) in enumerate(HEAT_COLOURS.items()):
        corners = []
        for row in range(len(table)):
            here = np.flatnonzero(np.diff((table[row] == index).astype(int), prepend=0, append=0))
            corners += [(edges[first], row, edges[last], row + 1) for first, last in here.reshape(-1, 2)]
        if corners:
            vertices = [
                point
                for left, top, right, bottom in corners
                for point in ((left, top), (right, top), (right, bottom), (left, bottom), (left, top))
            ]
            codes = [Outline.MOVETO, Outline.LINETO, Outline.LINETO, Outline.LINETO, Outline.CLOSEPOLY] * len(corners)
            axes.add_patch(PathPatch(Outline(vertices, codes), facecolor=colour, edgecolor="none", label=name))
    _separate(axes, comparison)
    if first := comparison.first_past_bound(kind):
        column = bisect.bisect_right(starts, first.step - 1) - 1
        row = comparison.names.index(first.name)
        place = (edges[column], row), edges[column + 1] - edges[column], 1
        for colour, linewidth in ((COLOURS["page"], 3.0), (COLOURS["text"], 1.4)):  # seen on any colour
            frame = Rectangle(*place, fill=False, edgecolor=colour, linewidth=linewidth, clip_on=False, zorder=3)
            axes.add_patch(frame)
        axes.set_title(f"{kind}\nfrom step {first.step:,}", fontsize=8, color=COLOURS["text"], fontweight="bold")
    else:
        axes.set_title(f"{kind}\nagree", fontsize=8, color=COLOURS["muted"])
    axes.set(xlim=(0, comparison.steps), ylim=(len(table), 0), yticks=[])
    axes.set_xticks([0, comparison.steps], ["1", f"{comparison.steps:,}"], fontsize=7)
    axes.get_xticklabels()[0].set_horizontalalignment("left")
    axes.get_xticklabels()[-1].set_horizontalalignment("right")
    axes.tick_params(length=0)
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _separate(axes: Axes, comparison: StepsComparison) -> None:
    """Lines between the layers, wider ones between the blocks."""
    for row in range(1, len(comparison.names)):
        above, below = comparison.names[row - 1], comparison.names[row]
        if _block(above) != _block(below):
            axes.axhline(row, color=COLOURS["page"], linewidth=2.2)
        elif _layer(above) != _layer(below):
            axes.axhline(row, color=COLOURS["page"], linewidth=0.7)


def _label_rows(axes: Axes, comparison: StepsComparison) -> None:
    """The names of the layers beside their rows, and the numbers of the blocks."""
    first = comparison.first
    for layer in dict.fromkeys(map(_layer, comparison.names)):
        rows = [row for row, name in enumerate(comparison.names) if _layer(name) == layer]
        here = first is not None and _layer(first[1].name) == layer
        drifts = any(comparison.names[row] in comparison.without_effect for row in rows)
        axes.annotate(
            re.sub(r"^blocks\.\d+\.", "", layer) + (" *" if drifts else ""),
            (0, (rows[0] + rows[-1] + 1) / 2),
            xytext=(-3, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=7,
            fontweight="bold" if here else "normal",
            color=COLOURS["text"] if here else COLOURS["muted"],
            annotation_clip=False,
        )
    for block in dict.fromkeys(_block(name) for name in comparison.names if _block(name)):
        rows = [row for row, name in enumerate(comparison.names) if _block(name) == block]
        axes.annotate(
            f"block {block}",
            (0, rows[0] + 1),
            xytext=(-_LABELS * 72 + 4, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
            fontweight="bold",
            color=COLOURS["text"],
            annotation_clip=False,
        )


def _draw_legend(figure: Figure, comparison: StepsComparison, height: float) -> None:
    """The colours, and what the rows and columns are."""
    labels = ["0", *(f"≤ {text}" for text in COLOUR_LIMITS.values()), "more"]
    axes = figure.add_axes((0.03, 0.0, 0.94, _BOTTOM / height))
    axes.set(xlim=(0, len(labels)), ylim=(0, _BOTTOM))
    axes.axis("off")
    for i, (label, colour) in enumerate(zip(labels, HEAT_COLOURS.values(), strict=True)):
        box = Rectangle((i, 0.34), 0.92, 0.12, facecolor=colour, edgecolor=COLOURS["line"], linewidth=0.5)
        axes.add_patch(box)
        axes.text(i + 0.46, 0.29, label, ha="center", va="top", fontsize=7, color=COLOURS["muted"])
    width = int(bins(comparison.steps)[1]) if comparison.steps > MAX_COLUMNS else 1
    columns = f"A column is {width} steps" if width > 1 else "A column is a step"
    names = [name if len(name) <= 24 else f"…{name[-23:]}" for name in (comparison.a, comparison.b)]
    lines = [
        (0.9, f"B, {names[1]}, against A, {names[0]}. {columns}."),
        (0.74, "A layer has two rows, weight above bias. Black: first past its bound."),
        (0.54, "Error / bound:"),
    ]
    if comparison.without_effect:
        lines.append((0.1, "* its bias moves no output, so in the weights it may drift."))
    for y, text in lines:
        axes.text(0, y, text, fontsize=7, color=COLOURS["muted"], va="center")


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _block(name: str) -> str:
    match = re.match(r"blocks\.(\d+)\.", name)
    return match[1] if match else ""
