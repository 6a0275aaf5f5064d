"""The pictures of a run, of a comparison and of a benchmark."""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter

if TYPE_CHECKING:  # a training draws pictures, too, and needs nothing of the benchmark
    from mixer_common.benchmark import Measurement


def first_batch(images: np.ndarray, labels: np.ndarray, class_names: Sequence[str], path: Path) -> None:
    """The first 32 test images with their labels."""
    _sheet(images[:32], [(class_names[label], "black") for label in labels[:32]], "First test images", path)


def augmented_batch(images: np.ndarray, augmented: np.ndarray, path: Path) -> None:
    """The first 16 images of a batch, each beside what augmentation made of it: bytes, as real numbers."""
    pairs = np.stack([images, np.rint(augmented).astype(np.uint8)], axis=1)[:16].reshape(-1, *images.shape[1:])
    captions = [("as it is", "black"), ("as trained on", "C0")] * (len(pairs) // 2)
    _sheet(pairs, captions, "First training images, before and after augmentation", path)


def predictions(images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str],
                path: Path) -> None:
    """The first 32 test images: predicted class and its probability; where wrong, in red with the true one."""
    captions = []
    for label, row in zip(labels[:32], probabilities, strict=False):
        best = int(row.argmax())
        text = f"{class_names[best]} {row[best]:.0%}"
        captions.append((text, "green") if best == label else (f"{text}\ntrue: {class_names[label]}", "firebrick"))
    _sheet(images[:32], captions, "Predictions on the first test images", path)


def curves(step_losses: np.ndarray, metrics: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Training loss of the steps (smoothed), and loss and accuracy after each epoch."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    window = max(1, len(step_losses) // 200)
    whole = len(step_losses) // window * window
    smooth = step_losses[:whole].astype(np.float64).reshape(-1, window).mean(axis=1)
    steps = [row["step"] for row in metrics]
    left.plot((np.arange(len(smooth)) + 0.5) * window, smooth, color="C0", alpha=0.4,
              label=f"training, mean of {window} steps" if window > 1 else "training, every step")
    left.plot(steps, [row["train_loss"] for row in metrics], "o-", color="C0", label="training, mean of the epoch")
    left.plot(steps, [row["test_loss"] for row in metrics], "s-", color="C1", label="test")
    left.set(xlabel="step", ylabel="cross-entropy (nats)")
    right.plot(steps, [row["test_accuracy"] for row in metrics], "s-", color="C1", label="test")
    right.set(xlabel="step", ylabel="accuracy")
    right.yaxis.set_major_formatter(PercentFormatter(1.0))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    _save(figure, path)


def confusion(matrix: np.ndarray, class_names: Sequence[str], path: Path) -> None:
    """Rows: true classes; columns: predicted ones; shares of the row in colour, counts in figures."""
    figure = Figure(figsize=(7.5, 7), layout="constrained")
    axes: Axes = figure.subplots()
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix):
        axes.text(column, row, str(count), ha="center", va="center", fontsize=8,
                  color="white" if share[row, column] > 0.5 else "black")
    axes.set_xticks(range(len(class_names)), class_names, rotation=45, ha="right")
    axes.set_yticks(range(len(class_names)), class_names)
    accuracy = np.trace(matrix) / max(matrix.sum(), 1)
    axes.set(xlabel="predicted", ylabel="true", title=f"Confusion matrix, accuracy {accuracy:.2%}")
    figure.colorbar(image, ax=axes, shrink=0.8, format=PercentFormatter(1.0), label="share of the true class")
    _save(figure, path)


def _sheet(images: np.ndarray, captions: Sequence[tuple[str, str]], title: str, path: Path) -> None:
    columns = 8
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.45 * columns, 1.75 * rows + 0.5), layout="constrained")
    figure.suptitle(title)
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.axis("off")
    for axes, image, (text, colour) in zip(figure.axes, images, captions, strict=False):
        axes.imshow(image)
        axes.set_title(text, fontsize=9, color=colour)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure).print_png(path)


# The same names, as CSS variables, colour the page in mixer_common/report.html.jinja.
_COLOURS = {"page": "#ffffff", "text": "#1f2329", "muted": "#5b6470", "line": "#d9dee4", "a": "#0072b2", "b": "#d55e00"}
_STYLE = {"font.size": 10.5, "figure.facecolor": _COLOURS["page"], "axes.facecolor": _COLOURS["page"],
          "text.color": _COLOURS["text"], "axes.labelcolor": _COLOURS["text"], "axes.edgecolor": _COLOURS["muted"],
          "xtick.color": _COLOURS["muted"], "ytick.color": _COLOURS["muted"], "grid.color": _COLOURS["line"],
          "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "legend.frameon": False,
          "text.parse_math": False,  # the name of a run may hold dollars
          "svg.fonttype": "none", "svg.hashsalt": "", "figure.dpi": 150}


def loss_curves(a: np.ndarray, b: np.ndarray, names: tuple[str, str], path: Path) -> None:
    """Training losses of two runs, and how far they are apart at their common steps."""
    with rc_context(_STYLE):
        _save(_loss_figure(a, b, names), path)


def loss_curves_svg(a: np.ndarray, b: np.ndarray, names: tuple[str, str]) -> str:
    """The same as an <svg> element for a page that sets the CSS variables --page, --text, --muted, --line, --a, --b."""
    file = io.StringIO()
    with rc_context(_STYLE):
        FigureCanvasSVG(_loss_figure(a, b, names)).print_svg(
            file, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = file.getvalue()
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg[svg.index("<svg"):])  # HTML knows the namespaces
    for name, colour in _COLOURS.items():
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
    for losses, side, name, style in ((a, "A", names[0], {"color": _COLOURS["a"], "linewidth": 2.4}),
                                      (b, "B", names[1], {"color": _COLOURS["b"], "linewidth": 1.2, "dashes": (4, 2)})):
        middles, sums, sizes = _buckets(losses, window, np.add)
        name = name if len(name) <= 40 else f"…{name[-39:]}"
        top.plot(middles, sums / sizes, label=f"{side}: {name}", **style)
    top.set(ylabel="training loss (nats)" + (f"\nmean of {window} steps" if window > 1 else ""))
    top.legend()
    middles, peaks, _ = _buckets(difference, window, np.fmax)  # the largest of each bucket: no peak is lost
    seen = np.isfinite(peaks) & (peaks > 0)
    if seen.any():
        bottom.plot(middles, np.where(seen, peaks, np.nan), ".-", color=_COLOURS["text"], linewidth=0.8, markersize=2.5)
        low, high = np.log10(peaks[seen].min()), np.log10(peaks[seen].max())
        bottom.set(yscale="log", ylim=(0.7 * 10 ** np.floor(low), 1.4 * 10 ** max(np.ceil(high), np.floor(low) + 1)))
        bottom.yaxis.set_major_formatter("{x:.0e}")
        bottom.yaxis.set_minor_formatter(NullFormatter())
    else:
        numbers = int(np.isfinite(difference).sum())
        text = "nothing to subtract" if not numbers else "no difference"
        bottom.text(0.5, 0.5, text if numbers in (0, steps) else f"{text} where both are numbers",
                    transform=bottom.transAxes, ha="center", va="center")
        bottom.set_yticks([])
        bottom.grid(False)
    bottom.set(xlabel="step", xlim=(0, max(len(a), len(b), 1)),
               ylabel="|A − B|" + (f"\nlargest of {window} steps" if window > 1 else ""))
    bottom.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    bottom.xaxis.set_major_formatter("{x:,.0f}")
    figure.align_ylabels()
    return figure


def _buckets(values: np.ndarray, window: int, reduce: np.ufunc) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The middles of buckets of `window` steps, what `reduce` makes of each, and their sizes; the last may be short."""
    starts = np.arange(0, len(values), window)
    sizes = np.diff(starts, append=len(values))
    return starts + sizes / 2, reduce.reduceat(values, starts) if len(values) else values, sizes


def speeds(measurement: "Measurement", path: Path) -> None:
    """Images per second of each implementation of a benchmark, the quartiles, and the ratio to PyTorch's best."""
    with rc_context(_STYLE):
        _save(_speeds_figure(measurement), path)


def _speeds_figure(measurement: "Measurement") -> Figure:
    results, settings, machine = measurement.results, measurement.settings, measurement.machine
    figure = Figure(figsize=(7.5, 1.6 + 0.45 * len(results)), layout="constrained")
    axes = figure.subplots()
    axes.set_title(f"MLP-Mixer {settings['model']}: {measurement.what}", loc="left", pad=24, fontweight="bold")
    device = f"{machine['cpu']}, {machine['threads']} threads" if "CPU" in machine["device"] else machine["device"]
    axes.annotate(f"{device}; median and quartiles of {settings['rounds']} rounds", (0, 1), (0, 8),
                  xycoords="axes fraction", textcoords="offset points", fontsize=9, color=_COLOURS["muted"])
    speeds = [result.images_per_second for result in results]
    spreads = [(speed - result.images_per_second_spread[0], result.images_per_second_spread[1] - speed)
               for speed, result in zip(speeds, results, strict=True)]
    colours = [_COLOURS["a" if result.implementation.startswith("jax") else "b"] for result in results]
    axes.barh(range(len(results)), speeds, height=0.62, color=colours, xerr=np.transpose(spreads),
              error_kw={"ecolor": _COLOURS["text"], "elinewidth": 1.2, "capsize": 3})
    for i, result in enumerate(results):
        ratio = "" if result.ratio is None else f"  ({result.ratio:.2f}×)"
        axes.annotate(result.speed + ratio, (result.images_per_second_spread[1], i), (7, 0), textcoords="offset points",
                      va="center", backgroundcolor=_COLOURS["page"])
    axes.set_yticks(range(len(results)), [result.implementation for result in results])
    axes.tick_params(axis="y", length=0, labelcolor=_COLOURS["text"])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_axisbelow(True)
    compared = any(result.ratio is not None for result in results)
    axes.set(xlim=(0, 1.3 * max(result.images_per_second_spread[1] for result in results)),
             xlabel="images/s" + (" (ratio to the better of torch-eager and torch-compile)" if compared else ""))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter("{x:,.0f}" if max(speeds) >= 10 else "{x:g}")
    return figure


def accuracies(runs: Mapping[str, Sequence[Mapping[str, float]]], title: str, path: Path) -> None:
    """Test accuracy of runs over time. runs: by name, for each epoch `minutes` since the start and `test_accuracy`."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(7.5, 4.2), layout="constrained")
        axes = figure.subplots()
        axes.set_title(title, loc="left", pad=10 + 18 * len(runs), fontweight="bold")
        for i, (name, rows) in enumerate(runs.items()):
            epochs = f"{len(rows)} epoch{'s' if len(rows) > 1 else ''}"
            axes.plot([row["minutes"] for row in rows], [row["test_accuracy"] for row in rows],
                      color=tuple(_COLOURS[name] for name in ("a", "b", "text", "muted"))[i % 4], linewidth=1.8,
                      marker="o" if len(rows) < 30 else None, markersize=4,
                      label=f"{name}: {rows[-1]['test_accuracy']:.2%} after {epochs}")
        axes.set(xlim=(0, None), xlabel="minutes since the start, compilation and evaluation included",
                 ylabel="test accuracy")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderpad=0, borderaxespad=0.5)
        _save(figure, path)
