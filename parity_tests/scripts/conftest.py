"""What the tests of the scripts share."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import DIGITS, SCRIPTS


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or fills the user's caches."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("MLP_MIXER_DATA", raising=False)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on digits that several tests read."""
    out = tmp_path_factory.mktemp("runs") / "run"
    subprocess.run(
        [sys.executable, SCRIPTS / "train_jax.py", *DIGITS, "--steps", "500", "--out", out],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return out
