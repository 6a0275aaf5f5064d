"""Classifies pictures with a model, in either framework.

A run names the classes. Weights alone do not, so that their classes are numbers from 0; what else they do not tell is
assumed as in their format's own model, and printed; options state something else.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from mixer_common.config.presets import model_name
from mixer_common.data import load_picture
from mixer_common.errors import UserError, run_script
from mixer_common.interface import load_framework
from mixer_common.options import Device, FrameworkName, Weights, WeightsOptions, WeightsOptionsField, parse
from mixer_common.runs.classifier import open_classifier, print_classifier
from mixer_common.training import metrics


@dataclass(frozen=True)
class Arguments:
    model: Annotated[Weights, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES")]
    """Pictures of any size; the middle square of each is scaled to the size that the model takes."""
    framework: FrameworkName = "auto"
    device: Device = "auto"
    top: int = 3
    """Number of classes to name for each picture, the most probable ones."""
    options: WeightsOptionsField = field(default_factory=WeightsOptions)


def main() -> None:
    arguments = parse(Arguments, __doc__)
    if not arguments.images:
        raise UserError("no picture was named: give one or more after the model.")
    if arguments.top < 1:
        raise UserError(f"--top is {arguments.top}, but at least 1 class must be named.")
    classifier = open_classifier(arguments.model, arguments.options)
    run, weights = classifier.run, classifier.weights
    images = np.stack([load_picture(path, classifier.picture_size) for path in arguments.images])
    framework = load_framework(classifier.framework if arguments.framework == "auto" else arguments.framework)
    device = framework.prepare(arguments.device, classifier.precision)
    if run:
        title = f"{run.model_name} trained on {run.dataset_source}"
    else:
        print_classifier(classifier)
        title = model_name(weights.config)
    print(f"{title}, in {framework.name} on {framework.describe(device)}")
    logits = framework.logits(weights.config, weights.arrays, images, classifier.precision, device)
    names = classifier.class_names
    for path, row in zip(arguments.images, np.exp(metrics.log_softmax(logits)), strict=True):
        best = np.argsort(-row, kind="stable")[: arguments.top]
        print(f"{path}: " + ", ".join(f"{names[k]} {row[k]:.1%}" for k in best))


if __name__ == "__main__":
    run_script(main)
