"""Compares two models layer by layer on the same images, and names the first layer where they part.

Each side is a run, or a file of weights in any format that convert.py reads. "jax:" or "torch:" before it says
which framework computes it; else a run is computed by the framework that trained it, and of weights the first
side in JAX, the second in PyTorch. A side may also be your own model: torch:their_port.py:build or
jax:package.module:build. The function is called without arguments, so that your own code runs, and returns a
torch.nn.Module, a flax.nnx.Module, a Flax Linen module, or (module, variables) of Linen. In float64, what remains is a
difference in the mathematics; float32 and bfloat16 show differences in the arithmetic, too, such as TF32. Exit code 1
where the sides part.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mixer_common.comparison.compare import Comparison, compare
from mixer_common.comparison.differences import describe_losses
from mixer_common.comparison.isolate import isolate
from mixer_common.comparison.printing import print_comparison
from mixer_common.comparison.sides import SideOptions, images_to_compare, open_sides
from mixer_common.data import load_dataset
from mixer_common.errors import UserError, run_script
from mixer_common.interface import load_framework
from mixer_common.options import DataDir, DatasetName, Device, Names, PixelMean, PixelStd, Precision, parse
from mixer_common.weights.patterns import read_names
from mixer_common.weights.pixels import stated_scale

Gelu = Annotated[
    Literal["exact", "tanh"] | None, tyro.conf.arg(help="State the GELU that the side computes. Default: its own.")
]
Epsilon = Annotated[
    float | None,
    tyro.conf.arg(help="State the number that every LayerNorm of the side adds to the variance. Default: its own."),
]
Layout = Annotated[
    Literal["nchw", "nhwc"] | None,
    tyro.conf.arg(help="State the order of the axes of the pixels that a module takes. Default: nchw; of JAX nhwc."),
]


@dataclass(frozen=True)
class Arguments:
    a: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="A")]
    """Side A: a run, a file of weights, or a function that returns a model; jax: or torch: before it."""
    b: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="B")]
    """Side B: a run, a file of weights, or a function that returns a model; jax: or torch: before it."""
    precision: Precision = "float64"
    gradients: bool = False
    """Compare the gradients of the mean cross-entropy, too."""
    tolerance: float | None = None
    """Largest relative error of any layer. Default: what rounding explains, for each layer its own."""
    isolate: bool = False
    """Feed every layer of B with A's activations, too, so that a fault does not colour what follows: every layer that
    is at fault by itself is named."""
    images: int = 8
    """Number of test images that both sides compute."""
    dataset: DatasetName = "auto"
    data_dir: DataDir = None
    device: Device = "auto"
    html: Path | None = None
    """Also write everything as one page to this file."""
    picture: Path | None = None
    """File for the picture of both loss curves and their difference, of two runs. Default: runs/<A>-and-<B>.png."""
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
    subjects = open_sides(arguments.a, arguments.b, arguments.device, *side_options(arguments))
    frameworks = {name: load_framework(name) for name in dict.fromkeys(subject.framework for subject in subjects)}
    for framework in frameworks.values():  # before the data: a device that is missing is said first
        framework.prepare(arguments.device, arguments.precision)
    dataset = load_dataset(arguments.dataset, arguments.data_dir, frameworks[subjects[0].framework].download)
    inputs = images_to_compare(dataset, arguments.images)
    print(f"Images     {inputs.description}\nPrecision  {arguments.precision}", flush=True)
    recordings = []
    for letter, subject in zip("AB", subjects, strict=True):
        start = time.perf_counter()
        recording = subject.record(inputs, arguments.precision, arguments.gradients)
        origin = recording.origin
        print(f"{letter}          {origin.name}: {origin.model}; {origin.runs_in}", flush=True)
        for line in origin.notes:
            print(f"           {line}")
        print(f"           computed in {time.perf_counter() - start:.1f} s", flush=True)
        recordings.append(recording)
    comparison = compare(recordings[0], recordings[1], arguments.tolerance)
    if arguments.isolate:
        isolation = isolate(recordings[0], recordings[1], subjects[1], arguments.tolerance)
        comparison = replace(comparison, isolation=isolation)
    print_comparison(comparison)
    write_files(comparison, arguments)
    return 0 if comparison.agrees else 1


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
    if arguments.images < 1:
        raise UserError(f"--images is {arguments.images}, but at least 1 image must be compared.")
    if arguments.tolerance is not None and not arguments.tolerance >= 0:
        raise UserError(f"--tolerance is {arguments.tolerance}, but a largest error must be at least 0.")
    for path in (arguments.html, arguments.picture):
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
