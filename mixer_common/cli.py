"""Command lines: dataclasses that tyro reads, on top of the named models and recipes."""

import argparse
import importlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import tyro

from mixer_common.checkpoint import Checkpoint, RunConfig
from mixer_common.config import MODELS, MixerConfig, model_name
from mixer_common.errors import UserError
from mixer_common.fields import by_name
from mixer_common.recipe import RECIPE_MODELS, RECIPES, TrainConfig
from mixer_common.weight_files import load_weights

if TYPE_CHECKING:
    from mixer_common.loop import Framework

T = TypeVar("T")


def one_of(names: Iterable[str]) -> str:
    """a, b or c: for the help of an option that takes one of them."""
    *others, last = names
    return f"{', '.join(others)} or {last}"


@dataclass(frozen=True)
class TrainArguments:
    """What a training script takes. Every detail of the model and of the recipe can be changed by its name."""

    model: Annotated[str, tyro.conf.arg(help=f"{one_of(MODELS)}; its sizes are the defaults below. Where it "
                                             "is left out, the recipe's own.")] = "tutorial"
    recipe: Annotated[str, tyro.conf.arg(help=f"{one_of(RECIPES)}; its settings are the defaults below.")] = "tutorial"
    dataset: str = "auto"
    """cifar10, digits, or auto: CIFAR-10 where it is at hand or can be downloaded, else digits."""
    data_dir: Path | None = None
    """Folder that holds CIFAR-10 or receives it. Default: $MLP_MIXER_DATA, else ~/.cache/mlp-mixer."""
    out: Path | None = None
    """Folder of the run. Default: runs/<framework>-<model>-<dataset>-<seed>."""
    resume: bool = False
    """Continue the run in --out, whichever framework began it."""
    overwrite: bool = False
    """Delete the run in --out and begin anew."""
    init_from: Path | None = None
    """Start from these weights instead of --model: a run, or a file in any format that convert.py reads. Their
    sizes are the defaults below; --image-size carries them to another size, and a head of another number of
    classes than the data set's starts anew as zeros."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto: a GPU where there is one."""
    config: Annotated[MixerConfig, tyro.conf.arg(name="")] = field(default_factory=MixerConfig)
    train: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)


@dataclass(frozen=True)
class TorchTrainArguments(TrainArguments):
    compile: bool = False
    """Run the forward and backward passes through torch.compile."""


def parse_train(kind: type[T], description: str) -> T:
    """The command line's arguments. The named model or the weights to start from, and the named recipe, or the
    run to resume, give the defaults."""
    names = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    names.add_argument("--model")
    names.add_argument("--recipe")
    names.add_argument("--out", type=Path)
    names.add_argument("--init-from", "--init_from", type=Path)  # tyro takes both spellings
    names.add_argument("--resume", action="store_true")
    known, _ = names.parse_known_args()
    if known.init_from and known.resume:
        raise UserError("--init-from begins a new run, and --resume continues one, whose weights lie in --out: "
                        "leave one of them out.")
    if known.init_from and known.model:
        raise UserError("--init-from brings its own model: leave --model out.")
    if known.resume and known.out:
        run = RunConfig.from_json(known.out / "config.json")
        default = kind(model=run.model_name, recipe=run.recipe_name, dataset=run.dataset, config=run.model,
                       train=run.train)
    else:
        recipe = known.recipe or kind.recipe
        if known.init_from:
            config = load_weights(known.init_from).config
            model = model_name(config)
        else:
            model = known.model or RECIPE_MODELS.get(recipe, kind.model)
            config = by_name("model", MODELS, model)
        default = kind(model=model, recipe=recipe, config=config, train=by_name("recipe", RECIPES, recipe))
    # A flag that is on by default can be given, too: a run's own, when it is resumed.
    return tyro.cli(kind, description=description, default=default, config=(tyro.conf.OmitArgPrefixes,))


def parse(kind: type[T], description: str) -> T:
    return tyro.cli(kind, description=description, config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes))


def load_framework(asked: str, state: Checkpoint) -> "Framework":
    """The framework "jax" or "torch", or for "auto" the one that trained last; only that one is imported."""
    return import_framework(state.progress.frameworks[-1][0] if asked == "auto" else asked)


def import_framework(name: str) -> "Framework":
    return importlib.import_module(f"mixer_{name}.framework").framework()
