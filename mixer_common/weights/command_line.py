"""Weights as a script's command line names them: read with a display of the progress, and described."""

from typing import Any

from mixer_common.options import WeightsOptions
from mixer_common.terminal import ByteDisplay
from mixer_common.weights.canonical import ModelWeights, describe_assumed
from mixer_common.weights.description import describe_model
from mixer_common.weights.files import load_weights
from mixer_common.weights.patterns import read_names
from mixer_common.weights.pixels import stated_scale


def read_weights(address: str, options: WeightsOptions, without_head: bool = False) -> ModelWeights:
    """The weights at an address, read as the options state. Raises UserError as load_weights does.

    without_head: whether the head may be missing.
    """
    details: dict[str, Any] = {
        "gelu": options.gelu,
        "layer_norm_epsilon": options.layer_norm_epsilon,
        "block": options.block,
        "image_size": options.image_shape,
    }
    with ByteDisplay() as display:
        return load_weights(
            address,
            progress=display,
            prefer=options.prefer,
            pixels=stated_scale(options.pixel_mean, options.pixel_std),
            without_head=without_head,
            names=read_names(options.names) if options.names else None,
            **{name: value for name, value in details.items() if value is not None},
        )


def print_weights(label: str, name: str, weights: ModelWeights) -> None:
    """Prints what was read and what is assumed. label: the weights' part in the script; name: as the user wrote it."""
    print(
        f"{label:9}{name}: {weights.format}, {weights.config.num_parameters:,} parameters, "
        f"{'/'.join(sorted({str(array.dtype) for array in weights.arrays.values()}))}"
    )
    print(f"Model    {describe_model(weights.config)}")
    for note in weights.notes:
        print(f"Read     {note}")
    if weights.assumed:
        print(
            f"Assumed  {describe_assumed(weights)}, which the file does not tell; change it with --gelu, "
            "--layer-norm-epsilon, --image-shape, --block, --pixel-mean"
        )
