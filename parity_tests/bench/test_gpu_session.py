"""The measurement of a GPU: it ends in time, and what fails does not take the rest along."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from mixer_bench import gpu_session
from mixer_bench.gpu_session import Ended, Settings, Trained, epochs_that_fit, measure, run

BENCHMARK = """
import json, sys
from pathlib import Path
print("takes 20")
value = lambda name: sys.argv[sys.argv.index("--" + name) + 1]
names = sys.argv[sys.argv.index("--only") + 1:sys.argv.index("--json")]
size = int(value("batch-size"))
if size * len(names) > 800:
    sys.exit("error: the memory does not suffice for s16 with batches: try --batch-size")
if len(names) > 1 and SICK:
    raise RuntimeError("a matmul fell over")
results = [{"implementation": name, "images_per_second": 1000.0, "seconds_per_step": 0.1, "matmul_share": 0.5,
            "ratio": 1.0, "compile_seconds": 1.0, "peak_memory_bytes": size * 10**8} for name in names]
Path(value("json")).write_text(json.dumps({
    "results": results, "machine": {"device": "GPU X"}, "matmul_flops_per_second": 1e15, "left_out": {}}))
"""
TRAIN = """
import json, sys
from pathlib import Path
value = lambda name: sys.argv[sys.argv.index("--" + name) + 1]
if value("recipe") == "fast":
    raise ValueError("no such kernel")
out, epochs = Path(value("out")), int(value("epochs"))
out.mkdir(parents=True)
print("takes", 40 if epochs == 3 else 20)  # start and compilation, or its cache
rows = []
for epoch in range(1, epochs + 1):
    print("takes 0.9")
    print(f"epoch {epoch:3d}/{epochs}  training loss 1", flush=True)
    rows.append({"epoch": epoch, "test_accuracy": epoch / (epochs + 1), "test_loss": 1.0, "train_loss": 1.0,
                 "train_seconds": 0.8, "images_per_second": 1e5})
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
(out / "summary.json").write_text(json.dumps({"compile_seconds": 30, "device": "GPU X"}))
"""


@pytest.fixture
def scripts(tmp_path, monkeypatch) -> Path:
    """Scripts that say at once what the real ones take minutes for, and a GPU of 80 GB."""
    folder = tmp_path / "scripts"
    folder.mkdir()
    (folder / "benchmark.py").write_text(BENCHMARK.replace("SICK", "False"))
    (folder / "train_jax.py").write_text(TRAIN)
    monkeypatch.setattr(gpu_session, "ROOT", tmp_path)
    monkeypatch.setattr(
        gpu_session,
        "gpus",
        lambda: [{"name": "GPU X", "memory_bytes": 8 * 10**10, "free_memory_bytes": 8 * 10**10, "driver": "1"}],
    )
    return folder


@pytest.fixture
def clock(monkeypatch) -> None:
    """Time that passes by what the scripts say they take, however busy the machine is."""
    now = 0.0

    def said(command, seconds, log, watch):
        nonlocal now
        start, lines = now, []
        process = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        log.write_text(process.stdout)
        for line in process.stdout.splitlines():
            if line.startswith("takes "):
                now += float(line.split()[1])
            else:
                lines.append((now - start, line))
                watch(line)
        assert now - start <= seconds  # nothing has to be stopped
        return Ended(process.returncode, now - start, False, lines)

    monkeypatch.setattr(gpu_session, "run", said)
    monkeypatch.setattr(gpu_session, "time", SimpleNamespace(monotonic=lambda: now))


def settings(tmp_path: Path, **changes) -> Settings:
    return Settings(**{"dataset": "digits", "out": tmp_path / "out"} | changes)


def quietly(asked: Settings) -> dict:
    report = measure(asked, lambda text: None, lambda text: None)
    assert report == json.loads((asked.out / "report.json").read_text()) | {"settings": report["settings"]}
    return report


def test_all_parts(scripts, clock, tmp_path):
    report = quietly(settings(tmp_path, parts=("benchmark", "fast", "nano", "adamw")))
    benchmark, fast, nano, adamw = report["parts"].values()
    # 1024 is too large for one; of 512 it has 51 GB, and four times that must come below 60 % of 80 GB.
    assert [(len(attempt["implementations"]), attempt["batch_size"]) for attempt in benchmark["attempts"]] == [
        (1, 1024),
        (1, 512),
        (4, 64),
    ]
    assert [row["implementation"] for row in benchmark["implementations"]] == list(Settings.only)
    assert (benchmark["met"], benchmark["reason"], benchmark["implementations"][0]["batch_size"]) == (True, None, 64)
    assert fast["reason"] == "the first 3 epochs did not show how long one takes: ValueError: no such kernel"
    assert (nano["met"], nano["reason"], nano["goal"]) == (True, None, 1.0)
    assert (nano["seconds_per_epoch"], nano["wall_seconds_per_epoch"]) == (0.8, pytest.approx(0.9))
    assert 3 <= nano["epochs"] == len(nano["curve"]) < 300
    # All of its time but what a start without compilation could still take longer, and a twentieth.
    assert nano["seconds"] > 0.85 * 3 / 5 * (60 * 9.5 - 17 - benchmark["seconds"])
    assert (adamw["epochs"], adamw["goal"], adamw["met"], adamw["reason"]) == (20, None, None, None)
    assert report["seconds"] < 60 * 9.5
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"report.json", "benchmark.json", "benchmark-torch-eager.json", "curves.png", "log.txt", "runs"}
    with Image.open(tmp_path / "out" / "curves.png") as picture:
        assert min(picture.size) > 200
        assert len(picture.convert("L").getcolors()) > 20


def test_a_benchmark_that_fails_leaves_what_there_is(scripts, clock, tmp_path):
    (scripts / "benchmark.py").write_text(BENCHMARK.replace("SICK", "True"))
    part = quietly(settings(tmp_path, parts=("benchmark",), batch_size=64))["parts"]["benchmark"]
    assert part["reason"] == "RuntimeError: a matmul fell over"
    assert [row["implementation"] for row in part["implementations"]] == ["torch-eager", "jax-scan"]
    assert part["met"]


def test_too_little_time(scripts, tmp_path):
    parts = quietly(settings(tmp_path, minutes=0.4, parts=("benchmark", "nano")))["parts"]
    assert parts["nano"]["reason"] == parts["benchmark"]["reason"] == "no time was left for it"


def test_an_interruption_ends_the_script_and_is_told(scripts, tmp_path):
    (scripts / "train_jax.py").write_text("import time\nprint('begun')\ntime.sleep(60)")

    def watch(text: str) -> None:
        if text:
            raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        measure(settings(tmp_path, parts=("nano", "strong")), lambda text: None, watch)
    assert time.monotonic() - start < 30
    parts = json.loads((tmp_path / "out" / "report.json").read_text())["parts"]
    assert [part["reason"] for part in parts.values()] == ["it was interrupted", "it was not begun"]


def test_a_script_gets_the_time_it_has(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_session, "SECONDS_TO_STOP", 1.0)
    code = (
        "import signal, sys, time, mixer_common\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), END))\n"
        "print('begun')\n"
        "while True: time.sleep(1)"
    )
    for end, expected in (("sys.exit(143)", 143), ("None", -9)):  # the second does not listen
        ended = run([sys.executable, "-c", code.replace("END", end)], 3.0, tmp_path / "log.txt", lambda line: None)
        assert (ended.code, ended.stopped, [line for _, line in ended.lines]) == (expected, True, ["begun", "saved"])
        assert 3 < ended.seconds < 10
        assert ended.reason.endswith(" s, when its time was up; it said last: saved")
    assert (tmp_path / "log.txt").read_text().count("begun\nsaved\n") == 2
    ended = run([sys.executable, "-c", "print(1)"], 60, tmp_path / "log.txt", lambda line: None)
    assert (ended.code, ended.stopped, ended.reason) == (0, False, None)


@pytest.mark.parametrize(
    ("lines", "reason", "memory"),
    [
        (
            ["Model", "error: the memory does not suffice for s16: try 64."],
            "the memory does not suffice for s16: try 64.",
            True,
        ),
        (
            ["Traceback", "jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED: Out of memory", "", "a note"],
            "jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED: Out of memory",
            True,
        ),
        (["Killed"], "Killed", False),
        ([], "nothing", False),
    ],
)
def test_why_a_script_failed(lines, reason, memory):
    ended = Ended(1, 1.0, False, [(0.0, line) for line in lines])
    assert (ended.reason, ended.too_little_memory) == (reason, memory)


def test_epochs_that_fit():
    lines = [(20.0 + 2 * i, f"epoch   {i + 1}/3  training loss") for i in range(3)]
    trained = Trained(Ended(0, 26.0, False, lines), [], {"compile_seconds": 10.0})
    # 20 s are no epochs, 5 of them are saved.
    assert epochs_that_fit(trained, 15 + 2.1 * 40.5) == 40
    assert epochs_that_fit(trained, 3) == 0


def test_bad_input(script, tmp_path):
    (tmp_path / "file").write_text("")
    for arguments, words in (
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
        assert words in stdout + stderr
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
    for words in ("benchmark: up to", "of 5 epochs, ", "jax-scan: ", "matmul share", str(out / "curves.png")):
        assert words in stdout, words
    parts = json.loads((out / "report.json").read_text())["parts"]
    assert 0 < parts["benchmark"]["implementations"][0]["matmul_share"] < 1
    assert parts["fast"]["test_accuracy"] == parts["fast"]["curve"][-1]["test_accuracy"] > 0.85
    assert [row["epoch"] for row in parts["fast"]["curve"]] == [1, 2, 3, 4, 5]
    assert 0 < parts["fast"]["seconds_per_epoch"] < parts["fast"]["wall_seconds_per_epoch"] < 30
    for name in ("benchmark.png", "curves.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 200
