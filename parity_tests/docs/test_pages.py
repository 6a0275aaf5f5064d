"""Whatever README.md, CONTRIBUTING.md, CHANGELOG.md and docs/ name exists: files, headings, modules, options."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"!?\[([^\]]+)\]\(([^)\s]+)\)")
# Options of other programs that the pages mention.
OTHER_OPTIONS = {"--extra", "--check", "--help"}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_every_picture_is_shown():
    text = "".join(page.read_text() for page in PAGES)
    for path in [*(ROOT / "docs").glob("*.png"), *(ROOT / "docs").glob("*.svg")]:
        assert f"{path.name})" in text, path.name


@pages
def test_links_point_to_files_and_headings_that_exist(page: Path):
    for _, target in LINK.findall(page.read_text()):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in slugs, f"{page.name} links to {target}"


@pages
def test_linked_names_are_defined_in_the_linked_module(page: Path):
    """[`name`](module.py): the module defines the name; [`Class.method`] its class the method."""
    for text, target in LINK.findall(page.read_text()):
        path = page.parent / target
        if path.suffix != ".py":
            continue
        for name in re.findall(r"`([\w.]+)`", text):
            if name != path.name:
                assert name in defined_names(path), f"{page.name}: {name} is not defined in {target}"


@pages
def test_paths_exist(page: Path):
    """Every path in backticks or a command that begins with a folder of the tree exists there."""
    folders = "mixer_common|mixer_jax|mixer_torch|mixer_bench|parity_tests|scripts|docs|examples"
    for path in re.findall(rf"(?<![\w/.])((?:\.ci|{folders})/[\w./-]*)", without_links(page.read_text())):
        assert (ROOT / path.rstrip(".,:")).exists(), f"{page.name} names {path}"
    for name in re.findall(r"`(\w+\.(?:py|toml|cff))`", page.read_text()):
        assert any(ROOT.glob(name)) or any((ROOT / folder).rglob(name) for folder in folders.split("|")), name


@pages
def test_modules_exist(page: Path):
    """Every dotted name in backticks is a module or defined in one; of the table of old and new names, the new ones."""
    text = page.read_text()
    if "| old | new |" in text:
        text = re.sub(r"^\| `[\w.]+` \|", "|", text, flags=re.MULTILINE)
    for name in re.findall(r"`((?:mixer_common|mixer_jax|mixer_torch|mixer_bench)(?:\.\w+)+)`", text):
        parent, _, last = name.rpartition(".")
        if (ROOT / name.replace(".", "/")).is_dir() or importlib.util.find_spec(name):
            continue
        module = ROOT / f"{parent.replace('.', '/')}.py"
        module = module if module.exists() else ROOT / parent.replace(".", "/") / "__init__.py"
        assert last in defined_names(module), f"{page.name} names {name}"


@pages
def test_options_exist(page: Path):
    options = {f"--{name.replace('_', '-')}" for name in fields_and_arguments()} | OTHER_OPTIONS
    for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", page.read_text()):
        assert option in options, f"{page.name} names {option}"


def test_drawn_layers_exist():
    """The layers in the picture of the architecture are the folders and modules of the tree."""
    text = (ROOT / "docs" / "architecture.svg").read_text()
    titles = [name for title in re.findall(r'font-weight="bold">([^<]+)<', text) for name in title.split(", ")]
    for title in titles:
        places = (ROOT / title, ROOT / "mixer_common" / title, ROOT / "mixer_common" / f"{title}.py")
        assert any(path.exists() for path in places), title
    folder = ROOT / "mixer_common"
    floors = {path.stem for path in folder.iterdir() if path.suffix in ("", ".py") and path.stem[0] != "_"}
    assert not floors - {title.rstrip("/") for title in titles}


def test_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


def without_links(text: str) -> str:
    return LINK.sub(lambda match: match[1], text)


def defined_names(path: Path) -> set[str]:
    """What a module defines or imports at its top, and its classes' members as Class.member."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{member.name}" for member in node.body if isinstance(member, ast.FunctionDef)}
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def fields_and_arguments() -> set[str]:
    """Names of all dataclass fields of the packages and scripts, and of options that they read by themselves."""
    names = set()
    for folder in ("mixer_common", "mixer_bench", "scripts", "docs"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text()
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    names.add(node.target.id)
            names |= set(re.findall(r'add_argument\("--([\w-]+)"', text))
    return names
