"""Tables and pictures in README.md and docs/ are what the records in docs/records/ give."""

import json
import re
from pathlib import Path

import make_pictures
import make_tables
import pytest
from PIL import Image

from mixer_common.config.presets import describe_recipes

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
RECORDS = sorted((ROOT / "docs" / "records").glob("*.json"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_what_the_records_give(page: Path):
    text = page.read_text()
    begins, ends = (re.findall(rf"^<!-- {word}", text, re.MULTILINE) for word in ("table", "end"))
    assert len(make_tables.MARKED.findall(text)) == len(begins) == len(ends)
    assert make_tables.render(text) == text, "run: uv run docs/make_tables.py"


def test_a_changed_figure_is_noticed():
    text = (ROOT / "docs" / "speed.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| `torch-eager` |"))
    changed = text.replace(row, re.sub(r"\d", lambda digit: str(9 - int(digit[0])), row))
    assert changed != text
    assert make_tables.render(changed) == text


def test_every_table_is_shown_and_every_record_used(monkeypatch: pytest.MonkeyPatch):
    shown = {match[1] for page in PAGES for match in make_tables.MARKED.findall(page.read_text())}
    assert set(make_tables.TABLES) <= shown
    used, read = set(), make_tables.read
    monkeypatch.setattr(make_tables, "read", lambda name: used.add(name) or read(name))
    for name in shown:
        make_tables.table(name)
    assert used == {path.stem for path in RECORDS}


def test_every_figure_stands_between_markers():
    """A table with a figure of a measurement in it, such as 12.3 or 45%, is rendered from a record."""
    for page in PAGES:
        outside = make_tables.MARKED.sub("", page.read_text())
        for line in outside.splitlines():
            if line.startswith("|"):
                text = re.sub(r"`[^`]*`|\([^)]*\)|Apache-2.0|Python 3\.\d+", "", line)
                assert not re.search(r"\d\.\d|\d%|\de-\d", text), f"{page.name}: {line}"


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_records_name_no_folder_of_the_machine(path: Path):
    assert not re.search(r'(?:"| )(?:/|~/|[A-Z]:\\)\w', path.read_text())
    assert json.loads(path.read_text())


def test_records_state_machine_versions_and_day():
    for path in RECORDS:
        record = json.loads(path.read_text())
        if "source" in record:  # published by others
            continue
        for row in record["rows"] if path.stem == "trainings" else [record]:
            assert {"machine", "versions"} <= (record | row).keys(), path.name
            assert re.fullmatch(r"\d{4}-\d\d-\d\d", (record | row)["date"]), path.name


@pytest.mark.parametrize("name", make_pictures.pictures())
def test_pictures_are_drawn_from_their_records(name: str):
    with Image.open(ROOT / "docs" / f"{name}.png") as image:
        _, records = make_pictures.pictures()[name]
        assert image.text["records"] == make_pictures.record_hash(records), "run: uv run docs/make_pictures.py"


def test_figures_in_the_readme_are_those_of_the_records():
    text = (ROOT / "README.md").read_text()
    ten = make_tables.read("ten-epochs-float64")
    trainings = {row["id"]: row for row in make_tables.read("trainings")["rows"]}
    assert f"difference, at most {ten['largest_difference']['all_steps']:.1e} in float64]" in text
    tutorial, digits = trainings["tutorial-jax"], trainings["digits-jax"]
    minutes = sum(tutorial["seconds"]) / len(tutorial["seconds"]) / 60
    assert f"{minutes:.0f} minutes: ten epochs, {100 * tutorial['test_accuracy']:.1f} %" in text
    assert (
        f"{digits['seconds'][0]:.0f} seconds with {100 * digits['test_accuracy']:.1f} % of {digits['test_images']}"
        in text
    )


def test_recipes_state_the_figures_of_the_records():
    """The times and accuracies in --help are those of the records."""
    text = describe_recipes()
    for recipe in make_tables.RECIPES:
        row = next(
            row
            for row in make_tables.read("trainings")["rows"]
            if row["recipe"] == recipe and row["framework"] == "jax"
        )
        low, high = min(row["seconds"]), max(row["seconds"])
        times = {f"{low} s", f"{low} to {high} s", f"{low / 60:.0f} min"}
        described = re.search(rf"\b{recipe} \(for .*?(?=; \w+ \(for |$)", text)[0]
        assert f"{row['test_accuracy']:.2%}" in described, recipe
        assert any(time in described for time in times), recipe
