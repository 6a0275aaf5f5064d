"""Files of torch.save: named arrays in and out, and never a pickled object."""

import argparse
import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from mixer_common.errors import UserError
from mixer_common.weights.reading import plain_array

# Plain values in the checkpoints of training scripts, such as timm's; none of them runs code when it is unpickled.
_HARMLESS: list[Any] = [argparse.Namespace]
_MAX_DEPTH = 4  # dicts around a state dict


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a state dict, and of all in dicts around them; of the modern format, views of the file.

    The keys of the dicts around a state dict stand before its names, joined by slashes.
    bfloat16, which NumPy lacks, is widened to float32. Raises UserError for a file that holds anything but
    named tensors (nothing of it is run), and for one cut short.
    """
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_HARMLESS):
            warnings.simplefilter("ignore")  # of pickles that it then refuses
            values = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError:
        raise
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} holds pickled objects other than tensors, which could run code, so it was not read: "
            "save the model's state_dict alone, or a safetensors file."
        ) from None
    except Exception as error:  # a damaged pickle fails in any way
        if "TorchScript" in str(error):
            raise UserError(
                f"{path} holds a TorchScript program, which is not run here: save the model's state_dict "
                "alone, or a safetensors file."
            ) from None
        raise UserError(
            f"{path} is no complete file of torch.save ({_first_line(error)}): it was cut short or "
            "changed; use another copy."
        ) from None
    tensors = dict(_tensors(values, "", _MAX_DEPTH))
    if not tensors or any(not isinstance(value, Tensor) for value in _direct(values)):
        found = (
            ", ".join(
                f"{name} ({type(value).__name__})" for name, value in values.items() if not isinstance(value, Tensor)
            )
            if isinstance(values, dict)
            else type(values).__name__
        )
        raise UserError(f"{path} holds other things than named tensors: {found}; save the model's state_dict alone.")
    try:
        return {name: plain_array(value) for name, value in tensors.items()}
    except (TypeError, RuntimeError, NotImplementedError) as error:  # quantised, sparse, without storage
        raise UserError(
            f"{path} holds tensors that have no plain values ({_first_line(error)}): save them as "
            "ordinary floating-point tensors."
        ) from None


def write(file: Path | BinaryIO, arrays: Mapping[str, np.ndarray]) -> None:
    """A state dict of contiguous tensors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of arrays that cannot be written to: nobody does
        torch.save({name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}, file)


def _tensors(values: Any, prefix: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    """The tensors in a dict and the dicts in it, under their keys; an optimizer's, which numbers are keys of, are left
    out."""
    if not isinstance(values, dict) or not depth:
        return
    for name, value in values.items():
        if isinstance(name, str):
            if isinstance(value, Tensor):
                yield prefix + name, value
            yield from _tensors(value, f"{prefix}{name}/", depth - 1)


def _direct(values: Any) -> list[Any]:
    """The values of a state dict that nothing wraps; empty where the weights lie in dicts."""
    direct = list(values.values()) if isinstance(values, dict) else []
    return direct if any(isinstance(value, Tensor) for value in direct) else []


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
