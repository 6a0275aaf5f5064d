"""Records what a model computes on test images: a file that compare.py takes as a side, anywhere and at any time.

The side is what compare.py takes: a run, a file of weights in any format that convert.py reads, or a function that
returns a model; it is your own code, which runs then. "jax:" or "torch:" before it says which framework computes it;
else a run is computed by the framework that trained it, and weights in JAX. The file holds images, labels, weights and
activations; gradients with --gradients.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mixer_common.comparison.recording import RecordingSubject
from mixer_common.comparison.recording_files import is_recording, save_recording
from mixer_common.comparison.sides import SideOptions, WeightsSubject, images_to_compare, open_side
from mixer_common.data import load_dataset
from mixer_common.errors import UserError, run_script
from mixer_common.interface import load_framework
from mixer_common.machine import return_freed_memory
from mixer_common.options import (
    DataDir,
    DatasetName,
    Device,
    Epsilon,
    Gelu,
    Layout,
    Names,
    PixelMean,
    PixelStd,
    Precision,
    parse,
)
from mixer_common.terminal import ByteDisplay
from mixer_common.weights.patterns import read_names
from mixer_common.weights.pixels import stated_scale


@dataclass(frozen=True)
class Arguments:
    side: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SIDE")]
    """A run, a file of weights, or a function that returns a model; jax: or torch: before it."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT.safetensors")]
    """The file to write."""
    precision: Precision = "float64"
    gradients: bool = False
    """Record the gradients of the mean cross-entropy, too: those of the weights and those of the activations."""
    images: int = 8
    """Number of test images to compute."""
    dataset: DatasetName = "auto"
    data_dir: DataDir = None
    device: Device = "auto"
    overwrite: bool = False
    """Replace an older recording."""
    weights: Path | None = None
    """Load this run or file of weights into the model that a function returns. Default: the weights that it returns."""
    names: Names = None
    layout: Layout = None
    pixel_mean: PixelMean = None
    pixel_std: PixelStd = None
    gelu: Gelu = None
    layer_norm_epsilon: Epsilon = None


def main() -> None:
    arguments = parse(Arguments, __doc__)
    check(arguments)
    return_freed_memory()  # each activation is freed as soon as it is written
    side = open_side(arguments.side, "jax", arguments.device, side_options(arguments))
    if isinstance(side, RecordingSubject):
        raise UserError(f"{arguments.side} is a recording already: name the model that it was made with.")
    framework = load_framework(side.framework)
    device = framework.prepare(arguments.device, arguments.precision)
    inputs = images_to_compare(
        load_dataset(arguments.dataset, arguments.data_dir, framework.download), arguments.images
    )
    print(f"Images     {inputs.description}\nPrecision  {arguments.precision}")
    print(
        f"Runs in    {framework.name} {framework.versions[framework.name]} on {framework.describe(device)}", flush=True
    )
    start = time.perf_counter()
    if isinstance(side, WeightsSubject):
        with ByteDisplay() as progress:
            origin = side.record_to_file(arguments.out, inputs, arguments.precision, arguments.gradients, progress)
    else:  # which of its values belong to which layer is known when all are there
        recording = side.record(inputs, arguments.precision, arguments.gradients)
        origin = recording.origin
        save_recording(arguments.out, recording)
        for line in recording.observations:
            print(f"Observed   {line}")
    print(f"Model      {origin.name}: {origin.model}")
    for line in origin.notes:
        print(f"           {line}")
    size = arguments.out.stat().st_size / 1e6
    print(f"Recording  {arguments.out}, {size:,.1f} MB, in {time.perf_counter() - start:.1f} s")


def side_options(arguments: Arguments) -> SideOptions:
    """What the options state of the side."""
    details = {name: getattr(arguments, name) for name in ("gelu", "layer_norm_epsilon")}
    return SideOptions(
        arguments.weights,
        arguments.layout,
        stated_scale(arguments.pixel_mean, arguments.pixel_std),
        read_names(arguments.names) if arguments.names else None,
        {name: value for name, value in details.items() if value is not None},
    )


def check(arguments: Arguments) -> None:
    """Raises UserError for a number of images out of range, and where the file would destroy something else."""
    out = arguments.out
    if arguments.images < 1:
        raise UserError(f"--images is {arguments.images}, but at least 1 image must be recorded.")
    if out.suffix != ".safetensors":
        raise UserError(f"{out} does not end in .safetensors, which a recording is written as: give it such a name.")
    if out.is_dir():
        raise UserError(f"{out} is a folder, but a file is written there: give it a name in it.")
    if out.exists() and not arguments.overwrite:
        raise UserError(f"{out} exists already: replace it with --overwrite, or choose another name.")
    if out.exists() and not is_recording(out):
        raise UserError(f"{out} is no recording, so --overwrite does not replace it: choose another name.")


if __name__ == "__main__":
    run_script(main)
