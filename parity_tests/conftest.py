"""What the tests share: the precision of JAX, real images, scripts run as a user runs them."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # several test processes share the cores; before torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import runpy
import sys
from collections.abc import Callable, Iterator

import jax
import pytest
from helpers import SCRIPTS

from mixer_common.data import Dataset, load_dataset
from mixer_common.errors import UserError


@pytest.fixture(autouse=True)
def _jax_settings() -> Iterator[None]:
    """Every test starts in JAX's default precision, on whatever device there is."""
    jax.config.update("jax_enable_x64", False)
    jax.config.update("jax_default_matmul_precision", "highest")
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(params=["float32", "float64"])
def precision(request: pytest.FixtureRequest) -> str:
    jax.config.update("jax_enable_x64", request.param == "float64")
    return request.param


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load_dataset("digits", None, None)


@pytest.fixture(scope="session")
def cifar10() -> Dataset:
    """The real CIFAR-10 where it is at hand or can be downloaded; else the test is skipped with the reason."""
    from mixer_torch.download import download_cifar10

    try:
        return load_dataset("cifar10", None, download_cifar10)
    except UserError as error:
        pytest.skip(f"needs CIFAR-10: {error}")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a script in this process: script("train_jax", "--steps", 5) -> exit code, stdout, stderr."""

    def run(name: str, *arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return run
