"""Measures a GPU in one call that ends in time: the benchmark of s16, then nano and strong trained as long as fits.

Trains by the training scripts of this checkout, installed or not. What fails is reported, and the next part goes on.
"""

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mixer_bench.gpu_session import Settings, measure_gpu
from mixer_common.errors import run_script
from mixer_common.options import parse


def main() -> int:
    settings = parse(Settings, __doc__)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that the workers end, too
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    start = time.monotonic()

    def say(text: str) -> None:
        console.print(f"{time.monotonic() - start:5.0f} s  {text}", markup=False, soft_wrap=True)
        sys.stdout.flush()

    report = measure_gpu(settings, say)
    console.print(table(report))
    for name in ("report.json", "benchmark.json", "benchmark.png", "curves.png"):
        if (settings.out / name).exists():
            print(settings.out / name)
    return int(any(part["reason"] for part in report["parts"].values()))


def table(report: dict[str, Any]) -> Table:
    """One row for each part, with its figures and the reason where it failed."""
    table = Table(
        title=f"{report['machine']['device']}, {report['seconds'] / 60:.1f} minutes",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    table.add_column("measured")
    for name, part in report["parts"].items():
        lines = list(_figures(part))
        if part["reason"]:
            lines.append(f"failed: {part['reason']}")
        table.add_row(name, escape("\n".join(lines)))
    return table


def _figures(part: dict[str, Any]) -> Iterator[str]:
    for row in part.get("implementations", ()):
        yield (
            f"{row['implementation']}: {row['images_per_second']:,.0f} images/s, matmul share "
            f"{row['matmul_share']:.1%}, batches of {row['batch_size']}"
        )
    training = part if part.get("curve") else part.get("probe")
    if training:
        yield (
            f"{training['test_accuracy']:.2%} after {training['epochs']} of {part['epochs_of_recipe']} epochs, "
            f"{training['curve'][-1]['minutes']:.1f} minutes, compilation included"
        )
        if training["wall_seconds_per_epoch"] is not None:
            yield (
                f"{training['seconds_per_epoch']:.2f} s of training steps an epoch, "
                f"{training['wall_seconds_per_epoch']:.2f} s with evaluation and checkpoint"
            )


if __name__ == "__main__":
    run_script(main)
