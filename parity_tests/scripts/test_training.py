"""The training scripts as a user runs them: what they write, and that both draw the same curve."""

import json
import subprocess
import sys

import numpy as np
import pytest
from helpers import DIGITS, DIGITS_EPOCH, FRAMEWORKS, SCRIPTS, TRAINERS
from PIL import Image

import mixer_jax.download
import mixer_torch.download


@pytest.mark.parametrize(("framework", "other"), [("jax", "torch"), ("torch", "jax")])
def test_no_training_imports_the_other_framework(tmp_path, framework, other):
    code = (
        "import runpy, sys\ntry:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        f"finally:\n    print({other!r} in sys.modules)"
    )
    script = SCRIPTS / f"train_{framework}.py"
    process = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.argv = sys.argv[1:]\n{code}",
            script,
            *DIGITS,
            "--steps",
            "2",
            "--out",
            tmp_path / "run",
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    assert process.stdout.splitlines()[-1] == "False"


@FRAMEWORKS
def test_a_run_writes_everything_it_promises(script, tmp_path, framework):
    out = tmp_path / "run"
    code, stdout, _ = script(f"train_{framework}", *DIGITS, "--epochs", 2, "--steps", 400, "--out", out)
    assert code == 0
    for message in (
        "MLP-Mixer tiny, 78,986 parameters",
        "handwritten digits",
        "1,437 training and 360 test",
        f"{framework} ",
        "CPU",
        "epoch   1/2",
        "test accuracy",
        str(out / "summary.json"),
    ):
        assert message in stdout, message
    assert {path.name for path in out.iterdir() if "tfevents" not in path.name} == {
        ".lock",
        ".lock.json",
        "checkpoints",
        "config.json",
        "metrics.jsonl",
        "step_losses.npy",
        "summary.json",
        "checkpoint",
        "pictures",
    }
    losses = np.load(out / "step_losses.npy")
    assert losses.shape == (400,)
    assert losses.dtype == np.float32
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, DIGITS_EPOCH), (2, 400)]
    assert rows[0]["train_loss"] == pytest.approx(losses[:DIGITS_EPOCH].mean(), rel=1e-6)
    summary = json.loads((out / "summary.json").read_text())
    assert {
        "framework",
        "dataset",
        "model",
        "recipe",
        "seed",
        "epochs",
        "steps",
        "parameters",
        "test_accuracy",
        "test_loss",
        "train_seconds",
        "images_per_second",
        "device",
        "versions",
    } <= summary.keys()
    assert (
        summary["framework"],
        summary["dataset"],
        summary["model"],
        summary["recipe"],
        summary["steps"],
        summary["parameters"],
    ) == (framework, "digits", "tiny", "tutorial", 400, 78_986)
    assert summary["test_accuracy"] == rows[-1]["test_accuracy"] > 0.5
    assert summary["images_per_second"] > 0
    assert json.loads((out / "config.json").read_text())["dataset"] == "digits"
    for name in ("first_test_batch", "curves", "confusion_matrix", "predictions"):
        with Image.open(out / "pictures" / f"{name}.png") as picture:
            assert min(picture.size) > 200
            assert len(picture.convert("L").getcolors()) > 20
    events = next(path for path in out.iterdir() if "tfevents" in path.name)
    assert b"loss/step" in events.read_bytes()
    assert b"accuracy/test" in events.read_bytes()


def test_the_twins_draw_the_same_curve(script, tmp_path):
    for framework in TRAINERS:
        code, _, _ = script(
            f"train_{framework}",
            *DIGITS,
            "--precision",
            "float64",
            "--steps",
            200,
            "--out",
            tmp_path / framework,
            "--model",
            "tutorial",
            "--stochastic-depth",
            0.1,
        )
        assert code == 0
    curves = [np.load(tmp_path / framework / "step_losses.npy") for framework in TRAINERS]
    assert np.abs(curves[0] - curves[1]).max() < 1e-12
    summaries = [json.loads((tmp_path / framework / "summary.json").read_text()) for framework in TRAINERS]
    assert summaries[0]["test_accuracy"] == summaries[1]["test_accuracy"]


def test_another_image_size_is_resized_on_the_way(script, tmp_path):
    for framework in TRAINERS:
        assert (
            script(
                f"train_{framework}",
                *DIGITS,
                "--image-size",
                40,
                "--patch-size",
                8,
                "--precision",
                "float64",
                "--steps",
                20,
                "--out",
                tmp_path / framework,
            )[0]
            == 0
        )
    curves = [np.load(tmp_path / framework / "step_losses.npy") for framework in TRAINERS]
    assert np.abs(curves[0] - curves[1]).max() < 1e-12


def test_the_default_folder_names_the_run(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert script("train_torch", *DIGITS, "--steps", 2, "--seed", 5)[0] == 0
    assert (tmp_path / "runs" / "torch-tiny-digits-5" / "summary.json").exists()


def test_a_run_is_never_overwritten_unasked(script, tmp_path):
    out = tmp_path / "run"
    arguments = ("train_torch", *DIGITS, "--steps", 2, "--out", out)
    assert script(*arguments)[0] == 0
    before = (out / "summary.json").read_bytes()
    code, _, stderr = script(*arguments)
    assert code == 2
    assert "--resume" in stderr
    assert "--overwrite" in stderr
    assert (out / "summary.json").read_bytes() == before
    assert script(*arguments, "--overwrite")[0] == 0
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("mine")
    code, _, stderr = script("train_torch", *DIGITS, "--steps", 2, "--out", tmp_path / "precious", "--overwrite")
    assert code == 2
    assert "is no run" in stderr
    assert (tmp_path / "precious" / "thesis.txt").exists()


@FRAMEWORKS
def test_auto_says_loudly_that_it_trains_on_digits(script, tmp_path, monkeypatch, framework):
    module = {"jax": mixer_jax.download, "torch": mixer_torch.download}[framework]
    monkeypatch.setattr(module, "URL", "http://127.0.0.1:9/cifar-10.tar.gz")
    out = tmp_path / "run"
    code, stdout, _ = script(f"train_{framework}", "--data-dir", tmp_path / "empty", "--steps", 2, "--out", out)
    assert code == 0
    assert "*** CIFAR-10 is neither in" in stdout
    for name in ("config.json", "summary.json"):
        assert json.loads((out / name).read_text())["dataset"] == "digits"
