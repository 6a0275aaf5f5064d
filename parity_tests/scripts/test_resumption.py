"""Runs that are interrupted, killed, resumed or made longer, in either framework."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import DIGITS, DIGITS_EPOCH, FRAMEWORKS, SCRIPTS, TRAINERS

from mixer_common.runs import checkpoint


def interrupted(script, monkeypatch, framework: str, out, number: signal.Signals) -> int:
    """Trains until some step in the middle of the second epoch, where the signal arrives; returns the step."""
    original = TRAINERS[framework].train
    seen = []

    def train(self, first: int, last: int) -> np.ndarray:
        losses = original(self, first, last)
        seen.append(last)
        if first == 0 and len(seen) > 1:  # the first chunk of the second epoch
            signal.raise_signal(number)
        return losses

    monkeypatch.setattr("mixer_common.training.dispatch.SECONDS_PER_DISPATCH", 0.1)
    monkeypatch.setattr(TRAINERS[framework], "train", train)
    code, stdout, _ = script(f"train_{framework}", *DIGITS, "--steps", 500, "--out", out)
    monkeypatch.undo()
    assert code == 128 + number
    assert f"Stopped by {number.name}" in stdout
    assert "--resume" in stdout
    step = checkpoint.load(out / "checkpoint").progress.step
    assert DIGITS_EPOCH < step < 500
    assert len(np.load(out / "step_losses.npy")) == step
    return step


@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGINT, id="SIGINT", marks=pytest.mark.slow), pytest.param(signal.SIGTERM, id="SIGTERM")],
)
@FRAMEWORKS
def test_resumed_in_the_middle_of_an_epoch_to_the_same_bits(script, monkeypatch, tmp_path, framework, number):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    interrupted(script, monkeypatch, framework, cut, number)
    code, stdout, _ = script(f"train_{framework}", "--out", cut, "--resume")
    assert code == 0
    assert "from step" in stdout
    assert script(f"train_{framework}", *DIGITS, "--steps", 500, "--out", whole)[0] == 0
    for name in ("step_losses.npy", "checkpoint/model.safetensors", "checkpoint/optimizer.safetensors"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes(), name
    rows = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (whole, cut)]
    for a, b in zip(*rows, strict=True):
        assert all(a[key] == b[key] for key in ("epoch", "step", "train_loss", "test_loss", "test_accuracy"))


def test_stopped_before_its_first_step(script, monkeypatch, tmp_path):
    out = tmp_path / "run"
    monkeypatch.setattr("mixer_common.runs.pictures.first_batch", lambda *_: signal.raise_signal(signal.SIGTERM))
    assert script("train_torch", *DIGITS, "--steps", 5, "--out", out)[0] == 128 + signal.SIGTERM
    monkeypatch.undo()
    assert checkpoint.load(out / "checkpoint").progress.step == 0
    assert script("train_torch", "--out", out, "--resume")[0] == 0
    assert len(np.load(out / "step_losses.npy")) == 5


@pytest.mark.parametrize("framework", ["jax", pytest.param("torch", marks=pytest.mark.slow)])
def test_resumed_in_the_other_framework(script, monkeypatch, tmp_path, framework):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    other = {"jax": "torch", "torch": "jax"}[framework]
    step = interrupted(script, monkeypatch, framework, cut, signal.SIGTERM)
    assert script(f"train_{other}", "--out", cut, "--resume")[0] == 0
    assert script(f"train_{framework}", *DIGITS, "--steps", 500, "--out", whole)[0] == 0
    a, b = (np.load(run / "step_losses.npy") for run in (whole, cut))
    assert (a[:step] == b[:step]).all()
    assert np.abs(a - b).max() < 1e-4
    summary = json.loads((cut / "summary.json").read_text())
    assert summary["frameworks"] == [[framework, 0], [other, step]]


def metrics_lines(run) -> list[str]:
    path = run / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.slow
@FRAMEWORKS
def test_killed_at_once_it_goes_on_from_the_last_epoch(script, tmp_path, framework):
    """SIGKILL to the real process: nothing can be saved then, and nothing saved before is lost."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    process = subprocess.Popen(
        [sys.executable, SCRIPTS / f"train_{framework}.py", *DIGITS, "--epochs", "50", "--out", cut],
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while len(metrics_lines(cut)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()  # some time around the second checkpoint, perhaps in the middle of writing it
    process.wait()
    step = checkpoint.load(cut / "checkpoint").progress.step
    assert step % DIGITS_EPOCH == 0
    code, _, _ = script(f"train_{framework}", "--out", cut, "--resume", "--epochs", 0, "--steps", step + 100)
    assert code == 2  # no epochs is no setting
    assert script(f"train_{framework}", "--out", cut, "--resume", "--steps", step + 100)[0] == 0
    assert script(f"train_{framework}", *DIGITS, "--steps", step + 100, "--out", whole)[0] == 0
    assert (whole / "step_losses.npy").read_bytes() == (cut / "step_losses.npy").read_bytes()


def test_a_finished_run_can_be_made_longer_but_not_changed(script, tmp_path):
    out = tmp_path / "run"
    assert script("train_torch", *DIGITS, "--steps", 10, "--out", out)[0] == 0
    assert "is complete at step 10" in script("train_torch", "--out", out, "--resume")[1]
    assert script("train_torch", "--out", out, "--resume", "--steps", 15)[0] == 0
    assert len(np.load(out / "step_losses.npy")) == 15
    assert "is complete at step 15" in script("train_torch", "--out", out, "--resume")[1]
    summary = json.loads((out / "summary.json").read_text())
    (out / "summary.json").unlink()  # as if killed just before
    assert script("train_torch", "--out", out, "--resume")[0] == 0
    again = json.loads((out / "summary.json").read_text())
    assert (again["steps"], again["test_accuracy"]) == (15, summary["test_accuracy"])
    for change in (("--learning-rate", 0.5), ("--model", "nano"), ("--hidden-dim", 32), ("--seed", 1)):
        code, _, stderr = script("train_torch", "--out", out, "--resume", *change)
        assert code == 2
        assert "other settings" in stderr


@pytest.mark.slow
def test_an_average_is_what_a_run_shows_in_either_framework(script, tmp_path):
    """Begun in PyTorch, continued in JAX with other parts; what is evaluated is what lies in model.safetensors."""
    out = tmp_path / "run"
    code, stdout, _ = script(
        "train_torch",
        *DIGITS,
        "--num-blocks",
        1,
        "--ema-decay",
        0.99,
        "--trivial-augment",
        "--operations",
        "rotate",
        "brightness",
        "--steps",
        75,
        "--out",
        out,
    )
    assert code == 0
    assert "seed 0, trivial augment, operations, ema decay\n" in stdout
    code, stdout, stderr = script("train_jax", "--out", out, "--resume", "--steps", 150, "--accumulation", 2)
    assert code == 0, stderr
    assert "from step 75" in stdout
    state = checkpoint.load(out / "checkpoint")
    assert (state.config.train.operations, state.config.train.accumulation) == (("rotate", "brightness"), 2)
    assert (state.weights["head.weight"] != state.moments["trained_weights"]["head.weight"]).any()
    summary = json.loads((out / "summary.json").read_text())
    for framework in TRAINERS:
        assert script("evaluate", out, "--framework", framework, "--json", tmp_path / "report.json")[0] == 0
        figures = json.loads((tmp_path / "report.json").read_text())
        assert figures["test_loss"] == pytest.approx(summary["test_loss"], abs=1e-5)
