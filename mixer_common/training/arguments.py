"""The command line of the training scripts: dataclasses that tyro reads, on top of the named models and recipes."""

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from mixer_common.config.fields import by_name
from mixer_common.config.model import ImageSize, ModelConfig
from mixer_common.config.presets import MODELS, RECIPE_MODELS, RECIPES, describe_recipes, model_name
from mixer_common.config.train import TrainConfig
from mixer_common.errors import UserError
from mixer_common.options import (
    DataDir,
    DatasetName,
    Device,
    Names,
    PixelMean,
    PixelStd,
    Prefer,
    WeightsOptions,
    one_of,
)
from mixer_common.runs.checkpoint import RunConfig
from mixer_common.runs.history import Keep
from mixer_common.weights.canonical import ModelWeights
from mixer_common.weights.command_line import read_weights


@dataclass(frozen=True)
class TrainArguments:
    """The command line of a training script. Every field of the model and of the recipe can be changed by its name."""

    model: Annotated[
        str,
        tyro.conf.arg(
            help=f"{one_of(MODELS)}; its sizes are the defaults below. If it is left out, the recipe decides."
        ),
    ] = "tutorial"
    recipe: Annotated[
        str,
        tyro.conf.arg(help=f"{one_of(RECIPES)}; its settings are the defaults below. Measured: {describe_recipes()}."),
    ] = "tutorial"
    dataset: DatasetName = "auto"
    data_dir: DataDir = None
    out: Path | None = None
    """Folder of the run. Default: runs/<framework>-<model>-<dataset>-<seed>."""
    resume: bool = False
    """Continue the run in --out, whichever framework began it."""
    resume_from: int | None = None
    """With --resume: continue from the checkpoint of this step, one of those that --keep kept. Default: the newest."""
    keep: Keep | None = None
    """Number of the newest checkpoints to keep, at least 1; best: two, and the one of the best test accuracy. Default:
    2; of a run that is resumed as many as it has."""
    overwrite: bool = False
    """Delete the run in --out and begin a new one."""
    init_from: str | None = None
    """Start from these weights instead of --model: a run, a file in any format that convert.py reads, or an address,
    hf:OWNER/NAME[@REVISION], https://... or gs://... Their
    sizes are the defaults below. --image-size carries them to another size. A head for another number of classes
    than the data set has is replaced by zeros."""
    names: Names = None
    prefer: Prefer = None
    pixel_mean: PixelMean = None
    pixel_std: PixelStd = None
    device: Device = "auto"
    config: Annotated[ModelConfig, tyro.conf.arg(name="")] = field(default_factory=ModelConfig)
    train: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)


@dataclass(frozen=True)
class TorchTrainArguments(TrainArguments):
    compile: bool = False
    """Run the forward and backward passes through torch.compile."""


Arguments = TypeVar("Arguments", bound=TrainArguments)


def parse_train(arguments_type: type[Arguments], description: str | None) -> tuple[Arguments, ModelWeights | None]:
    """The command line's arguments, and the weights of --init-from, or None where it is left out.

    The defaults come from the run to resume, or else from the recipe and from the model or the weights that the
    command line names. description: heads --help. Raises UserError where a name is unknown or a file cannot be read.
    """
    names = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    names.add_argument("--model")
    names.add_argument("--recipe")
    names.add_argument("--out", type=Path)
    names.add_argument("--init-from", "--init_from")  # tyro takes both spellings
    names.add_argument("--names", type=Path)
    names.add_argument("--prefer")
    names.add_argument("--pixel-mean", "--pixel_mean", nargs="*")
    names.add_argument("--pixel-std", "--pixel_std", nargs="*")
    names.add_argument("--resume", action="store_true")
    named, _ = names.parse_known_args()
    if named.init_from and named.resume:
        raise UserError(
            "--init-from begins a new run, and --resume continues one, whose weights lie in --out: "
            "leave one of them out."
        )
    if not named.init_from and (named.names or named.prefer or named.pixel_mean or named.pixel_std):
        raise UserError(
            "--names, --prefer, --pixel-mean and --pixel-std are about the weights of --init-from, which is left out: "
            "name them, or leave the others out."
        )
    if named.init_from and named.model:
        raise UserError("--init-from brings its own model: leave --model out.")
    if named.resume and named.out:
        run = RunConfig.from_json(named.out / "config.json")
        given = None
        default = arguments_type(
            model=run.model_name, recipe=run.recipe_name, dataset=run.dataset, config=run.model, train=run.train
        )
    else:
        recipe = named.recipe or arguments_type.recipe
        given = _given_weights(named) if named.init_from else None
        if given:
            config = given.config
            model = model_name(config)
        else:
            model = named.model or RECIPE_MODELS.get(recipe, arguments_type.model)
            config = by_name("model", MODELS, model)
        default = arguments_type(model=model, recipe=recipe, config=config, train=by_name("recipe", RECIPES, recipe))
    # Without FlagCreatePairsOff, so that --no-flip can switch off what a recipe or a resumed run has on.
    arguments = tyro.cli(
        arguments_type,
        description=description,
        default=default,
        config=(tyro.conf.OmitArgPrefixes,),
        registry=_registry(),
        args=_without_image_width(default.config.image_size),
    )
    return arguments, given


def _given_weights(named: argparse.Namespace) -> ModelWeights:
    """The weights of --init-from, as the other options say that they are to be read."""
    options = WeightsOptions(
        names=named.names, prefer=named.prefer, pixel_mean=named.pixel_mean, pixel_std=named.pixel_std
    )
    return read_weights(named.init_from, options, without_head=True)


def _registry() -> ConstructorRegistry:
    """Reads an image size from one number, of a square, or two."""
    registry = ConstructorRegistry()

    def of_numbers(numbers: list[str]) -> ImageSize:
        if not 1 <= len(numbers) <= 2:
            raise ValueError("expected one or two whole numbers")
        return ImageSize(int(numbers[0]), int(numbers[-1]))

    @registry.primitive_rule
    def image_size(type_info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
        if type_info.type is not ImageSize:
            return None
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar="HEIGHT [WIDTH]",
            instance_from_str=of_numbers,
            is_instance=lambda value: isinstance(value, ImageSize),
            str_from_instance=lambda size: [str(side) for side in (size[:1] if size.height == size.width else size)],
        )

    return registry


def _without_image_width(default: ImageSize) -> list[str]:
    """The command line with --image-width, as version 0.1 had it, written as the second number of --image-size."""
    sizes = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    sizes.add_argument("--image-width", "--image_width", type=int)
    given, arguments = sizes.parse_known_args()
    if given.image_width is None:
        return sys.argv[1:]
    sizes.add_argument("--image-size", "--image_size", type=int, default=default.height)
    given, arguments = sizes.parse_known_args()
    return [*arguments, "--image-size", str(given.image_size), str(given.image_width or given.image_size)]
