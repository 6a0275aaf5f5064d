"""Draws the pictures in docs/ from the records in docs/records/.

Each PNG carries the SHA-256 of the records that it was drawn from, so that a test can tell when it is out of date.
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
from mixer_bench.results import Measurement, Result
from mixer_common.drawing import COLOURS, STYLE, save_figure
from mixer_common.errors import run_script

DOCS = Path(__file__).parent
RECORDS = DOCS / "records"


def main() -> None:
    for name, (draw, records) in pictures().items():
        path = DOCS / f"{name}.png"
        draw(*(json.loads((RECORDS / f"{record}.json").read_text()) for record in records), path)
        stamp(path, record_hash(records))
        print(f"Picture  {path}")


def pictures() -> dict[str, tuple[Callable[..., None], tuple[str, ...]]]:
    """Every picture that is drawn here, by its name without .png: the function, and the records that it takes."""
    ten_epochs = ("ten-epochs-float64", "ten-epochs-float32", "tutorial-published")
    benchmarks = {path.stem: (draw_speeds, (path.stem,)) for path in sorted(RECORDS.glob("speed-*-*-*.json"))}
    return {"ten-epochs": (draw_ten_epochs, ten_epochs), **benchmarks}


def record_hash(records: tuple[str, ...]) -> str:
    return hashlib.sha256(b"".join((RECORDS / f"{name}.json").read_bytes() for name in records)).hexdigest()


def draw_ten_epochs(float64: dict[str, Any], float32: dict[str, Any], published: dict[str, Any], path: Path) -> None:
    """Both frameworks' loss curves on top of each other, and below them their difference in both precisions."""
    curves, epochs, window = float64["curves"], float64["epochs"], float64["curves"]["window"]
    position = (np.arange(len(curves["largest_difference"])) + 0.5) * window / float64["steps_per_epoch"]
    accuracy = epochs[-1]["test_accuracy"]
    with rc_context(STYLE):
        figure = Figure(figsize=(8.6, 4.6), layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        top.set_title(
            f"The tutorial's ten epochs: {float64['steps']:,} steps in float64", loc="left", fontweight="bold"
        )
        jax_label = f"JAX: {accuracy['jax']:.2%} of the test images at the end"
        top.plot(position, curves["loss"]["jax"], color=COLOURS["a"], linewidth=4, alpha=0.45, label=jax_label)
        torch_label = f"PyTorch: {accuracy['torch']:.2%}"
        top.plot(position, curves["loss"]["torch"], color=COLOURS["b"], linewidth=1.2, label=torch_label)
        ends = [row["epoch"] - 0.12 for row in epochs]  # the middle of steps 10,001 to 12,000 of 12,500
        published_label = "published by the tutorial, lossless images"
        top.plot(ends, published["losses"], "o", color=COLOURS["text"], markersize=4, label=published_label)
        top.set(ylabel=f"training loss,\nmean of {window} steps", xlim=(0, len(epochs)))
        top.legend(loc="upper right")
        for record, colour, style in ((float32, COLOURS["muted"], "--"), (float64, COLOURS["text"], "-")):
            differences = record["curves"]["largest_difference"]
            bottom.semilogy(position, differences, color=colour, linestyle=style, linewidth=1.2)
            place = (position[-1], differences[-1])
            bottom.annotate(record["precision"], place, (0, 7), textcoords="offset points", ha="right", color=colour)
        bottom.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}")
        bottom.set(
            ylabel=f"largest |JAX − PyTorch|\nin {window} steps",
            xlabel="epoch",
            ylim=(1e-16, 1),
            yticks=[10.0**exponent for exponent in range(-16, 1, 4)],
            xticks=range(len(epochs) + 1),
        )
        save_figure(figure, path)


def draw_speeds(record: dict[str, Any], path: Path) -> None:
    """The bar chart of a benchmark, as scripts/benchmark.py --plot draws it."""
    fields = {name: record[name] for name in Measurement.__dataclass_fields__ if name != "results"}
    speeds(Measurement(results=[Result(**result) for result in record["results"]], **fields), path)


def stamp(path: Path, digest: str) -> None:
    """Writes the records' hash into the PNG, as the text field "records"."""
    information = PngInfo()
    information.add_text("records", digest)
    with Image.open(path) as image:
        image.load()
        image.convert("RGB").quantize(128).save(path, pnginfo=information, optimize=True)


if __name__ == "__main__":
    run_script(main)
