"""The course of a training run, the same for both frameworks: epochs, progress, checkpoints, outputs."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from mixer_common.config.model import ModelConfig, weight_shapes
from mixer_common.config.presets import MODELS, model_name
from mixer_common.data import Dataset, load_dataset
from mixer_common.errors import UserError
from mixer_common.interface import Framework
from mixer_common.machine import is_memory_exhausted
from mixer_common.plan.batches import steps_in_epoch
from mixer_common.plan.initial import initial_weights
from mixer_common.runs import checkpoint
from mixer_common.runs.checkpoint import Checkpoint, RunConfig, TrainingProgress
from mixer_common.runs.folder import RunFolder
from mixer_common.training.arguments import TrainArguments
from mixer_common.training.loop import _Course
from mixer_common.weights.canonical import check_weights, describe_assumed, replace_head
from mixer_common.weights.files import load_weights, overlap
from mixer_common.weights.image_size import change_image_size


def train(framework: Framework, arguments: TrainArguments) -> int:
    """Runs a training as the command line asks; returns the exit code."""
    if arguments.resume and arguments.overwrite:
        raise UserError("--resume and --overwrite exclude each other: give one of them.")
    if arguments.resume and arguments.out is None:
        raise UserError("--resume needs --out: name the folder of the run to continue.")
    run = RunFolder(arguments.out) if arguments.out else None
    state = run.resume() if arguments.resume else None
    device = framework.prepare(arguments.device, arguments.train.precision)
    dataset = load_dataset(arguments.dataset, arguments.data_dir, framework.download)
    if state:
        state = _continued(state, arguments, framework, dataset, run)
        run.write_config(state.config)
    else:
        config, weights = _start(arguments, dataset)
        steps_in_epoch(len(dataset.train_images), arguments.train.batch_size)
        name = model_name(config) if arguments.init_from else arguments.model
        run_config = RunConfig(
            name,
            arguments.recipe,
            framework.name,
            config,
            arguments.train,
            dataset.name,
            dataset.source,
            dataset.fingerprint,
            dataset.class_names,
            dataset.train_images.shape[1],
            str(arguments.init_from or ""),
        )
        run = run or RunFolder(Path("runs") / f"{framework.name}-{name}-{dataset.name}-{arguments.train.seed}")
        if arguments.init_from and overlap(run.path, arguments.init_from):
            raise UserError(
                f"{run.path} is part of what the run begins from, {arguments.init_from}: choose another --out."
            )
        run.create(run_config, arguments.overwrite)
        state = Checkpoint(run_config, TrainingProgress(0, ((framework.name, 0),)), weights, None)
    course = None
    try:
        course = _Course(framework, device, run, state, dataset)
        return course.follow()
    except Exception as error:
        if not is_memory_exhausted(error):
            raise
        raise UserError(
            _too_large(
                state.config,
                framework.describe(device),
                fits=course is not None,
                begun=checkpoint.exists(run.checkpoint),
            )
        ) from None


def _too_large(config: RunConfig, device: str, fits: bool, begun: bool) -> str:
    """The sentence for a run that the memory of `device` is too small for. fits: for the images of a step only;
    begun: there is a checkpoint to go on from."""
    size, parts = config.train.batch_size, config.train.accumulation
    if not fits or size == parts:
        return (
            f"{config.model_name} with its optimizer and data does not fit into the memory of {device}, even with "
            "one image at a time: choose a smaller model."
        )
    more = next(count for count in range(2 * parts, size + 1) if size % count == 0)
    advice = (
        f"go on with --resume --accumulation {more}"
        if begun
        else f"try --overwrite with --batch-size {size // parts // 2 * parts}, or with --accumulation {more}"
    )
    return (
        f"batch_size {size}{f' with accumulation {parts}' if parts > 1 else ''} does not fit into the memory of "
        f"{device}: {advice}, which gives the same result."
    )


def _start(arguments: TrainArguments, dataset: Dataset) -> tuple[ModelConfig, Mapping[str, np.ndarray]]:
    """The model that is trained and its first weights: drawn from the seed, or those of --init-from."""
    config, num_classes = arguments.config, len(dataset.class_names)
    start = load_weights(arguments.init_from) if arguments.init_from else None
    default = start.config if start else MODELS[arguments.model]
    if config.num_classes not in (num_classes, default.num_classes):
        raise UserError(
            f"num_classes is {config.num_classes}, but {dataset.name} has "
            f"{num_classes} classes: leave --num-classes out, the data set decides."
        )
    config = replace(config, num_classes=num_classes)
    if start is None:
        return config, initial_weights(config, arguments.train.seed)
    print(f"Start    {start.format} weights in {arguments.init_from}", flush=True)
    stated = {name for name in ("gelu", "layer_norm_epsilon") if getattr(config, name) != getattr(default, name)}
    if assumed := describe_assumed(replace(start, assumed=tuple(set(start.assumed) - stated))):
        print(f"         assumed, since the file does not tell: {assumed}")
    if config.image_size != default.image_size:
        height, width = config.image_size
        if height != width:
            raise UserError(
                f"image_width {width} cannot be chosen for given weights: leave --image-width "
                "out; --image-size carries them to square images."
            )
        start, how = change_image_size(start, height)
        print(f"         image size: {how}")
        if config.tokens_mlp_dim == default.tokens_mlp_dim:
            config = replace(config, tokens_mlp_dim=start.config.tokens_mlp_dim)
    if num_classes != start.config.num_classes:
        print(f"         head: {start.config.num_classes} classes replaced by zeros for {num_classes}")
        start = replace_head(start, num_classes)
    check_weights(start.arrays, weight_shapes(config), str(arguments.init_from))
    return config, start.arrays


def _continued(
    state: Checkpoint, arguments: TrainArguments, framework: Framework, dataset: Dataset, run: RunFolder
) -> Checkpoint:
    """The checkpoint, with a longer training where that was asked for. UserError where anything else differs."""
    config, progress = state.config, state.progress
    asked = arguments.train
    longer = replace(config.train, epochs=asked.epochs, steps=asked.steps, accumulation=asked.accumulation)
    if (arguments.model, arguments.recipe, arguments.config, asked) != (
        config.model_name,
        config.recipe_name,
        config.model,
        longer,
    ):
        raise UserError(
            f"{run.path} was begun with other settings than the command line's: "
            "resume it with --out and --resume alone; only --epochs, --steps and --accumulation may "
            "change."
        )
    if (longer.epochs, longer.steps) != (config.train.epochs, config.train.steps) and longer.schedule != "constant":
        raise UserError(
            f"the {longer.schedule} schedule of {run.path} is laid out for its length: "
            "resume it without --epochs and --steps."
        )
    if dataset.fingerprint != config.dataset_fingerprint:
        raise UserError(
            f"{run.path} was trained on {config.dataset_source} with fingerprint "
            f"{config.dataset_fingerprint}, but {dataset.source} has {dataset.fingerprint}: "
            "name the same data with --data-dir."
        )
    frameworks = progress.frameworks
    if frameworks[-1][0] != framework.name:
        frameworks = (*frameworks, (framework.name, progress.step))
    return replace(state, config=replace(config, train=longer), progress=replace(progress, frameworks=frameworks))
