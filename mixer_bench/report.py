"""What a benchmark prints and writes: the first screen, the table, the JSON, the picture."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mixer_bench.flops import flops_per_step
from mixer_bench.results import Measurement
from mixer_bench.settings import MODES, Benchmark
from mixer_common.data import Dataset
from mixer_common.errors import UserError
from mixer_common.machine import describe_machine


def check_output(path: Path) -> None:
    """Raises UserError or OSError where no file can be written at `path`; leaves a file that is there as it is."""
    if path.is_dir():
        raise UserError(f"{path} is a folder, but a file is written there: give it a name in it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    existed = path.exists()
    path.open("ab").close()
    if not existed:
        path.unlink()


def print_introduction(benchmark: Benchmark, dataset: Dataset) -> None:
    """Prints the first screen; the device and the versions follow when the workers run."""
    config, recipe, host = benchmark.model, benchmark.recipe, describe_machine("")
    flops = flops_per_step(config, recipe.batch_size, benchmark.mode)
    steps = MODES[benchmark.mode] + (" with Adam" if benchmark.mode == "train" else "")
    if dataset.notice:
        print(f"\n*** {dataset.notice} ***\n")
    print(
        f"Measured {steps} of MLP-Mixer {benchmark.model_name}, {config.num_parameters:,} parameters, "
        f"{config.image_size[0]}x{config.image_size[1]} px in patches of {config.patch_size}\n"
        f"         batches of {recipe.batch_size}, {recipe.precision}, {flops / 1e9:,.4g} GFLOP a step; "
        f"{benchmark.rounds} rounds, turns of about {benchmark.seconds:g} s\n"
        f"Data     {dataset.source}: {len(dataset.train_images):,} training images\n"
        f"Machine  {host['cpu']}, {host['threads']} threads for each implementation",
        flush=True,
    )


def print_report(measurement: Measurement) -> None:
    """Prints the table and what explains it."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    console.print(table(measurement))
    matmul = ", ".join(
        f"{framework} {rate['flops_per_second'] / 1e9:,.4g}" for framework, rate in measurement.matmul.items()
    )
    size = max(rate["size"] for rate in measurement.matmul.values())
    print(
        f"Ratio: speed beside the better of torch-eager and torch-compile; above 1 is faster.\n"
        f"Matmul share: of what a product of {size} x {size} matrices reaches, in GFLOP/s: {matmul}."
    )
    for name, reason in measurement.left_out.items():
        print(f"Left out: {name}: {reason}.")


def write_json(measurement: Measurement, path: Path) -> None:
    """Writes all figures: the fields of Measurement, and of Result for each implementation."""
    path.write_text(json.dumps(asdict(measurement), indent=2) + "\n")


def table(measurement: Measurement) -> Table:
    """One row for each implementation, the fastest in bold."""
    table = Table(
        title=f"{measurement.settings['model']}, {measurement.title}",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    for heading in ("ms a step", "quartiles", "images/s", "ratio", "compile s", "peak MB", "matmul share"):
        table.add_column(heading, justify="right", no_wrap=True)
    fastest = min(measurement.results, key=lambda result: result.seconds_per_step)
    for result in measurement.results:
        low, high = (1e3 * seconds for seconds in result.seconds_per_step_spread)
        table.add_row(
            result.implementation,
            f"{1e3 * result.seconds_per_step:,.4g}",
            f"{low:,.4g} to {high:,.4g}",
            result.speed,
            "" if result.ratio is None else f"{result.ratio:.2f}",
            f"{result.compile_seconds:.1f}",
            f"{result.peak_memory_bytes / 1e6:,.0f}",
            f"{result.matmul_share:.1%}",
            style="bold" if result is fastest else None,
        )
    return table
