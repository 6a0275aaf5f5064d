"""Classifies pictures with a trained run, in either framework."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from mixer_common.data import load_picture
from mixer_common.errors import UserError, run_script
from mixer_common.interface import load_framework
from mixer_common.options import Device, FrameworkName, parse
from mixer_common.runs import checkpoint
from mixer_common.training import metrics


@dataclass(frozen=True)
class Arguments:
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a run, or of a checkpoint."""
    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES")]
    """Pictures of any size; the middle square of each is scaled to the size that the model was trained on."""
    framework: FrameworkName = "auto"
    device: Device = "auto"
    top: int = 3
    """Number of classes to name for each picture, the most probable ones."""


def main() -> None:
    arguments = parse(Arguments, __doc__)
    if not arguments.images:
        raise UserError("no picture was named: give one or more after the run.")
    if arguments.top < 1:
        raise UserError(f"--top is {arguments.top}, but at least 1 class must be named.")
    state = checkpoint.load_run(arguments.run)
    config = state.config
    images = np.stack([load_picture(path, config.picture_size) for path in arguments.images])
    framework = load_framework(state.last_framework if arguments.framework == "auto" else arguments.framework)
    device = framework.prepare(arguments.device, config.train.precision)
    print(
        f"{config.model_name} trained on {config.dataset_source}, in {framework.name} on {framework.describe(device)}"
    )
    logits = framework.logits(config.model, state.weights, images, config.train.precision, device)
    for path, row in zip(arguments.images, np.exp(metrics.log_softmax(logits)), strict=True):
        best = np.argsort(-row, kind="stable")[: arguments.top]
        print(f"{path}: " + ", ".join(f"{config.class_names[k]} {row[k]:.1%}" for k in best))


if __name__ == "__main__":
    run_script(main)
