"""Renders the tables in README.md and docs/ from the records in docs/records/.

uv run docs/make_tables.py             rewrites every table between <!-- table: NAME --> and <!-- end -->
uv run docs/make_tables.py --check     writes nothing; exit code 1 where a table is not what its record gives
"""

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mixer_common.config.presets import MODELS, RECIPE_MODELS, RECIPES

DOCS = Path(__file__).parent
RECORDS = DOCS / "records"
PAGES = (DOCS.parent / "README.md", *sorted(DOCS.glob("*.md")))
MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
TITLES = {"jax": "JAX", "torch": "PyTorch"}


def main() -> int:
    changed = [page for page in PAGES if render(page.read_text()) != page.read_text()]
    for page in changed:
        if "--check" not in sys.argv:
            page.write_text(render(page.read_text()))
        print(f"{'differs' if '--check' in sys.argv else 'rewritten'}: {page}")
    return 1 if changed and "--check" in sys.argv else 0


def render(text: str) -> str:
    """The text of a page with every table between markers as the records give it."""
    return MARKED.sub(lambda match: f"{match[1]}{table(match[2])}\n{match[3]}", text)


def table(name: str) -> str:
    """The Markdown of a table by its name. Raises KeyError where there is no such table."""
    if name.startswith("speed-") and name not in TABLES:
        return speed(read(name))
    return TABLES[name]()


def read(name: str) -> dict[str, Any]:
    return json.loads((RECORDS / f"{name}.json").read_text())


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], *sentences: str) -> str:
    lines = [header, ["---"] * len(header), *rows]
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return "\n\n".join((text, " ".join(sentences))) if sentences else text


def measured(*records: Mapping[str, Any]) -> str:
    """When, on what and with what the figures were measured, one sentence for each machine and day."""
    sentences = []
    for record in records:
        machine, versions = record["machine"], record["versions"]
        instructions = f" with {machine['instructions']}" if "instructions" in machine else ""
        packages = " and ".join(f"{TITLES[key]} {versions[key]}" for key in TITLES if key in versions)
        processor = f"{machine['cpu']}{instructions}" if "CPU" in machine["device"] else machine["device"]
        threads = re.sub(r"\b1 threads", "1 thread", ", ".join(machine["device"].split(", ")[1:]))
        device = f"{processor} ({threads})" if "CPU" in machine["device"] and threads else processor
        date = f" on {record['date']}" if "date" in record else ""
        note = f" {record['note']}" if "note" in record else ""
        sentences.append(f"Measured{date} on an {device}, with {packages}.{note}")
    return " ".join(dict.fromkeys(sentences))


def digits(value: float) -> str:
    """Three significant digits at least: 4.74, 68.8, 1,689"""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def error(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.1e}"


def percent(value: float) -> str:
    return f"{value:.2%}"


def results() -> str:
    """The README's overview: how far apart JAX and PyTorch are."""
    passes, runs = read("passes")["rows"], {row["id"]: row for row in read("runs")["rows"]}
    ten = {precision: read(f"ten-epochs-{precision}") for precision in ("float64", "float32")}
    last = {precision: record["epochs"][-1]["test_accuracy"] for precision, record in ten.items()}
    precisions = ("float64", "float32")
    rows = [
        ["logits of one forward pass, worst of seven models"]
        + [error(max(row["logits"][precision] for row in passes)) for precision in precisions],
        ["gradients of one backward pass, worst of seven models"]
        + [error(max(row["gradients"][precision] for row in passes)) for precision in precisions],
        ["losses of 1,000 steps with all augmentation"]
        + [error(runs["everything"]["largest_difference"].get(precision)) for precision in precisions],
        ["losses of the tutorial's 125,000 steps"]
        + [error(ten[precision]["largest_difference"]["all_steps"]) for precision in precisions],
        ["test images that they classify differently after them, of 10,000"]
        + [str(ten[precision]["classified_differently"]) for precision in precisions],
        ["test accuracy after them, JAX and PyTorch"]
        + [f"{percent(last[precision]['jax'])}, {percent(last[precision]['torch'])}" for precision in precisions],
    ]
    return markdown(["largest difference between JAX and PyTorch", *precisions], rows)


def ten_epochs(precision: str) -> str:
    record, published = read(f"ten-epochs-{precision}"), read("tutorial-published")["losses"]
    rows = [
        [
            str(row["epoch"]),
            *(f"{row['loss'][framework]:.3f}" for framework in TITLES),
            f"{loss:.3f}",
            *(percent(row["test_accuracy"][framework]) for framework in TITLES),
        ]
        for row, loss in zip(record["epochs"], published, strict=True)
    ]
    header = ["epoch", "loss, JAX", "loss, PyTorch", "loss, published", "accuracy, JAX", "accuracy, PyTorch"]
    count = record["classified_differently"]
    differing = (
        f"After the last epoch the two put {count:,} of {record['test_images']:,} test images into other classes."
    )
    return markdown(header, rows, differing, measured(record))


def runs() -> str:
    ten = {precision: read(f"ten-epochs-{precision}") for precision in ("float64", "float32")}
    rows = [
        [name, *(error(ten[precision]["largest_difference"][key]) for precision in ten)]
        for name, key in (
            ("the ten epochs, the first 1,000 steps", "first_1000_steps"),
            ("the ten epochs, all 125,000 steps", "all_steps"),
        )
    ]
    record = read("runs")
    rows += [[row["run"], *(error(row["largest_difference"].get(p)) for p in ten)] for row in record["rows"]]
    return markdown(
        ["largest difference of any step's loss", *ten], rows, measured(ten["float64"], ten["float32"], record)
    )


def passes() -> str:
    record, pairs = read("passes"), [(kind, p) for kind in ("logits", "gradients") for p in ("float32", "float64")]
    rows = [[f"`{row['model']}`", *(error(row[kind][p]) for kind, p in pairs)] for row in record["rows"]]
    return markdown(["model", *(f"{kind}, {p}" for kind, p in pairs)], rows, measured(record))


def other_models() -> str:
    record = read("other-models")
    rows = [
        [
            row["weights"],
            row["format"],
            *(error(row[framework]) if row[framework] else "0" for framework in TITLES),
            "the same bits" if row["written_identical"] else "other bits",
        ]
        for row in record["rows"]
    ]
    return markdown(["weights of", "read as", *TITLES.values(), "written back"], rows, measured(record))


def whole_runs() -> str:
    record = read("trainings")
    rows = [row for row in record["rows"] if row["table"] == "whole-runs"]
    loop = next(row for row in rows if row["id"] == "tutorial-loop")["seconds"][0]
    cells = [
        [
            f"`{row['command']}`",
            ", ".join(f"{seconds:,}" for seconds in row["seconds"]),
            percent(row["test_accuracy"]),
            ", ".join(f"{loop / seconds:.1f}" for seconds in row["seconds"]),
        ]
        for row in rows
    ]
    header = ["command", "seconds", "test accuracy", "times as fast as the tutorial's loop"]
    return markdown(header, cells, measured(record | rows[0]))


def hour_on_one_core() -> str:
    record = read("trainings")
    rows = [row for row in record["rows"] if row["table"] == "hour"]
    cells = []
    for row in rows:
        best = row.get("best")
        highest = f", at most {percent(best['test_accuracy'])} (epoch {best['epoch']})" if best else ""
        cells.append([f"`{row['command']}`", f"{row['seconds'][0] / 60:.0f}", percent(row["test_accuracy"]) + highest])
    return markdown(["`train_jax.py` with", "minutes", "test accuracy"], cells, measured(record | rows[0]))


def models() -> str:
    cells = []
    for name, config in MODELS.items():
        height, width = config.image_size
        size = str(height) if height == width else f"{height} x {width}"
        sizes = (size, config.patch_size, config.num_blocks, config.hidden_dim)
        hidden = f"{config.tokens_mlp_dim}, {config.channels_mlp_dim}"
        cells.append([f"`{name}`", config.block, *map(str, sizes), hidden, f"{config.num_parameters:,}"])
    header = ["name", "block", "image", "patch", "blocks", "channels", "hidden sizes of the MLPs", "parameters"]
    return markdown(header, cells)


def recipes() -> str:
    """Each recipe with the training that measured it."""
    trainings = read("trainings")
    cells = []
    for name, recipe in RECIPES.items():
        row = next(row for row in trainings["rows"] if row["recipe"] == name and row["framework"] == "jax")
        machine = row["machine"]
        seconds = " and ".join(f"{s:,.0f} s" if s < 1000 else f"{s / 60:.0f} min" for s in row["seconds"])
        cells.append(
            [
                f"`{name}`",
                f"`{RECIPE_MODELS[name]}`",
                f"{recipe.epochs}",
                f"{recipe.batch_size}",
                f"`{row['command']}`: {percent(row['test_accuracy'])} in {seconds}, {machine['device']}",
            ]
        )
    header = ["recipe", "its model", "epochs", "batch", "measured in JAX on CIFAR-10 (JPEG copy)"]
    return markdown(header, cells)


def speed(record: Mapping[str, Any]) -> str:
    """One benchmark, whole."""
    results, rates = record["results"], record["matmul"]
    cells = []
    for result in results:
        low, high = result["seconds_per_step_spread"]
        cells.append(
            [
                f"`{result['implementation']}`",
                digits(1e3 * result["seconds_per_step"]),
                f"{digits(1e3 * low)} to {digits(1e3 * high)}",
                digits(result["images_per_second"]),
                "" if result["ratio"] is None else f"{result['ratio']:.2f}",
                f"{result['compile_seconds']:.1f}",
                f"{result['peak_memory_bytes'] / 1e6:,.0f}",
                f"{result['matmul_share']:.0%}",
            ]
        )
    header = ["implementation", "ms a step", "quartiles", "images/s", "ratio", "compile s", "peak MB", "matmul share"]
    size = next(iter(rates.values()))["size"]
    reached = " and ".join(f"{rates[key]['flops_per_second'] / 1e9:,.0f} in {TITLES[key]}" for key in rates)
    return markdown(
        header,
        cells,
        f"A step has {results[0]['flops_per_step'] / 1e9:,.4g} GFLOP. In GFLOP/s, a product of two {size} x {size} "
        f"matrices reaches {reached}. Each implementation had {record['settings']['rounds']} turns.",
        measured(record),
    )


def speed_overview() -> str:
    """The better of each framework's two implementations in every benchmark on record."""
    cells, records = [], []
    for path in sorted(
        RECORDS.glob("speed-*-*-*.json"), key=lambda path: read(path.stem)["results"][0]["flops_per_step"]
    ):
        record = read(path.stem)
        settings, results = record["settings"], record["results"]
        best = {
            framework: max(
                (result for result in results if result["implementation"] in names),
                key=lambda result: result["images_per_second"],
            )
            for framework, names in (("jax", ("jax-step", "jax-scan")), ("torch", ("torch-eager", "torch-compile")))
        }
        kind = {"train": "training", "forward": "forward pass"}[settings["mode"]]
        cells.append(
            [
                f"`{settings['model']}`, {kind}, {settings['batch_size']} images a step",
                *(digits(best[framework]["images_per_second"]) for framework in TITLES),
                f"{best['torch']['seconds_per_step'] / best['jax']['seconds_per_step']:.2f}",
            ]
        )
        records.append({key: record[key] for key in ("date", "machine", "versions")})
    header = ["steps", "JAX, images/s", "PyTorch, images/s", "JAX / PyTorch"]
    return markdown(header, cells, measured(*records))


def speed_second_processor() -> str:
    record = read("speed-second-processor")
    names = ("torch-eager", "torch-compile", "jax-step", "jax-scan")
    cells = [
        [
            f"`{row['model']}`, {row['batch_size']} images{', forward' if row['mode'] == 'forward' else ''}",
            *(f"{digits(1e3 * row[name]['seconds_per_step'])} ({row[name]['ratio']:.2f})" for name in names),
        ]
        for row in record["rows"]
    ]
    return markdown(["ms a step (ratio)", *(f"`{name}`" for name in names)], cells, measured(record))


TABLES: dict[str, Callable[[], str]] = {
    "results": results,
    "ten-epochs-float64": lambda: ten_epochs("float64"),
    "ten-epochs-float32": lambda: ten_epochs("float32"),
    "runs": runs,
    "passes": passes,
    "other-models": other_models,
    "whole-runs": whole_runs,
    "hour-on-one-core": hour_on_one_core,
    "models": models,
    "recipes": recipes,
    "speed": speed_overview,
    "speed-second-processor": speed_second_processor,
}

if __name__ == "__main__":
    sys.exit(main())
