"""The training loop over a framework of NumPy alone: epochs, signals, resumption, and the files of a run."""

import json
import signal
from dataclasses import replace

import numpy as np
import pytest

from mixer_common.errors import UserError
from mixer_common.plan.initial import initial_weights
from mixer_common.runs import checkpoint, pictures
from mixer_common.runs.checkpoint import TrainingProgress
from mixer_common.runs.folder import RunFolder, lock_resumable
from mixer_common.training.loop import run_training

DEVICE = "an abacus"


@pytest.fixture
def quick_pictures(monkeypatch):
    """What draws the pictures is tested elsewhere; here only their names are written."""
    for name in ("first_batch", "augmented_batch", "curves", "confusion", "predictions"):
        monkeypatch.setattr(pictures, name, lambda *arguments: arguments[-1].touch())


pytestmark = pytest.mark.usefixtures("quick_pictures")


def begin(framework, config, dataset, path):
    weights = initial_weights(config.model, config.train.seed)
    trainer = framework.trainer(config.model, config.train, weights, dataset.train_images, dataset.train_labels)
    with RunFolder.begin(path, config, overwrite=False) as run:
        return trainer, run_training(trainer, run, TrainingProgress(0, (("numpy", 0),)), dataset, framework, DEVICE)


def resume(framework, config, dataset, path):
    state = checkpoint.load(path / "checkpoint")
    trainer = framework.trainer(
        config.model,
        config.train,
        state.weights,
        dataset.train_images,
        dataset.train_labels,
        moments=state.moments,
    )
    with RunFolder.resume(path, config, state.progress.step, lock_resumable(path)) as run:
        return trainer, run_training(trainer, run, state.progress, dataset, framework, DEVICE)


def rows(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_a_run_to_its_end(framework, config, dataset, tmp_path, capsys):
    trainer, code = begin(framework, config, dataset, tmp_path / "run")
    assert code == 0
    path, printed = tmp_path / "run", capsys.readouterr().out
    assert [(row["epoch"], row["step"]) for row in rows(path)] == [(1, 5), (2, 10), (3, 13)]
    losses = np.load(path / "step_losses.npy")
    assert losses.shape == (13,)
    assert [row["train_loss"] for row in rows(path)] == [
        pytest.approx(losses[first:last].mean(), rel=1e-6) for first, last in ((0, 5), (5, 10), (10, 13))
    ]
    state = checkpoint.load(path / "checkpoint")
    assert state.progress.step == 13
    assert state.progress.timed_steps == 12  # all but the first, which compiles
    np.testing.assert_array_equal(state.weights["head.bias"], trainer.weights()["head.bias"])
    assert (state.moments["first_moment"]["head.bias"] == 13).all()
    summary = json.loads((path / "summary.json").read_text())
    assert (summary["steps"], summary["test_accuracy"]) == (13, rows(path)[-1]["test_accuracy"])
    assert {picture.name for picture in (path / "pictures").iterdir()} == {
        "first_test_batch.png",
        "curves.png",
        "confusion_matrix.png",
        "predictions.png",
    }
    lines = printed.splitlines()
    assert lines[3:5] == [f"Runs in  numpy {np.__version__} on an abacus", f"Output   {path}"]
    assert [line[:11] for line in lines if line.startswith("epoch")] == ["epoch   1/3", "epoch   2/3", "epoch   3/3"]
    assert lines[-4].startswith("Done: ")


def test_augmented_images_are_drawn_once(framework, config, dataset, tmp_path):
    config = replace(config, train=replace(config.train, flip=True))
    begin(framework, config, dataset, tmp_path / "run")
    assert (tmp_path / "run" / "pictures" / "augmented_batch.png").exists()
    (tmp_path / "run" / "pictures" / "augmented_batch.png").unlink()
    resume(framework, replace(config, train=replace(config.train, steps=14)), dataset, tmp_path / "run")
    assert not (tmp_path / "run" / "pictures" / "augmented_batch.png").exists()


@pytest.mark.parametrize("step", [1, 5, 7, 12])
def test_stopped_and_resumed_to_the_same_bits(framework, config, dataset, tmp_path, capsys, monkeypatch, step):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    begin(framework, config, dataset, whole)
    train = framework.trainer.train

    def train_and_signal(self, first, last):
        if len(self.dispatches) == step - 1:
            signal.raise_signal(signal.SIGTERM)
        return train(self, first, last)

    monkeypatch.setattr("mixer_common.training.dispatch.SECONDS_PER_DISPATCH", 0.0)  # one step each
    monkeypatch.setattr(framework.trainer, "train", train_and_signal)
    capsys.readouterr()
    assert begin(framework, config, dataset, cut)[1] == 128 + signal.SIGTERM
    monkeypatch.setattr(framework.trainer, "train", train)
    last_line = capsys.readouterr().out.splitlines()[-1]
    assert last_line == f"Stopped by SIGTERM at step {step} of 13. Go on with: --out {cut} --resume"
    assert checkpoint.load(cut / "checkpoint").progress.step == len(np.load(cut / "step_losses.npy")) == step
    assert len(rows(cut)) == step // 5  # an epoch that ended with the signal's step is evaluated
    assert not (cut / "summary.json").exists()

    assert resume(framework, config, dataset, cut)[1] == 0
    for name in ("config.json", "step_losses.npy", "checkpoint/model.safetensors", "checkpoint/optimizer.safetensors"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes(), name
    measured = ("train_seconds", "images_per_second")
    for a, b in zip(rows(whole), rows(cut), strict=True):
        assert all(a[name] == b[name] for name in a if name not in measured)


def test_a_signal_before_the_first_step_leaves_a_checkpoint(framework, config, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "first_batch", lambda *_: signal.raise_signal(signal.SIGINT))
    trainer, code = begin(framework, config, dataset, tmp_path / "run")
    assert (code, trainer.dispatches) == (128 + signal.SIGINT, [])
    assert checkpoint.load(tmp_path / "run" / "checkpoint").progress.step == 0
    assert len(np.load(tmp_path / "run" / "step_losses.npy")) == 0


def test_a_complete_run_says_so_and_writes_a_summary_that_is_missing(framework, config, dataset, tmp_path, capsys):
    path = tmp_path / "run"
    begin(framework, config, dataset, path)
    summary = json.loads((path / "summary.json").read_text())
    trainer, code = resume(framework, config, dataset, path)
    assert (code, trainer.dispatches) == (0, [])
    assert capsys.readouterr().out.endswith("The run is complete at step 13; --epochs or --steps makes it longer.\n")
    (path / "summary.json").unlink()
    assert resume(framework, config, dataset, path)[1] == 0
    again = json.loads((path / "summary.json").read_text())
    same = ("steps", "epochs", "test_accuracy", "test_loss", "train_seconds", "frameworks")
    assert [again[name] for name in same] == [summary[name] for name in same]
    for name in ("summary.json", "metrics.jsonl", "step_losses.npy"):
        (path / name).unlink()
    assert resume(framework, config, dataset, path)[1] == 0  # the figures are those of the logits
    again = json.loads((path / "summary.json").read_text())
    assert [again[name] for name in same] == [summary[name] for name in same]


def test_a_loss_that_is_no_number_leaves_the_checkpoint_before(framework, config, dataset, tmp_path, monkeypatch):
    train = framework.trainer.train

    def diverge(self, first, last):
        losses = train(self, first, last)
        epoch = sum(first == 0 for first, _ in self.dispatches)
        return losses if epoch == 1 else losses * np.float32("nan")

    monkeypatch.setattr(framework.trainer, "train", diverge)
    with pytest.raises(UserError, match="the training loss is nan at step 6:"):
        begin(framework, config, dataset, tmp_path / "run")
    assert checkpoint.load(tmp_path / "run" / "checkpoint").progress.step == 5


@pytest.mark.parametrize("diverging", ["weights", "first_moment", "test_loss"])
def test_what_is_not_finite_replaces_no_checkpoint(framework, config, dataset, tmp_path, monkeypatch, diverging):
    """The losses are finite: an epoch's last step makes what is not."""
    train, logits = framework.trainer.train, framework.trainer.logits

    def diverge(self, first, last):
        losses = train(self, first, last)
        if sum(first == 0 for first, _ in self.dispatches) == 2:
            if diverging == "weights":
                self._weights["norm.weight"][0] = np.inf
            elif diverging == "first_moment":
                self._moments["first_moment"]["norm.weight"][0] = np.nan
        return losses

    def nan_in_the_second_epoch(self, images):
        return logits(self, images) * np.float32("nan" if sum(first == 0 for first, _ in self.dispatches) > 1 else 1)

    monkeypatch.setattr(framework.trainer, "train", diverge)
    if diverging == "test_loss":
        monkeypatch.setattr(framework.trainer, "logits", nan_in_the_second_epoch)
        message = "the test loss is nan after step 10: lower --learning-rate"
    else:
        message = f"{diverging} of norm.weight are infinite or no numbers after these steps: lower"
    with pytest.raises(UserError, match=message):
        begin(framework, config, dataset, tmp_path / "run")
    assert checkpoint.load(tmp_path / "run" / "checkpoint").progress.step == 5
    assert len(rows(tmp_path / "run")) == 1
    assert len(np.load(tmp_path / "run" / "step_losses.npy")) == 5
    monkeypatch.undo()
    monkeypatch.setattr(pictures, "first_batch", lambda *arguments: None)
    for name in ("curves", "confusion", "predictions"):
        monkeypatch.setattr(pictures, name, lambda *arguments: None)
    resume(framework, config, dataset, tmp_path / "run")
    assert checkpoint.load(tmp_path / "run" / "checkpoint").progress.step == 13


def test_the_seconds_of_every_process_add_up(framework, config, dataset, tmp_path):
    begin(framework, replace(config, train=replace(config.train, steps=7)), dataset, tmp_path / "run")
    first = checkpoint.load(tmp_path / "run" / "checkpoint").progress
    resume(framework, config, dataset, tmp_path / "run")
    second = checkpoint.load(tmp_path / "run" / "checkpoint").progress
    assert (first.timed_steps, second.timed_steps) == (6, 11)  # each process compiles once
    assert second.train_seconds > first.train_seconds > 0
    assert second.compile_seconds > first.compile_seconds > 0
