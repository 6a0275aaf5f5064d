"""The benchmark's worker processes: what goes wrong in them arrives, they end in time, they load little."""

import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import TINY

from mixer_bench.worker import OutOfMemory, OutOfTime, Unavailable, Worker, one_line
from mixer_bench.workload import WorkloadConfig
from mixer_common.config.presets import RECIPES
from mixer_common.errors import UserError


@pytest.fixture
def worker(tmp_path, monkeypatch):
    (tmp_path / "helper.py").write_text("""
import os, signal, subprocess
from mixer_common.errors import UserError
from mixer_bench.worker import Unavailable
def make_workload(config):
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
    for method, kind, text in (
        ("user", UserError, "^a sentence$"),
        ("unavailable", Unavailable, "^a reason$"),
        ("memory", OutOfMemory, "can't allocate"),
        ("bug", RuntimeError, "^ZeroDivisionError: division by zero\nTraceback"),
    ):
        with pytest.raises(kind, match=text):
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


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("the memory does not suffice: try 64."), "the memory does not suffice: try 64."),
        (RuntimeError("XlaRuntimeError: INTERNAL: no kernel\nTraceback ..."), "XlaRuntimeError: INTERNAL: no kernel"),
        (KeyError("a"), "KeyError: 'a'"),
    ],
)
def test_an_error_in_one_line(error, line):
    assert one_line(error) == line


SCRIPT = """
import signal, sys, time
def main():
    print(*sys.argv[1:], flush=True)
    signal.signal(signal.SIGTERM, on_signal)
    start = time.monotonic()
    while not stopped and time.monotonic() - start < 60:
        time.sleep(0.05)
    print("saved", flush=True)
    return 143
stopped = []
"""


@pytest.mark.parametrize("listens", [True, False])
def test_a_script_gets_the_time_it_has(tmp_path, monkeypatch, listens):
    monkeypatch.setattr("mixer_bench.worker.SECONDS_TO_STOP", 1.0)
    action = "stopped.append(1)" if listens else "print('no', flush=True)"
    (tmp_path / "script.py").write_text(SCRIPT + f"def on_signal(number, _): {action}\n")
    start = time.monotonic()
    with Worker("script", tmp_path, {}, start + 5) as worker:
        if listens:
            assert worker.call("run_script", tmp_path / "script.py", ["--out", "there"]) == 143
        else:
            with pytest.raises(OutOfTime, match="script was stopped when its time was up"):
                worker.call("run_script", tmp_path / "script.py", ["--out", "there"])
    assert 5 < time.monotonic() - start < 15
    assert (tmp_path / "script.log").read_text() == "--out there\n" + ("saved\n" if listens else "no\n")


def test_a_script_that_ends(tmp_path):
    (tmp_path / "good.py").write_text("def main(): pass")
    (tmp_path / "bad.py").write_text("""
from mixer_common.errors import UserError
def main(): raise UserError("a sentence")""")
    with Worker("script", tmp_path, {}) as worker:
        assert worker.call("run_script", tmp_path / "good.py", []) == 0
        with pytest.raises(UserError, match=r"^a sentence$"):
            worker.call("run_script", tmp_path / "bad.py", [])


HEAVY = {"matplotlib", "tyro", "rich", "tensorflow_datasets", "sklearn", "pyarrow", "jinja2"}
LOADED = f"""
import sys
def heavy():
    return sorted({HEAVY} & {{name.split(".")[0] for name in sys.modules}})
"""


@pytest.mark.parametrize(("framework", "implementation"), [("jax", "jax-scan"), ("torch", "torch-eager")])
def test_a_worker_loads_nothing_heavy(framework, implementation, tmp_path, monkeypatch, digits):
    """Its memory is measured. Flax loads rich itself."""
    np.save(tmp_path / "images.npy", digits.train_images[:64])
    np.save(tmp_path / "labels.npy", digits.train_labels[:64])
    (tmp_path / "watched.py").write_text(f"""{LOADED}
from mixer_bench import {framework}_workloads
def make_workload(config):
    workload = {framework}_workloads.make_workload(config)
    workload.heavy = heavy
    return workload
""")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    recipe = replace(RECIPES["tutorial"], batch_size=8)
    with Worker("watched", tmp_path, {}) as worker:
        config = WorkloadConfig(implementation, "train", TINY, recipe, "cpu", tmp_path)
        worker.call("start", "watched", config)
        assert math.isfinite(worker.call("outputs").logits.sum())
        assert worker.call("seconds", 2) > 0
        loaded = worker.call("heavy")
    libraries = {"jax": "flax.nnx, optax", "torch": "torch"}[framework]
    code = f"{LOADED}\nimport {libraries}\nprint(*heavy())"
    alone = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == alone
    assert set(alone) <= {"rich"}
