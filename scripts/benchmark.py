"""Measures one Mixer in JAX and in PyTorch, and other people's: the same weights, images and steps, side by side.

All outputs are compared before anything is timed. Each implementation runs in a process of its own, and they take
turns in alternating rounds.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mixer_bench.report import check_output, print_introduction, print_report, write_json
from mixer_bench.session import measure
from mixer_bench.settings import IMPLEMENTATIONS, Benchmark
from mixer_common.config.fields import by_name
from mixer_common.config.presets import MODELS, RECIPES
from mixer_common.data import load_dataset
from mixer_common.errors import UserError, run_script
from mixer_common.interface import load_framework
from mixer_common.options import DataDir, DatasetName, Device, Precision, one_of, parse
from mixer_common.plan.batches import steps_in_epoch


@dataclass(frozen=True)
class Arguments:
    model: Annotated[str, tyro.conf.arg(help=f"{one_of(MODELS)}.")] = "tutorial"
    batch_size: int = 128
    """Images a step."""
    mode: Literal["train", "forward"] = "train"
    """Whole training steps with Adam, or the forward pass alone."""
    precision: Precision = "float32"
    device: Device = "auto"
    rounds: int = 7
    """Turns of each implementation."""
    seconds: float = 2.0
    """Seconds of a turn, about; at least one step."""
    only: Annotated[
        tuple[str, ...],
        tyro.conf.arg(
            help=f"Some of {one_of(IMPLEMENTATIONS)}; the outputs of all are compared with the first one's. "
            "Default: all."
        ),
    ] = ()
    json: Path | None = None
    """Write all figures to this file, too."""
    plot: Path | None = None
    """Draw the speeds as a PNG in this file, too."""
    dataset: DatasetName = "auto"
    data_dir: DataDir = None


def main() -> None:
    arguments = parse(Arguments, __doc__)
    config = by_name("model", MODELS, arguments.model)
    for name in arguments.only:
        by_name("implementation", IMPLEMENTATIONS, name)
    if arguments.rounds < 1:
        raise UserError(f"--rounds is {arguments.rounds}, but each implementation needs at least 1 turn.")
    if not 0 < arguments.seconds < float("inf"):
        raise UserError(f"--seconds is {arguments.seconds}, but a turn must take some seconds: choose 2.")
    recipe = replace(RECIPES["tutorial"], batch_size=arguments.batch_size, precision=arguments.precision)
    for path in (arguments.json, arguments.plot):
        if path:
            check_output(path)
    implementations = arguments.only or tuple(IMPLEMENTATIONS)
    downloader = load_framework(IMPLEMENTATIONS[implementations[0]])
    dataset = load_dataset(arguments.dataset, arguments.data_dir, downloader.download)
    steps_in_epoch(len(dataset.train_images), recipe.batch_size)
    benchmark = Benchmark(
        arguments.model,
        replace(config, num_classes=len(dataset.class_names)),
        recipe,
        arguments.mode,
        arguments.device,
        arguments.seconds,
        arguments.rounds,
        implementations,
    )
    print_introduction(benchmark, dataset)
    measurement = measure(benchmark, dataset)
    print_report(measurement)
    if arguments.json:
        write_json(measurement, arguments.json)
        print(f"Figures  {arguments.json}")
    if arguments.plot:
        from mixer_bench import pictures

        pictures.speeds(measurement, arguments.plot)
        print(f"Picture  {arguments.plot}")


if __name__ == "__main__":
    run_script(main)
