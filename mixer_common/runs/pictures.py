"""The pictures of a run: its images, its curves, its confusion matrix and its predictions.

Images are uint8 (N, H, W, 3), labels integers (N,). Each function writes one PNG file, `path`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from mixer_common.drawing import save_figure


def first_batch(images: np.ndarray, labels: np.ndarray, class_names: Sequence[str], path: Path) -> None:
    """The first 32 test images with their labels."""
    _sheet(images[:32], [(class_names[int(label)], "black") for label in labels[:32]], "First test images", path)


def augmented_batch(images: np.ndarray, augmented: np.ndarray, path: Path) -> None:
    """The first 16 images of a batch, each beside what augmentation made of it.

    augmented: of the shape of images, bytes as real numbers.
    """
    pairs = np.stack([images, np.rint(augmented).astype(np.uint8)], axis=1)[:16].reshape(-1, *images.shape[1:])
    captions = [("as it is", "black"), ("as trained on", "C0")] * (len(pairs) // 2)
    _sheet(pairs, captions, "First training images, before and after augmentation", path)


def predictions(
    images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str], path: Path
) -> None:
    """The first 32 test images, each with its predicted class and that one's probability; where the class is wrong, in
    red and with the true one. probabilities: (N, num_classes)."""
    captions = []
    for label, row in zip(labels[:32], probabilities, strict=False):
        best = int(row.argmax())
        text = f"{class_names[best]} {row[best]:.0%}"
        captions.append((text, "green") if best == label else (f"{text}\ntrue: {class_names[label]}", "firebrick"))
    _sheet(images[:32], captions, "Predictions on the first test images", path)


def curves(step_losses: np.ndarray, metrics: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Training loss of the steps, smoothed, and loss and accuracy after each epoch.

    step_losses: (steps,); metrics: the rows of metrics.jsonl.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    window = max(1, len(step_losses) // 200)
    whole = len(step_losses) // window * window
    smooth = step_losses[:whole].astype(np.float64).reshape(-1, window).mean(axis=1)
    steps = [row["step"] for row in metrics]
    left.plot(
        (np.arange(len(smooth)) + 0.5) * window,
        smooth,
        color="C0",
        alpha=0.4,
        label=f"training, mean of {window} steps" if window > 1 else "training, every step",
    )
    left.plot(steps, [row["train_loss"] for row in metrics], "o-", color="C0", label="training, mean of the epoch")
    left.plot(steps, [row["test_loss"] for row in metrics], "s-", color="C1", label="test")
    left.set(xlabel="step", ylabel="cross-entropy (nats)")
    right.plot(steps, [row["test_accuracy"] for row in metrics], "s-", color="C1", label="test")
    right.set(xlabel="step", ylabel="accuracy")
    right.yaxis.set_major_formatter(PercentFormatter(1.0))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    save_figure(figure, path)


def confusion(matrix: np.ndarray, class_names: Sequence[str], path: Path) -> None:
    """The confusion matrix: counts in figures, their shares of the row in colour.

    matrix: (num_classes, num_classes), rows are true classes, columns predicted ones.
    """
    figure = Figure(figsize=(7.5, 7), layout="constrained")
    axes: Axes = figure.subplots()
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix):
        axes.text(
            column,
            row,
            str(count),
            ha="center",
            va="center",
            fontsize=8,
            color="white" if share[row, column] > 0.5 else "black",
        )
    axes.set_xticks(range(len(class_names)), class_names, rotation=45, ha="right")
    axes.set_yticks(range(len(class_names)), class_names)
    accuracy = np.trace(matrix) / max(matrix.sum(), 1)
    axes.set(xlabel="predicted", ylabel="true", title=f"Confusion matrix, accuracy {accuracy:.2%}")
    figure.colorbar(image, ax=axes, shrink=0.8, format=PercentFormatter(1.0), label="share of the true class")
    save_figure(figure, path)


def _sheet(images: np.ndarray, captions: Sequence[tuple[str, str]], title: str, path: Path) -> None:
    columns = 8
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.45 * columns, 1.75 * rows + 0.5), layout="constrained")
    figure.suptitle(title)
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.axis("off")
    for axes, image, (text, colour) in zip(figure.axes, images, captions, strict=False):
        axes.imshow(image)
        axes.set_title(text, fontsize=9, color=colour)
    save_figure(figure, path)
