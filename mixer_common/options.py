"""Command-line options that several scripts share, and how a script reads its command line."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import tyro

T = TypeVar("T")

Device = Annotated[
    Literal["auto", "cpu", "gpu"], tyro.conf.arg(help="The processor to compute on; auto: a GPU where there is one.")
]
DatasetName = Annotated[
    str, tyro.conf.arg(help="cifar10, digits, or auto: CIFAR-10 where it is at hand or can be downloaded, else digits.")
]
DataDir = Annotated[
    Path | None,
    tyro.conf.arg(help="Folder that holds CIFAR-10 or receives it. Default: $MLP_MIXER_DATA, else ~/.cache/mlp-mixer."),
]
FrameworkName = Annotated[
    Literal["auto", "jax", "torch"],
    tyro.conf.arg(help="The framework that computes; auto: the one that trained last, and JAX for weights alone."),
]
Precision = Annotated[
    Literal["float32", "bfloat16", "float64"],
    tyro.conf.arg(
        help="The arithmetic of the model; with bfloat16, the weights and the statistics of norms stay float32."
    ),
]
Weights = Annotated[
    str,
    tyro.conf.arg(
        help="A run, a checkpoint, or weights in any format that docs/formats.md lists: a file, a folder, "
        "hf:OWNER/NAME[@REVISION], https://... or gs://BUCKET/PATH."
    ),
]
Prefer = Annotated[
    str | None,
    tyro.conf.arg(
        metavar="{ema,model,PREFIX}",
        help="Which weights are read where averaged ones lie beside those as trained: ema, model, or the beginning of "
        "their names. Default: ema, as timm does.",
    ),
]
PixelMean = Annotated[
    tuple[str, ...] | None,
    tyro.conf.arg(
        metavar="{inception,imagenet,cifar10,none}|R G B",
        help="State the mean that the model subtracts from pixels of 0 to 1, or a name that stands for mean and "
        "deviation; none: pixels stay 0 to 1. It is folded into the stem. Default: pixels of -1 to 1.",
    ),
]
PixelStd = Annotated[
    tuple[str, ...] | None,
    tyro.conf.arg(
        metavar="R G B", help="State the deviation that the model divides by, after --pixel-mean is subtracted."
    ),
]
Names = Annotated[
    Path | None,
    tyro.conf.arg(
        metavar="FILE",
        help="State which array is which: a TOML file with lines such as "
        '"blocks.{i}.token_norm.weight" = "layers.{i}.ln_a.weight". Default: names and shapes tell.',
    ),
]

# Of a side of a comparison.
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
class WeightsOptions:
    """What a file of weights does not tell, and which of them are read."""

    gelu: Literal["exact", "tanh"] | None = None
    """State the GELU that the model computes, where the weights do not tell or tell another. Default: the weights'."""
    layer_norm_epsilon: float | None = None
    """State the number that every LayerNorm adds to the variance. Default: the weights'."""
    image_shape: tuple[int, int] | None = None
    """State height and width, in pixels, of the images that the patches make up. Default: the squarest."""
    block: Literal["mixer", "tutorial"] | None = None
    """State the block, where a canonical file has as many patches as channels. Default: the weights'."""
    names: Names = None
    prefer: Prefer = None
    pixel_mean: PixelMean = None
    pixel_std: PixelStd = None


# The field of a script's arguments that holds WeightsOptions.
WeightsOptionsField = Annotated[WeightsOptions, tyro.conf.arg(name="")]


def one_of(names: Iterable[str]) -> str:
    """The names as "a, b or c", for the help of an option that takes one of them."""
    *others, last = names
    return f"{', '.join(others)} or {last}"


def parse(arguments: type[T], description: str | None) -> T:
    """Reads the command line as a dataclass of type `arguments`; `description` is the head of its --help."""
    return tyro.cli(
        arguments, description=description, config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)
    )
