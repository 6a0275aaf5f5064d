"""Evaluates a run on its data set's test images, in either framework: accuracy, by class, and confusion."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mixer_common import files
from mixer_common.data import load_dataset
from mixer_common.errors import UserError, run_script
from mixer_common.interface import load_framework
from mixer_common.options import DataDir, Device, FrameworkName, parse
from mixer_common.runs import checkpoint
from mixer_common.training import metrics


@dataclass(frozen=True)
class Arguments:
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a run, or of a checkpoint."""
    framework: FrameworkName = "auto"
    data_dir: DataDir = None
    device: Device = "auto"
    json: Path | None = None
    """Also write the figures to this file."""
    picture: Path | None = None
    """Also write the confusion matrix to this PNG file."""


def main() -> None:
    arguments = parse(Arguments, __doc__)
    state = checkpoint.load_run(arguments.run)
    config = state.config
    print(
        f"Run      {arguments.run}: {config.model_name}, step {state.progress.step:,}, trained on "
        f"{config.dataset_source}",
        flush=True,
    )
    framework = load_framework(state.last_framework if arguments.framework == "auto" else arguments.framework)
    device = framework.prepare(arguments.device, config.train.precision)
    dataset = load_dataset(config.dataset, arguments.data_dir, framework.download)
    if dataset.class_names != config.class_names:
        raise UserError(
            f"{arguments.run} was trained on the classes {', '.join(config.class_names)}, but "
            f"{dataset.source} has {', '.join(dataset.class_names)}: name its data with --data-dir."
        )
    print(f"Data     {dataset.source}: {len(dataset.test_images):,} test images")
    if dataset.fingerprint != config.dataset_fingerprint:
        print("         *** not the copy of the data set that the run was trained on ***")
    print(f"Runs in  {framework.name} {framework.versions[framework.name]} on {framework.describe(device)}", flush=True)
    start = time.perf_counter()
    logits = framework.logits(config.model, state.weights, dataset.test_images, config.train.precision, device)
    seconds = time.perf_counter() - start
    matrix = metrics.confusion_matrix(logits, dataset.test_labels)
    accuracy_by_class = matrix.diagonal() / matrix.sum(axis=1).clip(1)
    figures = {
        "run": str(arguments.run),
        "framework": framework.name,
        "dataset": dataset.name,
        "dataset_source": dataset.source,
        "step": state.progress.step,
        "test_images": len(logits),
        "test_accuracy": metrics.accuracy(logits, dataset.test_labels),
        "test_loss": metrics.cross_entropy(logits, dataset.test_labels),
        "class_accuracy": dict(zip(dataset.class_names, accuracy_by_class.tolist(), strict=True)),
        "confusion_matrix": matrix.tolist(),
    }
    Console(highlight=False).print(confusion_table(matrix, accuracy_by_class, dataset.class_names))
    print(f"Test accuracy {figures['test_accuracy']:.2%}, test loss {figures['test_loss']:.4f} ({seconds:.1f} s)")
    if arguments.json:
        files.replace_file(arguments.json, (json.dumps(figures, indent=2) + "\n").encode())
    if arguments.picture:
        from mixer_common.runs import pictures

        pictures.confusion(matrix, dataset.class_names, arguments.picture)


def confusion_table(matrix: np.ndarray, accuracy_by_class: np.ndarray, class_names: Sequence[str]) -> Table:
    table = Table(
        title="Confusion matrix: rows are true classes, columns predicted ones",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for heading in ("", *(name[:4] for name in class_names), "accuracy"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row, accuracy in zip(class_names, matrix, accuracy_by_class, strict=True):
        table.add_row(name, *map(str, row), f"{accuracy:.1%}")
    return table


if __name__ == "__main__":
    run_script(main)
