"""Somebody's own model as a side: watched, matched to the layers of a Mixer, and equal to this project's model."""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from helpers import SMALL, model_weights, random_weights
from torch import nn

from mixer_common.comparison.compare import compare
from mixer_common.comparison.modules import ModuleOptions, ModuleSubject
from mixer_common.comparison.recording import Inputs, Subject
from mixer_common.comparison.sides import OpenedModel, SideOptions, WeightsSubject, open_side
from mixer_common.config.model import ModelConfig, activation_names
from mixer_common.interface import load_framework
from mixer_common.weights.canonical import ModelWeights
from mixer_common.weights.files import save_weights

PORTS = Path(__file__).parent / "ports"
sys.path.insert(0, str(PORTS))


LIVE = {
    "torch": f"torch:{PORTS / 'torch_port.py'}:build",
    "linen": f"jax:{PORTS / 'linen_port.py'}:build",
    "nnx": f"jax:{PORTS / 'nnx_port.py'}:build",
    "timm": f"torch:{PORTS / 'packages.py'}:build_timm",
    "lucidrains": f"torch:{PORTS / 'packages.py'}:build_lucidrains",
}
# The package's own epsilon.
CONFIGS = dict.fromkeys(LIVE, SMALL) | {"timm": replace(SMALL, layer_norm_epsilon=1e-6)}
# As many patches as channels and hidden values, so that no size tells an axis.
SQUARE = ModelConfig(
    image_size=16, patch_size=4, num_classes=16, hidden_dim=16, num_blocks=2, tokens_mlp_dim=16, channels_mlp_dim=16
)


def inputs_of(config: ModelConfig, count: int = 3) -> Inputs:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, *config.image_size, 3), np.uint8)
    return Inputs(images, random.integers(0, config.num_classes, count).astype(np.int32), "noise")


def reference(config: ModelConfig, framework: str = "jax") -> WeightsSubject:
    """This project's model with random weights."""
    used = load_framework(framework)
    opened = OpenedModel("reference", "", framework, model_weights(config))
    return WeightsSubject(opened, used, partial(used.prepare, "cpu"))


def subject_of(model: object, config: ModelConfig | None = SMALL, **options: object) -> ModuleSubject:
    """A module as a side, with the reference's weights; config None: with its own."""
    framework = load_framework("torch" if isinstance(model, nn.Module) else "jax")
    framework.prepare("cpu", "float32")
    module = framework.open_module(model)
    assert module is not None
    weights = random_weights(config) if config else None
    size = (config or SMALL).image_size
    given = ModuleOptions(**{"weights": weights, **options})
    return ModuleSubject("port", module, framework, partial(framework.prepare, "cpu"), given, size)


def agree(a: Subject, b: Subject, inputs: Inputs, precision: str) -> bool:
    """Whether the sides agree in every activation and gradient, in either position, and nothing odd was observed."""
    one, other = (side.record(inputs, precision, gradients=True) for side in (a, b))
    for pair in ((one, other), (other, one)):
        comparison = compare(*pair)
        assert comparison.agrees, comparison.cause
        assert len(comparison.activations) == len(activation_names(one.config))
        assert len(comparison.gradients) == len(one.weights)
    assert one.observations == other.observations == ()
    return True


@pytest.mark.parametrize("name", LIVE)
def test_a_port_agrees_with_this_model_in_either_position(tmp_path, name, precision):
    config = CONFIGS[name]
    save_weights(tmp_path / "weights", ModelWeights(config, random_weights(config), "canonical"), "canonical")
    port = open_side(LIVE[name], "jax", "cpu", SideOptions(weights=tmp_path / "weights"))
    assert agree(reference(config, "torch" if port.framework == "jax" else "jax"), port, inputs_of(config), precision)
    assert port.config == replace(config, layer_norm_epsilon=port.config.layer_norm_epsilon, **_details(port, config))


def _details(port: Subject, config: ModelConfig) -> dict[str, object]:
    """What the arrays do not tell, and a recording does."""
    recorded = port.record(inputs_of(config), "float64").config
    assert (recorded.gelu, recorded.layer_norm_epsilon) == (config.gelu, config.layer_norm_epsilon)
    return {"gelu": port.config.gelu, "init": port.config.init}
