"""What a run ends with: the figures of summary.json, and the pictures of its results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixer_common.data import Dataset
from mixer_common.interface import Framework
from mixer_common.machine import peak_memory
from mixer_common.plan.batches import steps_in_epoch
from mixer_common.runs import pictures
from mixer_common.runs.checkpoint import RunConfig, TrainingProgress
from mixer_common.training.metrics import confusion_matrix, images_per_second, log_softmax


def summarise(
    config: RunConfig,
    progress: TrainingProgress,
    dataset: Dataset,
    last_row: dict[str, Any],
    framework: Framework,
    device: str,
) -> dict[str, Any]:
    """summary.json. last_row: of metrics.jsonl; framework: the one that ends the run; device: described for people."""
    recipe = config.train
    epochs = progress.step / steps_in_epoch(len(dataset.train_images), recipe.batch_size)
    return {
        "framework": framework.name,
        "dataset": dataset.name,
        "model": config.model_name,
        "recipe": config.recipe_name,
        "seed": recipe.seed,
        "epochs": int(epochs) if epochs.is_integer() else epochs,
        "steps": progress.step,
        "parameters": config.model.num_parameters,
        "test_accuracy": last_row["test_accuracy"],
        "test_loss": last_row["test_loss"],
        "train_seconds": progress.train_seconds,
        "images_per_second": images_per_second(recipe.batch_size, progress.timed_steps, progress.train_seconds),
        "device": device,
        "versions": framework.versions,
        "precision": recipe.precision,
        "compile_seconds": progress.compile_seconds,
        "peak_memory_bytes": peak_memory(),
        "dataset_source": dataset.source,
        "dataset_fingerprint": dataset.fingerprint,
        "frameworks": progress.frameworks,
    }


def draw_results(
    folder: Path,
    title: str,
    losses: np.ndarray,
    metrics: Sequence[dict[str, Any]],
    logits: np.ndarray,
    dataset: Dataset,
) -> None:
    """Draws curves.png, confusion_matrix.png and predictions.png.

    losses: of every step, (steps,); metrics: the rows of metrics.jsonl; logits: of the test images, (N, num_classes).
    """
    pictures.curves(losses, metrics, title, folder / "curves.png")
    matrix = confusion_matrix(logits, dataset.test_labels)
    pictures.confusion(matrix, dataset.class_names, folder / "confusion_matrix.png")
    probabilities = np.exp(log_softmax(logits))
    pictures.predictions(
        dataset.test_images, dataset.test_labels, probabilities, dataset.class_names, folder / "predictions.png"
    )
