"""The measurement of a GPU: it ends in time, and what fails does not take the rest along."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from PIL import Image

from mixer_bench import gpu_session, recipe_training
from mixer_bench.gpu_session import Settings, measure_gpu
from mixer_bench.recipe_training import Training, epochs_that_fit, run_training
from mixer_bench.results import Measurement, make_results
from mixer_bench.session import BatchTooLarge
from mixer_bench.settings import Benchmark
from mixer_bench.workload import Outputs
from mixer_common.data import Dataset


class Simulation:
    """A GPU of 80 GB on which a benchmark and a training take as long as this says, without any waiting."""

    def __init__(self):
        self.now = 0.0
        self.benchmarks: list[tuple[int, int]] = []  # how many implementations, batch size
        self.fault: Exception | None = None  # of a benchmark of several implementations

    def monotonic(self) -> float:
        return self.now

    def gpus(self) -> list[dict]:
        return [{"name": "GPU X", "memory_bytes": 8 * 10**10, "free_memory_bytes": 8 * 10**10, "driver": "1"}]

    def measure(self, benchmark: Benchmark, dataset: Dataset, deadline: float) -> Measurement:
        self.now += 20
        assert self.now <= deadline  # nothing has to be stopped
        names, batch_size = benchmark.implementations, benchmark.recipe.batch_size
        self.benchmarks.append((len(names), batch_size))
        if len(names) * batch_size > 800:
            raise BatchTooLarge(f"the memory does not suffice for s16 with batches of {batch_size}")
        if len(names) > 1 and self.fault:
            raise self.fault
        results = make_results(
            benchmark,
            outputs=dict.fromkeys(names, Outputs(np.zeros(()), np.zeros(3), 2.0, 1.0)),
            errors=dict.fromkeys(names, 0.0),
            steps=dict.fromkeys(names, 1),
            seconds=dict.fromkeys(names, (0.1, 0.1, 0.1)),
            peak_memory=dict.fromkeys(names, 10**9),
            matmul_flops_per_second=1e15,
        )
        settings = {"model": "s16", "batch_size": batch_size, "mode": "train", "precision": "bfloat16", "rounds": 3}
        machine = {"device": "GPU X", "cpu": "CPU", "threads": 1}
        return Measurement(machine, {}, settings, 1e15, {}, results, {})

    def run_training(self, script: Path, options: list[str], run: Path, deadline: float, say) -> Training:
        option = dict(zip(options[::2], options[1::2], strict=True))
        if option["--recipe"] == "fast":
            self.now += 1
            return Training([], [], {}, 1.0, "ValueError: no such kernel")
        assert (script.name, option["--precision"], option["--dataset"]) == ("train_jax.py", "bfloat16", "digits")
        epochs = int(option["--epochs"])
        seconds = (40 if epochs == 3 else 20) + 0.9 * epochs  # start and compilation, or its cache
        self.now += seconds
        assert self.now <= deadline  # nothing has to be stopped
        rows = [
            {
                "epoch": epoch,
                "test_accuracy": epoch / (epochs + 1),
                "test_loss": 1.0,
                "train_loss": 1.0,
                "train_seconds": 0.8,
                "images_per_second": 1e5,
            }
            for epoch in range(1, epochs + 1)
        ]
        ends = [seconds - 0.9 * (epochs - i - 1) for i in range(epochs)]
        return Training(rows, ends, {"compile_seconds": 30, "device": "GPU X"}, seconds, None)


@pytest.fixture
def simulation(monkeypatch) -> Simulation:
    simulation = Simulation()
    monkeypatch.setattr(gpu_session, "time", SimpleNamespace(monotonic=simulation.monotonic))
    monkeypatch.setattr(gpu_session, "nvidia_gpus", simulation.gpus)
    monkeypatch.setattr(gpu_session, "measure", simulation.measure)
    monkeypatch.setattr(gpu_session, "run_training", simulation.run_training)
    return simulation


def gpu_settings(tmp_path: Path, **changes) -> Settings:
    return Settings(**{"dataset": "digits", "out": tmp_path / "out"} | changes)


def measured(settings: Settings) -> dict:
    lines: list[str] = []
    report = measure_gpu(settings, lines.append)
    written = json.loads((settings.out / "report.json").read_text())
    assert written == json.loads(json.dumps(report, default=str))
    assert [line.split(":")[0] for line in lines if ": up to " in line] == list(settings.parts)
    return written


def test_all_parts(simulation, tmp_path):
    report = measured(gpu_settings(tmp_path, parts=("benchmark", "fast", "nano", "adamw")))
    benchmark, fast, nano, adamw = report["parts"].values()
    # Four times the activations of 512 images are more than 80 GB, of 256 they are not.
    assert simulation.benchmarks == [(4, 256), (4, 128)]
    assert [row["implementation"] for row in benchmark["implementations"]] == list(Settings.only)
    assert (benchmark["reason"], benchmark["implementations"][0]["batch_size"]) == (None, 128)
    assert benchmark["implementations"][0]["images_per_second"] == pytest.approx(1280)
    assert fast["reason"] == "the first 3 epochs did not show how long one takes: ValueError: no such kernel"
    assert nano["reason"] is None
    assert (nano["seconds_per_epoch"], nano["wall_seconds_per_epoch"]) == (0.8, pytest.approx(0.9))
    assert 3 <= nano["epochs"] == len(nano["curve"]) < 300
    # All of its time but what a start without compilation could still take longer, and a twentieth.
    assert nano["seconds"] > 0.85 * (60 * 9.5 - 17 - benchmark["seconds"] - fast["seconds"]) / 2
    assert (adamw["epochs"], adamw["reason"]) == (20, None)
    assert report["seconds"] < 60 * 9.5
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"report.json", "benchmark.json", "benchmark.png", "curves.png"}
    with Image.open(tmp_path / "out" / "curves.png") as picture:
        assert min(picture.size) > 200
        assert len(picture.convert("L").getcolors()) > 20


def test_a_benchmark_that_fails_leaves_what_there_is(simulation, tmp_path):
    simulation.fault = RuntimeError("ValueError: a matmul fell over\nTraceback ...")
    part = measured(gpu_settings(tmp_path, parts=("benchmark",), batch_size=64))["parts"]["benchmark"]
    assert part["reason"] == "ValueError: a matmul fell over"
    assert [row["implementation"] for row in part["implementations"]] == list(Settings.only)
    assert simulation.benchmarks == [(4, 64), (1, 64), (1, 64), (1, 64), (1, 64)]
    assert (tmp_path / "out" / "benchmark-jax-scan.json").is_file()
    assert not (tmp_path / "out" / "benchmark.json").exists()


def test_what_nobody_expected_does_not_take_the_rest_along(simulation, tmp_path, monkeypatch):
    def broken(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(gpu_session, "run_training", broken)
    parts = measured(gpu_settings(tmp_path, parts=("nano", "benchmark")))["parts"]
    assert parts["nano"]["reason"] == "OSError: no space left"
    assert parts["benchmark"]["reason"] is None


def test_too_little_time(tmp_path):
    parts = measured(gpu_settings(tmp_path, minutes=0.4, parts=("benchmark", "nano")))["parts"]
    assert parts["nano"]["reason"] == parts["benchmark"]["reason"] == "no time was left for it"


TRAIN = """
import json, os, signal, sys, time
from pathlib import Path
stopped = []
def main():
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    out = Path(sys.argv[sys.argv.index("--out") + 1])
    out.mkdir()
    (out / "pid").write_text(str(os.getpid()))
    rows = ""
    for epoch in range(1, 200):
        time.sleep(0.4)
        rows += json.dumps({"epoch": epoch, "test_accuracy": 0.5, "test_loss": 1.0, "train_loss": 1.0,
                            "train_seconds": 0.3, "images_per_second": 1e5}) + "\\n"
        (out / ".new").write_text(rows)
        (out / ".new").replace(out / "metrics.jsonl")
        if stopped:
            return 143
"""


def test_an_interruption_ends_the_script_and_is_told(tmp_path, monkeypatch):
    (tmp_path / "train_jax.py").write_text(TRAIN)
    monkeypatch.setattr(gpu_session, "SCRIPTS", tmp_path)
    monkeypatch.setattr(recipe_training, "SECONDS_BETWEEN_LINES", 0)

    def say(text: str) -> None:
        if "epoch 1" in text:
            raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        measure_gpu(gpu_settings(tmp_path, parts=("nano", "strong")), say)
    assert time.monotonic() - start < 30
    parts = json.loads((tmp_path / "out" / "report.json").read_text())["parts"]
    assert [part["reason"] for part in parts.values()] == ["it was interrupted", "it was not begun"]
    assert not psutil.pid_exists(int((tmp_path / "out" / "runs" / "nano-probe" / "pid").read_text()))


def test_a_training_is_stopped_in_time(tmp_path):
    (tmp_path / "train.py").write_text(TRAIN)
    start = time.monotonic()
    training = run_training(tmp_path / "train.py", [], tmp_path / "runs" / "a", start + 5, lambda text: None)
    assert 5 < time.monotonic() - start < 15
    assert training.reason.endswith(" s, when its time was up")
    assert 2 <= len(training.rows) == len(training.epoch_ends) < 14
    assert 0 < training.epoch_ends[0] < training.epoch_ends[1] < training.seconds
    assert 0.35 < training.wall_seconds_per_epoch < 3
    assert training.train_seconds_per_epoch == 0.3
    assert [row["epoch"] for row in training.figures()["curve"]] == list(range(1, len(training.rows) + 1))


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise UserError('batch_size 512 does not fit.')", "batch_size 512 does not fit."),
        ("raise ValueError('no such kernel')", "ValueError: no such kernel"),
        ("raise RuntimeError('RESOURCE_EXHAUSTED: Out of memory\\nmore')", "RESOURCE_EXHAUSTED: Out of memory"),
        ("os._exit(3)", "a ended with code 3:"),
        ("os.kill(os.getpid(), 9)", "a was killed by the system"),
        ("return 0", None),
    ],
)
def test_why_a_training_failed(tmp_path, code, reason):
    script = f"import os\nfrom mixer_common.errors import UserError\ndef main():\n    {code}\n"
    (tmp_path / "train.py").write_text(script)
    training = run_training(tmp_path / "train.py", [], tmp_path / "a", time.monotonic() + 60, lambda text: None)
    assert (training.reason, training.rows, training.figures()) == (reason, [], {})
    assert training.wall_seconds_per_epoch is training.train_seconds_per_epoch is None


def test_epochs_that_fit():
    probe = Training([], [20.0, 22.0, 24.0], {}, 26.0, None)
    # 20 s are no epochs.
    assert epochs_that_fit(probe, 20 + 2.1 * 40.5) == 40
    assert epochs_that_fit(probe, 3) == 0


def test_bad_input(script, tmp_path):
    (tmp_path / "file").write_text("")
    for arguments, text in (
        (("--parts", "nan"), "did you mean nano?"),
        (("--parts", "nano", "nano"), "nano nano was given"),
        (("--parts",), "nothing was given"),
        (("--only", "torch"), "unknown implementation 'torch'"),
        (("--benchmark-model", "huge"), "unknown model 'huge'"),
        (("--minutes", "nan"), "--minutes is nan"),
        (("--seconds", 0), "--seconds is 0"),
        (("--batch-size", 0), "--batch-size is 0"),
        (("--rounds", 0), "--rounds is 0"),
        (("--out", tmp_path), "exists already"),
        (("--device", "tpu"), "tpu"),
        (("--out", tmp_path, "--overwrite"), "is no measurement of a GPU"),
        (("--dataset", "cifar10", "--data-dir", tmp_path), "there is no CIFAR-10 in"),
    ):
        code, stdout, stderr = script("measure_gpu", "--dataset", "digits", *arguments)
        assert code == 2, arguments
        assert text in stdout + stderr
        assert "Traceback" not in stdout + stderr


@pytest.mark.slow
def test_the_real_scripts_on_a_cpu(script, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # not the user's
    out = tmp_path / "out"
    code, stdout, _ = script(
        "measure_gpu",
        "--device",
        "cpu",
        "--dataset",
        "digits",
        "--parts",
        "benchmark",
        "fast",
        "--benchmark-model",
        "tiny",
        "--batch-size",
        8,
        "--only",
        "jax-scan",
        "--rounds",
        1,
        "--seconds",
        0.05,
        "--out",
        out,
    )
    assert code == 0, stdout
    for text in ("benchmark: up to", "of 5 epochs, ", "jax-scan: ", "matmul share", str(out / "curves.png")):
        assert text in stdout, text
    parts = json.loads((out / "report.json").read_text())["parts"]
    assert 0 < parts["benchmark"]["implementations"][0]["matmul_share"] < 1
    assert parts["fast"]["test_accuracy"] == parts["fast"]["curve"][-1]["test_accuracy"] > 0.85
    assert [row["epoch"] for row in parts["fast"]["curve"]] == [1, 2, 3, 4, 5]
    assert 0 < parts["fast"]["seconds_per_epoch"] < parts["fast"]["wall_seconds_per_epoch"] < 30
    for name in ("benchmark.png", "curves.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 200
