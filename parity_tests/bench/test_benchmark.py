"""The benchmark: what it counts, what it refuses to time, what it says, what it leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SCRIPTS, SMALL, TINY
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import mixer_bench.jax_workloads
import mixer_bench.other_models
import mixer_bench.torch_workloads
import mixer_torch.model
from mixer_bench import session
from mixer_bench.equality import check_equal
from mixer_bench.flops import flops_per_step
from mixer_bench.settings import IMPLEMENTATIONS, Benchmark
from mixer_bench.worker import OutOfMemory, Unavailable, Worker
from mixer_bench.workload import Workload, WorkloadConfig
from mixer_common.config.presets import RECIPES
from mixer_common.errors import UserError

ASKED = Benchmark(
    "tiny", TINY, replace(RECIPES["tutorial"], batch_size=8), "train", "cpu", 0.05, 1, tuple(IMPLEMENTATIONS)
)
DIGITS = ("--dataset", "digits", "--batch-size", 8, "--rounds", 1, "--seconds", 0.05, "--device", "cpu")


@pytest.fixture
def folder(tmp_path, digits) -> Path:
    np.save(tmp_path / "images.npy", digits.train_images[:64])
    np.save(tmp_path / "labels.npy", digits.train_labels[:64])
    return tmp_path


def create(name: str, asked: Benchmark, folder: Path) -> Workload:
    """As a worker does it, but in this process."""
    module = {"jax": mixer_bench.jax_workloads, "torch": mixer_bench.torch_workloads}[IMPLEMENTATIONS[name]]
    return module.make_workload(WorkloadConfig(name, asked.mode, asked.config, asked.recipe, "cpu", folder))


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, block="tutorial", num_blocks=3)], ids=["mixer", "tutorial"])
def test_the_count_of_flops_is_torch_s(config):
    model = mixer_torch.model.build_model(config, WorkloadConfig("", "", config, ASKED.recipe, "cpu", Path()).weights())
    pixels = torch.zeros(6, *config.image_size, 3)
    with FlopCounterMode(display=False) as forward:
        logits = model(pixels)
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    assert flops_per_step(config, 6, "forward") == forward.get_total_flops()
    assert flops_per_step(config, 6, "train") == forward.get_total_flops() + backward.get_total_flops()


@pytest.mark.parametrize(("mode", "others"), [("train", ["timm"]), ("forward", ["jax-scan", "timm"])])
def test_equal_outputs_pass_and_a_planted_fault_does_not(mode, others, folder, monkeypatch):
    asked = replace(ASKED, mode=mode)
    outputs = {name: create(name, asked, folder).outputs() for name in ("torch-eager", *others)}
    assert check_equal(asked, outputs, resized=False)["torch-eager"] == 0
    whole = WorkloadConfig.weights

    def faulty(setup: WorkloadConfig) -> dict[str, np.ndarray]:
        weights = whole(setup)
        weights["blocks.1.channel_mixing.fc1.weight"] *= np.float32(1.01)
        return weights

    monkeypatch.setattr(WorkloadConfig, "weights", faulty)
    outputs["lucidrains"] = create("lucidrains", asked, folder).outputs()
    with pytest.raises(UserError, match="lucidrains does not compute what torch-eager computes"):
        check_equal(asked, outputs, resized=False)


def test_losses_are_compared_too(folder):
    outputs = {"torch-eager": create("torch-eager", ASKED, folder).outputs()}
    losses = outputs["torch-eager"].losses.copy()
    losses[2] *= 1.01
    outputs["jax-step"] = replace(outputs["torch-eager"], losses=losses)
    with pytest.raises(UserError, match="jax-step does not train as torch-eager does: the loss of step 3 differs"):
        check_equal(ASKED, outputs, resized=False)
    outputs["jax-step"] = replace(outputs["torch-eager"], losses=np.full(3, np.nan))
    with pytest.raises(UserError, match="the loss of step 1 differs by nan"):
        check_equal(ASKED, outputs, resized=False)


def test_steps_go_on_into_the_next_epoch(folder):
    measured = create("jax-scan", ASKED, folder)  # 8 steps an epoch
    seen = []
    measured.run = lambda first, last: seen.append((measured._epoch, first, last))
    measured.seconds(5)
    measured.seconds(13)
    assert seen == [(0, 0, 5), (0, 5, 8), (1, 0, 8), (2, 0, 2)]


def test_a_package_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlp_mixer_pytorch", None)
    with pytest.raises(Unavailable, match="the package mlp-mixer-pytorch is not installed"):
        mixer_bench.other_models.build_other_model("lucidrains", TINY, {}, torch.device("cpu"), torch.float32)


@pytest.fixture
def worker(tmp_path, monkeypatch):
    (tmp_path / "helper.py").write_text("""
import os, signal, subprocess
from mixer_common.errors import UserError
from mixer_bench.worker import Unavailable
def create(setup):
    return Helper()
class Helper:
    runtime = "here"
    def user(self): raise UserError("a sentence")
    def unavailable(self): raise Unavailable("a reason")
    def memory(self): raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")
    def bug(self): return 1 / 0
    def child(self): return subprocess.Popen(["sleep", "1000"]).pid
    def killed(self): os.kill(os.getpid(), signal.SIGKILL)
""")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    worker = Worker("helper", tmp_path, {})
    yield worker
    worker.close()


def test_what_goes_wrong_in_a_worker_arrives(worker):
    assert worker.call("start", "helper", None) == "here"
    for method, kind, words in (
        ("user", UserError, "^a sentence$"),
        ("unavailable", Unavailable, "^a reason$"),
        ("memory", OutOfMemory, "can't allocate"),
        ("bug", RuntimeError, "ZeroDivisionError"),
    ):
        with pytest.raises(kind, match=words):
            worker.call(method)
    child = worker.call("child")
    os.kill(child, 0)
    with pytest.raises(OutOfMemory, match="helper was killed"):
        worker.call("killed")
    worker.close()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        if Path(f"/proc/{child}/stat").read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()


@pytest.mark.parametrize(("batch_size", "advice"), [(128, "try --batch-size 64"), (1, "choose a smaller --model")])
def test_too_little_memory(monkeypatch, digits, batch_size, advice):
    def start(*_: object) -> None:
        raise OutOfMemory("torch-eager was killed by the system")

    monkeypatch.setattr(session, "Worker", start)
    asked = replace(ASKED, recipe=replace(ASKED.recipe, batch_size=batch_size))
    with pytest.raises(UserError, match=f"batches of {batch_size} .*killed by the system.*: {advice}"):
        session.measure(asked, digits)


def test_bad_input(script, tmp_path):
    (tmp_path / "file").write_text("")
    for arguments, words in (
        (("--model", "huge"), "unknown model 'huge'"),
        (("--only", "torch"), "unknown implementation 'torch'"),
        (("--batch-size", 5000), "5000 is larger than the 1437"),
        (("--batch-size", 0), "must be at least 1"),
        (("--rounds", 0), "--rounds is 0"),
        (("--seconds", 0), "--seconds is 0"),
        (("--mode", "both"), "both"),
        (("--json", tmp_path), "is a folder"),
        (("--plot", tmp_path / "file" / "a.png"), "file"),
        (("--only", "timm"), "nothing is left to measure (it has the paper's block only"),
    ):
        code, stdout, stderr = script("benchmark", "--dataset", "digits", *arguments)
        assert code == 2, arguments
        assert words in stdout + stderr
        assert "Traceback" not in stdout + stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.slow
def test_a_gpu_that_is_not_there(script):
    code, _, stderr = script("benchmark", "--dataset", "digits", "--device", "gpu", "--only", "torch-eager")
    assert code == 2
    assert stderr.startswith("error: --device gpu was asked for, but PyTorch finds no GPU")


@pytest.mark.slow
def test_a_measurement(script, tmp_path):
    """Both frameworks on digits, in workers of their own."""
    code, stdout, _ = script(
        "benchmark",
        *DIGITS,
        "--mode",
        "forward",
        "--only",
        "torch-eager",
        "jax-scan",
        "timm",
        "--json",
        tmp_path / "b.json",
        "--plot",
        tmp_path / "b.png",
    )
    assert code == 0
    for words in (
        "78,986 parameters",
        "handwritten digits",
        "CPU, ",
        "Versions",
        "Equal    torch-eager, jax-scan",
        "images/s",
        "Left out: timm: it has the paper's block only",
    ):
        assert words in stdout, words
    check_figures(tmp_path / "b.json", ["torch-eager", "jax-scan"], "forward")
    with Image.open(tmp_path / "b.png") as picture:
        assert min(picture.size) > 200
        assert len(picture.convert("L").getcolors()) > 20


def check_figures(path: Path, names: list[str], mode: str) -> None:
    figures = json.loads(path.read_text())
    assert {"machine", "versions", "settings", "matmul_flops_per_second", "results", "left_out"} <= figures.keys()
    assert {"torch", "jax", "numpy", "python"} <= figures["versions"].keys()
    assert [result["implementation"] for result in figures["results"]] == names
    assert 1e8 < figures["matmul_flops_per_second"] < 1e16
    for result in figures["results"]:
        assert {
            "implementation",
            "mode",
            "seconds_per_step",
            "images_per_second",
            "compile_seconds",
            "peak_memory_bytes",
            "flops_per_step",
            "matmul_share",
            "ratio",
        } <= result.keys()
        assert result["mode"] == mode
        assert result["images_per_second"] == pytest.approx(8 / result["seconds_per_step"])
        assert result["matmul_share"] == pytest.approx(
            result["flops_per_step"] / result["seconds_per_step"] / figures["matmul_flops_per_second"]
        )
        assert 0 < result["seconds_per_step"] < 10
        assert 1e8 < result["peak_memory_bytes"] < 1e11
        assert result["compile_seconds"] >= 0
        assert result["logits_error"] < 1e-4
    torch_speeds = [
        result["ratio"] for result in figures["results"] if result["implementation"] in ("torch-eager", "torch-compile")
    ]
    assert max(torch_speeds) == 1


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["train", "forward"])
def test_everything_is_measured(script, tmp_path, mode):
    """Where torch.compile has no C compiler it is left out, and the rest is measured."""
    code, stdout, _ = script("benchmark", *DIGITS, "--model", "tiny", "--mode", mode, "--json", tmp_path / "b.json")
    assert code == 0
    names = [name for name in IMPLEMENTATIONS if f"Left out: {name}" not in stdout]
    assert set(IMPLEMENTATIONS) - set(names) <= {"torch-compile"}
    check_figures(tmp_path / "b.json", names, mode)


@pytest.mark.slow
def test_without_a_c_compiler(script, monkeypatch):
    monkeypatch.setenv("CXX", "/nonexistent/g++")
    code, stdout, _ = script("benchmark", *DIGITS, "--only", "torch-eager", "torch-compile")
    assert code == 0
    assert "Left out: torch-compile: torch.compile failed: " in stdout


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_running(tmp_path):
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [
        sys.executable,
        SCRIPTS / "benchmark.py",
        *map(str, DIGITS),
        "--seconds",
        "60",
        "--only",
        "torch-eager",
        "tutorial-loop",
    ]
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # "ignored" is inherited: `pytest &`
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    signal.signal(signal.SIGINT, handler)
    for line in process.stdout:
        if line.startswith("Equal"):
            break
    time.sleep(5)
    assert _processes(tmp_path)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert stderr == "interrupted\n"
    time.sleep(1)
    assert not _processes(tmp_path)
    assert not list(tmp_path.iterdir())


def _processes(folder: Path) -> list[str]:
    """The processes whose temporary files lie in `folder`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if str(folder).encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_the_tutorial_s_loop_as_a_whole_run(script):
    """In a process of its own, since it forks."""
    command = [sys.executable, SCRIPTS / "tutorial_loop.py", "--dataset", "digits", "--model", "tiny", "--epochs", "2"]
    stdout = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert "epoch 2/2  training loss" in stdout
    assert float(stdout.split("Done: ")[1].split("%")[0]) > 80
    assert "of 360 test images right" in stdout
    assert script("tutorial_loop", "--epochs", 0)[0] == 2
