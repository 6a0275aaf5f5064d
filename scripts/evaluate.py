"""Evaluates a model on a data set's test images, in either framework: accuracy, by class, and confusion.

Of a run, the data set is its own. Of weights alone, --dataset names it, and what they do not tell is assumed as in
their format's own model, and printed; options state something else.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
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
from mixer_common.options import (
    DataDir,
    Device,
    FrameworkName,
    Weights,
    WeightsOptions,
    WeightsOptionsField,
    parse,
)
from mixer_common.runs.classifier import open_classifier, print_classifier
from mixer_common.training import metrics


@dataclass(frozen=True)
class Arguments:
    model: Annotated[Weights, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    framework: FrameworkName = "auto"
    dataset: Annotated[str | None, tyro.conf.arg(help="The data set. Default: the run's.")] = None
    data_dir: DataDir = None
    device: Device = "auto"
    json: Path | None = None
    """Also write the figures to this file."""
    picture: Path | None = None
    """Also write the confusion matrix to this PNG file."""
    options: WeightsOptionsField = field(default_factory=WeightsOptions)


def main() -> None:
    arguments = parse(Arguments, __doc__)
    classifier = open_classifier(arguments.model, arguments.options)
    run, config = classifier.run, classifier.weights.config
    name = arguments.dataset or (run.dataset if run else None)
    if name is None:
        raise UserError(f"{arguments.model} is no run, so that nothing tells its data: name them with --dataset.")
    print_classifier(classifier)
    framework = load_framework(classifier.framework if arguments.framework == "auto" else arguments.framework)
    device = framework.prepare(arguments.device, classifier.precision)
    dataset = load_dataset(name, arguments.data_dir, framework.download)
    if run and dataset.class_names != run.class_names:
        raise UserError(
            f"{arguments.model} was trained on the classes {', '.join(run.class_names)}, but "
            f"{dataset.source} has {', '.join(dataset.class_names)}: name its data with --data-dir."
        )
    if len(dataset.class_names) != config.num_classes:
        raise UserError(
            f"{arguments.model} tells {config.num_classes:,} classes apart, but {dataset.source} has "
            f"{len(dataset.class_names):,}: name the data that it was trained for, or train it on these with "
            f"--init-from {arguments.model}."
        )
    print(f"Data     {dataset.source}: {len(dataset.test_images):,} test images")
    if run and dataset.fingerprint != run.dataset_fingerprint:
        print("         *** not the copy of the data set that the run was trained on ***")
    print(f"Runs in  {framework.name} {framework.versions[framework.name]} on {framework.describe(device)}", flush=True)
    start = time.perf_counter()
    logits = framework.logits(config, classifier.weights.arrays, dataset.test_images, classifier.precision, device)
    seconds = time.perf_counter() - start
    matrix = metrics.confusion_matrix(logits, dataset.test_labels)
    accuracy_by_class = matrix.diagonal() / matrix.sum(axis=1).clip(1)
    figures = {
        "run" if run else "weights": arguments.model if run else classifier.weights.origin,
        "framework": framework.name,
        "dataset": dataset.name,
        "dataset_source": dataset.source,
        "step": classifier.progress.step if classifier.progress else None,
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
