"""The pictures of a benchmark: speeds side by side, accuracy over time."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mixer_bench.results import Measurement
from mixer_common.drawing import COLOURS, STYLE, save_figure


def speeds(measurement: Measurement, path: Path) -> None:
    """Draws images per second of each implementation, with the quartiles and the ratio to PyTorch's best, as a PNG."""
    with rc_context(STYLE):
        save_figure(_speeds_figure(measurement), path)


def _speeds_figure(measurement: Measurement) -> Figure:
    results, settings, machine = measurement.results, measurement.settings, measurement.machine
    figure = Figure(figsize=(7.5, 1.6 + 0.45 * len(results)), layout="constrained")
    axes = figure.subplots()
    axes.set_title(f"MLP-Mixer {settings['model']}: {measurement.title}", loc="left", pad=24, fontweight="bold")
    device = f"{machine['cpu']}, {machine['threads']} threads" if "CPU" in machine["device"] else machine["device"]
    axes.annotate(
        f"{device}; median and quartiles of {settings['rounds']} rounds",
        (0, 1),
        (0, 8),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=9,
        color=COLOURS["muted"],
    )
    speeds = [result.images_per_second for result in results]
    spreads = [
        (speed - result.images_per_second_spread[0], result.images_per_second_spread[1] - speed)
        for speed, result in zip(speeds, results, strict=True)
    ]
    colours = [COLOURS["a" if result.implementation.startswith("jax") else "b"] for result in results]
    axes.barh(
        range(len(results)),
        speeds,
        height=0.62,
        color=colours,
        xerr=np.transpose(spreads),
        error_kw={"ecolor": COLOURS["text"], "elinewidth": 1.2, "capsize": 3},
    )
    for i, result in enumerate(results):
        ratio = "" if result.ratio is None else f"  ({result.ratio:.2f}×)"
        axes.annotate(
            result.speed + ratio,
            (result.images_per_second_spread[1], i),
            (7, 0),
            textcoords="offset points",
            va="center",
            backgroundcolor=COLOURS["page"],
        )
    axes.set_yticks(range(len(results)), [result.implementation for result in results])
    axes.tick_params(axis="y", length=0, labelcolor=COLOURS["text"])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_axisbelow(True)
    has_ratios = any(result.ratio is not None for result in results)
    axes.set(
        xlim=(0, 1.3 * max(result.images_per_second_spread[1] for result in results)),
        xlabel="images/s" + (" (ratio to the better of torch-eager and torch-compile)" if has_ratios else ""),
    )
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter("{x:,.0f}" if max(speeds) >= 10 else "{x:g}")
    return figure


def accuracies(runs: Mapping[str, Sequence[Mapping[str, float]]], title: str, path: Path) -> None:
    """Draws the test accuracy of runs over time as a PNG.

    runs: by name, a row for each epoch with `minutes` since the start and `test_accuracy`, 0 to 1.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(7.5, 4.2), layout="constrained")
        axes = figure.subplots()
        axes.set_title(title, loc="left", pad=10 + 18 * len(runs), fontweight="bold")
        for i, (name, rows) in enumerate(runs.items()):
            epochs = f"{len(rows)} epoch{'s' if len(rows) > 1 else ''}"
            axes.plot(
                [row["minutes"] for row in rows],
                [row["test_accuracy"] for row in rows],
                color=tuple(COLOURS[name] for name in ("a", "b", "text", "muted"))[i % 4],
                linewidth=1.8,
                marker="o" if len(rows) < 30 else None,
                markersize=4,
                label=f"{name}: {rows[-1]['test_accuracy']:.2%} after {epochs}",
            )
        axes.set(
            xlim=(0, None),
            xlabel="minutes since the start, compilation and evaluation included",
            ylabel="test accuracy",
        )
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderpad=0, borderaxespad=0.5)
        save_figure(figure, path)
