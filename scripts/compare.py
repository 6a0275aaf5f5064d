"""Compares two models layer by layer on the same images, and names the first layer where they part.

Each side is a run, or a file of weights in any format that convert.py reads. "jax:" or "torch:" before it says
which framework computes it; else a run is computed by the framework that trained it, and of weights the first
side in JAX, the second in PyTorch. In float64, what remains is a difference in the mathematics; float32 and bfloat16
show differences in the arithmetic, too, such as TF32. Exit code 1 where the sides part.
"""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from mixer_common.comparison.compare import Comparison, compare
from mixer_common.comparison.differences import describe_losses
from mixer_common.comparison.printing import print_comparison
from mixer_common.comparison.sides import WeightsSubject, images_to_compare, open_model
from mixer_common.comparison.steps import train_and_compare
from mixer_common.comparison.steps_printing import print_steps
from mixer_common.data import load_dataset
from mixer_common.errors import UserError, run_script
from mixer_common.interface import load_framework
from mixer_common.options import DataDir, DatasetName, Device, Precision, parse


@dataclass(frozen=True)
class Arguments:
    a: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="A")]
    """Side A: a run or a file of weights, with or without jax: or torch: before it."""
    b: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="B")]
    """Side B: a run or a file of weights, with or without jax: or torch: before it."""
    precision: Precision = "float64"
    gradients: bool = False
    """Compare the gradients of the mean cross-entropy, too."""
    tolerance: float | None = None
    """Largest relative error of any layer. Default: what rounding explains, for each layer its own."""
    steps: int | None = None
    """Also train both sides for so many steps from A's weights, with the recipe of A or else of B where it is a run,
    else with that named tutorial, and show where weights, gradients and moments part first."""
    images: int = 8
    """Number of test images that both sides compute."""
    dataset: DatasetName = "auto"
    data_dir: DataDir = None
    device: Device = "auto"
    html: Path | None = None
    """Also write everything as one page to this file."""
    picture: Path | None = None
    """File for the picture of both loss curves and their difference, of two runs. Default: runs/<A>-and-<B>.png."""
    steps_picture: Path | None = None
    """File for the picture of --steps: where the trainings part, weight by step."""


def main() -> int:
    arguments = parse(Arguments, __doc__)
    check(arguments)
    models = [open_model(arguments.a, "jax"), open_model(arguments.b, "torch")]
    frameworks = {name: load_framework(name) for name in dict.fromkeys(model.framework for model in models)}
    for framework in frameworks.values():  # before the data: a device that is missing is said first
        framework.prepare(arguments.device, arguments.precision)
    dataset = load_dataset(arguments.dataset, arguments.data_dir, frameworks[models[0].framework].download)
    inputs = images_to_compare(dataset, arguments.images)
    print(f"Images     {inputs.description}\nPrecision  {arguments.precision}", flush=True)
    recordings, subjects = [], []
    for letter, model in zip("AB", models, strict=True):
        framework, start = frameworks[model.framework], time.perf_counter()
        device = framework.prepare(arguments.device, arguments.precision)
        runs_in = f"{framework.name} {framework.versions[framework.name]} on {framework.describe(device)}"
        print(f"{letter}          {model.name}: {model.description}; {runs_in}", flush=True)
        subject = WeightsSubject(model, framework, partial(framework.prepare, arguments.device))
        subjects.append(subject)
        recordings.append(subject.record(inputs, arguments.precision, arguments.gradients))
        print(f"           computed in {time.perf_counter() - start:.1f} s", flush=True)
    comparison = compare(recordings[0], recordings[1], arguments.tolerance)
    print_comparison(comparison)
    write_files(comparison, arguments)
    steps = None
    if arguments.steps is not None:
        names = arguments.a, arguments.b
        steps = train_and_compare(
            subjects[0], subjects[1], names, dataset, arguments.steps, arguments.precision, arguments.device
        )
        print_steps(steps)
        if arguments.steps_picture:
            from mixer_common.comparison.steps_drawing import save_heat_map

            save_heat_map(steps, arguments.steps_picture)
    return 1 if comparison.first_past_bound or (steps and steps.first) else 0


def check(arguments: Arguments) -> None:
    """Raises UserError for values out of range, and makes the folders of the files to write."""
    if arguments.images < 1:
        raise UserError(f"--images is {arguments.images}, but at least 1 image must be compared.")
    if arguments.steps is not None and arguments.steps < 1:
        raise UserError(f"--steps is {arguments.steps}, but at least 1 step must be trained.")
    if arguments.tolerance is not None and not arguments.tolerance >= 0:
        raise UserError(f"--tolerance is {arguments.tolerance}, but a largest error must be at least 0.")
    for path in (arguments.html, arguments.picture, arguments.steps_picture):
        if path and path.is_dir():
            raise UserError(f"{path} is a folder, but a file is written there: give it a name in it.")
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)


def write_files(comparison: Comparison, arguments: Arguments) -> None:
    """Writes the picture, if both sides are runs, and the page, if it was asked for."""
    a, b = comparison.a, comparison.b
    if a.step_losses is not None and b.step_losses is not None:
        from mixer_common.comparison.loss_curves import save_loss_curves

        picture = arguments.picture
        if picture is None:
            runs = (Path(name.removeprefix("jax:").removeprefix("torch:")).name for name in (a.name, b.name))
            picture = Path("runs") / f"{'-and-'.join(runs)}.png"
            picture.parent.mkdir(exist_ok=True)
        save_loss_curves(a.step_losses, b.step_losses, (a.name, b.name), picture)
        print(f"Losses     {describe_losses(a.step_losses, b.step_losses)}\n           {picture}")
    if arguments.html:
        from mixer_common.comparison.page import write_page

        write_page(comparison, arguments.html)
        print(f"Page       {arguments.html}")


if __name__ == "__main__":
    run_script(main)
