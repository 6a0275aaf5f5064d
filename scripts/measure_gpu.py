"""Measures a GPU in one call that ends in time: the benchmark of s16, then nano and strong trained as long as fits.

Runs benchmark.py and train_jax.py from this checkout, installed or not. What fails is reported, and the next part
goes on.
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

from mixer_bench.gpu_session import GOALS, Settings, measure
from mixer_common.errors import run_script
from mixer_common.options import parse
from mixer_common.terminal import SECONDS_BETWEEN_LINES


def main() -> int:
    settings = parse(Settings, __doc__)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # the script that runs is ended, too
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    last = start = time.monotonic()
    with console.status("") as status:

        def say(text: str) -> None:
            nonlocal last
            last = time.monotonic()
            console.print(f"{last - start:5.0f} s  {text}", markup=False, soft_wrap=True)
            sys.stdout.flush()

        def watch(text: str) -> None:
            status.update(escape(text[: console.width - 4]))
            if text and not console.is_terminal and time.monotonic() - last > SECONDS_BETWEEN_LINES:
                say(f"    {text}")

        report = measure(settings, say, watch)
    console.print(table(report))
    for name in ("report.json", "benchmark.json", "benchmark.png", "curves.png", "log.txt"):
        if (settings.out / name).exists():
            print(settings.out / name)
    return int(any(part["reason"] for part in report["parts"].values()))


def table(report: dict[str, Any]) -> Table:
    table = Table(
        title=f"{report['machine']['device']}, {report['seconds'] / 60:.1f} minutes",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for heading in ("", "measured", "goal", "met"):
        table.add_column(heading, no_wrap=heading in ("", "met"))
    for name, part in report["parts"].items():
        goal = ""
        if name == "benchmark":
            goal = f"matmul share of {GOALS[name]:.0%}"
        elif name in GOALS:
            goal = f"{GOALS[name]:g} s of training steps an epoch"
        figures = list(_figures(part))
        if part["reason"]:
            figures.append(f"failed: {part['reason']}")
        table.add_row(name, escape("\n".join(figures)), goal, {True: "yes", False: "no"}.get(part.get("met")))
    return table


def _figures(part: dict[str, Any]) -> Iterator[str]:
    for row in part.get("implementations", ()):
        yield (
            f"{row['implementation']}: {row['images_per_second']:,.0f} images/s, matmul share "
            f"{row['matmul_share']:.1%}, batches of {row['batch_size']}"
        )
    trained = part if part.get("curve") else part.get("probe")
    if trained:
        yield (
            f"{trained['test_accuracy']:.2%} after {trained['epochs']} of {part['epochs_of_recipe']} epochs, "
            f"{trained['curve'][-1]['minutes']:.1f} minutes, compilation included"
        )
        if trained["seconds_per_epoch"] is not None:
            yield (
                f"{trained['seconds_per_epoch']:.2f} s of training steps an epoch, "
                f"{trained['wall_seconds_per_epoch']:.2f} s with evaluation and checkpoint"
            )


if __name__ == "__main__":
    run_script(main)
