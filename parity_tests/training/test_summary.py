"""The figures and the pictures that a run ends with."""

import json

import numpy as np
import pytest
from PIL import Image

from mixer_common.runs.checkpoint import TrainingProgress
from mixer_common.training.summary import draw_results, summarise

ROW = {"step": 10, "test_accuracy": 0.5, "test_loss": 1.5, "train_loss": 1.25}


def test_the_summary(config, dataset, framework):
    progress = TrainingProgress(10, (("jax", 0), ("numpy", 4)), train_seconds=2.0, compile_seconds=7.0, timed_steps=8)
    summary = summarise(config, progress, dataset, ROW, framework, "an abacus")
    assert summary.pop("peak_memory_bytes") > 2**20
    assert json.loads(json.dumps(summary)) == {
        "framework": "numpy",
        "dataset": "digits",
        "model": "tiny",
        "recipe": "tutorial",
        "seed": 0,
        "epochs": 2,
        "steps": 10,
        "parameters": config.model.num_parameters,
        "test_accuracy": 0.5,
        "test_loss": 1.5,
        "train_seconds": 2.0,
        "images_per_second": 8.0,
        "device": "an abacus",
        "versions": framework.versions,
        "precision": "float32",
        "compile_seconds": 7.0,
        "dataset_source": "noise",
        "dataset_fingerprint": dataset.fingerprint,
        "frameworks": [["jax", 0], ["numpy", 4]],
    }


@pytest.mark.parametrize(("step", "epochs"), [(13, 2.6), (15, 3)])
def test_an_epoch_that_was_cut_short_counts_in_part(config, dataset, framework, step, epochs):
    summary = summarise(config, TrainingProgress(step, (("numpy", 0),)), dataset, ROW, framework, "an abacus")
    assert summary["epochs"] == epochs
    assert isinstance(summary["epochs"], type(epochs))


def test_the_pictures_of_the_results(tmp_path, dataset):
    logits = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    draw_results(tmp_path, "numpy tiny on digits", np.linspace(2, 1, 10), [ROW], logits, dataset)
    names = {"curves.png", "confusion_matrix.png", "predictions.png"}
    assert {path.name for path in tmp_path.iterdir()} == names
    for name in names:
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 200
            assert len(picture.convert("L").getcolors()) > 20
