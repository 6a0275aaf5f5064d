"""Compares two models layer by layer on the same images, and names the first layer where they part.

Each side is a run, or a file of weights in any format that convert.py reads. "jax:" or "torch:" before it says
which framework computes it; else a run is computed by the framework that trained it, and of weights the first
side in JAX, the second in PyTorch. In float64, what remains is a difference in the mathematics; float32 and bfloat16
show differences in the arithmetic, too, such as TF32. Exit code 1 where the sides part.
"""

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mixer_common.comparison.compare import Comparison, compare
from mixer_common.comparison.differences import describe_losses
from mixer_common.comparison.figures import write_figures
from mixer_common.comparison.isolate import isolate
from mixer_common.comparison.precision import default_precision
from mixer_common.comparison.precisions import layer_effects
from mixer_common.comparison.printing import print_comparison
from mixer_common.comparison.recording import Inputs, Recording, Subject
from mixer_common.comparison.sides import WeightsSubject, images_to_compare, open_model
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
    precision: Precision | None = None
    """The arithmetic of both models; with bfloat16, the weights and the statistics of norms stay float32. Default:
    float64; with --judge float32; for two runs of other weights the lower precision of their trainings."""
    gradients: bool = False
    """Compare the gradients of the mean cross-entropy, too: those of the activations, from the head back, and those of
    the weights."""
    tolerance: float | None = None
    """Largest relative error of any layer. Default: what rounding explains, for each layer its own."""
    judge: Literal["float64"] | None = None
    """Run A in float64, too, and state for each layer by what factor B is further from that than A is."""
    isolate: bool = False
    """Run B with A's activations as the input of every layer, too, and name every layer that is at fault by itself."""
    precisions: bool = False
    """Run A with one layer after the other in bfloat16, too, and state what that does to the logits. It takes as many
    passes as there are layers."""
    images: int = 8
    """Number of test images that both sides compute."""
    dataset: DatasetName = "auto"
    data_dir: DataDir = None
    device: Device = "auto"
    html: Path | None = None
    """Also write everything as one page to this file."""
    json: Path | None = None
    """Also write everything that was measured to this file."""
    picture: Path | None = None
    """File for the picture of both loss curves and their difference, of two runs. Default: runs/<A>-and-<B>.png."""


def main() -> int:
    arguments = parse(Arguments, __doc__)
    check(arguments)
    sides = open_sides(arguments)
    precision, reason = choose_precision(arguments, sides)
    dataset = load_dataset(arguments.dataset, arguments.data_dir, load_framework(sides[0].framework).download)
    inputs = images_to_compare(dataset, arguments.images)
    print(f"Images     {inputs.description}\nPrecision  {precision}{f', {reason}' if reason else ''}", flush=True)
    a, b = (record(side, letter, inputs, precision, arguments) for letter, side in zip("AB", sides, strict=True))
    judge = sides[0].record(inputs, "float64") if arguments.judge else None
    comparison = compare(a, b, arguments.tolerance, judge)
    if arguments.isolate:
        comparison = replace(comparison, isolation=isolate(a, b, sides[1], arguments.tolerance))
    if arguments.precisions:
        comparison = replace(comparison, bfloat16=tuple(layer_effects(a, sides[0])))
    print_comparison(comparison)
    write_files(comparison, arguments)
    return 0 if comparison.agrees else 1


def check(arguments: Arguments) -> None:
    """Raises UserError for values that do not fit, and makes the folders of the files to write."""
    if arguments.images < 1:
        raise UserError(f"--images is {arguments.images}, but at least 1 image must be compared.")
    if arguments.tolerance is not None and not arguments.tolerance >= 0:
        raise UserError(f"--tolerance is {arguments.tolerance}, but a largest error must be at least 0.")
    if arguments.judge and arguments.precision == "float64":
        raise UserError("--judge float64 needs sides of a lower precision: choose --precision float32 or bfloat16.")
    if arguments.precisions and arguments.precision == "bfloat16":
        raise UserError("--precisions needs a model of a higher precision: choose --precision float32 or float64.")
    for path in (arguments.html, arguments.json, arguments.picture):
        if path and path.is_dir():
            raise UserError(f"{path} is a folder, but a file is written there: give it a name in it.")
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)


def open_sides(arguments: Arguments) -> tuple[Subject, Subject]:
    """Both sides, with their weights."""
    a, b = (open_model(arguments.a, "jax"), open_model(arguments.b, "torch"))
    frameworks = {name: load_framework(name) for name in dict.fromkeys((a.framework, b.framework))}
    a, b = (
        WeightsSubject(
            model, frameworks[model.framework], partial(frameworks[model.framework].prepare, arguments.device)
        )
        for model in (a, b)
    )
    return a, b


def choose_precision(arguments: Arguments, sides: tuple[Subject, Subject]) -> tuple[str, str]:
    """The precision of both sides, and for people the reason where it was chosen for them."""
    if arguments.precision:
        precision, reason = arguments.precision, ""
    else:
        precision, reason = default_precision(*sides, bool(arguments.judge))
    for name in dict.fromkeys(side.framework for side in sides):  # before the data: a missing device is said first
        load_framework(name).prepare(arguments.device, precision)
    return precision, reason


def record(side: Subject, letter: str, inputs: Inputs, precision: str, arguments: Arguments) -> Recording:
    """What the side computes; prints what it is and how long it took."""
    start = time.perf_counter()
    recording = side.record(inputs, precision, arguments.gradients)
    origin = recording.origin
    print(f"{letter}          {origin.name}: {origin.model}; {origin.runs_in}", flush=True)
    print(f"           computed in {time.perf_counter() - start:.1f} s", flush=True)
    return recording


def write_files(comparison: Comparison, arguments: Arguments) -> None:
    """Writes the picture, if both sides are runs, and the page and the figures, if they were asked for."""
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
    if arguments.json:
        write_figures(comparison, arguments.json)
        print(f"Figures    {arguments.json}")


if __name__ == "__main__":
    run_script(main)
