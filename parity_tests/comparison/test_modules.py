"""Somebody's own model as a side: watched, matched to the layers of a Mixer, and equal to this project's model."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MethodType

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from comparison.ports import linen_port, nnx_port, torch_port
from flax import nnx
from helpers import SMALL, model_weights, random_weights
from torch import nn

import mixer_jax
import mixer_torch
from mixer_common.comparison.compare import compare
from mixer_common.comparison.modules import ModuleOptions, ModuleSubject
from mixer_common.comparison.recording import Inputs, Recording, Subject
from mixer_common.comparison.sides import OpenedModel, SideOptions, WeightsSubject, open_side
from mixer_common.config.model import ModelConfig, activation_names
from mixer_common.errors import UserError
from mixer_common.interface import load_framework
from mixer_common.weights.files import save_weights
from mixer_common.weights.pixels import PIXEL_SCALES

PORTS = Path(__file__).parent / "ports"
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
)  # type: ignore[arg-type]


def inputs_of(config: ModelConfig, count: int = 3) -> Inputs:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, *config.image_size, 3), np.uint8)
    return Inputs(images, random.integers(0, config.num_classes, count).astype(np.int32), "noise")


def reference(config: ModelConfig, framework: str = "torch") -> WeightsSubject:
    """This project's model with random weights."""
    used = load_framework(framework)
    opened = OpenedModel("reference", "", framework, model_weights(config))
    return WeightsSubject(opened, used, partial(used.prepare, "cpu"))


def subject_of(model: object, config: ModelConfig = SMALL, own: bool = False, **options: object) -> ModuleSubject:
    """A module as a side, with the reference's weights, or with its own."""
    framework = load_framework("torch" if isinstance(model, nn.Module) else "jax")
    framework.prepare("cpu", "float32")
    module = framework.open_module(model)
    assert module is not None
    given = ModuleOptions(**{"weights": None if own else random_weights(config), **options})
    return ModuleSubject("port", module, framework, partial(framework.prepare, "cpu"), given, config.image_size)


def agree(a: Subject, b: Subject, inputs: Inputs, precision: str) -> None:
    """Asserts that the sides agree in every activation and gradient, in either position, and that nothing odd shows."""
    one, other = (side.record(inputs, precision, gradients=True) for side in (a, b))
    for pair in ((one, other), (other, one)):
        comparison = compare(*pair)
        assert comparison.agrees, comparison.cause
        assert len(comparison.activations) == len(comparison.activation_gradients) == len(activation_names(one.config))
        assert len(comparison.gradients) == len(one.weights)
    assert one.observations == other.observations == ()


def torch_net(config: ModelConfig = SMALL, kind: type[torch_port.Net] = torch_port.Net) -> torch_port.Net:
    torch.manual_seed(0)
    return kind(
        config.patch_size,
        config.num_patches,
        config.hidden_dim,
        config.num_blocks,
        config.tokens_mlp_dim,
        config.channels_mlp_dim,
        config.num_classes,
    )


# ---- Ports that are right


@pytest.mark.parametrize("name", LIVE)
def test_a_port_agrees_with_this_model_in_either_position(tmp_path, name, precision):
    config = CONFIGS[name]
    save_weights(tmp_path / "weights", replace(model_weights(SMALL), config=config), "canonical")
    port = open_side(LIVE[name], "jax", "cpu", SideOptions(weights=tmp_path / "weights"))
    agree(reference(config, "torch" if port.framework == "jax" else "jax"), port, inputs_of(config), precision)
    recorded = port.record(inputs_of(config), precision).config
    assert (recorded.gelu, recorded.image_size) == (config.gelu, config.image_size)
    if precision == "float64":
        assert recorded.layer_norm_epsilon == config.layer_norm_epsilon


def nnx_net(config: ModelConfig) -> nnx_port.Net:
    return nnx_port.Net(
        config.patch_size,
        config.num_patches,
        config.hidden_dim,
        config.num_blocks,
        config.tokens_mlp_dim,
        config.channels_mlp_dim,
        config.num_classes,
        nnx.Rngs(0),
    )


@pytest.mark.parametrize("build", [torch_net, nnx_net])
def test_axes_of_equal_size_are_told_by_the_values(build: Callable):
    agree(reference(SQUARE), subject_of(build(SQUARE), SQUARE), inputs_of(SQUARE), "float64")


def test_a_port_s_own_weights_count():
    module = torch_net()
    own = mixer_torch.record(module, inputs_of(SMALL).images, precision="float64")
    model = mixer_torch.create(SMALL, weights=own.weights)
    assert compare(mixer_torch.record(model, inputs_of(SMALL).images, precision="float64"), own).agrees


def test_the_tutorial_s_block_is_told_by_the_values():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.n1, self.n2 = nn.LayerNorm(16), nn.LayerNorm(16)
            self.a = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16))
            self.b = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x + self.a(self.n1(x.transpose(1, 2)).transpose(1, 2))
            return x + self.b(self.n2(x))

    class Tutorial(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 16, 4, 4)
            self.middle = nn.Sequential(Block(), Block())
            self.n, self.last = nn.LayerNorm(16), nn.Linear(16, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.n(self.middle(self.first(x).flatten(2).transpose(1, 2))).mean(1))

    config = replace(SQUARE, block="tutorial")
    agree(reference(config), subject_of(Tutorial(), config), inputs_of(config), "float64")


def test_a_module_is_left_as_it_was():
    module = torch_net().train()
    module.stages[0].requires_grad_(False)
    module.to_tokens.weight.grad = torch.ones_like(module.to_tokens.weight)
    before = {name: (value.clone(), value.dtype) for name, value in module.state_dict().items()}
    subject_of(module).record(inputs_of(SMALL), "float64", gradients=True)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name][0])
        assert value.dtype == before[name][1]
    assert all(submodule.training for submodule in module.modules())
    assert not module.stages[0].spatial.up.weight.requires_grad
    assert module.ln_out.weight.requires_grad
    assert torch.equal(module.to_tokens.weight.grad, torch.ones_like(module.to_tokens.weight))
    assert not module.ln_out._forward_hooks


def test_an_nnx_module_is_left_as_it_was():
    module = nnx_net(SMALL)
    before = [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(module, nnx.Param))]
    call = nnx.Linear.__call__
    subject_of(module).record(inputs_of(SMALL), "float64", gradients=True)
    assert nnx.Linear.__call__ is call
    assert not module.layers[0].tokens_ff.dropout.deterministic
    for a, b in zip(before, jax.tree.leaves(nnx.state(module, nnx.Param)), strict=True):
        np.testing.assert_array_equal(a, np.asarray(b))


@pytest.mark.parametrize("build", [torch_net, nnx_net, lambda config: linen_port.build()])
def test_bfloat16_agrees_within_its_bounds(build: Callable):
    a, b = (side.record(inputs_of(SMALL), "bfloat16") for side in (reference(SMALL), subject_of(build(SMALL))))
    assert max(d.max_error for d in compare(a, b).activations) < 0.2
    assert b.activations["head"].dtype == np.float32


def test_other_weights():
    port = subject_of(torch_net()).with_weights(random_weights(SMALL, seed=5))
    expected = reference(SMALL).with_weights(random_weights(SMALL, seed=5))
    agree(expected, port, inputs_of(SMALL), "float64")


# ---- What a port is given


@pytest.mark.parametrize("scale", ["imagenet", "none"])
def test_a_stated_scale_of_pixels_is_given_and_folded_into_the_stem(scale):
    mean, std = (torch.tensor(values)[:, None, None] for values in PIXEL_SCALES[scale])

    class Scaled(torch_port.Net):
        """Takes pixels of the scale, and changes them to those of -1 to 1 before its stem."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward((images * std.to(images) + mean.to(images)) * 2 - 1)

    images = inputs_of(SMALL).images
    plain = mixer_torch.record(torch_net(), images, precision="float64")
    scaled = mixer_torch.record(torch_net(kind=Scaled), images, precision="float64", pixels=scale)
    assert np.abs(scaled.activations["head"] - plain.activations["head"]).max() < 1e-6
    # A module whose stem sees the scaled pixels; in canonical form, its weights take pixels of -1 to 1.
    agree(reference(SMALL), subject_of(torch_net(), pixels=PIXEL_SCALES[scale]), inputs_of(SMALL), "float64")
    folded = mixer_torch.record(torch_net(), images, precision="float64", pixels=scale)
    assert not np.allclose(folded.weights["stem.weight"], plain.weights["stem.weight"])
    model = mixer_torch.create(SMALL, weights=folded.weights)
    assert compare(mixer_torch.record(model, images, precision="float64"), folded).agrees


def test_a_module_s_own_mean_and_deviation():
    class Normalising(torch_port.Net):
        def __init__(self, *sizes: int):
            super().__init__(*sizes)
            self.register_buffer("mean", torch.tensor(PIXEL_SCALES["cifar10"].mean)[:, None, None])
            self.register_buffer("std", torch.tensor(PIXEL_SCALES["cifar10"].std)[:, None, None])

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward((images - self.mean) / self.std)

    agree(reference(SMALL), subject_of(torch_net(kind=Normalising)), inputs_of(SMALL), "float32")


def test_the_layout_of_the_pixels():
    class ChannelsLast(torch_port.Net):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images.permute(0, 3, 1, 2))

    agree(reference(SMALL), subject_of(torch_net(kind=ChannelsLast), layout="nhwc"), inputs_of(SMALL), "float64")
    with pytest.raises(UserError, match=r"port raised RuntimeError .* called with pixels nchw of images 12x20"):
        subject_of(torch_net(kind=ChannelsLast), own=True).record(inputs_of(SMALL), "float32")


def test_images_of_another_size_are_resized():
    images = np.random.default_rng(0).integers(0, 256, (2, 31, 17, 3), np.uint8)
    inputs = Inputs(images, np.zeros(2, np.int32), "noise")
    agree(reference(SMALL), subject_of(torch_net()), inputs, "float64")


def test_a_linen_module_without_variables():
    module, variables = linen_port.build()
    agree(reference(SMALL), subject_of(module), inputs_of(SMALL), "float64")
    assert "seed 0" in " ".join(subject_of(module, own=True).record(inputs_of(SMALL), "float32").origin.notes)
    agree(reference(SMALL), subject_of((module, variables["params"])), inputs_of(SMALL), "float64")


# ---- Another model's activations in place of its own


@pytest.mark.parametrize("build", [torch_net, nnx_net, lambda config: linen_port.build()])
def test_every_layer_is_computed_from_the_other_s_input(build: Callable):
    other = reference(SMALL).with_weights(random_weights(SMALL, seed=7)).record(inputs_of(SMALL), "float64")
    arguments = inputs_of(SMALL), "float64", False, other.activations
    a, b = reference(SMALL).record(*arguments), subject_of(build(SMALL)).record(*arguments)
    assert list(b.activations) == activation_names(SMALL)
    for name, array in a.activations.items():
        if name.endswith("mixing"):  # the stream plus what the branch adds
            np.testing.assert_allclose(b.activations[name], other.activations[name], atol=1e-13)
        else:
            np.testing.assert_allclose(b.activations[name], array, atol=1e-13)


def test_a_residual_connection_left_out_shows_alone():
    class Lost(torch_port.Stage):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.features(self.spatial(x))

    module = torch_net()
    module.stages[0].__class__ = Lost
    a = reference(SMALL).record(inputs_of(SMALL), "float64")
    b = subject_of(module).record(inputs_of(SMALL), "float64", replacements=a.activations)
    wrong = [name for name, array in a.activations.items() if not np.allclose(b.activations[name], array)]
    assert wrong == ["blocks.0.channel_mixing"]


# ---- What is not as in a Mixer: observed, and compared as far as it goes


def forward_of(submodule: nn.Module, function: Callable) -> None:
    """Gives one submodule another forward pass."""
    submodule.forward = MethodType(function, submodule)


def recorded(module: nn.Module, config: ModelConfig = SMALL, own: bool = False) -> Recording:
    return subject_of(module, config, own).record(inputs_of(config), "float64", gradients=True)


def test_a_norm_that_is_never_used():
    module = torch_net()
    forward_of(module.stages[1].spatial, lambda self, x: x + self.down(F.gelu(self.up(x))))
    recording = recorded(module)
    assert recording.observations == ("blocks.1.token_norm (stages.1.spatial.ln_a) is never called.",)
    names = ("blocks.1.token_norm", "blocks.0.channel_mixing")
    np.testing.assert_array_equal(*(recording.activations[name] for name in names))


def test_a_norm_whose_result_is_not_used():
    module = torch_net()
    forward_of(module.stages[1].spatial, lambda self, x: x + self.down(F.gelu(self.up(x + 0 * self.ln_a(x)))))
    assert recorded(module).observations[0] == (
        "blocks.1.token_mixing.fc1 is given the residual stream: what blocks.1.token_norm returns is not used."
    )


def test_no_final_norm():
    module = torch_net()
    module.ln_out = nn.Identity()
    recording = recorded(module)
    assert "It has no norm after the last block." in recording.observations
    assert "norm.weight" not in recording.weights
    names = ("norm", "blocks.1.channel_mixing")
    np.testing.assert_array_equal(*(recording.activations[name] for name in names))
    first = compare(reference(SMALL).record(inputs_of(SMALL), "float64"), recording).first_past_bound
    assert first is not None
    assert first.name == "norm"


def test_a_class_token():
    class WithToken(torch_port.Net):
        def __init__(self, *sizes: int):
            super().__init__(*sizes)
            self.extra = nn.Parameter(torch.randn(1, 1, 24))
            self.stages[0].register_forward_pre_hook(self.add)

        def add(self, _: nn.Module, given: tuple) -> tuple:
            return (torch.cat([self.extra.expand(len(given[0]), 1, 24), given[0]], 1),)

    recording = recorded(WithToken(4, 16, 24, 2, 7, 33, 5), own=True)
    assert recording.observations == (
        "It has extra of shape (1, 1, 24), which no Mixer has.",
        "What enters blocks.0.token_norm has 16 x 24, and the stem gives 15 x 24: a class token is among the patches.",
    )
    assert recording.config.image_size == SMALL.image_size
    assert recording.activations["stem"].shape == (3, 15, 24)
    assert recording.activations["blocks.0.token_mixing"].shape == (3, 16, 24)


def test_the_mixers_exchanged():
    module = torch_net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.spatial(x + self.features(x))

    forward_of(module.stages[0], forward)
    recording = recorded(module)
    assert recording.observations == (
        "blocks.0.channel_norm is computed before blocks.0.token_norm, which a Mixer computes first.",
    )
    assert set(recording.activations) == set(activation_names(SMALL))


def test_dropout_left_on():
    module = torch_net()
    forward_of(module.stages[0].features.net[2], lambda self, x: F.dropout(x, 0.3, True))
    assert recorded(module).observations == (
        "Two calls give different values, first in stages.0.features.net.2: dropout or another random layer is on in "
        "evaluation.",
    )


def test_dropout_left_on_in_flax():
    class Net(linen_port.Net):
        def __call__(self, images: jax.Array) -> jax.Array:
            return super().__call__(images, True)

    recording = subject_of(Net()).record(inputs_of(SMALL), "float32")
    assert "Two calls give different values" in recording.observations[0]
    module = nnx_net(SMALL)
    module.layers[0].tokens_ff.dropout = Always(0.5)
    assert "Two calls give different values" in subject_of(module).record(inputs_of(SMALL), "float32").observations[0]


class Always(nnx.Module):
    """Dropout that does not know evaluation."""

    def __init__(self, rate: float):
        self.rate, self.rngs = rate, nnx.Rngs(0)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * jax.random.bernoulli(self.rngs(), 1 - self.rate, x.shape)


def test_a_precision_lowered_in_one_layer():
    module = torch_net()
    forward_of(module.ln_out, lambda self, x: F.layer_norm(x.float(), (24,), self.weight.float(), self.bias.float()))
    forward_of(module.classifier, lambda self, x: F.linear(x.to(self.weight), self.weight, self.bias))
    assert recorded(module).observations == ("norm returns float32, and the others float64.",)


def test_a_gradient_detached():
    module = torch_net()
    forward_of(module.stages[1], lambda self, x: (y := self.spatial(x.detach())) + self.features(y))
    recording = recorded(module)
    assert recording.observations == (
        "No gradient arrives at blocks.0.channel_mixing and 10 other activations: it is detached on the way back.",
    )
    assert recording.gradients is not None
    assert "stem.weight" not in recording.gradients


def test_patches_and_channels_swapped_after_the_stem():
    module = torch_net()
    module.to_tokens.register_forward_hook(lambda _, given, x: None)
    module.stages[0].register_forward_pre_hook(lambda _, given: (given[0].transpose(1, 2).reshape(given[0].shape),))
    recording = recorded(module)
    assert recording.observations == ("What enters blocks.0.token_norm is not what the stem gives.",)


@pytest.mark.parametrize("config", [SMALL, SQUARE])
def test_token_mixing_over_the_channels(config):
    module = torch_net(config)
    C, T = config.hidden_dim, config.tokens_mlp_dim
    for stage in module.stages:
        stage.spatial.up, stage.spatial.down = nn.Linear(C, T), nn.Linear(T, C)
    observations = " ".join(recorded(module, config, own=True).observations)
    assert "mixes the channels" in observations or "so that it mixes these" in observations


def test_weights_used_without_their_submodules():
    module = torch_net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, _, _, second = self.net
        return F.linear(F.gelu(F.linear(self.ln_b(x), first.weight, first.bias)), second.weight, second.bias)

    forward_of(module.stages[0].features, forward)
    recording = recorded(module)
    assert "blocks.0.channel_mixing.fc1 (stages.0.features.net.0) is never called." in recording.observations
    missing = [name for name in activation_names(SMALL) if name not in recording.activations]
    # What fc2 returns is what `features` returns, and is found by its value.
    assert missing == ["blocks.0.channel_mixing.fc1", "blocks.0.channel_mixing.gelu", "blocks.0.channel_mixing.fc2"]


def test_probabilities_in_place_of_logits():
    class Softmax(torch_port.Net):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images).softmax(-1)

    assert recorded(torch_net(kind=Softmax)).observations == (
        "The module returns not the logits of its head but their softmax.",
    )


def test_values_inside_a_transformation():
    class Jitted(nnx_port.Layer):
        @nnx.jit
        def __call__(self, x: jax.Array) -> jax.Array:
            return super().__call__(x)

    module = nnx_net(SMALL)
    module.layers[0] = Jitted(15, 24, 7, 33, nnx.Rngs(0))
    agree(reference(SMALL), subject_of(module), inputs_of(SMALL), "float64")

    class Checkpointed(nnx_port.Layer):
        @nnx.remat
        def __call__(self, x: jax.Array) -> jax.Array:
            return super().__call__(x)

    module.layers[0] = Checkpointed(15, 24, 7, 33, nnx.Rngs(0))
    recording = subject_of(module).record(inputs_of(SMALL), "float64")
    assert "layers.0.tokens_ff.wide cannot be seen: a transformation" in " ".join(recording.observations)
    assert "blocks.1.channel_norm" in recording.activations


# ---- As a command


def test_the_matching_is_printed(script, tmp_path):
    save_weights(tmp_path / "weights", model_weights(SMALL), "canonical")
    arguments = ("compare", tmp_path / "weights", LIVE["torch"], "--weights", tmp_path / "weights")
    code, stdout, stderr = script(*arguments, "--dataset", "digits", "--images", 2)
    assert code == 0, stderr
    for part in (
        f"B          {LIVE['torch']}: a torch.nn.Module (Net), custom, 5,287 parameters; torch",
        "pixels nchw (assumed), pixels -1..1 (inception) (assumed), images 12x20",
        "stem                          to_tokens  (Linear, weight o (h w i); N,S,C)",
        "blocks.0.token_mixing.fc1     stages.0.spatial.up  (Conv1d, weight o i 1; N,S,C)",
        "blocks.0.token_mixing.gelu    given to stages.0.spatial.down  (N,S,C)",
    ):
        assert part in stdout
    code, stdout, _ = script("compare", "--help")
    assert "your own code runs" in " ".join(stdout.split())


def test_a_gelu_that_is_stated(script, tmp_path):
    save_weights(tmp_path / "weights.npz", model_weights(SMALL), "npz")
    arguments = ("compare", tmp_path / "weights.npz", LIVE["torch"], "--weights", tmp_path / "weights.npz")
    options = ("--dataset", "digits", "--images", 2)
    assert script(*arguments, *options)[0] == 1  # Flax's usual GELU and epsilon
    stated = ("--gelu-a", "exact", "--layer-norm-epsilon-a", 1e-5)
    assert script(*arguments, *options, *stated)[0] == 0


FACTORIES = """
import torch

def ok(): return torch.nn.Linear(2, 2)
def nothing(): pass
def needs(size, depth=2): return None
def fails():
    raise ValueError("no such preset")
class Late(torch.nn.Module):
    def forward(self, x): raise RuntimeError("not today")
number = 3
"""


@pytest.mark.parametrize(
    ("place", "parts"),
    [
        ("torch:missing.py:build", ["missing.py does not exist"]),
        ("torch:factories.py:absent", ["factories.py has no absent", "it has ok, nothing, needs, fails"]),
        ("torch:factories.py:number", ["is a int, and not a function"]),
        ("torch:factories.py:fails", ["raised ValueError (no such preset) in line 8 of", "factories.py"]),
        ("torch:factories.py:needs", ["wants the arguments size,"]),
        ("torch:factories.py:nothing", ["returned nothing, but must return a torch.nn.Module"]),
        ("jax:factories.py:ok", ["returned an object of type torch.nn.modules.linear.Linear, but must return a flax"]),
        ("torch:factories.py:ok", ["has no structure of an MLP-Mixer", "weight (2, 2), bias (2,)"]),
        ("torch:broken.py:build", ["broken.py cannot be imported", "SyntaxError"]),
        ("torch:factories.py", ["no function in it: write torch:factories.py:FUNCTION"]),
        ("factories.py:ok", ["does not tell its framework: write jax:factories.py:ok or torch:factories.py:ok"]),
        ("torch:no_such_package.models:build", ["there is no Python module no_such_package.models"]),
    ],
)
def test_what_is_wrong_with_a_factory_is_told(script, tmp_path, monkeypatch, place, parts):
    monkeypatch.chdir(tmp_path)
    Path("factories.py").write_text(FACTORIES)
    Path("broken.py").write_text("def build(:\n")
    save_weights("weights", model_weights(SMALL), "canonical")
    code, _, stderr = script("compare", "weights", place, "--dataset", "digits")
    assert code == 2
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    for part in parts:
        assert part in stderr


def test_weights_that_do_not_fit(script, tmp_path):
    save_weights(tmp_path / "weights", model_weights(replace(SMALL, hidden_dim=16)), "canonical")
    arguments = ("compare", tmp_path / "weights", LIVE["torch"], "--weights", tmp_path / "weights")
    code, _, stderr = script(*arguments, "--dataset", "digits")
    assert code == 2
    assert "stem.weight has shape (24, 3, 4, 4) in the module and (16, 3, 4, 4) in the weights" in stderr


def test_a_forward_pass_that_raises_tells_its_layer():
    module = torch_net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ValueError("not today")

    forward_of(module.stages[1].spatial.up, forward)
    with pytest.raises(UserError) as error:
        recorded(module)
    assert "port raised ValueError (not today) in line" in str(error.value)
    assert "in stages.1.spatial.up, which is blocks.1.token_mixing.fc1" in str(error.value)


def test_submodules_that_are_never_called():
    module = torch_net()
    module.forward = lambda images: torch.zeros(len(images), 5)
    with pytest.raises(UserError, match="none of its submodules that hold weights is called"):
        recorded(module)


# ---- As a function


def test_record_takes_what_the_documentation_says(precision):
    images, labels = inputs_of(SMALL).images, inputs_of(SMALL).labels
    weights = random_weights(SMALL)
    a = mixer_jax.record(mixer_jax.create(SMALL, weights=weights), images, labels, precision, gradients=True)
    b = mixer_torch.record(torch_net(), torch.from_numpy(images), labels, precision, gradients=True, weights=weights)
    assert compare(a, b).agrees
    assert jax.config.jax_enable_x64 == (precision == "float64")  # as before
    with pytest.raises(UserError, match="must be a module of torch"):
        mixer_torch.record(3, images)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="labels are 2"):
        mixer_torch.record(torch_net(), images, [1, 2])
    with pytest.raises(UserError, match="layout is 'hwcn'"):
        mixer_torch.record(torch_net(), images, layout="hwcn")
    with pytest.raises(UserError, match="precision is 'float8'"):
        mixer_torch.record(torch_net(), images, precision="float8")


class FunctionalBlock(nn.Module):
    """Holds its weights in submodules and uses them in functions."""

    def __init__(self, config):
        super().__init__()
        S, C = config.num_patches, config.hidden_dim
        self.ln1, self.ln2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.tok1, self.tok2 = nn.Linear(S, config.tokens_mlp_dim), nn.Linear(config.tokens_mlp_dim, S)
        self.ch1, self.ch2 = nn.Linear(C, config.channels_mlp_dim), nn.Linear(config.channels_mlp_dim, C)

    def forward(self, x):
        y = F.layer_norm(x, x.shape[-1:], self.ln1.weight, self.ln1.bias).transpose(1, 2)
        y = F.linear(F.gelu(F.linear(y, self.tok1.weight, self.tok1.bias)), self.tok2.weight, self.tok2.bias)
        x = x + y.transpose(1, 2)
        y = F.layer_norm(x, x.shape[-1:], self.ln2.weight, self.ln2.bias)
        return x + F.linear(F.gelu(F.linear(y, self.ch1.weight, self.ch1.bias)), self.ch2.weight, self.ch2.bias)


class FunctionalPort(nn.Module):
    def __init__(self, config, maximum=False):
        super().__init__()
        self.stem = nn.Conv2d(3, config.hidden_dim, config.patch_size, config.patch_size)
        self.layers = nn.ModuleList(FunctionalBlock(config) for _ in range(config.num_blocks))
        self.ln, self.head = nn.LayerNorm(config.hidden_dim), nn.Linear(config.hidden_dim, config.num_classes)
        self.maximum = maximum

    def forward(self, pixels):
        x = F.conv2d(pixels, self.stem.weight, self.stem.bias, stride=self.stem.stride).flatten(2).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        x = self.ln(x)
        return self.head(x.amax(1) if self.maximum else x.mean(1))


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_layers_that_no_submodule_shows_are_no_difference(precision):
    """As long as everything else agrees; else they may be what the sides part at."""
    weights = random_weights(SMALL)
    images = np.random.default_rng(0).integers(0, 256, (3, *SMALL.image_size, 3), np.uint8)
    reference = mixer_jax.record(mixer_jax.create(SMALL, weights=weights), images, None, precision)
    epsilon = {"layer_norm_epsilon": SMALL.layer_norm_epsilon}
    good, odd = (
        mixer_torch.record(FunctionalPort(SMALL, maximum), images, None, precision, weights=weights, **epsilon)
        for maximum in (False, True)
    )
    for pair, hiding in (((reference, good), "B"), ((good, reference), "A")):
        comparison = compare(*pair)
        assert comparison.agrees, comparison.cause
        assert [difference.name for difference in comparison.activations][-1] == "head"
        assert any(text.startswith(f"{hiding}: ") and "were not compared" in text for text in comparison.observations)
    assert not compare(reference, odd).agrees


def test_a_factory_imports_its_neighbours_when_it_is_called(tmp_path):
    (tmp_path / "neighbour_of_a_port.py").write_text("WIDTH = 1\n")
    (tmp_path / "port.py").write_text(
        "def build():\n    import neighbour_of_a_port\n    return neighbour_of_a_port.WIDTH\n"
    )
    with pytest.raises(UserError, match=r"returned an object of type builtins\.int, but must return"):
        open_side(f"torch:{tmp_path / 'port.py'}:build", "torch", "cpu")
