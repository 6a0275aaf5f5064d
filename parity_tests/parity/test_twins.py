"""mixer_jax and mixer_torch are twins: the same modules, public names, parameters and defaults, in the same order.

What only one of them has stands in a list here, with the reason.
"""

import ast
import difflib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# An exception of a module, a class or a function is one of all that it holds.
ONLY_IN_JAX = {
    "api.record(layout='nhwc')": "the usual order of the axes of pixels in Flax",
    "device.Device": "JAX declares no type of a device that a type checker reads",
    "hooks.Hooks.__init__(one=None)": "what xla.materialize_gradient divides by",
    "hooks.Hooks.branches(one)": "what xla.materialize_gradient divides by",
    "model.Linear": "torch.nn has one",
    "model.from_canonical": "load_state_dict of torch takes canonical arrays as they are",
    "model.gelu": "torch.nn.functional has one",
    "model.to_canonical(config)": "the shapes to transpose to; PyTorch's layouts are the canonical ones",
    "model.to_canonical(state)": "a tree, where PyTorch has tensors by name",
    "orbax_folders": "a folder of Orbax takes Orbax to read, which comes with Flax",
    "optimizer.load_moments(params)": "the weights are no part of an optimizer of optax",
    "optimizer.load_moments(state)": "nor are the moments, which are replaced in PyTorch",
    "optimizer.moments(config)": "see model.to_canonical",
    "optimizer.moments(frozen)": "the state of optax has no place for weights that do not learn",
    "optimizer.moments(state)": "the moments are no part of an optimizer of optax",
    "train.Trainer.dispatch": "JAX need not wait for a step before it begins the next",
    "xla": "XLA compiles JAX, and PyTorch's eager code is not compiled",
}
ONLY_IN_TORCH = {
    "api.record(layout='nchw')": "the usual order of the axes of pixels in PyTorch",
    "framework.Framework.__init__(compiled=False)": "torch.compile is a choice; JAX always compiles",
    "model.to_canonical(tensors)": "by name, where JAX has a tree",
    "modules.OpenedModule.__init__(loaded=None)": "a module of Flax is given its weights when it is called",
    "optimizer.clip": "that of torch adds 1e-6 to the norm, that of optax does not",
    "optimizer.load_moments(model)": "an optimizer of torch knows the weights by their identity",
    "optimizer.load_moments(optimizer)": "an optimizer of torch holds the moments",
    "optimizer.make_optimizer(model)": "an optimizer of torch is made for its weights",
    "optimizer.moments(model)": "an optimizer of torch knows the weights by their identity",
    "optimizer.moments(optimizer)": "an optimizer of torch holds the moments",
    "optimizer.set_step": "an optimizer of torch counts its steps, and forms the bias corrections itself",
    "optimizer.step": "an optimizer of torch moves the weights, one of optax only says how far",
    "state_dict_files": "a file of torch.save takes torch to read",
    "train.Trainer.__init__(compiled=False)": "torch.compile is a choice; JAX always compiles",
}
# Names that differ because the frameworks do, and what both are compared as.
COMPARED_AS = {"JaxFramework": "Framework", "TorchFramework": "Framework", "forward": "__call__"}


def entries(package: Path) -> list[str]:
    """Everything public in a package, in order: "forward", "forward.logits", "forward.logits(size=500)"."""
    found: list[str] = []
    for path in sorted(package.glob("*.py")):
        found += [path.stem, *definitions(ast.parse(path.read_text()).body, f"{path.stem}.")]
    return found


def definitions(body: list[ast.stmt], prefix: str) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            yield from (prefix + name for name in names if is_public(name))
        elif isinstance(node, ast.ClassDef | ast.FunctionDef) and is_public(node.name):
            name = prefix + COMPARED_AS.get(node.name, node.name)
            yield name
            if isinstance(node, ast.ClassDef):
                yield from definitions(node.body, f"{name}.")
            else:
                yield from (f"{name}({parameter})" for parameter in parameters(node.args))


def is_public(name: str) -> bool:
    return not name.startswith("_") or name in ("__init__", "__call__", "__all__")


def parameters(arguments: ast.arguments) -> Iterator[str]:
    """Names of a function's parameters, with * and ** and the defaults as they are written."""
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + arguments.defaults
    for parameter, default in zip(positional, defaults, strict=True):
        if parameter.arg != "self":
            yield parameter.arg + (f"={ast.unparse(default)}" if default else "")
    if arguments.vararg or arguments.kwonlyargs:
        yield f"*{arguments.vararg.arg if arguments.vararg else ''}"
    for parameter, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield parameter.arg + (f"={ast.unparse(default)}" if default else "")
    if arguments.kwarg:
        yield f"**{arguments.kwarg.arg}"


def without(found: list[str], exceptions: dict[str, str]) -> list[str]:
    return [
        entry
        for entry in found
        if not any(entry == name or entry.startswith((f"{name}.", f"{name}(")) for name in exceptions)
    ]


def differences(folder: Path) -> list[str]:
    """What differs between the two packages in a folder, "-" before what JAX has; and exceptions that are none."""
    in_jax, in_torch = entries(folder / "mixer_jax"), entries(folder / "mixer_torch")
    compared = difflib.ndiff(without(in_jax, ONLY_IN_JAX), without(in_torch, ONLY_IN_TORCH))
    return [
        *(f"no exception: {name}" for name in ONLY_IN_JAX if name not in in_jax or name in in_torch),
        *(f"no exception: {name}" for name in ONLY_IN_TORCH if name not in in_torch or name in in_jax),
        *(line for line in compared if line[0] in "+-"),
    ]


def test_the_packages_have_the_same_names_in_the_same_order():
    assert differences(ROOT) == []
    assert len(entries(ROOT / "mixer_jax")) > 150


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        ("mixer_jax/forward.py", "def logits(", "def scores(", ["- forward.scores", "+ forward.logits"]),
        ("mixer_torch/augment.py", "flip: Tensor)", "mirrored: Tensor)", ["- augment.crop(flip)"]),
        ("mixer_torch/train.py", "moments: Mapping[str, Mapping[str, np.ndarray]] | None = None,", "", ["- train."]),
        ("mixer_jax/forward.py", "size: int = BATCH_SIZE", "size: int = 1", ["- forward.logits(size=1)"]),
        ("mixer_jax/pixels.py", "def bytes_to_pixels(", "ROUNDS = True\n\n\ndef bytes_to_pixels(", ["- pixels.ROUNDS"]),
        ("mixer_torch/hooks.py", "    def record(", "    def note(", ["- hooks.Hooks.record", "+ hooks.Hooks.note"]),
        ("mixer_torch/api.py", "def weights(", "def _weights(", ["- api.weights", "- api.weights(model)"]),
        ("mixer_jax/train.py", "def dispatch(", "def start(", ["no exception: train.Trainer.dispatch"]),
    ],
)
def test_a_difference_is_found(tmp_path, file, old, new, expected):
    for package in ("mixer_jax", "mixer_torch"):
        shutil.copytree(ROOT / package, tmp_path / package)
    source = (tmp_path / file).read_text()
    assert old in source
    (tmp_path / file).write_text(source.replace(old, new, 1))
    found = differences(tmp_path)
    assert all(any(line.startswith(part) for line in found) for part in expected), found


def test_a_missing_module_and_another_order_are_found(tmp_path):
    for package in ("mixer_jax", "mixer_torch"):
        shutil.copytree(ROOT / package, tmp_path / package)
    (tmp_path / "mixer_torch" / "activations.py").unlink()
    assert "- activations" in differences(tmp_path)
    path = tmp_path / "mixer_torch" / "device.py"
    module = ast.parse(path.read_text())
    module.body.reverse()
    path.write_text(ast.unparse(module))
    assert {"+ device.describe", "- device.describe"} <= set(differences(tmp_path))


@pytest.mark.parametrize(("package", "twin"), [("mixer_jax", "mixer_torch"), ("mixer_torch", "mixer_jax")])
def test_every_module_names_its_twin(package, twin):
    for path in (ROOT / package).glob("*.py"):
        if path.stem not in ("__init__", *ONLY_IN_JAX, *ONLY_IN_TORCH):
            docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
            assert f"Twin of {twin}/{path.name}" in docstring, path
