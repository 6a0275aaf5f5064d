"""Writes records, the raw figures behind the tables, into docs/records/, on the machine where they were measured.

uv run docs/make_records.py runs A B NAME       two runs of the same training, one in JAX and one in PyTorch
uv run docs/make_records.py speed FILE ...      what scripts/benchmark.py --json wrote
"""

import argparse
import datetime
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from mixer_common.data import load_dataset
from mixer_common.errors import UserError, run_script
from mixer_common.interface import load_framework
from mixer_common.machine import processor_name
from mixer_common.runs import checkpoint
from mixer_common.runs.folder import read_losses

RECORDS = Path(__file__).parent / "records"
WINDOW = 500  # steps that a point of the recorded curves covers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("runs", help="compare two runs of the same training")
    runs.add_argument("runs", type=Path, nargs=2, metavar="RUN", help="folder of a run")
    runs.add_argument("name", help="of the record, without .json")
    runs.add_argument("--data", help="what the data is called beside the figures; default: as in the run")
    speed = commands.add_parser("speed", help="take over figures of scripts/benchmark.py --json")
    speed.add_argument("files", type=Path, nargs="+", metavar="FILE")
    arguments = parser.parse_args()
    if arguments.command == "runs":
        record = runs_record(*arguments.runs)
        write(arguments.name, record | ({"data": arguments.data} if arguments.data else {}))
    else:
        for path in arguments.files:
            record = json.loads(path.read_text())
            settings = record["settings"]
            write(f"speed-{settings['model']}-{settings['batch_size']}-{settings['mode']}", speed_record(record))


def write(name: str, record: dict[str, Any]) -> None:
    path = RECORDS / f"{name}.json"
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(f"Record   {path}")


def speed_record(record: dict[str, Any]) -> dict[str, Any]:
    """The benchmark's figures with the date and the processor's instructions, and without the folder of the data."""
    settings = record["settings"] | {"dataset_source": without_folder(record["settings"]["dataset_source"])}
    return {"date": today()} | record | {"machine": record["machine"] | instructions(), "settings": settings}


def runs_record(*folders: Path) -> dict[str, Any]:
    """Losses and accuracies of two runs side by side, and how far they are apart.

    Raises UserError where the runs are not the same training, one in each framework.
    """
    states = [checkpoint.load_run(folder) for folder in folders]
    configs = [state.config for state in states]
    names = [state.last_framework for state in states]
    if (
        sorted(names) != ["jax", "torch"]
        or configs[0].train != configs[1].train
        or configs[0].model != configs[1].model
    ):
        raise UserError(f"{folders[0]} and {folders[1]} are not one training in JAX and in PyTorch: name such two.")
    config, recipe = configs[0], configs[0].train
    losses = {name: read_losses(folder) for name, folder in zip(names, folders, strict=True)}
    metrics = {name: read_metrics(folder / "metrics.jsonl") for name, folder in zip(names, folders, strict=True)}
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    difference = np.abs(losses["jax"] - losses["torch"])
    steps_per_epoch = metrics["jax"][0]["step"]
    return {
        "date": today(),
        "model": config.model_name,
        "recipe": config.recipe_name,
        "seed": recipe.seed,
        "batch_size": recipe.batch_size,
        "precision": recipe.precision,
        "data": without_folder(config.dataset_source),
        "data_fingerprint": config.dataset_fingerprint,
        "machine": {"device": summaries[0]["device"], "cpu": processor_name()} | instructions(),
        "versions": {key: version for summary in summaries for key, version in summary["versions"].items()},
        "steps": len(difference),
        "steps_per_epoch": steps_per_epoch,
        "largest_difference": {
            "first_1000_steps": float(difference[:1000].max()),
            "all_steps": float(difference.max()),
        },
        **classified_differently(states, names),
        "epochs": [
            {
                "epoch": i + 1,
                # The part of the epoch that the tutorial prints last.
                "loss": {
                    name: float(values[i * steps_per_epoch :][10_000:12_000].mean()) for name, values in losses.items()
                },
                "test_loss": {name: rows[i]["test_loss"] for name, rows in metrics.items()},
                "test_accuracy": {name: rows[i]["test_accuracy"] for name, rows in metrics.items()},
            }
            for i in range(len(metrics["jax"]))
        ],
        "curves": {
            "window": WINDOW,
            "loss": {name: windows(values).mean(axis=1).round(6).tolist() for name, values in losses.items()},
            "largest_difference": [float(f"{value:.3g}") for value in windows(difference).max(axis=1)],
        },
    }


def classified_differently(states: list[checkpoint.Checkpoint], names: list[str]) -> dict[str, int]:
    """How many test images the two models put into different classes, each computed in its own framework."""
    config, classes = states[0].config, []
    dataset = load_dataset(config.dataset, None, None)
    if dataset.fingerprint != config.dataset_fingerprint:
        raise UserError(f"{dataset.source} is not the data of the runs: name theirs by MLP_MIXER_DATA.")
    for name, state in zip(names, states, strict=True):
        framework = load_framework(name)
        device = framework.prepare("cpu", config.train.precision)
        logits = framework.logits(config.model, state.weights, dataset.test_images, config.train.precision, device)
        classes.append(logits.argmax(axis=1))
    return {"classified_differently": int((classes[0] != classes[1]).sum()), "test_images": len(classes[0])}


def windows(values: np.ndarray) -> np.ndarray:
    """(steps,) -> (steps // WINDOW, WINDOW)"""
    return values[: len(values) // WINDOW * WINDOW].reshape(-1, WINDOW)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_folder(source: str) -> str:
    """ "CIFAR-10, Parquet files in /some/folder" -> "CIFAR-10, Parquet files": a record names no one's folders."""
    return re.sub(r" in \S*[/\\]\S*", "", source)


def instructions() -> dict[str, str]:
    """The vector instructions of this processor, where the system tells them: the model's name often does not."""
    with suppress(OSError):
        flags = Path("/proc/cpuinfo").read_text().split()
        for flag, name in (("avx512f", "AVX-512"), ("avx2", "AVX2")):
            if flag in flags:
                return {"instructions": name}
    return {}


def today() -> str:
    return datetime.date.today().isoformat()


if __name__ == "__main__":
    run_script(main)
