"""The loss curves of two runs and their difference, drawn as a PNG file or for a page."""

import io
import re
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from mixer_common.drawing import COLOURS, STYLE, save_figure


def save_loss_curves(a: np.ndarray, b: np.ndarray, names: tuple[str, str], path: Path) -> None:
    """Writes a PNG file with the training losses (steps,) of two runs and their difference at the common steps."""
    with rc_context(STYLE):
        save_figure(_loss_figure(a, b, names), path)


def loss_curves_svg(a: np.ndarray, b: np.ndarray, names: tuple[str, str]) -> str:
    """The curves of `save_loss_curves` as an <svg> element.

    The page around it sets the CSS variables --page, --text, --muted, --line, --a and --b.
    """
    file = io.StringIO()
    with rc_context(STYLE):
        FigureCanvasSVG(_loss_figure(a, b, names)).print_svg(
            file, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    svg = file.getvalue()
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg[svg.index("<svg") :])  # HTML knows the namespaces
    for name, colour in COLOURS.items():
        svg = svg.replace(f": {colour}", f": var(--{name})")
    return svg


def _loss_figure(a: np.ndarray, b: np.ndarray, names: tuple[str, str]) -> Figure:
    a, b = a.astype(np.float64), b.astype(np.float64)
    steps = min(len(a), len(b))
    with np.errstate(invalid="ignore"):
        difference = np.abs(a[:steps] - b[:steps])
    window = max(1, max(len(a), len(b)) // 200)
    figure = Figure(figsize=(6, 4.8), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    # Equal curves lie on each other: the second is thin and dashed, so that both are seen.
    for losses, side, name, style in (
        (a, "A", names[0], {"color": COLOURS["a"], "linewidth": 2.4}),
        (b, "B", names[1], {"color": COLOURS["b"], "linewidth": 1.2, "dashes": (4, 2)}),
    ):
        middles, sums, sizes = _buckets(losses, window, np.add)
        name = name if len(name) <= 40 else f"…{name[-39:]}"
        top.plot(middles, sums / sizes, label=f"{side}: {name}", **style)
    top.set(ylabel="training loss (nats)" + (f"\nmean of {window} steps" if window > 1 else ""))
    top.legend()
    middles, peaks, _ = _buckets(difference, window, np.fmax)  # the largest of each bucket: no peak is lost
    seen = np.isfinite(peaks) & (peaks > 0)
    if seen.any():
        bottom.plot(middles, np.where(seen, peaks, np.nan), ".-", color=COLOURS["text"], linewidth=0.8, markersize=2.5)
        low, high = np.log10(peaks[seen].min()), np.log10(peaks[seen].max())
        bottom.set(yscale="log", ylim=(0.7 * 10 ** np.floor(low), 1.4 * 10 ** max(np.ceil(high), np.floor(low) + 1)))
        bottom.yaxis.set_major_formatter("{x:.0e}")
        bottom.yaxis.set_minor_formatter(NullFormatter())
    else:
        numbers = int(np.isfinite(difference).sum())
        text = "nothing to subtract" if not numbers else "no difference"
        bottom.text(
            0.5,
            0.5,
            text if numbers in (0, steps) else f"{text} where both are numbers",
            transform=bottom.transAxes,
            ha="center",
            va="center",
        )
        bottom.set_yticks([])
        bottom.grid(False)
    bottom.set(
        xlabel="step",
        xlim=(0, max(len(a), len(b), 1)),
        ylabel="|A − B|" + (f"\nlargest of {window} steps" if window > 1 else ""),
    )
    bottom.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    bottom.xaxis.set_major_formatter("{x:,.0f}")
    figure.align_ylabels()
    return figure


def _buckets(values: np.ndarray, window: int, reduce: np.ufunc) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The middles of buckets of `window` steps, the reduced value of each, and their sizes; the last may be shorter."""
    starts = np.arange(0, len(values), window)
    sizes = np.diff(starts, append=len(values))
    return starts + sizes / 2, reduce.reduceat(values, starts) if len(values) else values, sizes
