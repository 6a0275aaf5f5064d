"""Draws the pictures in docs/ from the records in docs/records/.

Each PNG carries the SHA-256 of the record that it was drawn from, so that a test can tell when it is out of date.
docs/hour-on-one-core.png and docs/architecture.svg are not drawn here.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mixer_bench.pictures import speeds
from mixer_bench.settings import Measurement, Result
from mixer_common.drawing import COLOURS, STYLE, save_figure
from mixer_common.errors import run_script

DOCS = Path(__file__).parent
RECORDS = DOCS / "records"


def main() -> None:
    for name, draw in pictures().items():
        path = DOCS / f"{name}.png"
        draw(json.loads((RECORDS / f"{pictured_record(name)}.json").read_text()), path)
        stamp(path, record_hash(name))
        print(f"Picture  {path}")


def pictures() -> dict[str, Callable[[dict[str, Any], Path], None]]:
    """Every picture that is drawn here by its name without .png."""
    benchmarks = {path.stem: draw_speeds for path in sorted(RECORDS.glob("speed-*-*-*.json"))}
    return {"ten-epochs": draw_ten_epochs, **benchmarks}


def pictured_record(name: str) -> str:
    return "ten-epochs-float64" if name == "ten-epochs" else name


def record_hash(name: str) -> str:
    return hashlib.sha256((RECORDS / f"{pictured_record(name)}.json").read_bytes()).hexdigest()


def draw_ten_epochs(record: dict[str, Any], path: Path) -> None:
    """Both frameworks' loss curves on top of each other, and below them their difference."""
    curves, epochs = record["curves"], record["epochs"]
    published = json.loads((RECORDS / "tutorial-published.json").read_text())["losses"]
    position = (np.arange(len(curves["largest_difference"])) + 0.5) * curves["window"] / record["steps_per_epoch"]
    accuracy = epochs[-1]["test_accuracy"]
    with rc_context(STYLE):
        figure = Figure(figsize=(8.6, 4.6), layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        top.set_title(
            f"The tutorial's ten epochs: {record['steps']:,} steps in {record['precision']}",
            loc="left",
            fontweight="bold",
        )
        top.plot(
            position,
            curves["loss"]["jax"],
            color=COLOURS["a"],
            linewidth=4,
            alpha=0.45,
            label=f"JAX: {accuracy['jax']:.2%} of the test images at the end",
        )
        top.plot(
            position,
            curves["loss"]["torch"],
            color=COLOURS["b"],
            linewidth=1.2,
            label=f"PyTorch: {accuracy['torch']:.2%}",
        )
        top.plot(
            [row["epoch"] - 0.12 for row in epochs],  # steps 10,001 to 12,000 of 12,500
            published,
            "o",
            color=COLOURS["text"],
            markersize=4,
            label="published by the tutorial, lossless images",
        )
        top.set(ylabel=f"training loss,\nmean of {curves['window']} steps", xlim=(0, len(epochs)))
        top.legend(loc="upper right")
        bottom.semilogy(position, curves["largest_difference"], color=COLOURS["text"], linewidth=1.2)
        bottom.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}")
        bottom.set(
            ylabel=f"largest |JAX − PyTorch|\nin {curves['window']} steps",
            xlabel="epoch",
            ylim=(1e-16, 1e-8),
            xticks=range(len(epochs) + 1),
        )
        bottom.axhline(2.0**-53, color=COLOURS["muted"], linewidth=1, linestyle="--")
        bottom.annotate(
            "rounding of one float64 number near 1", (len(epochs), 2.0**-53), (-4, 4), color=COLOURS["muted"],
            textcoords="offset points", ha="right", fontsize=9,
        )  # fmt: skip
        save_figure(figure, path)


def draw_speeds(record: dict[str, Any], path: Path) -> None:
    """The bar chart of a benchmark, as scripts/benchmark.py --plot draws it."""
    fields = {name: record[name] for name in Measurement.__dataclass_fields__ if name != "results"}
    speeds(Measurement(results=[Result(**result) for result in record["results"]], **fields), path)


def stamp(path: Path, digest: str) -> None:
    """Writes the record's hash into the PNG, as the text field "record"."""
    information = PngInfo()
    information.add_text("record", digest)
    with Image.open(path) as image:
        image.load()
        image.convert("RGB").quantize(128).save(path, pnginfo=information, optimize=True)


if __name__ == "__main__":
    run_script(main)
