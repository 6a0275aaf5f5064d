"""The package's metadata: its files agree, and each framework is an extra of its own."""

import re
import tomllib
from pathlib import Path

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


def names_of(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w-]+", requirement)[0] for requirement in requirements}
