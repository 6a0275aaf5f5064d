"""Converts a Mixer's weights between formats.

SOURCE is a run, a checkpoint or a file in any of these formats; what it is, its content tells, not its name.
Whatever its shapes cannot tell is assumed as the format's own model has it, printed, and can be changed.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mixer_common.config.model import ModelConfig
from mixer_common.config.presets import model_name
from mixer_common.errors import run_script
from mixer_common.options import parse
from mixer_common.terminal import ByteDisplay
from mixer_common.weights.canonical import describe_assumed, replace_head
from mixer_common.weights.files import check_target, load_weights, save_weights
from mixer_common.weights.formats import DETAILS
from mixer_common.weights.image_size import change_image_size


@dataclass(frozen=True)
class Arguments:
    source: Annotated[Path, tyro.conf.Positional]
    """A run, a checkpoint, or a file of weights."""
    target: Annotated[Path, tyro.conf.Positional]
    """What to write: for canonical a folder, else a file whose ending tells the container."""
    to: str
    """canonical (a folder with config.json and model.safetensors), npz or msgpack (the authors' Flax tree), timm or
    lucidrains (mlp_mixer_pytorch): .safetensors, or .pth, .pt or .bin as torch.save writes them."""
    num_classes: int | None = None
    """Replace the head by a zero one for so many classes."""
    image_size: int | None = None
    """Carry the weights over to square images of this many pixels."""
    gelu: Literal["exact", "tanh"] | None = None
    """State which GELU the model computes, where SOURCE does not tell or is wrong."""
    layer_norm_epsilon: float | None = None
    """State the LayerNorms' epsilon."""
    image_shape: tuple[int, int] | None = None
    """State height and width of the images, pixels, that SOURCE's patches stand for."""
    block: Literal["mixer", "tutorial"] | None = None
    """State the block, where a canonical file has as many patches as channels."""
    overwrite: bool = False
    """Replace TARGET, if it is such a file or a folder of weights."""


def main() -> None:
    arguments = parse(Arguments, __doc__)
    check_target(arguments.target, arguments.to, arguments.overwrite, arguments.source)
    stated = {
        "gelu": arguments.gelu,
        "layer_norm_epsilon": arguments.layer_norm_epsilon,
        "block": arguments.block,
        "image_size": arguments.image_shape,
    }
    with ByteDisplay() as display:
        weights = load_weights(
            arguments.source, display, **{name: value for name, value in stated.items() if value is not None}
        )
    config = weights.config
    print(
        f"Source   {arguments.source}: {weights.format}, {config.num_parameters:,} parameters, "
        f"{'/'.join(sorted({str(array.dtype) for array in weights.arrays.values()}))}"
    )
    print(f"Model    {describe(config)}")
    if weights.assumed:
        print(
            f"Assumed  {describe_assumed(weights)}, which the file does not tell; change it with --gelu, "
            "--layer-norm-epsilon, --image-shape, --block"
        )
    if arguments.image_size is not None:
        weights, how = change_image_size(weights, arguments.image_size)
        print(f"Changed  image size: {how}")
    if arguments.num_classes is not None:
        weights = replace_head(weights, arguments.num_classes)
        print(f"Changed  head: zeros for {arguments.num_classes:,} classes in place of {config.num_classes:,}")
    start = time.perf_counter()
    with ByteDisplay() as display:
        save_weights(arguments.target, weights, arguments.to, display, arguments.overwrite)
    megabytes = sum(array.nbytes for array in weights.arrays.values()) / 1e6
    print(
        f"Wrote    {arguments.target}: {arguments.to}, {weights.config.num_parameters:,} parameters, "
        f"{megabytes:,.1f} MB, in {time.perf_counter() - start:.1f} s"
    )
    for line in to_set(weights.config, arguments.to):
        print(f"         {line}")


def describe(config: ModelConfig) -> str:
    name, (height, width) = model_name(config), config.image_size
    return (
        f"{name}: images {height}x{width}, patches {config.patch_size}x{config.patch_size}, {config.num_blocks} "
        f"{config.block} blocks, hidden_dim {config.hidden_dim}, tokens_mlp_dim {config.tokens_mlp_dim}, "
        f"channels_mlp_dim {config.channels_mlp_dim}, {config.num_classes:,} classes"
    )


def to_set(config: ModelConfig, format: str) -> list[str]:
    """What the reader of the file has to know, as it does not hold it."""
    if format == "canonical":
        return []
    lines = [constructor(config, format)] if format in ("timm", "lucidrains") else []
    differ = [
        f"{name} {getattr(config, name)} instead of {own}"
        for name, own in DETAILS[format].items()
        if name != "init" and own != getattr(config, name)
    ]
    if differ:
        lines.append(f"The reader must set {' and '.join(differ)}: {format} files do not hold it.")
    if config.stochastic_depth:
        lines.append(f"stochastic_depth {config.stochastic_depth:g} acts in training only; the file does not hold it.")
    return lines


def constructor(config: ModelConfig, format: str) -> str:
    """The call that makes the model which takes the file's state dict."""
    height, width = config.image_size
    size = height if height == width else (height, width)
    # Both packages compute int(ratio · hidden_dim), which must not fall below the size.
    tokens, channels = (
        hidden / config.hidden_dim
        if int(hidden / config.hidden_dim * config.hidden_dim) == hidden
        else (hidden + 0.5) / config.hidden_dim
        for hidden in (config.tokens_mlp_dim, config.channels_mlp_dim)
    )
    if format == "lucidrains":  # its expansion_factor is the tokens', its expansion_factor_token the channels'
        return (
            f"Load it into mlp_mixer_pytorch.MLPMixer(image_size={size}, channels=3, "
            f"patch_size={config.patch_size}, dim={config.hidden_dim}, depth={config.num_blocks}, "
            f"num_classes={config.num_classes}, expansion_factor={tokens}, expansion_factor_token={channels})"
        )
    if model_name(config) in ("s32", "s16", "b32", "b16", "l32", "l16"):
        return f'Load it into timm.create_model("mixer_{model_name(config)}_224", num_classes={config.num_classes})'
    return (
        f"Load it into timm.models.mlp_mixer.MlpMixer(img_size={size}, patch_size={config.patch_size}, "
        f"num_blocks={config.num_blocks}, embed_dim={config.hidden_dim}, mlp_ratio=({tokens}, {channels}), "
        f"num_classes={config.num_classes})"
    )


if __name__ == "__main__":
    run_script(main)
