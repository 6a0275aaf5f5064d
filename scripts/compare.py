"""Compares two models layer by layer on the same images, and names the first layer where they part.

Each side is a run, or a file of weights in any format that convert.py reads. "jax:" or "torch:" before it says
which framework computes it; else a run is computed by the framework that trained it, and of weights the first
side in JAX, the second in PyTorch. A side may also be your own model: torch:their_port.py:build or
jax:package.module:build. The function is called without arguments, so that your own code runs, and returns a
torch.nn.Module, a flax.nnx.Module, a Flax Linen module, or (module, variables) of Linen. A side may also be a recording
that record.py wrote: the other side then computes its images. In float64, what remains is a difference in the
mathematics; float32 and bfloat16 show differences in the arithmetic, too, such as TF32. Exit code 1 where the sides
part.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mixer_common.comparison.checkpoint_printing import print_checkpoints
from mixer_common.comparison.checkpoints import compare_checkpoints, open_arrays
from mixer_common.comparison.compare import Comparison, compare
from mixer_common.comparison.differences import describe_losses
from mixer_common.comparison.figures import write_figures, write_json
from mixer_common.comparison.isolate import isolate
from mixer_common.comparison.precision import default_precision
from mixer_common.comparison.precisions import layer_effects
from mixer_common.comparison.printing import print_comparison
from mixer_common.comparison.recording import Inputs, Recording, RecordingSubject, Subject
from mixer_common.comparison.sides import SideOptions, images_to_compare, open_sides, recorded_inputs
from mixer_common.comparison.steps import StepsComparison, train_and_compare
from mixer_common.comparison.steps_printing import print_steps
from mixer_common.data import load_dataset
from mixer_common.errors import UserError, run_script
from mixer_common.interface import load_framework
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
from mixer_common.weights.patterns import read_names
from mixer_common.weights.pixels import stated_scale


@dataclass(frozen=True)
class Arguments:
    a: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="A")]
    """Side A: a run, a file of weights, a recording, or a function that returns a model; jax: or torch: before it."""
    b: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="B")]
    """Side B: a run, a file of weights, a recording, or a function that returns a model; jax: or torch: before it."""
    precision: Precision | None = None
    """The arithmetic of both models; with bfloat16, the weights and the statistics of norms stay float32. Default: that
    of the recording where a side is one; with --judge float32; for two runs of other weights the lower precision of
    their trainings; else float64."""
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
    steps: int | None = None
    """Also train both sides for so many steps from A's weights, with the recipe of A or else of B where it is a run,
    else with that named tutorial, and show where weights, gradients and moments part first."""
    images: int | None = None
    """Number of test images that both sides compute. Default: 8, or those of the recording where a side is one."""
    dataset: DatasetName = "auto"
    data_dir: DataDir = None
    device: Device = "auto"
    weights_only: bool = False
    """Compare all arrays of both sides, moments and averaged weights, too, without running anything: equal to the bit,
    or within --tolerance."""
    html: Path | None = None
    """Also write everything as one page to this file."""
    json: Path | None = None
    """Also write everything that was measured to this file."""
    picture: Path | None = None
    """File for the picture of both loss curves and their difference, of two runs. Default: runs/<A>-and-<B>.png."""
    steps_picture: Path | None = None
    """File for the picture of --steps: where the trainings part, weight by step."""
    weights: Path | None = None
    """Load this run or file of weights into every side that is a function. Default: the weights that it returns."""
    names: Names = None
    layout_a: Layout = None
    layout_b: Layout = None
    pixel_mean_a: PixelMean = None
    pixel_std_a: PixelStd = None
    pixel_mean_b: PixelMean = None
    pixel_std_b: PixelStd = None
    gelu_a: Gelu = None
    gelu_b: Gelu = None
    layer_norm_epsilon_a: Epsilon = None
    layer_norm_epsilon_b: Epsilon = None


def main() -> int:
    arguments = parse(Arguments, __doc__)
    check(arguments)
    if arguments.weights_only:
        return compare_stored(arguments)
    sides = open_sides(arguments.a, arguments.b, arguments.device, *side_options(arguments))
    precision, reason = choose_precision(arguments, sides)
    inputs = choose_inputs(arguments, sides)
    print(f"Images     {inputs.description}\nPrecision  {precision}{f', {reason}' if reason else ''}", flush=True)
    a, b = (record(side, letter, inputs, precision, arguments) for letter, side in zip("AB", sides, strict=True))
    judge = sides[0].record(inputs, "float64") if arguments.judge else None
    comparison = compare(a, b, arguments.tolerance, judge)
    if arguments.isolate:
        comparison = replace(comparison, isolation=isolate(a, b, sides[1], arguments.tolerance))
    if arguments.precisions:
        comparison = replace(comparison, bfloat16=tuple(layer_effects(a, sides[0])))
    print_comparison(comparison)
    if arguments.steps is not None:
        comparison = replace(comparison, steps=train_sides(arguments, sides, precision, arguments.steps))
    write_files(comparison, arguments)
    return 0 if comparison.agrees and not (comparison.steps and comparison.steps.first) else 1


def train_sides(arguments: Arguments, sides: tuple[Subject, Subject], precision: str, number: int) -> StepsComparison:
    """Trains both sides for so many steps, and prints where they part."""
    dataset = load_dataset(arguments.dataset, arguments.data_dir, load_framework(sides[0].framework).download)
    names = arguments.a, arguments.b
    steps = train_and_compare(sides[0], sides[1], names, dataset, number, precision, arguments.device)
    print_steps(steps)
    return steps


def compare_stored(arguments: Arguments) -> int:
    """Compares all arrays of both sides without running anything; the exit code."""
    if arguments.html:
        raise UserError("--weights-only makes no page: leave out --html, or write the figures with --json.")
    comparison = compare_checkpoints(open_arrays(arguments.a), open_arrays(arguments.b), arguments.tolerance)
    print_checkpoints(comparison)
    if arguments.json:
        write_json(comparison.figures(), arguments.json)
        print(f"Figures    {arguments.json}")
    return 0 if comparison.agrees else 1


def choose_precision(arguments: Arguments, sides: tuple[Subject, Subject]) -> tuple[str, str]:
    """The precision of the sides that are computed, and for people the reason where it was chosen for them; their
    frameworks are prepared for it."""
    recorded = [side.recording.origin.precision for side in sides if isinstance(side, RecordingSubject)]
    if arguments.precision or recorded:
        precision, reason = arguments.precision or recorded[0], ""
    else:
        precision, reason = default_precision(*sides, bool(arguments.judge))
    if arguments.judge and precision == "float64":
        raise UserError("--judge float64 needs sides of a lower precision: choose --precision float32 or bfloat16.")
    if arguments.precisions and precision == "bfloat16":
        raise UserError("--precisions needs a model of a higher precision: choose --precision float32 or float64.")
    for name in dict.fromkeys(side.framework for side in sides if not isinstance(side, RecordingSubject)):
        # before the data: a device that is missing is said first
        load_framework(name).prepare(arguments.device, precision)
    return precision, reason


def choose_inputs(arguments: Arguments, subjects: Sequence[Subject]) -> Inputs:
    """The images of a recording, where a side is one; else test images of the data set."""
    inputs = recorded_inputs(subjects)
    if inputs is None:
        download = load_framework(subjects[0].framework).download
        return images_to_compare(load_dataset(arguments.dataset, arguments.data_dir, download), arguments.images or 8)
    if arguments.images is not None or arguments.dataset != "auto" or arguments.data_dir is not None:
        print("A recording holds its images: --images, --dataset and --data-dir have no effect.")
    return inputs


def record(side: Subject, letter: str, inputs: Inputs, precision: str, arguments: Arguments) -> Recording:
    """What the side computes, or what was recorded; prints what it is and how long it took."""
    start = time.perf_counter()
    if isinstance(side, RecordingSubject):
        precision = side.recording.origin.precision
    recording = side.record(inputs, precision, arguments.gradients)
    origin = recording.origin
    print(f"{letter}          {origin.name}: {origin.model}; {origin.runs_in}", flush=True)
    for line in origin.notes:
        print(f"           {line}")
    if not isinstance(side, RecordingSubject):
        print(f"           computed in {time.perf_counter() - start:.1f} s", flush=True)
    return recording


def side_options(arguments: Arguments) -> tuple[SideOptions, SideOptions]:
    """What the options state of side A and of side B."""
    values = vars(arguments)
    names = read_names(arguments.names) if arguments.names else None

    def of(side: str) -> SideOptions:
        details = {name: values[f"{name}_{side}"] for name in ("gelu", "layer_norm_epsilon")}
        return SideOptions(
            arguments.weights,
            values[f"layout_{side}"],
            stated_scale(values[f"pixel_mean_{side}"], values[f"pixel_std_{side}"]),
            names,
            {name: value for name, value in details.items() if value is not None},
        )

    return of("a"), of("b")


def check(arguments: Arguments) -> None:
    """Raises UserError for values out of range, and makes the folders of the files to write."""
    if arguments.images is not None and arguments.images < 1:
        raise UserError(f"--images is {arguments.images}, but at least 1 image must be compared.")
    if arguments.steps is not None and arguments.steps < 1:
        raise UserError(f"--steps is {arguments.steps}, but at least 1 step must be trained.")
    if arguments.tolerance is not None and not arguments.tolerance >= 0:
        raise UserError(f"--tolerance is {arguments.tolerance}, but a largest error must be at least 0.")
    for path in (arguments.html, arguments.json, arguments.picture, arguments.steps_picture):
        if path and path.is_dir():
            raise UserError(f"{path} is a folder, but a file is written there: give it a name in it.")
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)


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
    if comparison.steps and arguments.steps_picture:
        from mixer_common.comparison.steps_drawing import save_heat_map

        save_heat_map(comparison.steps, arguments.steps_picture)
        print(f"Steps      {arguments.steps_picture}")
    if arguments.html:
        from mixer_common.comparison.page import write_page

        write_page(comparison, arguments.html)
        print(f"Page       {arguments.html}")
    if arguments.json:
        write_figures(comparison, arguments.json)
        print(f"Figures    {arguments.json}")


if __name__ == "__main__":
    run_script(main)
