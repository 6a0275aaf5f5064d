"""How a training starts: the run that the command line describes is begun or resumed, then trained."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from filelock import FileLock

from mixer_common.config.model import ModelConfig
from mixer_common.config.presets import MODELS, model_name
from mixer_common.config.train import TrainConfig
from mixer_common.data import Dataset, load_dataset
from mixer_common.errors import UserError
from mixer_common.interface import Framework
from mixer_common.machine import is_memory_exhausted
from mixer_common.plan.batches import steps_in_epoch
from mixer_common.plan.initial import initial_weights
from mixer_common.runs import checkpoint
from mixer_common.runs.checkpoint import Checkpoint, RunConfig, TrainingProgress
from mixer_common.runs.folder import RunFolder, lock_resumable, read_resumable
from mixer_common.runs.history import kept_so_far
from mixer_common.training import messages
from mixer_common.training.arguments import TrainArguments
from mixer_common.training.given_weights import adapt_weights
from mixer_common.training.loop import run_training
from mixer_common.weights.addresses import local_path
from mixer_common.weights.canonical import ModelWeights
from mixer_common.weights.files import overlap


@dataclass(frozen=True)
class StartingPoint:
    """A run before its training goes on: its folder, how far it has come, and canonical arrays."""

    run: RunFolder
    progress: TrainingProgress
    weights: Mapping[str, np.ndarray]
    moments: Mapping[str, Mapping[str, np.ndarray]] | None  # None: the optimizer has none yet


def train(framework: Framework, arguments: TrainArguments, given: ModelWeights | None) -> int:
    """Runs a training as the command line asks; returns the exit code.

    given: the weights of --init-from, None where it is left out. Raises UserError on bad input, and where memory does
    not suffice.
    """
    path = run_to_resume(arguments)
    # Locked before the checkpoint is read: a process that trains the run meanwhile would replace it.
    resumed = (path, lock_resumable(path), read_resumable(path, arguments.resume_from)) if path else None
    if path and resumed:
        check_config(path, resumed[2].config)
    device = framework.prepare(arguments.device, arguments.train.precision)
    description = framework.describe(device)
    dataset = load_dataset(arguments.dataset, arguments.data_dir, framework.download)
    if resumed:
        start = resume_run(*resumed, arguments, framework.name, dataset)
    else:
        start = begin_run(arguments, given, framework.name, dataset)
    with start.run as run:
        trainer = None
        try:
            trainer = framework.trainer(
                run.config.model,
                run.config.train,
                start.weights,
                dataset.train_images,
                dataset.train_labels,
                moments=start.moments,
                device=device,
            )
            return run_training(trainer, run, start.progress, dataset, framework, description)
        except Exception as error:
            if not is_memory_exhausted(error):
                raise
            run.wait()
            has_checkpoint = checkpoint.exists(run.checkpoint)
            raise UserError(
                messages.memory_exhausted(run.config, description, trainer is not None, has_checkpoint)
            ) from None


def run_to_resume(arguments: TrainArguments) -> Path | None:
    """The folder of the run to resume; None for a new run. Raises UserError where options contradict each other."""
    if arguments.keep not in (None, "best") and arguments.keep < 1:
        raise UserError(f"--keep is {arguments.keep}, but at least 1 checkpoint, the newest, must be kept.")
    if not arguments.resume:
        if arguments.resume_from is not None:
            raise UserError("--resume-from needs --resume: it tells the checkpoint that a run goes on from.")
        return None
    if arguments.overwrite:
        raise UserError("--resume and --overwrite exclude each other: give one of them.")
    if arguments.out is None:
        raise UserError("--resume needs --out: name the folder of the run to continue.")
    return arguments.out


def begin_run(arguments: TrainArguments, given: ModelWeights | None, framework: str, dataset: Dataset) -> StartingPoint:
    """Makes the folder of a new run. given: the weights of --init-from; None: the seed draws them.

    Raises UserError where model, data and settings do not fit together, or something lies in the run's place.
    """
    recipe = arguments.train
    config = with_classes(arguments.config, given.config if given else MODELS[arguments.model], dataset)
    if given:
        print(f"Start    {given.format} weights in {arguments.init_from}", flush=True)
        given, lines = adapt_weights(given, config, str(arguments.init_from))
        for line in lines:
            print(f"         {line}")
        config, weights, name = given.config, given.arrays, model_name(given.config)
    else:
        weights, name = initial_weights(config, recipe.seed), arguments.model
    steps_in_epoch(len(dataset.train_images), recipe.batch_size)  # raises where there is none
    path = arguments.out or Path("runs") / f"{framework}-{name}-{dataset.name}-{recipe.seed}"
    source = local_path(arguments.init_from) if arguments.init_from else None
    if source and overlap(path, source):
        raise UserError(f"{path} is part of what the run begins from, {arguments.init_from}: choose another --out.")
    run_config = RunConfig(
        model_name=name,
        recipe_name=arguments.recipe,
        framework=framework,
        model=config,
        train=recipe,
        dataset=dataset.name,
        dataset_source=dataset.source,
        dataset_fingerprint=dataset.fingerprint,
        class_names=dataset.class_names,
        picture_size=dataset.train_images.shape[1],
        init_from=(given.origin if given else "") or str(arguments.init_from or ""),
    )
    run = RunFolder.begin(path, run_config, arguments.overwrite, arguments.keep or 2)
    return StartingPoint(run, TrainingProgress(0, ((framework, 0),)), weights, None)


def with_classes(config: ModelConfig, default: ModelConfig, dataset: Dataset) -> ModelConfig:
    """The model with as many classes as the data set has. default: the model before the command line changed it.

    Raises UserError where the command line asks for another number.
    """
    num_classes = len(dataset.class_names)
    if config.num_classes not in (num_classes, default.num_classes):
        raise UserError(
            f"num_classes is {config.num_classes}, but {dataset.name} has "
            f"{num_classes} classes: leave --num-classes out, the data set decides."
        )
    return replace(config, num_classes=num_classes)


def resume_run(
    path: Path, folder_lock: FileLock, state: Checkpoint, arguments: TrainArguments, framework: str, dataset: Dataset
) -> StartingPoint:
    """Opens the folder of a run that goes on from its checkpoint.

    folder_lock: held on it. Raises UserError as `resumed_recipe` does, and where the data are others.
    """
    config = state.config
    recipe = resumed_recipe(config, arguments)
    if dataset.fingerprint != config.dataset_fingerprint:
        raise UserError(
            f"{path} was trained on {config.dataset_source} with fingerprint "
            f"{config.dataset_fingerprint}, but {dataset.source} has {dataset.fingerprint}: "
            "name the same data with --data-dir."
        )
    frameworks = state.progress.frameworks
    if state.last_framework != framework:
        frameworks = (*frameworks, (framework, state.progress.step))
    keep = arguments.keep or kept_so_far(path)
    run = RunFolder.resume(path, replace(config, train=recipe), state.progress.step, folder_lock, keep, state.logs)
    return StartingPoint(run, replace(state.progress, frameworks=frameworks), state.weights, state.moments)


def check_config(path: Path, config: RunConfig) -> None:
    """Raises UserError where the run's config.json tells another run than its checkpoint, but for the length."""
    written = RunConfig.from_json(path / "config.json")
    same = {name: getattr(config.train, name) for name in ("epochs", "steps", "accumulation")}
    if replace(written, train=replace(written.train, **same)) != config:
        raise UserError(
            f"{path / 'config.json'} was changed or damaged: it tells another run than the checkpoint's; copy "
            f"{path / 'checkpoint' / 'config.json'} over it."
        )


def resumed_recipe(config: RunConfig, arguments: TrainArguments) -> TrainConfig:
    """The recipe with which a run goes on: the one it was begun with, in the length and the number of parts that the
    command line asks for. Raises UserError where the command line changes anything else."""
    begun, given = config.train, arguments.train
    recipe = replace(begun, epochs=given.epochs, steps=given.steps, accumulation=given.accumulation)
    if (arguments.model, arguments.recipe, arguments.config, given) != (
        config.model_name,
        config.recipe_name,
        config.model,
        recipe,
    ):
        raise UserError(
            f"{arguments.out} was begun with other settings than the command line's: "
            "resume it with --out and --resume alone; only --epochs, --steps and --accumulation may "
            "change."
        )
    if (recipe.epochs, recipe.steps) != (begun.epochs, begun.steps) and recipe.schedule != "constant":
        raise UserError(
            f"the {recipe.schedule} schedule of {arguments.out} is laid out for its length: "
            "resume it without --epochs and --steps."
        )
    return recipe
