"""The plugins by which the framework packages extend mixer_common, found by name and without importing them.

mixer_common imports neither framework. Each registers in pyproject.toml, as entry points, what it adds: its Framework
(group mlp_mixer.frameworks) and the files that only it can read (group mlp_mixer.containers). An entry is imported
when it is asked for.
"""

from importlib.metadata import entry_points
from typing import Any

from mixer_common.errors import UserError

_TITLES = {"jax": "JAX", "torch": "PyTorch"}


def load_plugin(group: str, name: str) -> Any:
    """The object that the framework `name` ("jax" or "torch") registered in a group.

    Raises UserError where the framework, or a package that it needs, is not installed.
    """
    title = _TITLES.get(name, name)
    install = f"install it with: pip install 'mlp-mixer-parity[{name}]'"
    found = entry_points(group=group, name=name)
    if not found:
        raise UserError(
            f"{title} is needed here and is not registered as {name!r} in {group}: {install}, or in a "
            "checkout: pip install -e '.[all]'."
        )
    try:
        return next(iter(found)).load()
    except ModuleNotFoundError as error:
        raise UserError(f"{title} is needed here, but the package {error.name} is not installed: {install}.") from None
