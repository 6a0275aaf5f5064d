"""The MLP-Mixer and its training in PyTorch. The functions that are imported here are those of api.py."""

from mixer_common.config.model import ModelConfig
from mixer_common.errors import UserError
from mixer_torch.api import create, load, predict, save, to_pixels, weights

__all__ = ["ModelConfig", "UserError", "create", "load", "predict", "save", "to_pixels", "weights"]
