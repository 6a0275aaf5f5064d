"""evaluate.py and predict.py as a user runs them."""

import json
import shutil

import numpy as np
import pytest
from helpers import FRAMEWORKS
from PIL import Image


@pytest.mark.parametrize("framework", ["auto", "jax", "torch"])
def test_evaluate_finds_the_accuracy_of_the_summary(script, run_folder, tmp_path, framework):
    report = tmp_path / "report.json"
    code, stdout, _ = script(
        "evaluate", run_folder, "--framework", framework, "--json", report, "--picture", tmp_path / "confusion.png"
    )
    assert code == 0
    summary = json.loads((run_folder / "summary.json").read_text())
    figures = json.loads(report.read_text())
    assert figures["framework"] == ("jax" if framework == "auto" else framework)
    assert figures["test_accuracy"] == summary["test_accuracy"]
    assert figures["test_loss"] == pytest.approx(summary["test_loss"], abs=1e-5)
    matrix = np.array(figures["confusion_matrix"])
    assert matrix.sum() == 360
    assert np.trace(matrix) / 360 == pytest.approx(figures["test_accuracy"])
    assert list(figures["class_accuracy"]) == list("0123456789")
    assert f"Test accuracy {summary['test_accuracy']:.2%}" in stdout
    assert (tmp_path / "confusion.png").stat().st_size > 1000


@FRAMEWORKS
def test_predict_names_classes_and_probabilities(script, run_folder, tmp_path, digits, framework):
    right = 0
    paths = []
    for i in range(20):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(digits.test_images[i]).resize((100, 100)).save(paths[-1])
    code, stdout, _ = script("predict", run_folder, *paths, "--framework", framework, "--top", 2)
    assert code == 0
    for path, label in zip(paths, digits.test_labels[:20], strict=True):
        line = next(line for line in stdout.splitlines() if line.startswith(f"{path}: "))
        best, probability = line.removeprefix(f"{path}: ").split(", ")[0].split(" ")
        assert 0 < float(probability.rstrip("%")) <= 100
        right += best == str(label)
    assert right >= 14


def test_bad_input_to_evaluate_and_predict(script, run_folder, tmp_path):
    picture = tmp_path / "picture.png"
    picture.write_text("no picture at all")
    for arguments, message in (
        (("evaluate", tmp_path), "is no run"),
        (("evaluate", tmp_path / "nothing"), "is no run"),
        (("predict", tmp_path, picture), "is no run"),
        (("predict", run_folder, picture), "picture.png"),
        (("predict", run_folder, tmp_path / "missing.png"), "missing.png"),
        (("predict", run_folder), ""),
        (("evaluate", run_folder, "--framework", "mxnet"), "mxnet"),
    ):
        code, _, stderr = script(*arguments)
        assert code == 2, arguments
        assert message in stderr
        assert "Traceback" not in stderr


@pytest.mark.parametrize("name", ["evaluate", "predict", "train_torch"])
def test_a_checkpoint_cut_short(script, run_folder, tmp_path, name):
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    weights = run / "checkpoint" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    arguments = {"evaluate": (run,), "predict": (run, tmp_path / "a.png"), "train_torch": ("--out", run, "--resume")}
    code, _, stderr = script(name, *arguments[name])
    assert code == 2
    assert "model.safetensors" in stderr
    assert "Traceback" not in stderr
