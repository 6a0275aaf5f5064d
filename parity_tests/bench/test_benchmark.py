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
from mixer_bench.results import make_results, matmul_rate
from mixer_bench.settings import IMPLEMENTATIONS, Benchmark
from mixer_bench.worker import OutOfMemory, OutOfTime, Unavailable
from mixer_bench.workload import Outputs, Workload, WorkloadConfig
from mixer_common.config.presets import RECIPES
from mixer_common.errors import UserError
from mixer_common.terminal import TurnDisplay

BENCHMARK = Benchmark(
    "tiny", TINY, replace(RECIPES["tutorial"], batch_size=8), "train", "cpu", 0.05, 1, tuple(IMPLEMENTATIONS)
)
DIGITS = ("--dataset", "digits", "--batch-size", 8, "--rounds", 1, "--seconds", 0.05, "--device", "cpu")


@pytest.fixture
def folder(tmp_path, digits) -> Path:
    np.save(tmp_path / "images.npy", digits.train_images[:64])
    np.save(tmp_path / "labels.npy", digits.train_labels[:64])
    return tmp_path


def workload_config(name: str, benchmark: Benchmark, folder: Path) -> WorkloadConfig:
    return WorkloadConfig(name, benchmark.mode, benchmark.model, benchmark.recipe, "cpu", folder)


def make_workload(name: str, benchmark: Benchmark, folder: Path) -> Workload:
    """As a worker does it, but in this process."""
    module = {"jax": mixer_bench.jax_workloads, "torch": mixer_bench.torch_workloads}[IMPLEMENTATIONS[name]]
    return module.make_workload(workload_config(name, benchmark, folder))


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, block="tutorial", num_blocks=3)], ids=["mixer", "tutorial"])
def test_the_count_of_flops_is_torch_s(config):
    weights = workload_config("torch-eager", replace(BENCHMARK, model=config), Path()).weights()
    model = mixer_torch.model.build_model(config, weights)
    pixels = torch.zeros(6, *config.image_size, 3)
    with FlopCounterMode(display=False) as forward:
        logits = model(pixels)
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    assert flops_per_step(config, 6, "forward") == forward.get_total_flops()
    assert flops_per_step(config, 6, "train") == forward.get_total_flops() + backward.get_total_flops()


@pytest.mark.parametrize(("mode", "others"), [("train", ["timm"]), ("forward", ["jax-scan", "timm"])])
def test_equal_outputs_pass_and_a_planted_fault_does_not(mode, others, folder, monkeypatch):
    benchmark = replace(BENCHMARK, mode=mode)
    outputs = {name: make_workload(name, benchmark, folder).outputs() for name in ("torch-eager", *others)}
    assert check_equal(benchmark, outputs, resized=False)["torch-eager"] == 0
    whole = WorkloadConfig.weights

    def faulty(config: WorkloadConfig) -> dict[str, np.ndarray]:
        weights = whole(config)
        weights["blocks.1.channel_mixing.fc1.weight"] *= np.float32(1.01)
        return weights

    monkeypatch.setattr(WorkloadConfig, "weights", faulty)
    outputs["lucidrains"] = make_workload("lucidrains", benchmark, folder).outputs()
    with pytest.raises(UserError, match="lucidrains does not compute what torch-eager computes"):
        check_equal(benchmark, outputs, resized=False)


def test_losses_are_compared_too(folder):
    outputs = {"torch-eager": make_workload("torch-eager", BENCHMARK, folder).outputs()}
    losses = outputs["torch-eager"].losses.copy()
    losses[2] *= 1.01
    outputs["jax-step"] = replace(outputs["torch-eager"], losses=losses)
    with pytest.raises(UserError, match="jax-step does not train as torch-eager does: the loss of step 3 differs"):
        check_equal(BENCHMARK, outputs, resized=False)
    outputs["jax-step"] = replace(outputs["torch-eager"], losses=np.full(3, np.nan))
    with pytest.raises(UserError, match="the loss of step 1 differs by nan"):
        check_equal(BENCHMARK, outputs, resized=False)


def test_steps_go_on_into_the_next_epoch(folder):
    workload = make_workload("jax-scan", BENCHMARK, folder)  # 8 steps an epoch
    seen = []
    workload.run = lambda first, last: seen.append((workload._epoch, first, last))
    workload.seconds(5)
    workload.seconds(13)
    assert seen == [(0, 0, 5), (0, 5, 8), (1, 0, 8), (2, 0, 2)]


def test_a_package_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlp_mixer_pytorch", None)
    with pytest.raises(Unavailable, match="the package mlp-mixer-pytorch is not installed"):
        mixer_bench.other_models.build_other_model("lucidrains", TINY, {}, torch.device("cpu"), torch.float32)


class FixedPace:
    """Stands for a worker whose steps all take equally long."""

    def __init__(self, name: str, seconds_per_step: float, calls: list[str]):
        self.name, self.seconds_per_step, self.calls = name, seconds_per_step, calls

    def call(self, method: str, steps: int) -> float:
        assert method == "seconds"
        self.calls.append(self.name)
        return steps * self.seconds_per_step


def test_the_stages_of_a_session():
    calls: list[str] = []
    workers = {name: FixedPace(name, seconds, calls) for name, seconds in (("a", 0.01), ("b", 3.0), ("c", 0.25))}
    with TurnDisplay() as display:
        display.begin("rounds", 12)
        steps = session.calibrate(workers, 2.0, display)
        assert steps == {"a": 200, "b": 1, "c": 8}
        calls.clear()
        seconds = session.alternate(workers, steps, 4, display)
    assert "".join(calls) == "abcbcacababc"
    assert seconds == {"a": [pytest.approx(0.01)] * 4, "b": [3.0] * 4, "c": [0.25] * 4}


def test_figures_follow_from_the_seconds():
    names = ("torch-eager", "torch-compile", "jax-scan")
    outputs = {name: Outputs(np.zeros((8, 10)), np.zeros(3), 5.0, 1.0) for name in names}
    seconds = {"torch-eager": [2.0, 1.0, 3.0], "torch-compile": [4.0] * 3, "jax-scan": [1.0] * 3}
    flops = flops_per_step(TINY, 8, "train")
    eager, compiled, scan = make_results(
        BENCHMARK, outputs, dict.fromkeys(names, 1e-7), dict.fromkeys(names, 5), seconds, dict.fromkeys(names, 9), flops
    )
    assert (eager.seconds_per_step, eager.seconds_per_step_spread) == (2.0, (1.5, 2.5))
    assert (eager.images_per_second, eager.images_per_second_spread) == (4.0, (8 / 2.5, 8 / 1.5))
    assert [result.ratio for result in (eager, compiled, scan)] == [1.0, 0.5, 2.0]
    assert [result.matmul_share for result in (eager, compiled, scan)] == [0.5, 0.25, 1.0]
    assert (scan.compile_seconds, scan.peak_memory_bytes, scan.steps_per_round) == (4.0, 9, 5)
    assert matmul_rate(100, [2.0, 1.0, 4.0]) == {"size": 100, "flops_per_second": 1e6}


@pytest.mark.parametrize(("batch_size", "advice"), [(128, "try --batch-size 64"), (1, "choose a smaller --model")])
def test_too_little_memory(monkeypatch, digits, batch_size, advice):
    def start(*_: object) -> None:
        raise OutOfMemory("torch-eager was killed by the system")

    monkeypatch.setattr(session, "Worker", start)
    benchmark = replace(BENCHMARK, recipe=replace(BENCHMARK.recipe, batch_size=batch_size))
    with pytest.raises(UserError, match=f"batches of {batch_size} .*killed by the system.*: {advice}"):
        session.measure(benchmark, digits)


def test_a_benchmark_ends_at_its_deadline(digits):
    start = time.monotonic()
    with pytest.raises(OutOfTime, match="torch-eager was stopped when its time was up"):
        session.measure(replace(BENCHMARK, seconds=60.0), digits, start + 2)
    assert 2 < time.monotonic() - start < 15


def test_bad_input(script, tmp_path):
    (tmp_path / "file").write_text("")
    for arguments, text in (
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
        assert text in stdout + stderr
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
    for text in (
        "78,986 parameters",
        "handwritten digits",
        "CPU, ",
        "Versions",
        "Equal    torch-eager, jax-scan",
        "images/s",
        "Left out: timm: it has the paper's block only",
    ):
        assert text in stdout, text
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
