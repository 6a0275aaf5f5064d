"""The machine: memory that a large step frees is reused where there is plenty, and the folder for caches."""

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mixer_common.config.model import activation_bytes
from mixer_common.config.presets import MODELS, RECIPES
from mixer_common.machine import cache_dir, malloc_environment


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only the GNU C library has these settings")
@pytest.mark.parametrize("by_call", [True, False], ids=["by a call", "by the environment"])
@pytest.mark.parametrize("model", ["tutorial", "nano"])
def test_large_steps_reuse_their_memory(model, by_call):
    """A second thread allocates, as in XLA: the second time, its pages are there, if and only if steps are large."""
    resource = pytest.importorskip("resource")
    config, recipe = MODELS[model], RECIPES[model]
    step_bytes = activation_bytes(config, recipe.images_at_once)
    call = f"reuse_freed_memory({step_bytes})" if by_call else ""
    use = f"""
import resource, threading
from mixer_common.machine import reuse_freed_memory
{call}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target=lambda: b"x" * 2**26)
    thread.start()
    thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults(), faults())"""
    process = subprocess.run(
        [sys.executable, "-c", use],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | ({} if by_call else malloc_environment(step_bytes)),
    )
    first, second = map(int, process.stdout.split())
    pages = 2**26 // resource.getpagesize()
    assert first >= pages / 2
    assert second <= pages / 100 if model == "nano" else second >= pages / 2


@pytest.mark.parametrize(
    ("model", "gigabytes", "reused"),
    [("tutorial", 24, False), ("nano", 24, True), ("nano", 2, False), ("strong", 24, False), ("strong", 128, True)],
)
def test_memory_is_reused_where_there_is_enough(monkeypatch, model, gigabytes, reused):
    """With reuse, six steps of strong with 64 images took 5.4 GB, else 3.0."""
    monkeypatch.setattr("mixer_common.machine.total_memory", lambda: gigabytes * 10**9)
    step_bytes = activation_bytes(MODELS[model], RECIPES[model].images_at_once)
    assert bool(malloc_environment(step_bytes)) == reused


def test_a_user_without_a_home_has_a_cache_of_his_own(monkeypatch, tmp_path):
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "mlp-mixer"
    monkeypatch.delenv("XDG_CACHE_HOME")
    folder = cache_dir()
    assert folder == tmp_path / f"mlp-mixer-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(os, "getuid", lambda: 4711)  # the folder of another user under the same name
    (tmp_path / "mlp-mixer-4711").mkdir()
    assert cache_dir().parent == tmp_path
    assert cache_dir().name != "mlp-mixer-4711"
