"""What differs between the sides of a comparison beside their numbers: settings, data, steps, versions, machine."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mixer_common import files
from mixer_common.comparison.recording import Recording
from mixer_common.config.model import ModelConfig
from mixer_common.runs.checkpoint import Checkpoint

_TRAINED_WITH = "trained with "  # before the name of a package, its version


@dataclass(frozen=True)
class SettingDifference:
    """A setting, version or fact that the two sides do not share; for people."""

    name: str
    a: str
    b: str


def run_settings(folder: Path, state: Checkpoint) -> dict[str, Any]:
    """What a run was asked for, how far it came, and where; values that JSON can hold, by name.

    folder: of the run, or of its checkpoint, which does not tell the versions that it was trained with.
    """
    config, progress = state.config, state.progress
    summary = folder / "summary.json"
    versions = files.read_json(summary).get("versions", {}) if summary.is_file() else {}
    return {
        "recipe": config.recipe_name,
        **{name: list(value) if isinstance(value, tuple) else value for name, value in asdict(config.train).items()},
        "init_from": config.init_from,
        "dataset": config.dataset,
        "dataset_source": config.dataset_source,
        "dataset_fingerprint": config.dataset_fingerprint,
        "class_names": list(config.class_names),
        "steps done": progress.step,
        "trained by": ", ".join(f"{framework} from step {step:,}" for framework, step in progress.frameworks),
        **{f"{_TRAINED_WITH}{package}": version for package, version in versions.items()},
    }


def differing_settings(a: Recording, b: Recording) -> tuple[SettingDifference, ...]:
    """What differs between two recordings: fields of the model's config, of the runs where both are runs, what they
    were computed on, and versions of the packages that both use."""
    differences = differing_runs(a.config, b.config, a.origin.run, b.origin.run)
    common = [package for package in a.origin.versions if package in b.origin.versions]
    places = [
        {"precision": origin.precision, "device": origin.device, "processor": origin.processor}
        | {package: origin.versions[package] for package in common}
        for origin in (a.origin, b.origin)
    ]
    return (*differences, *_differing(*places))


def differing_runs(
    config_a: ModelConfig, config_b: ModelConfig, run_a: Mapping[str, Any], run_b: Mapping[str, Any]
) -> tuple[SettingDifference, ...]:
    """What differs between two models and the runs that they come from; run_a, run_b: run_settings, or empty."""
    differences = _differing(vars(config_a), vars(config_b))
    if not run_a or not run_b:
        return differences
    # A package that trained one of the two runs only has no counterpart.
    lone = {name for name in run_a.keys() ^ run_b.keys() if name.startswith(_TRAINED_WITH)}
    sides = ({name: value for name, value in run.items() if name not in lone} for run in (run_a, run_b))
    return (*differences, *_differing(*sides))


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[SettingDifference, ...]:
    names = [*a, *(name for name in b if name not in a)]
    return tuple(
        SettingDifference(name, _text(a.get(name)), _text(b.get(name))) for name in names if a.get(name) != b.get(name)
    )


def _text(value: Any) -> str:
    if isinstance(value, tuple | list):
        value = " ".join(map(str, value))
    if value is None or value == "":
        return "–"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
