"""What the framework packages load: not the libraries that only a script, a picture or a data file needs."""

import subprocess
import sys

import pytest

# Their import takes seconds and tens of megabytes, in every process whose time and memory a benchmark measures.
HEAVY = ("matplotlib", "tyro", "rich", "tensorboardX", "tensorflow_datasets", "sklearn", "pyarrow", "jinja2")

# Flax itself imports rich, so what the frameworks bring with them is not counted.
CODE = """
import importlib, pkgutil, sys
for name in {libraries}:
    importlib.import_module(name)
before = set(sys.modules)
package = importlib.import_module({package!r})
modules = [module.name for module in pkgutil.iter_modules(package.__path__, {package!r} + ".")]
for name in modules:
    importlib.import_module(name)
print(len(modules), *sorted((set(sys.modules) - before) & set({heavy})))
"""


@pytest.mark.parametrize(
    ("package", "libraries"), [("mixer_jax", ("jax", "flax.nnx", "optax")), ("mixer_torch", ("torch",))]
)
def test_a_framework_package_loads_nothing_that_it_does_not_compute_with(package, libraries):
    code = CODE.format(package=package, libraries=libraries, heavy=HEAVY)
    process = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    count, *loaded = process.stdout.split()
    assert int(count) >= 10
    assert loaded == []


def test_the_run_s_files_load_no_heavy_library_until_a_run_is_opened():
    code = (
        "import sys, mixer_common.runs.folder, mixer_common.interface\n"
        f"print(*sorted(set(sys.modules) & {set(HEAVY)!r}))"
    )
    process = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert process.stdout.split() == []
