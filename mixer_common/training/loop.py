"""The training loop: from where a run stands to its end or to a signal, epoch by epoch, in either framework."""

import math
from dataclasses import replace
from typing import Any

import numpy as np

from mixer_common.data import Dataset
from mixer_common.interface import Framework, Trainer
from mixer_common.plan.batches import steps_in_epoch
from mixer_common.plan.epoch import epoch_plan
from mixer_common.plan.schedule import total_steps
from mixer_common.runs import pictures
from mixer_common.runs.checkpoint import RunConfig, TrainingProgress
from mixer_common.runs.folder import RunFolder
from mixer_common.terminal import Display
from mixer_common.training import messages
from mixer_common.training.dispatch import DispatchClock, dispatch_steps
from mixer_common.training.evaluation import check_before_checkpoint, check_finite, evaluate_epoch
from mixer_common.training.metrics import accuracy, cross_entropy, images_per_second
from mixer_common.training.signals import StopSignal
from mixer_common.training.summary import draw_results, summarise


def run_training(
    trainer: Trainer,
    run: RunFolder,
    progress: TrainingProgress,
    dataset: Dataset,
    framework: Framework,
    device: str,
) -> int:
    """Trains from where the run stands to its end or to a signal, and writes the run's files.

    trainer: as it is after progress.step steps; device: described for people. Returns the script's exit code. Raises
    UserError where a training loss is no number, or what an epoch leaves is not finite.
    """
    first_step, num_steps, logits = progress.step, _num_steps(run.config, dataset), None
    version = f"{framework.name} {framework.versions[framework.name]}"
    with StopSignal() as stop:
        print(
            messages.introduction(run.config, dataset, num_steps, version, device, run.path, progress.step), flush=True
        )
        if progress.step >= num_steps and run.has_summary(progress.step):
            print(messages.complete(progress.step))
            return 0
        if progress.step < num_steps:
            path = run.pictures / "first_test_batch.png"
            pictures.first_batch(dataset.test_images, dataset.test_labels, dataset.class_names, path)
            with Display(num_steps, progress.step) as display:
                while progress.step < num_steps and not stop.number:
                    clock = DispatchClock(is_compiled=progress.step > first_step)
                    progress, logits = _train_epoch(trainer, run, progress, dataset, clock, stop, display)
        if progress.step < num_steps:
            if not progress.step:  # the signal came before the first epoch, whose end would have written a checkpoint
                run.save(progress, trainer.weights(), trainer.moments())
            run.wait()
            print(messages.stopped(stop.name, progress.step, num_steps, run.path))
            return stop.exit_code
        if logits is None:  # an earlier process ended between the last checkpoint and the summary
            logits = trainer.logits(dataset.test_images)
        _finish(run, progress, dataset, logits, framework, device)
        return 0


def _train_epoch(
    trainer: Trainer,
    run: RunFolder,
    progress: TrainingProgress,
    dataset: Dataset,
    clock: DispatchClock,
    stop: StopSignal,
    display: Display,
) -> tuple[TrainingProgress, np.ndarray | None]:
    """Trains the rest of the current epoch, evaluates it and writes a checkpoint; after a signal, the checkpoint alone.

    Returns how far the run has come, and the logits of the test images where the epoch was evaluated.
    """
    recipe, num_steps = run.config.train, _num_steps(run.config, dataset)
    steps_per_epoch = steps_in_epoch(len(dataset.train_images), recipe.batch_size)
    epoch, first = divmod(progress.step, steps_per_epoch)
    last = min(steps_per_epoch, num_steps - epoch * steps_per_epoch)
    num_epochs = math.ceil(num_steps / steps_per_epoch)
    step, row, logits = progress.step, None, None

    plan = epoch_plan(run.config.model, recipe, dataset.train_images.shape, epoch)
    trainer.begin_epoch(plan)
    if plan.augmentation and not step:
        images = dataset.train_images[plan.indices[0]]
        pictures.augmented_batch(images, trainer.augmented(0), run.pictures / "augmented_batch.png")
    for losses in dispatch_steps(trainer, first, last, clock, stop):
        run.add_losses(losses, step)
        check_finite(losses, step)
        step += len(losses)
        if clock.timed_steps:
            speed = images_per_second(recipe.batch_size, clock.timed_steps, clock.train_seconds)
            seconds_left = (num_steps - step) * clock.train_seconds / clock.timed_steps
            display.update(f"epoch {epoch + 1}/{num_epochs}", step, float(losses.mean()), speed, seconds_left)
    if step == epoch * steps_per_epoch + last:
        losses = run.losses()[epoch * steps_per_epoch :]
        row, logits = evaluate_epoch(trainer, dataset, recipe, step, losses, clock)
    progress = replace(
        progress,
        step=step,
        train_seconds=progress.train_seconds + clock.train_seconds,
        compile_seconds=progress.compile_seconds + clock.compile_seconds,
        timed_steps=progress.timed_steps + clock.timed_steps,
    )
    weights, moments = trainer.weights(), trainer.moments()
    check_before_checkpoint(weights, moments, row)
    if row:
        run.add_metrics(row)
    run.save(progress, weights, moments)
    if row:
        display.line(messages.epoch_line(row, num_epochs))
    return progress, logits


def _finish(
    run: RunFolder, progress: TrainingProgress, dataset: Dataset, logits: np.ndarray, framework: Framework, device: str
) -> None:
    """Writes the summary and the pictures of the results. logits: of the test images, (N, num_classes)."""
    run.wait()  # the summary says that the run is complete
    if not run.metrics or run.metrics[-1]["step"] != progress.step:  # the last row was lost
        labels = dataset.test_labels
        last_row: dict[str, Any] = {
            "test_loss": cross_entropy(logits, labels),
            "test_accuracy": accuracy(logits, labels),
        }
    else:
        last_row = run.metrics[-1]
    run.write_summary(summarise(run.config, progress, dataset, last_row, framework, device))
    title = f"{framework.name} {run.config.model_name} on {dataset.name}"
    draw_results(run.pictures, title, run.losses(), run.metrics, logits, dataset)
    print(messages.done(last_row["test_accuracy"], len(dataset.test_images), progress.train_seconds, run.path))


def _num_steps(config: RunConfig, dataset: Dataset) -> int:
    """The steps of the whole run."""
    return total_steps(config.train, steps_in_epoch(len(dataset.train_images), config.train.batch_size))
