"""Somebody's function that makes a model, named as FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION.

This runs the user's own code, because he named it.
"""

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from mixer_common.errors import UserError

_EVALUATION = {"train": False, "training": False, "is_training": False, "deterministic": True, "inference": True}


def is_factory(text: str) -> bool:
    """Whether a side is written as a factory: a function's name after the last colon, a file or a module before it."""
    place, colon, name = text.rpartition(":")
    if not colon or not name.isidentifier():
        return False
    return place.endswith(".py") or (all(part.isidentifier() for part in place.split(".")) and not Path(text).exists())


def call_factory(text: str) -> Any:
    """What the factory returns, called without arguments.

    Raises UserError where the file, the module or the function is missing, or where the user's code raises.
    """
    place, _, name = text.rpartition(":")
    # Its neighbours can be imported, by the function, too, as when it is run.
    folder = str(Path(place).resolve().parent if place.endswith(".py") else Path.cwd())
    sys.path.insert(0, folder)
    try:
        return _call(text, place, name)
    finally:
        sys.path.remove(folder)


def _call(text: str, place: str, name: str) -> Any:
    module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    factory = getattr(module, name, None)
    if factory is None:
        functions = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
        has = f"it has {', '.join(functions[:5])}" if functions else "it has no function"
        raise UserError(f"{place} has no {name}: {has}; write FILE.py:FUNCTION with one that returns the model.")
    if not callable(factory):
        raise UserError(f"{text} is a {type(factory).__name__}, and not a function that returns the model: name one.")
    if needed := _needed_arguments(factory):
        raise UserError(
            f"{text} wants the arguments {', '.join(needed)}, but it is called without any: name a function that "
            "needs none."
        )
    try:
        return factory()
    except Exception as error:
        raise UserError(f"{text} raised {describe_error(error)}: it must return the model.") from error


def evaluation_arguments(function: Callable[..., Any]) -> dict[str, bool]:
    """The arguments with which a module's function computes as in evaluation, of those that it takes by name."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}
    return {name: value for name, value in _EVALUATION.items() if name in parameters}


def describe_error(error: BaseException) -> str:
    """The exception's name and message, and the line of the code that raised it: the last outside installed packages,
    if there is one."""
    lines = str(error).strip().splitlines()
    message = f" ({lines[0]})" if lines else ""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not _is_installed(frame.filename)]
    line = f" in line {own[-1].lineno} of {own[-1].filename}" if own else ""
    return f"{type(error).__name__}{message}{line}"


def _is_installed(filename: str) -> bool:
    """Whether a file is part of a package, of Python or of this project, and not the user's."""
    root = Path(__file__).parents[2]
    inside = any(Path(filename).is_relative_to(root / name) for name in ("mixer_common", "mixer_jax", "mixer_torch"))
    return inside or filename.startswith("<") or filename.startswith((sys.prefix, sys.base_prefix))


def _needed_arguments(factory: Callable[..., Any]) -> list[str]:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return []
    return [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"{path} does not exist: name the file in which the function that returns the model lies.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is no Python file: name the file in which the function that returns the model lies.")
    module = importlib.util.module_from_spec(spec)
    previous = sys.modules.get(path.stem)
    sys.modules[path.stem] = module  # dataclasses and pickles look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{path} cannot be imported: it raised {describe_error(error)}.") from error
    finally:
        if previous is not None:
            sys.modules[path.stem] = previous
    return module


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise UserError(
                f"there is no Python module {name}: write FILE.py:FUNCTION, or a module that is installed."
            ) from error
        raise UserError(f"{name} cannot be imported: it raised {describe_error(error)}.") from error
    except Exception as error:
        raise UserError(f"{name} cannot be imported: it raised {describe_error(error)}.") from error
