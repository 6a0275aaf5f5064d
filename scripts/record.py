"""Records what a model computes on test images: a file that compare.py takes as a side, anywhere and at any time.

The side is a run, or a file of weights in any format that convert.py reads; "jax:" or "torch:" before it says which
framework computes it, else a run is computed by the framework that trained it, and weights in JAX. The file holds the
images and labels, the activations, the weights and, with --gradients, all gradients.
"""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from mixer_common.comparison.recording_files import is_recording
from mixer_common.comparison.sides import WeightsSubject, images_to_compare, open_model
from mixer_common.data import load_dataset
from mixer_common.errors import UserError, run_script
from mixer_common.interface import load_framework
from mixer_common.machine import return_freed_memory
from mixer_common.options import DataDir, DatasetName, Device, Precision, parse
from mixer_common.terminal import ByteDisplay


@dataclass(frozen=True)
class Arguments:
    side: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SIDE")]
    """A run or a file of weights, with or without jax: or torch: before it."""
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


def main() -> None:
    arguments = parse(Arguments, __doc__)
    check(arguments)
    return_freed_memory()  # each activation is freed as soon as it is written
    model = open_model(arguments.side, "jax")
    framework = load_framework(model.framework)
    device = framework.prepare(arguments.device, arguments.precision)
    dataset = load_dataset(arguments.dataset, arguments.data_dir, framework.download)
    inputs = images_to_compare(dataset, arguments.images)
    print(f"Model      {model.name}: {model.description}")
    print(f"Images     {inputs.description}\nPrecision  {arguments.precision}")
    print(
        f"Runs in    {framework.name} {framework.versions[framework.name]} on {framework.describe(device)}", flush=True
    )
    subject, start = WeightsSubject(model, framework, partial(framework.prepare, arguments.device)), time.perf_counter()
    with ByteDisplay() as progress:
        subject.record_to_file(arguments.out, inputs, arguments.precision, arguments.gradients, progress)
    size = arguments.out.stat().st_size / 1e6
    print(f"Recording  {arguments.out}, {size:,.1f} MB, in {time.perf_counter() - start:.1f} s")


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
