"""What the training scripts do with bad input, and where data, disk, device or memory fail them."""

import errno
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
import torch
from helpers import DIGITS, DIGITS_EPOCH, FRAMEWORKS, TRAINERS

import mixer_jax.download
import mixer_torch.download
from mixer_common.runs import checkpoint

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
    arguments, message = BAD_TRAINING[case]
    code, _, stderr = script(f"train_{framework}", *arguments)
    assert code == 2
    assert message in stderr
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


@pytest.mark.parametrize("content", [b"PAR1 but no more", b""], ids=["corrupt", "empty"])
def test_a_damaged_data_folder_is_no_digits(script, tmp_path, content):
    for split in ("train", "test"):
        (tmp_path / f"{split}-00000-of-00001.parquet").write_bytes(content)
    code, _, stderr = script("train_jax", "--data-dir", tmp_path, "--out", tmp_path / "run")
    assert code == 2
    assert "train-00000-of-00001.parquet" in stderr


def test_no_space(script, tmp_path, monkeypatch):
    """The disk fills up when the second checkpoint is written: one sentence, and the first is still there."""
    writes = []

    def fsync(descriptor: int) -> None:
        writes.append(descriptor)
        # The run's config, its losses and metrics, each with its folder; the first checkpoint's five files, its folder
        # and the one above.
        if len(writes) > 13:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    out = tmp_path / "run"
    code, _, stderr = script("train_torch", *DIGITS, "--steps", 400, "--out", out)
    assert code == 2
    assert "No space left on device" in stderr
    assert "Traceback" not in stderr
    monkeypatch.undo()
    assert checkpoint.load(out / "checkpoint").progress.step == DIGITS_EPOCH
    assert script("train_torch", "--out", out, "--resume")[0] == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="writes below /proc, where nobody may")
def test_no_permission(script):
    code, _, stderr = script("train_torch", *DIGITS, "--steps", 2, "--out", "/proc/mlp-mixer/run")
    assert code == 2
    assert "/proc/mlp-mixer" in stderr
    assert "Traceback" not in stderr


@FRAMEWORKS
def test_a_gpu_that_is_not_there(script, tmp_path, monkeypatch, framework):
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
