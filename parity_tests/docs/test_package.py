"""The package's metadata: its files agree, and each framework is an extra of its own."""

import re
import tomllib
from pathlib import Path

import pytest

from mixer_common.errors import run_script

ROOT = Path(__file__).parents[2]


def test_metadata_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"version: {project['version']}\n" in citation
    assert f"license: {project['license']}\n" in citation
    assert f"## [{project['version']}]" in (ROOT / "CHANGELOG.md").read_text()
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_each_framework_is_an_extra():
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, groups = metadata["project"], metadata["dependency-groups"]
    packages = {"": names_of(project["dependencies"])} | {
        extra: names_of(requirements) for extra, requirements in project["optional-dependencies"].items()
    }
    frameworks = {"jax", "flax", "optax", "torch", "torchvision", "tensorflow-datasets", "array_record"}
    assert not packages[""] & frameworks
    assert not packages["jax"] & {"torch", "torchvision"}
    assert packages["torch"] == {"torch", "torchvision"}
    assert project["optional-dependencies"]["all"] == ["mlp-mixer-parity[jax,torch]"]
    assert "mlp-mixer-parity[all]" in groups["dev"]


@pytest.mark.parametrize(("package", "extra"), [("torch", "torch"), ("flax", "jax"), ("tensorflow_datasets", "jax")])
def test_a_missing_framework_ends_a_script_with_one_sentence(package: str, extra: str, capsys: pytest.CaptureFixture):
    def main() -> None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    with pytest.raises(SystemExit) as stop:
        run_script(main)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: the package {package} is needed here")
    assert error.count("\n") == 1
    assert f"mlp-mixer-parity[{extra}]" in error


def test_any_other_missing_module_is_no_error_of_the_user():
    def main() -> None:
        import mixer_common.nothing_of_this_name  # noqa: F401

    with pytest.raises(ModuleNotFoundError):
        run_script(main)


def names_of(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w-]+", requirement)[0] for requirement in requirements}
