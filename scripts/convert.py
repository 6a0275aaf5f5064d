"""Converts a Mixer's weights between formats.

SOURCE is a run, a checkpoint or a file in any of these formats; its content tells which one, not its name.
What the file does not tell is assumed as in the format's own model, and printed; options state something else.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mixer_common.errors import UserError, run_script
from mixer_common.options import Names, PixelMean, PixelStd, Prefer, parse
from mixer_common.terminal import ByteDisplay
from mixer_common.weights.canonical import describe_assumed, replace_head
from mixer_common.weights.description import describe_formats, describe_model, notes_for_reader
from mixer_common.weights.files import check_target, load_weights, save_arrays, save_weights
from mixer_common.weights.image_size import change_image_size
from mixer_common.weights.like import arrays_like
from mixer_common.weights.patterns import describe_names, read_names
from mixer_common.weights.pixels import stated_scale


@dataclass(frozen=True)
class Arguments:
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """The run, the checkpoint, or the file of weights to convert."""
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET")]
    """The folder to write for canonical, else the file, whose ending tells the container."""
    to: Annotated[str | None, tyro.conf.arg(help=f"The format to write. {describe_formats()}.")] = None
    like: Path | None = None
    """Write TARGET under the names and in the layouts of this file of somebody's model, instead of --to."""
    num_classes: int | None = None
    """Replace the head, also one that is missing, by one of zeros for this many classes. Default: keep the head."""
    image_size: int | None = None
    """Change the weights to fit square images of this many pixels. Default: keep the size."""
    gelu: Literal["exact", "tanh"] | None = None
    """State the GELU that the model computes, where SOURCE does not tell or tells another. Default: SOURCE's."""
    layer_norm_epsilon: float | None = None
    """State the number that every LayerNorm adds to the variance. Default: SOURCE's."""
    image_shape: tuple[int, int] | None = None
    """State height and width, in pixels, of the images that SOURCE's patches make up. Default: the squarest."""
    block: Literal["mixer", "tutorial"] | None = None
    """State the block, where a canonical file has as many patches as channels. Default: SOURCE's."""
    names: Names = None
    prefer: Prefer = None
    pixel_mean: PixelMean = None
    pixel_std: PixelStd = None
    overwrite: bool = False
    """Replace TARGET, if it is a file of weights or a folder with nothing but weights."""


def main() -> None:
    arguments = parse(Arguments, __doc__)
    if (arguments.to is None) == (arguments.like is None):
        raise UserError(
            "state the format to write with --to, or with --like a file whose names it shall have"
            + ("." if arguments.to is None else ": leave one of them out.")
        )
    check_target(arguments.target, arguments.to or "structure", arguments.overwrite, arguments.source)
    names = read_names(arguments.names) if arguments.names else None
    details = {
        "gelu": arguments.gelu,
        "layer_norm_epsilon": arguments.layer_norm_epsilon,
        "block": arguments.block,
        "image_size": arguments.image_shape,
    }
    with ByteDisplay() as display:
        weights = load_weights(
            arguments.source,
            display,
            prefer=arguments.prefer,
            pixels=stated_scale(arguments.pixel_mean, arguments.pixel_std),
            without_head=arguments.num_classes is not None,
            names=None if arguments.like else names,
            **{name: value for name, value in details.items() if value is not None},
        )
    config = weights.config
    print(
        f"Source   {arguments.source}: {weights.format}, {config.num_parameters:,} parameters, "
        f"{'/'.join(sorted({str(array.dtype) for array in weights.arrays.values()}))}"
    )
    print(f"Model    {describe_model(config)}")
    for note in weights.notes:
        print(f"Read     {note}")
    if weights.assumed:
        print(
            f"Assumed  {describe_assumed(weights)}, which the file does not tell; change it with --gelu, "
            "--layer-norm-epsilon, --image-shape, --block, --pixel-mean"
        )
    if arguments.image_size is not None:
        weights, change = change_image_size(weights, arguments.image_size)
        print(f"Changed  image size: {change}")
    if arguments.num_classes is not None:
        before = f"{config.num_classes:,}" if weights.has_head else "none"
        weights = replace_head(weights, arguments.num_classes)
        print(f"Changed  head: zeros for {arguments.num_classes:,} classes in place of {before}")
    start = time.perf_counter()
    with ByteDisplay() as display:
        if arguments.like:
            arrays, like = arrays_like(weights, arguments.like, names, display)
            save_arrays(arguments.target, arrays, display)
        else:
            save_weights(arguments.target, weights, arguments.to or "", display, arguments.overwrite)
    if arguments.like:
        for line in describe_names(like.names, like.config) if like.names else []:
            print(f"Names    {line}")
    megabytes = sum(array.nbytes for array in weights.arrays.values()) / 1e6
    written = arguments.to or f"like {arguments.like}"
    print(
        f"Wrote    {arguments.target}: {written}, {weights.config.num_parameters:,} parameters, "
        f"{megabytes:,.1f} MB, in {time.perf_counter() - start:.1f} s"
    )
    for note in notes_for_reader(weights.config, arguments.to) if arguments.to else []:
        print(f"         {note}")


if __name__ == "__main__":
    run_script(main)
