"""What a training tells the person who started it: functions that return text."""

from pathlib import Path
from typing import Any

from mixer_common.config.train import TrainConfig
from mixer_common.data import Dataset
from mixer_common.runs.checkpoint import RunConfig

# Settings of a recipe that the introduction names where they are on.
_NAMED_SETTINGS = (
    "crop_padding",
    "flip",
    "trivial_augment",
    "operations",
    "cutout",
    "mixup",
    "cutmix",
    "accumulation",
    "ema_decay",
    "freeze_backbone",
)


def introduction(
    config: RunConfig, dataset: Dataset, num_steps: int, framework: str, device: str, path: Path, step: int
) -> str:
    """What a run is about to do. num_steps: of the whole run; framework: its name and version; device: described for
    people; path: the run's folder; step: steps done before."""
    height, width = config.model.image_size
    recipe = config.train
    settings = [
        name.replace("_", " ") for name in _NAMED_SETTINGS if getattr(recipe, name) != getattr(TrainConfig, name)
    ]
    lines = [
        f"Model    MLP-Mixer {config.model_name}, {config.model.num_parameters:,} parameters, "
        f"{height}x{width} px in patches of {config.model.patch_size}",
        f"Data     {dataset.source}: {len(dataset.train_images):,} training and "
        f"{len(dataset.test_images):,} test images of {config.picture_size} px",
        f"Recipe   {config.recipe_name}: {recipe.optimizer}, learning rate {recipe.learning_rate:g}, batch "
        + ", ".join(
            [f"{recipe.batch_size}", f"{num_steps:,} steps", recipe.precision, f"seed {recipe.seed}", *settings]
        ),
        f"Runs in  {framework} on {device}",
        f"Output   {path}" + (f", from step {step:,}" if step else ""),
    ]
    if dataset.notice:
        lines = [f"\n*** {dataset.notice} ***\n", *lines]
    return "\n".join(lines)


def epoch_line(row: dict[str, Any], num_epochs: int) -> str:
    """One line on an epoch. row: of metrics.jsonl."""
    return (
        f"epoch {row['epoch']:3d}/{num_epochs}  training loss {row['train_loss']:.4f}  test loss "
        f"{row['test_loss']:.4f}  test accuracy {row['test_accuracy']:7.2%}  {row['train_seconds']:.1f} s  "
        f"{row['images_per_second']:,.0f} images/s"
    )


def complete(step: int) -> str:
    """For a run that is resumed and has nothing left to do."""
    return f"The run is complete at step {step:,}; --epochs or --steps makes it longer."


def stopped(signal_name: str, step: int, num_steps: int, path: Path) -> str:
    """For a run that a signal stopped after `step` of its `num_steps` steps."""
    return f"Stopped by {signal_name} at step {step:,} of {num_steps:,}. Go on with: --out {path} --resume"


def done(test_accuracy: float, num_test_images: int, train_seconds: float, path: Path) -> str:
    """For a run that has reached its end. path: the run's folder."""
    return (
        f"Done: {test_accuracy:.2%} of {num_test_images:,} test images right; "
        f"{train_seconds:.0f} s in training steps.\n"
        f"Figures  {path / 'summary.json'}\nPictures {path / 'pictures'}\n"
        f"Weights  {path / 'checkpoint'}"
    )


def memory_exhausted(config: RunConfig, device: str, has_trainer: bool, has_checkpoint: bool) -> str:
    """The sentence for a run that needs more memory than `device` has.

    has_trainer: the model, its optimizer and the data fitted, only a step's images do not; has_checkpoint: there is
    one that the run can go on from.
    """
    size, parts = config.train.batch_size, config.train.accumulation
    if not has_trainer or size == parts:
        return (
            f"{config.model_name} with its optimizer and data does not fit into the memory of {device}, even with "
            "one image at a time: choose a smaller model."
        )
    more = next(count for count in range(2 * parts, size + 1) if size % count == 0)
    advice = (
        f"go on with --resume --accumulation {more}"
        if has_checkpoint
        else f"try --overwrite with --batch-size {size // parts // 2 * parts}, or with --accumulation {more}"
    )
    return (
        f"batch_size {size}{f' with accumulation {parts}' if parts > 1 else ''} does not fit into the memory of "
        f"{device}: {advice}, which gives the same result."
    )
