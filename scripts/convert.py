"""Converts a Mixer's weights between formats.

SOURCE is a run, a checkpoint or a file in any of these formats; its content tells which one, not its name. It may
also be an address: hf:OWNER/NAME, https://... or gs://...
What the file does not tell is assumed as in the format's own model, and printed; options state something else.
"""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from mixer_common.errors import UserError, run_script
from mixer_common.options import Weights, WeightsOptions, WeightsOptionsField, parse
from mixer_common.terminal import ByteDisplay
from mixer_common.weights.addresses import local_path
from mixer_common.weights.canonical import replace_head
from mixer_common.weights.command_line import print_weights, read_weights
from mixer_common.weights.description import describe_formats, notes_for_reader
from mixer_common.weights.files import check_target, save_arrays, save_weights
from mixer_common.weights.image_size import change_image_size
from mixer_common.weights.like import arrays_like
from mixer_common.weights.patterns import describe_names, read_names


@dataclass(frozen=True)
class Arguments:
    source: Annotated[Weights, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET")]
    """The folder to write for canonical, else the file, whose ending tells the container."""
    to: Annotated[str | None, tyro.conf.arg(help=f"The format to write. {describe_formats()}.")] = None
    like: Path | None = None
    """Write TARGET under the names and in the layouts of this file of somebody's model, instead of --to."""
    num_classes: int | None = None
    """Replace the head, also one that is missing, by one of zeros for this many classes. Default: keep the head."""
    image_size: int | None = None
    """Change the weights to fit square images of this many pixels. Default: keep the size."""
    options: WeightsOptionsField = field(default_factory=WeightsOptions)
    overwrite: bool = False
    """Replace TARGET, if it is a file of weights or a folder with nothing but weights."""


def main() -> None:
    arguments = parse(Arguments, __doc__)
    if (arguments.to is None) == (arguments.like is None):
        raise UserError(
            "state the format to write with --to, or with --like a file whose names it shall have"
            + ("." if arguments.to is None else ": leave one of them out.")
        )
    source = local_path(arguments.source)
    check_target(arguments.target, arguments.to or "structure", arguments.overwrite, source)
    # With --like, --names is about the names to write.
    options = replace(arguments.options, names=None) if arguments.like else arguments.options
    weights = read_weights(arguments.source, options, without_head=arguments.num_classes is not None)
    config = weights.config
    print_weights("Source", arguments.source, weights)
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
            names = read_names(arguments.options.names) if arguments.options.names else None
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
