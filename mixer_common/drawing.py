"""The style of the project's pictures, and how one is written to a file."""

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def save_figure(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure).print_png(path)


# These names, as CSS variables, also colour the page in mixer_common/comparison/page.html.jinja.
COLOURS = {"page": "#ffffff", "text": "#1f2329", "muted": "#5b6470", "line": "#d9dee4", "a": "#0072b2", "b": "#d55e00"}
STYLE: dict[Any, Any] = {
    "font.size": 10.5,
    "figure.facecolor": COLOURS["page"],
    "axes.facecolor": COLOURS["page"],
    "text.color": COLOURS["text"],
    "axes.labelcolor": COLOURS["text"],
    "axes.edgecolor": COLOURS["muted"],
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "grid.color": COLOURS["line"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "legend.frameon": False,
    "text.parse_math": False,  # the name of a run may hold dollars
    "svg.fonttype": "none",
    "svg.hashsalt": "",
    "figure.dpi": 150,
}
