"""The MLP-Mixer and its training in PyTorch. api.py describes what is imported here."""

from typing import TYPE_CHECKING, Any

from mixer_common.config.model import ModelConfig
from mixer_common.errors import UserError

if TYPE_CHECKING:
    from mixer_torch.api import create, load, predict, record, save, to_pixels, weights

__all__ = ["ModelConfig", "UserError", "create", "load", "predict", "record", "save", "to_pixels", "weights"]


def __getattr__(name: str) -> Any:
    # PyTorch takes seconds to import, and not every module of the package needs it.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mixer_torch import api

    return getattr(api, name)
