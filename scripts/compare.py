"""Compares two models layer by layer on the same images, and names the first layer where they part.

Each side is a run, or a file of weights in any format that convert.py reads. "jax:" or "torch:" before it says
which framework computes it; else a run is computed by the framework that trained it, and of weights the first
side in JAX, the second in PyTorch. Exit code 1 where the sides part.
"""

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mixer_common.comparison.bounds import forward_bounds, gradient_bound, gradient_scales
from mixer_common.comparison.diagnosis import Computed, describe_weights, likely_cause
from mixer_common.comparison.differences import Comparison, LayerDifference, Side, describe_losses, layer_differences
from mixer_common.config.presets import model_name
from mixer_common.data import load_dataset
from mixer_common.errors import UserError, run_script
from mixer_common.interface import load_framework
from mixer_common.options import parse
from mixer_common.plan.random import generator
from mixer_common.runs import checkpoint
from mixer_common.runs.folder import read_losses
from mixer_common.weights.canonical import ModelWeights, describe_assumed
from mixer_common.weights.files import load_weights


@dataclass(frozen=True)
class Arguments:
    a: Annotated[str, tyro.conf.Positional]
    """A run or a file of weights, with or without jax: or torch: before it."""
    b: Annotated[str, tyro.conf.Positional]
    """The same."""
    precision: Literal["float64", "float32", "bfloat16"] = "float64"
    """float64 shows differences in the mathematics; float32 and bfloat16 those in the arithmetic, such as TF32."""
    gradients: bool = False
    """Compare the gradients of the mean cross-entropy, too."""
    tolerance: float | None = None
    """Largest relative error of any layer. Default: what rounding explains, for each layer its own."""
    images: int = 8
    """How many test images."""
    dataset: str = "auto"
    """cifar10, digits, or auto: CIFAR-10 where it is at hand or can be downloaded, else digits."""
    data_dir: Path | None = None
    """Folder that holds CIFAR-10. Default: $MLP_MIXER_DATA, else ~/.cache/mlp-mixer."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto: a GPU where there is one."""
    html: Path | None = None
    """Also write everything as one page to this file."""
    picture: Path | None = None
    """Of two runs, the picture of both loss curves and their difference. Default: runs/<A>-and-<B>.png."""


def main() -> int:
    arguments = parse(Arguments, __doc__)
    if arguments.images < 1:
        raise UserError(f"--images is {arguments.images}, but at least 1 image must be compared.")
    if arguments.tolerance is not None and not arguments.tolerance >= 0:
        raise UserError(f"--tolerance is {arguments.tolerance}, but a largest error must be at least 0.")
    for path in (arguments.html, arguments.picture):
        if path and path.is_dir():
            raise UserError(f"{path} is a folder, but a file is written there: give it a name in it.")
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
    opened = [open_side(arguments.a, "jax"), open_side(arguments.b, "torch")]
    frameworks = {name: load_framework(name) for name in dict.fromkeys(framework for framework, _, _ in opened)}
    devices = {name: framework.prepare(arguments.device, arguments.precision) for name, framework in frameworks.items()}
    dataset = load_dataset(arguments.dataset, arguments.data_dir, next(iter(frameworks.values())).download)
    images, labels = dataset.test_images[: arguments.images].copy(), dataset.test_labels[: arguments.images]
    words = f"{len(images)} test images of {dataset.source}" if len(images) > 1 else f"a test image of {dataset.source}"
    if (images == images[..., :1]).all():  # or colours in the wrong order would not show
        images[-1] = generator(0, 0, "noise").integers(0, 256, images[-1].shape)
        words += "; the last one coloured noise, since they are grey"
    print(f"Images     {words}\nPrecision  {arguments.precision}", flush=True)

    sides, computed, gradients = [], [], []
    for letter, (name, side, weights) in zip("AB", opened, strict=True):
        framework, device, start = frameworks[name], devices[name], time.perf_counter()
        side = replace(side, runs_in=f"{name} {framework.versions[name]} on {framework.describe(device)}")
        print(f"{letter}          {side.name}: {side.what}; {side.runs_in}", flush=True)
        given = weights.config, weights.arrays, images
        computed.append(
            Computed(weights.config, weights.arrays, framework.activations(*given, arguments.precision, device))
        )
        if arguments.gradients:
            gradients.append(
                framework.gradients(*given, labels % weights.config.num_classes, arguments.precision, device)
            )
        print(f"           computed in {time.perf_counter() - start:.1f} s", flush=True)
        sides.append(side)
    comparison = compare(arguments, sides, computed, gradients, words, images)
    report(comparison, arguments)
    return 1 if comparison.first else 0


def open_side(text: str, default: str) -> tuple[str, Side, ModelWeights]:
    """The framework that computes the side, what it is, and its weights."""
    prefix, colon, rest = text.partition(":")
    asked, path = (prefix, Path(rest)) if colon and prefix in ("jax", "torch") else (None, Path(text))
    if asked and not rest:
        raise UserError(f"{text} names a framework and no model: write the path of a run or of weights after it.")
    if not (checkpoint.exists(path / "checkpoint") or (path / "progress.json").exists()):
        weights = load_weights(path)
        what = f"{weights.format} weights of {_sizes(weights)}"
        if weights.assumed:
            what += f"; assumed: {describe_assumed(weights)}"
        return asked or default, Side(text, what, ""), weights
    state = checkpoint.load_run(path)
    weights = ModelWeights(state.config.model, dict(state.weights), "canonical")
    what = f"{_sizes(weights)}, after {state.progress.step:,} steps on {state.config.dataset_source}"
    losses = read_losses(path) if (path / "step_losses.npy").exists() else None
    return asked or state.progress.frameworks[-1][0], Side(text, what, "", losses), weights


def _sizes(weights: ModelWeights) -> str:
    return f"{model_name(weights.config)}, {weights.config.num_parameters:,} parameters"


def compare(
    arguments: Arguments,
    sides: list[Side],
    computed: list[Computed],
    gradients: list[dict[str, np.ndarray]],
    images: str,
    pictures: np.ndarray,
) -> Comparison:
    a, b = computed
    bounds = forward_bounds(a.config, arguments.precision)
    bound = gradient_bound(a.config, arguments.precision, len(pictures))
    if arguments.tolerance is not None:
        bounds, bound = dict.fromkeys(bounds, arguments.tolerance), arguments.tolerance
    comparison = Comparison(
        *sides,
        images,
        arguments.precision,
        describe_weights(a, b),
        layer_differences(b.activations, a.activations, bounds),
        layer_differences(gradients[1], gradients[0], dict.fromkeys(gradients[0], bound), gradient_scales(gradients[0]))
        if gradients
        else (),
        arguments.tolerance,
    )
    first = comparison.first
    if first in comparison.activations:
        return replace(comparison, cause=likely_cause(first, a, b, pictures))
    if first:
        return replace(
            comparison,
            cause="Every activation agrees, so the way back differs: a derivative rule, "
            "the loss, or the precision of a sum over images and patches.",
        )
    return comparison


def report(comparison: Comparison, arguments: Arguments) -> None:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    print(f"Weights    {comparison.weights}")
    for title, errors in (("Activations", comparison.activations), ("Gradients", comparison.gradients)):
        if errors:
            console.print(table(title, errors, comparison.first))
    first, runs = comparison.first, (comparison.a.step_losses, comparison.b.step_losses)
    if first:
        print(
            f"They part at {first.name}: {_figure(first)}, where rounding explains {first.bound:.1e}."
            if arguments.tolerance is None
            else f"They part at {first.name}: {_figure(first)}, with a tolerance of {first.bound:g}."
        )
        print(comparison.cause)
    else:
        worst = max((*comparison.activations, *comparison.gradients), key=lambda error: error.ratio)
        print(
            f"They agree: the largest error beside its bound is {worst.max_error:.1e}, at {worst.name}; rounding "
            f"explains {worst.bound:.1e} there."
            if arguments.tolerance is None
            else f"They agree: the largest error is {worst.max_error:.1e}, at {worst.name}."
        )
    if all(losses is not None for losses in runs):
        from mixer_common.comparison import pictures

        names = comparison.a.name, comparison.b.name
        picture = arguments.picture
        if picture is None:
            short = (Path(name.removeprefix("jax:").removeprefix("torch:")).name for name in names)
            picture = Path("runs") / f"{'-and-'.join(short)}.png"
            picture.parent.mkdir(exist_ok=True)
        pictures.loss_curves(*runs, names, picture)
        print(f"Losses     {describe_losses(*runs)}\n           {picture}")
    if arguments.html:
        from mixer_common.comparison.page import write_page

        write_page(comparison, arguments.html)
        print(f"Page       {arguments.html}")


def table(title: str, errors: tuple[LayerDifference, ...], first: LayerDifference | None) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("layer", no_wrap=True)
    for heading in ("max error", "L2 error", "bound"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for error in errors:
        mark = "<-- first" if error is first else "past" if error.past else ""
        table.add_row(
            error.name,
            *(f"{value:.1e}" for value in (error.max_error, error.l2_error, error.bound)),
            f"{mark} {error.note}".strip(),
            style="bold red" if error is first else None,
        )
    return table


def _figure(error: LayerDifference) -> str:
    return error.note or f"largest error {error.max_error:.1e}"


if __name__ == "__main__":
    run_script(main)
