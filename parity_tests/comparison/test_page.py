"""The page of a comparison: what it says, that it needs nothing else, and how Chromium shows it."""

import html
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mixer_common.comparison.bounds import forward_bounds, gradient_bound
from mixer_common.comparison.compare import Comparison
from mixer_common.comparison.differences import LargestDifference, LayerDifference
from mixer_common.comparison.isolate import Fault, Isolation
from mixer_common.comparison.judge import JudgeErrors
from mixer_common.comparison.logits import LogitAgreement
from mixer_common.comparison.loss_curves import _loss_figure, save_loss_curves
from mixer_common.comparison.page import write_page
from mixer_common.comparison.precisions import LayerEffect
from mixer_common.comparison.recording import Origin
from mixer_common.comparison.settings import SettingDifference
from mixer_common.config.model import activation_names, weight_shapes
from mixer_common.config.presets import MODELS

GELU = "blocks.1.token_mixing.gelu"
LOSSES = (2 + np.random.default_rng(0).standard_normal(125_000) / 9).astype(np.float32)
VOID = {"meta", "br", "col", "wbr", "path", "use"}


def comparison(
    model: str = "tiny",
    parts_at: str | None = None,
    gradients: bool = False,
    losses: tuple[np.ndarray | None, np.ndarray | None] = (None, None),
) -> Comparison:
    """Errors at 0.3 of the bound, and 500 bounds from a layer on."""
    config = MODELS[model]
    bounds = forward_bounds(config, "float32")
    past = activation_names(config)[activation_names(config).index(parts_at) :] if parts_at else ()
    errors = (
        LayerDifference(name, bound * (500 if name in past else 0.3), bound / 10, bound)
        for name, bound in bounds.items()
    )
    bound = gradient_bound(config, "float32", 8)
    return Comparison(
        origin("runs/jax-run", f"{model}, {config.num_parameters:,} parameters", "jax", "0.10", losses[0]),
        origin("torch:weights.npz", f"timm weights of {model}", "torch", "2.9", losses[1]),
        "8 test images of digits",
        "the same on both sides, to the bit",
        tuple(errors),
        tuple(LayerDifference(name, 0.02 * bound, bound / 100, bound) for name in weight_shapes(config) if gradients),
        cause="B's values are A's with the tanh form of GELU instead of the exact form." if parts_at else "",
    )


def origin(name: str, model: str, framework: str, version: str, losses: np.ndarray | None = None) -> Origin:
    return Origin(name, model, framework, {framework: version}, "CPU", "float32", losses)


def changed(errors: tuple[LayerDifference, ...], name: str, **values: object) -> tuple[LayerDifference, ...]:
    assert name in {error.name for error in errors}
    return tuple(replace(error, **values) if error.name == name else error for error in errors)


class Page(HTMLParser):
    """What a page says, and its elements; fails where they do not close in order."""

    def __init__(self, path: Path):
        super().__init__()
        self.source = path.read_text("utf-8")
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    def of_class(self, tag: str, *names: str) -> list[dict[str, str | None]]:
        return [
            attributes
            for element, attributes in self.elements
            if element == tag and set(names) <= set((attributes.get("class") or "").split())
        ]


def page_of(given: Comparison, folder: Path) -> Page:
    write_page(given, folder / "page.html")
    assert [path.name for path in folder.iterdir()] == ["page.html"]
    return Page(folder / "page.html")


def test_equal_models(tmp_path):
    page = page_of(comparison(gradients=True), tmp_path)
    for part in (
        "Equal within rounding",
        "Every layer and every gradient is within its bound",
        "0.3 times the bound",
        "runs/jax-run",
        "torch:weights.npz",
        "timm weights of tiny",
        "jax 0.10 on CPU",
        "8 test images",
        "float32",
        "the same on both sides, to the bit",
        "max |b − a| / max |a|",
        "√n · u",
    ):
        assert part in page.text, part
    assert "They part" not in page.text
    assert "Training losses" not in page.text
    assert not page.of_class("td", "past")
    assert not page.of_class("td", "first")
    config = MODELS["tiny"]
    rows = [attributes["id"] for tag, attributes in page.elements if tag == "tr" and "id" in attributes]
    assert rows == [*activation_names(config), *weight_shapes(config)]
    cells = [attributes["title"].partition("\n")[0].strip() for attributes in page.of_class("td", "cell")]
    assert sorted(cells) == sorted(rows)
    assert sum(attributes.get("colspan") == "2" for attributes in page.of_class("td", "cell")) == 4 + 6


def test_no_difference_at_all(tmp_path):
    given = comparison()
    page = page_of(
        replace(given, activations=tuple(replace(error, max_error=0.0, l2_error=0.0) for error in given.activations)),
        tmp_path,
    )
    assert "No layer differs at all." in page.text
    assert len(page.of_class("td", "l-exact")) == len(given.activations)


def test_where_they_part(tmp_path):
    given = comparison(parts_at=GELU)
    page = page_of(given, tmp_path)
    assert f"They part at {GELU}" in page.text
    assert "500 times as much" in page.text
    assert given.cause in html.unescape(page.text)
    (first,) = page.of_class("td", "first")
    assert [line.strip() for line in first["title"].strip().splitlines()] == [
        GELU,
        f"largest relative error {given.first_past_bound.max_error:.1e}",
        f"relative L2 error {given.first_past_bound.l2_error:.1e}",
        f"bound {given.first_past_bound.bound:.1e}",
        "500 × the bound",
    ]
    assert {"l-4", "past"} <= set(first["class"].split())
    assert [row["id"] for row in page.of_class("tr", "first")] == [GELU]
    assert [row["id"] for row in page.of_class("tr", "past")] == [
        error.name for error in given.activations if error.past_bound
    ]
    assert page.text.count("▶") == 3  # in the legend, the heat map and the table
    assert page.text.index(GELU) < page.text.index("stem")


def test_where_the_gradients_part(tmp_path):
    given = comparison(gradients=True)
    for name in ("stem.bias", "blocks.0.channel_mixing.fc2.bias"):
        given = replace(given, gradients=changed(given.gradients, name, max_error=1.0))
    page = page_of(given, tmp_path)
    assert "They part at the gradient of blocks.0.channel_mixing.fc2.bias" in page.text
    assert [row["id"] for row in page.of_class("tr", "first")] == ["blocks.0.channel_mixing.fc2.bias"]
    assert len(page.of_class("td", "past")) == 2


@pytest.mark.parametrize(
    ("values", "sentences"),
    [
        (
            {"max_error": np.inf, "l2_error": np.inf, "note": "shape (8, 10) in A, (8, 1000) in B"},
            ("The two cannot be subtracted: shape (8, 10) in A, (8, 1000) in B.",),
        ),
        ({"max_error": np.inf, "l2_error": np.inf}, ("Its largest relative error is ∞, its bound",)),
        ({"max_error": np.nan, "l2_error": np.nan}, ("Its largest relative error is NaN, its bound",)),
    ],
)
def test_errors_without_a_figure(tmp_path, values, sentences):
    given = comparison()
    page = page_of(replace(given, activations=changed(given.activations, "head", **values)), tmp_path)
    for text in ("They part at head", *sentences):
        assert text in page.text
    assert "times as much" not in page.text
    assert not re.search(r"\b(inf|nan)\b", page.text)
    assert "l-none" in page.of_class("td", "first")[0]["class"]


def everything(model: str = "tiny") -> Comparison:
    """Two faults found in isolation, a judge, gradients, layers in bfloat16, notes, settings and observations."""
    given = comparison(model, GELU, gradients=True)
    largest = LargestDifference((3, 60, 251), -0.032711778, 0.41)
    activations = tuple(
        replace(
            error,
            cosine=0.99999999,
            ulp_median=12,
            ulp_max=123_456,
            largest=largest,
            to_judge=JudgeErrors(1e-7, 2e-4),
            mean_error=1.0 if error.name.endswith("token_mixing") else None,
        )
        for error in given.activations
    )
    faults = (GELU, "blocks.1.channel_mixing.fc2")
    isolated = tuple(
        replace(error, max_error=0.25 if error.name in faults else error.bound / 9) for error in given.activations
    )
    return replace(
        given,
        a=replace(given.a, notes=tuple(f"blocks.{i}.token_norm is pile.{i}.first.normalisation" for i in range(30))),
        activations=activations,
        activation_gradients=tuple(
            LayerDifference(error.name, error.max_error, error.l2_error, error.bound)
            for error in reversed(given.activations)
        ),
        logits=LogitAgreement(8, 7, 5),
        observations=("B: dropout is on",),
        settings=(SettingDifference("seed", "0", "1"),),
        isolation=Isolation(
            isolated, tuple(Fault(error, f"Cause {i}.") for i, error in enumerate(isolated) if error.name in faults)
        ),
        bfloat16=(LayerEffect("stem", 0.003, 0.1, 2), LayerEffect("all layers", 0.2, 0.2, 3)),
    )


def test_everything_that_was_measured_is_shown(tmp_path):
    given = everything()
    page = page_of(given, tmp_path)
    for text in (
        f"They part at {GELU}",
        "It is largest at [3, 60, 251]: -0.032711778 in A, 0.41 in B.",
        "There A is 1.0e-07 from the reference in float64, B 2.0e-04, 2,000 times A's error.",
        "2 layers give other values by themselves: ",
        "the highest class is the same for 7 of 8 images, the five highest for 5",
        "B: dropout is on",
        "30 notes on pixels and layers",
        "seed01",
        "would just pass",
        "1 of 1 layers do not bear bfloat16",
        "1.2e+05",
        "* Measured without the means over the channels",
        "Gradients of activations, in figures",
    ):
        assert text in page.text, text
    for fault in given.isolation.faults:
        assert fault.cause in page.text
        assert f"{fault.difference.name} 2.5e-01, bound" in page.text
    rows = [attributes["id"] for tag, attributes in page.elements if tag == "tr" and "id" in attributes]
    assert len(rows) == len(set(rows)), "an anchor stands twice"
    names = activation_names(MODELS["tiny"])
    assert rows == [
        *names,
        *(f"isolated:{name}" for name in names),
        *(f"gradient:{name}" for name in reversed(names)),
        *weight_shapes(MODELS["tiny"]),
    ]
    links = [value for _, attributes in page.elements for key, value in attributes.items() if key == "href"]
    assert f"#isolated:{GELU}" in links
    assert {link[1:] for link in links} <= set(rows)


def test_a_fault_that_shows_in_isolation_alone(tmp_path):
    given = everything()
    fine = tuple(replace(error, max_error=error.bound / 9) for error in given.activations)
    page = page_of(replace(given, activations=fine, activation_gradients=()), tmp_path)
    assert f"They part at {GELU}, from A’s input" in page.text
    assert len(page.of_class("div", "verdict", "parts")) == 1
    calm = replace(given, activations=fine, activation_gradients=(), isolation=replace(given.isolation, faults=()))
    page = page_of(calm, tmp_path)
    assert "Equal within rounding" in page.text
    assert "none is at fault by itself" in page.text
    assert "which changes no logit" in page.text
    assert not page.of_class("div", "verdict", "parts")


def test_models_of_different_depth(tmp_path):
    """What only one side has stands where it belongs, and leaves no hole that is a cell."""
    given = comparison("nano")
    errors = tuple(
        replace(error, max_error=np.inf, note="only in B", bound=0.0) if error.name.startswith("blocks.7.") else error
        for error in given.activations
        if error.name != "blocks.6.token_norm"
    )
    page = page_of(replace(given, activations=errors), tmp_path)
    assert "They part at blocks.7.token_norm" in page.text
    assert "Equal within" not in page.text
    assert "explains between two passes" in page.text
    assert len(page.of_class("td", "cell")) == len(errors)


def test_a_tolerance_is_not_called_rounding(tmp_path):
    given = comparison(gradients=True)
    page = page_of(
        replace(given, tolerance=1e-2, activations=tuple(replace(error, bound=1e-2) for error in given.activations)),
        tmp_path,
    )
    assert "Equal within the tolerance" in page.text
    assert "rounding alone" not in page.text
    zero = tuple(replace(error, bound=0.0) for error in given.activations)
    assert "They part at stem" in page_of(replace(given, activations=zero), tmp_path).text


def test_names_are_text(tmp_path):
    name, losses = "<b>&\"'$x$ {{ 1 }}", LOSSES[:5]
    given = comparison(parts_at=GELU, losses=(losses, losses))
    page = page_of(
        replace(
            given,
            a=replace(given.a, name=name, model=name, device=name),
            b=replace(given.b, name=name),
            images=name,
            weights=name,
            cause=name,
            activations=changed(given.activations, "head", note=name),
        ),
        tmp_path,
    )
    assert not [tag for tag, _ in page.elements if tag == "b"]
    assert page.text.count(name) == 2 + 2 + 1 + 6 + 2 + 1  # title, heading, cause, facts, legend of the curves, note


def test_the_page_needs_nothing_else(tmp_path):
    page = page_of(comparison(parts_at=GELU, gradients=True, losses=(LOSSES, LOSSES[:200])), tmp_path)
    assert not re.search(r"https?:|\bsrc\s*=|<link|<script|@import|xmlns|url\((?!#)", page.source)
    targets = {attributes.get("id") for _, attributes in page.elements}
    links = [value for _, attributes in page.elements for key, value in attributes.items() if "href" in key]
    assert links
    assert {link[1:] for link in links} <= targets
    colours = set(re.findall(r"var\((--[\w-]+)\)", page.source))
    assert colours - {"--label", "--blocks", "--letters"} <= set(re.findall(r"(--[\w-]+): #", page.source))


@pytest.mark.parametrize(
    ("a", "b", "sentences"),
    [
        (LOSSES[:60], LOSSES[:60], "60 steps on both sides. The losses of all common steps are equal to the bit."),
        (LOSSES[:60], LOSSES[:50], "60 steps in A, 50 in B. The losses of all common steps are equal"),
        (
            LOSSES[:60],
            np.where(np.arange(60) == 40, LOSSES[:60] + 1, LOSSES[:60]),
            "The losses differ from step 41 on. The largest difference is 1.0e+00 nats, at step 41.",
        ),
        (
            LOSSES[:60],
            np.where(np.arange(60) >= 40, np.nan, LOSSES[:60]),
            "The losses differ from step 41 on. B is not a number in 20 steps, the first is 41.",
        ),
        (LOSSES[:0], LOSSES[:50], "0 steps in A, 50 in B."),
    ],
)
def test_two_runs(tmp_path, a, b, sentences):
    page = page_of(comparison(losses=(a, b)), tmp_path)
    assert sentences in page.text
    assert "A: runs/jax-run" in page.text
    assert ("no difference" in page.text.replace("no difference ≤", "")) == (
        "equal" in sentences or "B is not" in sentences
    )
    assert "#0072b2" not in page.source[page.source.index("<svg") :]
    save_loss_curves(a, b, ("_$a", "$b$" * 30), tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert min(picture.size) > 700
        assert len(picture.convert("L").getcolors()) > 20


def test_a_long_run_makes_a_small_page_and_keeps_its_peak(tmp_path):
    other = LOSSES * np.float32(1 + 1e-6)
    other[77_777] += 1
    page = page_of(comparison("h14", GELU, True, (LOSSES, other)), tmp_path)
    assert "The largest difference is 1.0e+00 nats, at step 77,778." in page.text
    assert "largest of 625 steps" in page.text
    assert len(page.source) < 500_000
    top, bottom = _loss_figure(LOSSES, other, ("a", "b")).axes
    assert len(top.lines[0].get_xdata()) == 200
    assert np.nanmax(bottom.lines[0].get_ydata()) == pytest.approx(1, rel=1e-5)


def test_comparing_needs_neither_jinja_nor_matplotlib():
    code = "import sys, mixer_common.comparison.differences; print({'jinja2', 'matplotlib'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "set()\n"


# ---- In a browser

# Chromium's windows are at least 500 pixels wide, so the page stands in a frame, as wide as a phone.
FRAME = """<!doctype html><meta name="color-scheme" content="light dark"><title></title><body style="margin: 0">
<iframe style="border: 0; width: {width}px; height: {height}px" srcdoc="{page}"></iframe>"""
PROBE = """<script>onload = () => {
  const root = document.documentElement;
  parent.document.title = JSON.stringify({
    mode: document.compatMode, width: innerWidth, content: root.scrollWidth, height: root.scrollHeight,
    rows: document.querySelectorAll("tr[id]").length, requests: performance.getEntriesByType("resource").length,
    curves: document.querySelector("svg")?.getBoundingClientRect().width,
    cut: [...document.querySelectorAll(".map th")].filter(th => th.scrollWidth > th.clientWidth).length,
    narrow: Math.min(...[...document.querySelectorAll("td.cell")].map(cell => cell.clientWidth))});
}</script>"""


@pytest.fixture
def look(tmp_path) -> Callable[..., tuple[dict, Image.Image]]:
    """look(comparison, width, height, dark) -> what the probe found, and the screenshot."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if not chromium:
        pytest.skip("no Chromium found: install it to look at the page")

    def run(given: Comparison, width: int, height: int, dark: bool) -> tuple[dict, Image.Image]:
        write_page(given, tmp_path / "page.html")
        page = (tmp_path / "page.html").read_text("utf-8").replace("</body>", f"{PROBE}</body>")
        (tmp_path / "frame.html").write_text(FRAME.format(width=width, height=height, page=html.escape(page)), "utf-8")
        done = subprocess.run(
            [
                chromium,
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                "--no-first-run",
                "--disable-background-networking",
                "--host-resolver-rules=MAP * ~NOTFOUND",
                f"--user-data-dir={tmp_path / 'profile'}",
                f"--window-size={width},{height}",
                f"--blink-settings=preferredColorScheme={0 if dark else 1}",
                f"--screenshot={tmp_path / 'page.png'}",
                "--dump-dom",
                (tmp_path / "frame.html").as_uri(),
            ],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
        found = json.loads(html.unescape(re.search("<title>(.+?)</title>", done.stdout)[1]))
        return found, Image.open(tmp_path / "page.png").convert("RGB").crop((0, 0, width, height))

    return run


@pytest.mark.parametrize(
    ("model", "width", "dark"),
    [
        ("tiny", 390, False),
        ("tiny", 390, True),
        ("tiny", 1200, False),
        ("tiny", 1200, True),
        ("h14", 390, False),
        ("h14", 1200, True),
    ],
)
def test_a_browser_shows_it(look, model, width, dark):
    given = comparison(model, GELU, gradients=True, losses=(LOSSES, LOSSES[:1000]))
    given = replace(
        given,
        a=replace(given.a, name="runs/" + "a" * 90),
        activations=changed(
            given.activations, "head", max_error=np.inf, l2_error=np.inf, note="shape (8, 10) in A, (8, 1000) in B"
        ),
    )
    found, picture = look(given, width, 2000, dark)
    assert found["mode"] == "CSS1Compat"
    assert found["width"] == width
    assert found["content"] == width, "the page scrolls sideways"
    assert found["requests"] == 0
    assert found["rows"] == len(given.activations) + len(given.gradients)
    assert found["cut"] == 0, "a row's name runs into its cells"
    assert found["narrow"] >= 5
    assert 300 < found["curves"] <= 640
    assert found["height"] > 2000
    assert len(picture.getcolors(1 << 24)) > 100
    brightness = np.asarray(picture.convert("L"))
    background = float(np.median(brightness))
    assert background < 50 if dark else background > 230
    assert np.ptp(brightness.astype(int)) > 150
    assert (brightness.std(axis=1) > 1).mean() > 0.5, "more than half of it is blank"


@pytest.mark.parametrize(("width", "dark"), [(390, False), (1200, True)])
def test_a_browser_shows_everything(look, width, dark):
    given = everything()
    found, _ = look(given, width, 4000, dark)
    assert found["content"] == width, "the page scrolls sideways"
    assert found["requests"] == 0
    assert found["rows"] == 3 * len(given.activations) + len(given.gradients)
    assert found["cut"] == 0, "a row's name runs into its cells"
