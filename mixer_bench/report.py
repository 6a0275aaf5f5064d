"""What a person sees of a benchmark: the first screen, the table, the files."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mixer_bench.flops import flops_per_step
from mixer_bench.settings import MODES, Benchmark, Measurement
from mixer_common.data import Dataset
from mixer_common.errors import UserError
from mixer_common.machine import describe_machine


def check_output(path: Path) -> None:
    """Raises UserError or OSError where no file can be written at `path`; leaves what is there."""
    if path.is_dir():
        raise UserError(f"{path} is a folder, but a file is written there: give it a name in it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    there = path.exists()
    path.open("ab").close()
    if not there:
        path.unlink()


def introduce(benchmark: Benchmark, dataset: Dataset) -> None:
    """The first screen; the device and the versions follow when the workers tell them."""
    config, recipe, host = benchmark.config, benchmark.recipe, describe_machine("")
    flops = flops_per_step(config, recipe.batch_size, benchmark.mode)
    steps = MODES[benchmark.mode] + (" with Adam" if benchmark.mode == "train" else "")
    if dataset.notice:
        print(f"\n*** {dataset.notice} ***\n")
    print(
        f"Measured {steps} of MLP-Mixer {benchmark.model}, {config.num_parameters:,} parameters, "
        f"{config.image_size[0]}x{config.image_size[1]} px in patches of {config.patch_size}\n"
        f"         batches of {recipe.batch_size}, {recipe.precision}, {flops / 1e9:,.4g} GFLOP a step; "
        f"{benchmark.rounds} rounds, turns of about {benchmark.seconds:g} s\n"
        f"Data     {dataset.source}: {len(dataset.train_images):,} training images\n"
        f"Machine  {host['cpu']}, {host['threads']} threads for each implementation",
        flush=True,
    )


def report(measurement: Measurement, json_path: Path | None, plot: Path | None) -> None:
    """Prints the table, and writes the files that are asked for."""
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
    if json_path:
        json_path.write_text(json.dumps(asdict(measurement), indent=2) + "\n")
        print(f"Figures  {json_path}")
    if plot:
        from mixer_bench import pictures

        pictures.speeds(measurement, plot)
        print(f"Picture  {plot}")


def table(measurement: Measurement) -> Table:
    table = Table(
        title=f"{measurement.settings['model']}, {measurement.what}",
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
