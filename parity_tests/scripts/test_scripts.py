"""The scripts as a user runs them: outputs, twin runs, interruption and resumption, bad input."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SCRIPTS
from PIL import Image

import mixer_jax.download
import mixer_jax.train
import mixer_torch.download
import mixer_torch.train
from mixer_common.errors import UserError
from mixer_common.plan.batches import steps_in_epoch
from mixer_common.runs import checkpoint

DIGITS = ("--dataset", "digits", "--model", "tiny")
FRAMEWORKS = pytest.mark.parametrize("framework", ["jax", "torch"])
TRAINERS = {"jax": mixer_jax.train.Trainer, "torch": mixer_torch.train.Trainer}
EPOCH = steps_in_epoch(1437, 4)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """No test reads or fills the user's caches."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("MLP_MIXER_DATA", raising=False)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A short run on digits that other tests read."""
    out = tmp_path_factory.mktemp("runs") / "run"
    subprocess.run(
        [sys.executable, SCRIPTS / "train_jax.py", *DIGITS, "--steps", "500", "--out", out],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return out


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
    for words in (
        "MLP-Mixer tiny, 78,986 parameters",
        "handwritten digits",
        "1,437 training and 360 test",
        f"{framework} ",
        "CPU",
        "epoch   1/2",
        "test accuracy",
        str(out / "summary.json"),
    ):
        assert words in stdout, words
    assert {path.name for path in out.iterdir() if "tfevents" not in path.name} == {
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
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, EPOCH), (2, 400)]
    assert rows[0]["train_loss"] == pytest.approx(losses[:EPOCH].mean(), rel=1e-6)
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
    assert EPOCH < step < 500
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
    assert step % EPOCH == 0
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


BAD_TRAINING = {
    "unknown model": (("--model", "resnet"), "unknown model 'resnet'"),
    "unknown recipe": (("--recipe", "magic"), "unknown recipe 'magic'"),
    "unknown dataset": (("--dataset", "mnist"), "unknown data set 'mnist'"),
    "patch does not divide": (("--image-size", "30"), "image_size 30 is not a multiple of patch_size 4"),
    "negative width": (("--hidden-dim", "-1"), "hidden_dim is -1"),
    "batch larger than the data": (("--dataset", "digits", "--batch-size", "2000"), "batch_size 2000 is larger"),
    "parts of unequal size": (
        ("--batch-size", "128", "--accumulation", "3"),
        "accumulation 3 does not divide batch_size 128",
    ),
    "no parts": (("--accumulation", "0"), "accumulation is 0, but must be at least 1"),
    "an average that never moves": (("--ema-decay", "1"), "ema_decay is 1.0, but must be at least 0 and below 1"),
    "unknown operation": (("--trivial-augment", "--operations", "rotat"), "unknown operation 'rotat' (did you mean"),
    "operations of nothing": (("--operations", "rotate"), "add --trivial-augment"),
    "wrong number of classes": (("--dataset", "digits", "--num-classes", "7"), "num_classes is 7"),
    "no such data folder's format": (("--dataset", "cifar10", "--data-dir", __file__), "is a file"),
    "not a choice": (("--optimizer", "lion"), "optimizer"),
    "not a number": (("--epochs", "many"), "epochs"),
    "unknown option": (("--momentums", "0.5"), "momentums"),
    "resume and overwrite": (("--resume", "--overwrite", "--out", "x"), ""),
    "resume nothing": (("--resume", "--out", "no-such-run"), "no-such-run"),
    "resume without out": (("--resume",), "--resume needs --out"),
}


@FRAMEWORKS
@pytest.mark.parametrize("case", BAD_TRAINING)
def test_bad_input_to_training(script, tmp_path, monkeypatch, framework, case):
    monkeypatch.chdir(tmp_path)
    arguments, words = BAD_TRAINING[case]
    code, _, stderr = script(f"train_{framework}", *arguments)
    assert code == 2
    assert words in stderr
    assert "Traceback" not in stderr
    assert not list(tmp_path.iterdir())


@FRAMEWORKS
def test_cifar10_without_data_and_network_is_told_within_15_seconds(script, tmp_path, monkeypatch, framework):
    module = {"jax": mixer_jax.download, "torch": mixer_torch.download}[framework]
    monkeypatch.setattr(module, "URL", "http://127.0.0.1:9/cifar-10.tar.gz")  # nobody listens there
    start = time.monotonic()
    code, _, stderr = script(
        f"train_{framework}", "--dataset", "cifar10", "--data-dir", tmp_path / "empty", "--out", tmp_path / "run"
    )
    assert code == 2
    assert "could not be downloaded" in stderr
    assert time.monotonic() - start < 15
    assert not (tmp_path / "run").exists()


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


@pytest.mark.parametrize("content", [b"PAR1 but no more", b""], ids=["corrupt", "empty"])
def test_a_damaged_data_folder_is_no_digits(script, tmp_path, content):
    for split in ("train", "test"):
        (tmp_path / f"{split}-00000-of-00001.parquet").write_bytes(content)
    code, _, stderr = script("train_jax", "--data-dir", tmp_path, "--out", tmp_path / "run")
    assert code == 2
    assert "train-00000-of-00001.parquet" in stderr


def test_bad_input_to_evaluate_and_predict(script, run_folder, tmp_path):
    picture = tmp_path / "picture.png"
    picture.write_text("no picture at all")
    for arguments, words in (
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
        assert words in stderr
        assert "Traceback" not in stderr


@pytest.mark.parametrize("name", ["evaluate", "predict", "train_torch"])
def test_a_checkpoint_cut_short(script, run_folder, tmp_path, name):
    import shutil

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


def test_no_space(script, tmp_path, monkeypatch):
    """The disk fills up when the second checkpoint is written: one sentence, and the first is still there."""
    import errno

    writes = []

    def fsync(descriptor: int) -> None:
        writes.append(descriptor)
        if len(writes) > 9:  # the run's config; losses, metrics and the four files of the first checkpoint
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    out = tmp_path / "run"
    code, _, stderr = script("train_torch", *DIGITS, "--steps", 400, "--out", out)
    assert code == 2
    assert "No space left on device" in stderr
    assert "Traceback" not in stderr
    monkeypatch.undo()
    assert checkpoint.load(out / "checkpoint").progress.step == EPOCH
    assert script("train_torch", "--out", out, "--resume")[0] == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="writes below /proc, where nobody may")
def test_no_permission(script):
    code, _, stderr = script("train_torch", *DIGITS, "--steps", 2, "--out", "/proc/mlp-mixer/run")
    assert code == 2
    assert "/proc/mlp-mixer" in stderr
    assert "Traceback" not in stderr


@FRAMEWORKS
def test_a_gpu_that_is_not_there(script, tmp_path, monkeypatch, framework):
    import jax
    import torch

    if torch.cuda.is_available() or jax.default_backend() == "gpu":
        pytest.skip("there is a GPU")
    code, _, stderr = script(f"train_{framework}", *DIGITS, "--device", "gpu", "--out", tmp_path / "run")
    assert code == 2
    assert "--device gpu was asked for" in stderr


@pytest.fixture
def eight_gigabytes() -> Iterator[None]:
    """More memory than that beside what the process has already is refused."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 8 * 2**30, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the memory as Linux does")
@FRAMEWORKS
def test_a_batch_that_does_not_fit(script, tmp_path, eight_gigabytes, framework):
    """The stem's 1024 x 4096 patches of 4096 channels are 69 GB, a single image's 67 MB."""
    wide = ("--image-size", 64, "--patch-size", 1, "--hidden-dim", 4096, "--channels-mlp-dim", 8, "--num-blocks", 1)
    code, _, stderr = script(
        f"train_{framework}", *DIGITS, *wide, "--batch-size", 1024, "--device", "cpu", "--out", tmp_path / "run"
    )
    assert code == 2
    assert stderr.startswith("error: batch_size 1024 does not fit into the memory of CPU, ")
    assert stderr.endswith(
        ": try --overwrite with --batch-size 512, or with --accumulation 2, which gives the same result.\n"
    )


def test_what_a_run_has_written_survives_the_end_of_the_memory(script, tmp_path, monkeypatch):
    original, out = TRAINERS["torch"].begin_epoch, tmp_path / "run"
    epochs = []

    def begin_epoch(self, plan) -> None:
        epochs.append(plan)
        if len(epochs) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        original(self, plan)

    monkeypatch.setattr(TRAINERS["torch"], "begin_epoch", begin_epoch)
    given = ("--model", "tutorial", "--dataset", "digits", "--batch-size", 48)
    code, _, stderr = script("train_torch", *given, "--accumulation", 4, "--epochs", 2, "--out", out)
    assert code == 2
    assert "batch_size 48 with accumulation 4 does not fit" in stderr
    assert "go on with --resume --accumulation 8, which" in stderr
    monkeypatch.undo()
    assert checkpoint.load(out / "checkpoint").progress.step == 29


def test_a_model_that_does_not_fit(script, tmp_path, monkeypatch):
    def begin_epoch(self, plan) -> None:
        raise MemoryError("Unable to allocate 8 bytes")

    monkeypatch.setattr(TRAINERS["torch"], "begin_epoch", begin_epoch)
    code, _, stderr = script("train_torch", *DIGITS, "--batch-size", 1, "--out", tmp_path / "run")
    assert code == 2
    assert "tiny with its optimizer and data does not fit into the memory of" in stderr


def test_a_loss_that_is_no_number_stops_the_run(script, tmp_path):
    code, _, stderr = script(
        "train_torch", *DIGITS, "--optimizer", "sgd", "--learning-rate", 1e30, "--steps", 50, "--out", tmp_path / "run"
    )
    assert code == 2
    assert "the training loss is nan at step" in stderr


def test_user_errors_are_one_sentence(capsys):
    from mixer_common.errors import run_script

    def main() -> None:
        raise UserError("the value is 3, but must be 4: change it.")

    with pytest.raises(SystemExit) as stop:
        run_script(main)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: the value is 3, but must be 4: change it.\n"


def test_ctrl_c_anywhere_ends_without_a_traceback(capsys):
    from mixer_common.errors import run_script

    def main() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        run_script(main)
    assert stop.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"
