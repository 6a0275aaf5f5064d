"""evaluate.py and predict.py as a user runs them."""

import json
import shutil

import numpy as np
import pytest
from helpers import FRAMEWORKS
from PIL import Image

from mixer_common.weights.canonical import replace_head
from mixer_common.weights.files import load_weights, save_weights
from mixer_common.weights.formats import to_format


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
    if name == "train_torch":  # goes on from the one before, if there is one
        (earlier,) = (run / "checkpoints").iterdir()
        code, stdout, _ = script(name, *arguments[name], "--steps", 500)
        assert code == 0
        assert "model.safetensors was changed or damaged" in stdout
        assert f"The one before is taken, of step {int(earlier.name[5:])}; the steps after it are trained" in stdout
        weights.write_bytes(weights.read_bytes()[:5000])
        shutil.rmtree(run / "checkpoints")
    code, _, stderr = script(name, *arguments[name])
    assert code == 2
    assert "model.safetensors" in stderr
    assert "Traceback" not in stderr


# ---- Weights alone


@FRAMEWORKS
@pytest.mark.parametrize("kind", ["file", "folder", "run without its optimizer", "config and weights alone"])
def test_weights_alone_give_the_figures_of_their_run(script, run_folder, tmp_path, framework, kind):
    weights = tmp_path / "weights"
    options, is_run = ("--dataset", "digits"), False
    if kind == "file":
        weights = weights.with_suffix(".npz")
        save_weights(weights, load_weights(run_folder), "npz")
        options = (*options, "--gelu", "exact", "--layer-norm-epsilon", 1e-5)
    elif kind == "folder":
        save_weights(weights, load_weights(run_folder), "canonical")
    else:
        shutil.copytree(run_folder, weights)
        (weights / "checkpoint" / "optimizer.safetensors").unlink()
        if kind.endswith("alone"):
            weights = weights / "checkpoint"
            (weights / "progress.json").unlink()
        options, is_run = (), True
    report, before = tmp_path / "report.json", tmp_path / "before.json"
    code, stdout, stderr = script("evaluate", weights, *options, "--framework", framework, "--json", report)
    assert code == 0, stderr
    assert ("Run      " in stdout) == is_run
    assert ("Weights  " in stdout) == (not is_run)
    script("evaluate", run_folder, "--framework", framework, "--json", before)
    figures, expected = json.loads(report.read_text()), json.loads(before.read_text())
    assert figures["confusion_matrix"] == expected["confusion_matrix"]
    assert figures["test_loss"] == expected["test_loss"]
    assert figures["step"] == (500 if kind == "run without its optimizer" else None)
    assert figures["run" if is_run else "weights"] == str(weights)
    Image.new("RGB", (40, 40), "red").save(tmp_path / "a.png")
    options = options[2:] if options else ()
    code, stdout, _ = script("predict", weights, tmp_path / "a.png", "--framework", framework, *options)
    assert code == 0
    _, expected, _ = script("predict", run_folder, tmp_path / "a.png", "--framework", framework)
    assert stdout.splitlines()[-1] == expected.splitlines()[-1]


def test_what_weights_do_not_tell_is_printed_and_stated(script, run_folder, tmp_path):
    save_weights(tmp_path / "a.pth", load_weights(run_folder), "timm")
    code, stdout, _ = script("evaluate", tmp_path / "a.pth", "--dataset", "digits", "--gelu", "tanh")
    assert code == 0
    assert "Model    tiny: images 32x32" in stdout
    assert "Assumed  layer_norm_epsilon 1e-06, images 32x32, pixels -1..1, which the file does not tell" in stdout
    picture = tmp_path / "a.png"
    Image.new("RGB", (50, 40)).save(picture)
    code, plain, _ = script("predict", tmp_path / "a.pth", picture)
    assert code == 0
    code, stdout, _ = script("predict", tmp_path / "a.pth", picture, "--pixel-mean", "imagenet", "--top", 10)
    assert code == 0
    assert "pixels" not in stdout.partition("Assumed")[2]
    assert plain.splitlines()[-1] != stdout.splitlines()[-1][: len(plain.splitlines()[-1])]


def test_weights_that_cannot_be_evaluated(script, run_folder, tmp_path):
    weights = load_weights(run_folder)
    save_weights(tmp_path / "a.npz", weights, "npz")
    save_weights(tmp_path / "seven.npz", replace_head(weights, 7), "npz")
    headless = {name: array for name, array in to_format(weights, "npz").items() if not name.startswith("head/")}
    np.savez(tmp_path / "headless.npz", **headless)
    for arguments, message in (
        (("a.npz",), "is no run, so that nothing tells its data: name them with --dataset"),
        (("seven.npz", "--dataset", "digits"), "tells 7 classes apart, but scikit-learn's"),
        (("headless.npz", "--dataset", "digits"), "holds no head, so that it predicts no classes"),
        (("a.npz", "--dataset", "mnist"), "mnist"),
    ):
        code, _, stderr = script("evaluate", tmp_path / arguments[0], *arguments[1:])
        assert code == 2, arguments
        assert message in stderr
        assert len(stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "change", [{"step": "6"}, {"frameworks": []}, {"frameworks": [3]}, {"frameworks": [[3, "jax"]]}, {"step": None}]
)
@pytest.mark.parametrize("name", ["evaluate", "compare"])
def test_progress_that_is_none_is_one_sentence(script, run_folder, tmp_path, change, name):
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    path = run / "checkpoint" / "progress.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    code, _, stderr = script(name, run, *([run] if name == "compare" else []))
    assert code == 2
    assert "progress.json was changed" in stderr
    path.with_name("checksums.json").unlink()  # as an older version wrote it
    code, _, stderr = script(name, run, *([run] if name == "compare" else []))
    assert code == 2
    assert "does not tell how far the run has come" in stderr
    assert len(stderr.splitlines()) == 1


def test_a_run_without_its_optimizer_is_compared(script, run_folder, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    (run / "checkpoint" / "optimizer.safetensors").unlink()
    code, _, stderr = script("compare", run, run_folder, "--dataset", "digits", "--picture", tmp_path / "a.png")
    assert code == 0, stderr
