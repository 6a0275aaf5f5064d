"""What a training tells the person who started it, word for word."""

from dataclasses import replace
from pathlib import Path

import pytest

from mixer_common.config.train import TrainConfig
from mixer_common.training import messages

OUT = Path("runs/mine")


def test_the_introduction(config, dataset):
    text = messages.introduction(config, dataset, 13, "numpy 2.0", "an abacus", OUT, 0)
    assert text.splitlines() == [
        f"Model    MLP-Mixer tiny, {config.model.num_parameters:,} parameters, 8x8 px in patches of 4",
        "Data     noise: 10 training and 6 test images of 8 px",
        "Recipe   tutorial: adam, learning rate 0.001, batch 2, 13 steps, float32, seed 0",
        "Runs in  numpy 2.0 on an abacus",
        "Output   runs/mine",
    ]


def test_the_introduction_names_what_is_on_and_where_the_run_goes_on(config, dataset):
    recipe = replace(config.train, batch_size=4, accumulation=2, flip=True, ema_decay=0.9)
    config, dataset = replace(config, train=recipe), replace(dataset, notice="these are no photographs")
    lines = messages.introduction(config, dataset, 12_000, "numpy 2.0", "an abacus", OUT, 1234).split("\n")
    assert lines[:3] == ["", "*** these are no photographs ***", ""]
    assert lines[5] == (
        "Recipe   tutorial: adam, learning rate 0.001, batch 4, 12,000 steps, float32, seed 0, flip, accumulation, "
        "ema decay"
    )
    assert lines[-1] == "Output   runs/mine, from step 1,234"


def test_the_line_of_an_epoch():
    row = {
        "epoch": 3,
        "train_loss": 0.52,
        "test_loss": 0.61,
        "test_accuracy": 0.801,
        "train_seconds": 12.34,
        "images_per_second": 4321.0,
    }
    assert messages.epoch_line(row, 20) == (
        "epoch   3/20  training loss 0.5200  test loss 0.6100  test accuracy  80.10%  12.3 s  4,321 images/s"
    )


def test_how_a_run_ends():
    assert messages.complete(1500) == "The run is complete at step 1,500; --epochs or --steps makes it longer."
    assert (
        messages.stopped("SIGINT", 1200, 3000, OUT)
        == "Stopped by SIGINT at step 1,200 of 3,000. Go on with: --out runs/mine --resume"
    )
    assert messages.done(0.6712, 10_000, 34.6, OUT).splitlines() == [
        "Done: 67.12% of 10,000 test images right; 35 s in training steps.",
        "Figures  runs/mine/summary.json",
        "Pictures runs/mine/pictures",
        "Weights  runs/mine/checkpoint",
    ]


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "has_checkpoint", "sentence"),
    [
        (1024, 1, False, "batch_size 1024 does not fit into the memory of GPU: try --overwrite with --batch-size 512, "
                         "or with --accumulation 2, which gives the same result."),
        (48, 4, False, "batch_size 48 with accumulation 4 does not fit into the memory of GPU: try --overwrite with "
                       "--batch-size 24, or with --accumulation 8, which gives the same result."),
        (48, 4, True, "batch_size 48 with accumulation 4 does not fit into the memory of GPU: go on with --resume "
                      "--accumulation 8, which gives the same result."),
        (9, 1, True, "batch_size 9 does not fit into the memory of GPU: go on with --resume --accumulation 3, which "
                     "gives the same result."),
    ],
)  # fmt: skip
def test_too_little_memory_for_a_step(config, batch_size, accumulation, has_checkpoint, sentence):
    config = replace(config, train=TrainConfig(batch_size=batch_size, accumulation=accumulation))
    assert messages.memory_exhausted(config, "GPU", True, has_checkpoint) == sentence


@pytest.mark.parametrize(("batch_size", "accumulation", "has_trainer"), [(8, 1, False), (8, 8, True), (1, 1, True)])
def test_too_little_memory_for_the_model(config, batch_size, accumulation, has_trainer):
    config = replace(config, train=TrainConfig(batch_size=batch_size, accumulation=accumulation))
    assert messages.memory_exhausted(config, "GPU", has_trainer, False) == (
        "tiny with its optimizer and data does not fit into the memory of GPU, even with one image at a time: "
        "choose a smaller model."
    )
