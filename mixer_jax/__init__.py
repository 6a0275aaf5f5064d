"""The MLP-Mixer and its training in JAX: Flax NNX and optax. api.py describes what is imported here."""

from mixer_common.config.model import ModelConfig
from mixer_common.errors import UserError
from mixer_jax.api import create, load, predict, save, to_pixels, weights

__all__ = ["ModelConfig", "UserError", "create", "load", "predict", "save", "to_pixels", "weights"]
