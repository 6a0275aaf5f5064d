"""Trains a Mixer by the tutorial's loop as people write it in PyTorch, to compare whole runs with.

A data set of pictures, a loader with two workers, eager, plain Adam; the model is this project's. It prints its
progress and its accuracy, and writes no file.
"""

import time
from dataclasses import dataclass, replace
from typing import Annotated

import tyro

from mixer_common.config.fields import by_name
from mixer_common.config.presets import MODELS
from mixer_common.data import load_dataset
from mixer_common.errors import UserError, run_script
from mixer_common.options import DataDir, DatasetName, Device, one_of, parse
from mixer_common.plan.batches import steps_in_epoch
from mixer_common.plan.initial import initial_weights


@dataclass(frozen=True)
class Arguments:
    model: Annotated[str, tyro.conf.arg(help=f"{one_of(MODELS)}.")] = "tutorial"
    epochs: int = 10
    """Passes through the training images."""
    batch_size: int = 4
    """Images a step."""
    seed: int = 0
    """Seed of the initial weights and of the order of the images."""
    device: Device = "auto"
    dataset: DatasetName = "auto"
    data_dir: DataDir = None


def main() -> None:
    arguments = parse(Arguments, __doc__)
    config = by_name("model", MODELS, arguments.model)
    for name in ("epochs", "batch_size"):
        if getattr(arguments, name) < 1:
            raise UserError(f"{name} is {getattr(arguments, name)}, but must be at least 1.")
    if arguments.seed < 0:
        raise UserError(f"seed is {arguments.seed}, but must be at least 0.")
    print("Starting PyTorch and reading the data ...", flush=True)
    import torch

    from mixer_bench.tutorial_loop import train_tutorial_loop
    from mixer_torch.device import describe, prepare
    from mixer_torch.download import download_cifar10

    device = prepare(arguments.device, "float32")
    dataset = load_dataset(arguments.dataset, arguments.data_dir, download_cifar10)
    steps_in_epoch(len(dataset.train_images), arguments.batch_size)
    config = replace(config, num_classes=len(dataset.class_names))
    if dataset.notice:
        print(f"\n*** {dataset.notice} ***\n")
    print(
        f"MLP-Mixer {arguments.model}, batches of {arguments.batch_size}, {dataset.source}, "
        f"{describe(device)}, torch {torch.__version__}",
        flush=True,
    )
    torch.manual_seed(arguments.seed)
    start = time.perf_counter()
    accuracy = train_tutorial_loop(
        config,
        initial_weights(config, arguments.seed),
        dataset,
        arguments.epochs,
        arguments.batch_size,
        device,
        lambda epoch, seconds, loss: print(
            f"epoch {epoch}/{arguments.epochs}  training loss {loss:.4f}  "
            f"{seconds:.1f} s  {len(dataset.train_images) / seconds:,.0f} images/s",
            flush=True,
        ),
    )
    print(
        f"Done: {accuracy:.2%} of {len(dataset.test_images):,} test images right; "
        f"{time.perf_counter() - start:.1f} s in all"
    )


if __name__ == "__main__":
    run_script(main)
