"""The mistakes of real ports are found: the layer and the cause, in either side, in both precisions."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from comparison.faults import CHANNEL, CONFIG, CUBE, DEEP, FAULTS, Fault
from comparison.ports import faulty_linen, faulty_torch, nnx_port, random_ports
from flax import nnx
from helpers import FRAMEWORKS, random_weights
from PIL import Image

from mixer_common.comparison.compare import Comparison, compare
from mixer_common.comparison.isolate import isolate
from mixer_common.comparison.modules import ModuleOptions, ModuleSubject
from mixer_common.comparison.recording import Inputs, Recording
from mixer_common.comparison.sides import OpenedModel, WeightsSubject
from mixer_common.config.model import ModelConfig
from mixer_common.interface import load_framework
from mixer_common.weights.canonical import ModelWeights
from mixer_common.weights.files import save_weights

OTHER = {"jax": "torch", "torch": "jax"}
# One precision of each fault is tested always, the others with the slow tests.
PRECISIONS = pytest.mark.parametrize("precision", ["float64", pytest.param("float32", marks=pytest.mark.slow)])


@cache
def images(config: ModelConfig, size: tuple[int, int] | None = None, count: int = 4) -> Inputs:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (count, *(size or config.image_size), 3), np.uint8)
    return Inputs(pixels, np.arange(count, dtype=np.int32) % config.num_classes, "noise")


@cache
def weights_of(config: ModelConfig) -> Mapping[str, np.ndarray]:
    return random_weights(config)


def reference(framework: str, config: ModelConfig, weights: Mapping[str, np.ndarray]) -> WeightsSubject:
    opened = OpenedModel("reference", "a Mixer", framework, ModelWeights(config, dict(weights), "canonical"))
    return WeightsSubject(opened, load_framework(framework), partial(load_framework(framework).prepare, "cpu"))


@cache
def reference_recording(framework: str, config: ModelConfig, precision: str, gradients: bool) -> Recording:
    return reference(framework, config, weights_of(config)).record(images(config), precision, gradients)


def port(
    framework: str,
    config: ModelConfig,
    planted: Mapping[str, str],
    weights: Mapping[str, np.ndarray] | None = None,
    given: np.ndarray | None = None,
) -> ModuleSubject:
    """A port of foreign names with faults; given: pixels (N, H, W, 3) that it computes in place of its input."""
    faults = dict(planted)
    if framework == "torch":
        model: Any = faulty_torch.Port(config, faults)
        model.given = given
    else:
        model = faulty_linen.build(config, faults)
        model = (model[0].clone(given=given), model[1])
    return subject(framework, model, config, weights_of(config) if weights is None else weights)


def subject(framework: str, model: Any, config: ModelConfig, weights: Mapping[str, np.ndarray]) -> ModuleSubject:
    used = load_framework(framework)
    used.prepare("cpu", "float32")
    module = used.open_module(model)
    assert module is not None
    options = ModuleOptions(weights=dict(weights))
    return ModuleSubject("port", module, used, partial(used.prepare, "cpu"), options, config.image_size)


def assert_found(comparison: Comparison, layer: str, cause: str, odd: str) -> None:
    first = comparison.first_past_bound
    assert first is not None
    assert (first.name, cause in comparison.cause) == (layer, True), comparison.cause
    assert ", or with " not in comparison.cause
    if "values are" in comparison.cause or "gradient is" in comparison.cause:
        assert f"{odd}'s " in comparison.cause


@pytest.mark.parametrize(
    ("fault", "precision"),
    [
        pytest.param(
            fault,
            precision,
            id=f"{fault.name}-{precision}",
            marks=[pytest.mark.slow] if precision != fault.precisions[0] else [],
        )
        for fault in FAULTS
        for precision in fault.precisions
    ],
)
@FRAMEWORKS
def test_a_fault_is_found(framework, fault: Fault, precision):
    good = reference_recording(OTHER[framework], fault.config, precision, fault.gradients)
    odd = port(framework, fault.config, fault.planted).record(images(fault.config), precision, fault.gradients)
    assert_found(compare(good, odd), fault.layer, fault.cause, "B")
    assert_found(compare(odd, good), fault.layer, fault.cause, "A")


def test_there_are_many_kinds():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 24


@PRECISIONS
@FRAMEWORKS
def test_without_a_fault_both_agree(framework, precision):
    """Activations and gradients; in every config that the faults are planted in.

    Of CUBE the activations alone: a LayerNorm over 3 channels takes two directions of three out of its gradient, and
    what is left is smaller than the terms that it is the sum of, by more than the bounds of gradients allow.
    """
    for config in {fault.config for fault in FAULTS}:
        gradients = config != CUBE
        good = reference_recording(OTHER[framework], config, precision, gradients)
        right = port(framework, config, {}).record(images(config), precision, gradients)
        for pair in ((good, right), (right, good)):
            comparison = compare(*pair)
            assert comparison.agrees, (comparison.first_past_bound, comparison.cause)
            assert not comparison.observations


# ---- Two faults at once.

TWO_FAULTS = [
    ("tanh GELU", "a linear layer without bias"),
    ("BGR", "a layer in bfloat16"),
    ("a norm never used", "a maximum"),
    ("a scale of its own", "no residual connection"),
    ("unbiased variance", "a temperature"),
    ("patches and channels reshaped", "a branch halved"),
]


@pytest.mark.parametrize("names", TWO_FAULTS, ids=" and ".join)
@PRECISIONS
@FRAMEWORKS
def test_two_faults_are_found_in_one_call(framework, precision, names):
    """Every layer is computed from A's activations, so that the first fault does not hide the second."""
    faults = [next(fault for fault in FAULTS if fault.name == name) for name in names]
    odd = port(framework, CONFIG, faults[0].planted | faults[1].planted)
    recordings = {
        "good": reference_recording(OTHER[framework], CONFIG, precision, False),
        "odd": odd.record(images(CONFIG), precision),
    }
    subjects = {"good": reference(OTHER[framework], CONFIG, weights_of(CONFIG)), "odd": odd}
    for a, b in (("good", "odd"), ("odd", "good")):
        found = isolate(recordings[a], recordings[b], subjects[b]).faults
        assert [fault.difference.name for fault in found] == [fault.layer for fault in faults]
        for fault, expected in zip(found, faults, strict=True):
            assert expected.cause in fault.cause
            assert fault.cause.startswith(f"{'B' if b == 'odd' else 'A'}'s ")


# ---- Pixels that a port's own pipeline made.


def by_torch(**options: Any):
    def resize(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        planes = torch.from_numpy(images).permute(0, 3, 1, 2).double()
        return F.interpolate(planes, size, **options).permute(0, 2, 3, 1).numpy()

    return resize


def by_jax(method: str, antialias: bool = True):
    def resize(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        with jax.enable_x64(True):
            values = jnp.asarray(images, jnp.float64)
            return np.asarray(jax.image.resize(values, (len(images), *size, 3), method, antialias=antialias))

    return resize


def by_pillow(method: Image.Resampling):
    def resize(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        return np.stack([np.asarray(Image.fromarray(image).resize(size[::-1], method), float) for image in images])

    return resize


# Nearest neighbours of Pillow and of JAX are those by centres; torch has both kinds.
RESIZES = {
    "torch, no antialiasing": (by_torch(mode="bilinear"), "bilinearly without antialiasing"),
    "torch, corners": (by_torch(mode="bilinear", align_corners=True), "bilinearly with aligned corners"),
    "torch, nearest": (by_torch(mode="nearest"), "to the nearest pixel instead"),
    "torch, nearest-exact": (by_torch(mode="nearest-exact"), "to the nearest pixel by centres"),
    "torch, bicubic": (by_torch(mode="bicubic"), "by the cubic of PyTorch and OpenCV"),
    "torch, area": (by_torch(mode="area"), "by the mean of areas"),
    "torch, bicubic with antialiasing": (by_torch(mode="bicubic", antialias=True), "resized bicubically instead"),
    "JAX, no antialiasing": (by_jax("linear", False), "bilinearly without antialiasing"),
    "JAX, cubic": (by_jax("cubic"), "resized bicubically instead"),
    "JAX, cubic without antialiasing": (by_jax("cubic", False), "bicubically without antialiasing instead"),
    "JAX, nearest": (by_jax("nearest"), "to the nearest pixel by centres"),
    "JAX, Lanczos": (by_jax("lanczos3"), "by Lanczos's filter of width 3"),
    "Pillow, bilinear": (by_pillow(Image.Resampling.BILINEAR), "bilinearly with antialiasing and rounded to whole"),
    "Pillow, bicubic": (by_pillow(Image.Resampling.BICUBIC), "bicubically and rounded to whole bytes"),
    "Pillow, Lanczos": (by_pillow(Image.Resampling.LANCZOS), "by Lanczos's filter of width 3 and rounded"),
}  # fmt: skip


@cache
def resized_reference(precision: str) -> Recording:
    return reference("torch", CONFIG, weights_of(CONFIG)).record(images(CONFIG, (29, 31)), precision)


@pytest.mark.parametrize("name", RESIZES)
@PRECISIONS
def test_another_resize_is_found(name, precision):
    resize, cause = RESIZES[name]
    framework = "jax" if name.startswith("JAX") else "torch"
    inputs = images(CONFIG, (29, 31))
    good = resized_reference(precision)
    given = resize(inputs.images, CONFIG.image_size) / 127.5 - 1
    odd = port(framework, CONFIG, {"pixels": "given"}, given=given).record(inputs, precision)
    assert_found(compare(good, odd), "stem", cause, "B")
    assert_found(compare(odd, good), "stem", cause, "A")


# ---- Weights that were read wrongly, and sizes that were mistaken for others.


def moved(order: list[int]) -> dict[str, np.ndarray]:
    """The weights of DEEP with block i's in place of the one at i's place in the order."""
    arrays = dict(weights_of(DEEP))
    for name in weights_of(DEEP):
        if name.startswith("blocks."):
            _, number, rest = name.split(".", 2)
            arrays[name] = weights_of(DEEP)[f"blocks.{order[int(number)]}.{rest}"]
    return arrays


READ_WRONGLY = {
    "as text": (moved(sorted(range(12), key=str)), "2", "weights in the order of their names as text (10 before 2)"),
    "backwards": (moved(list(range(12))[::-1]), "0", "weights from the last to the first"),
    "one for all": (moved([0] * 12), "1", "block 0 in every block"),
    "one for another": (moved([0, 1, 2, 3, 5, *range(5, 12)]), "4", "block 4 has the weights of "),
    "two exchanged": (moved([0, 2, 1, *range(3, 12)]), "1", "in the order 0, 2, 1, 3"),
}


@pytest.mark.parametrize("name", READ_WRONGLY)
@FRAMEWORKS
def test_weights_of_blocks_read_wrongly_are_found(framework, name):
    weights, block, cause = READ_WRONGLY[name]
    good = reference_recording(OTHER[framework], DEEP, "float64", False)
    odd = port(framework, DEEP, {}, weights).record(images(DEEP), "float64")
    assert_found(compare(good, odd), f"blocks.{block}.token_norm", cause, "B")
    assert_found(compare(odd, good), f"blocks.{block}.token_norm", cause, "A")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@FRAMEWORKS
def test_weights_stored_in_lower_precision_are_found(framework, dtype):
    weights = {
        name: torch.from_numpy(array).to(getattr(torch, dtype)).float().numpy()
        for name, array in weights_of(CONFIG).items()
    }
    good = reference_recording(OTHER[framework], CONFIG, "float64", False)
    odd = port(framework, CONFIG, {}, weights).record(images(CONFIG), "float64")
    for pair in ((good, odd), (odd, good)):
        assert f"rounded to {dtype}" in compare(*pair).cause or f"rounding to {dtype}" in compare(*pair).cause


WRONG_SIZES = {
    "the token width taken for the number of patches": (
        {"tokens_mlp_dim": CONFIG.num_patches},
        "token mixing is as wide as it has patches",
    ),
    "the widths exchanged": (
        {"tokens_mlp_dim": CONFIG.channels_mlp_dim, "channels_mlp_dim": CONFIG.tokens_mlp_dim},
        "The widths of the two MLPs are exchanged",
    ),
    "the expansion on the wrong axis": ({"tokens_mlp_dim": 48}, "The expansion is on the wrong axis: "),
}


@pytest.mark.parametrize("name", WRONG_SIZES)
@PRECISIONS
@FRAMEWORKS
def test_sizes_mistaken_for_others_are_found(framework, precision, name):
    """A port that was built with other sizes, and loaded whatever fitted."""
    changes, cause = WRONG_SIZES[name]
    right = (
        replace(CONFIG, tokens_mlp_dim=30) if "expansion" in name else CONFIG
    )  # twice its patches, twice its channels
    wrong = replace(right, **changes)
    weights = {
        name: weights_of(right)[name] if weights_of(right)[name].shape == array.shape else array
        for name, array in weights_of(wrong).items()
    }
    good = reference_recording(OTHER[framework], right, precision, False)
    odd = port(framework, wrong, {}, weights).record(images(wrong), precision)
    assert_found(compare(good, odd), "blocks.0.token_mixing.fc1", cause, "B")
    assert_found(compare(odd, good), "blocks.0.token_mixing.fc1", cause, "A")


# ---- A port in Flax NNX.


class TanhFeedForward(nnx_port.FeedForward):
    def __call__(self, x):
        return self.narrow(self.dropout(nnx.gelu(self.wide(x))))


class SwappedLayer(nnx_port.Layer):
    def __call__(self, x):
        x = x + self.features_ff(self.features_ln(x))
        return x + self.tokens_ff(self.tokens_ln(x).swapaxes(1, 2)).swapaxes(1, 2)


class UnusedNormLayer(nnx_port.Layer):
    def __call__(self, x):
        x = x + self.tokens_ff(x.swapaxes(1, 2)).swapaxes(1, 2)
        return x + self.features_ff(self.features_ln(x))


class NoResidualLayer(nnx_port.Layer):
    def __call__(self, x):
        x = x + self.tokens_ff(self.tokens_ln(x).swapaxes(1, 2)).swapaxes(1, 2)
        return self.features_ff(self.features_ln(x))


class MaximumNet(nnx_port.Net):
    def __call__(self, images):
        x = self.embed(images)
        x = x.reshape(len(x), -1, x.shape[-1])
        for layer in self.layers:
            x = layer(x)
        return self.classifier(self.out_ln(x).max(axis=1))


NNX_FAULTS = {
    "tanh GELU": (lambda net: net.layers[1].features_ff, TanhFeedForward, f"{CHANNEL}.gelu", "the tanh form of GELU"),
    "mixers": (lambda net: net.layers[1], SwappedLayer, "blocks.1.token_norm", "the order of the two mixers exchanged"),
    "norm": (lambda net: net.layers[1], UnusedNormLayer, "blocks.1.token_norm", "the norm left out"),
    "residual": (lambda net: net.layers[1], NoResidualLayer, CHANNEL, "the residual connection left out"),
    "maximum": (lambda net: net, MaximumNet, "pool", "the maximum over the patches"),
}


@pytest.mark.parametrize("name", NNX_FAULTS)
@PRECISIONS
def test_a_fault_in_nnx_is_found(name, precision):
    part, faulty, layer, cause = NNX_FAULTS[name]
    config = replace(CONFIG, num_blocks=2)
    net = nnx_port.build()
    part(net).__class__ = faulty
    good = reference_recording("torch", config, precision, False)
    odd = subject("jax", net, config, weights_of(config)).record(images(config), precision)
    assert_found(compare(good, odd), layer, cause, "B")
    assert_found(compare(odd, good), layer, cause, "A")


# ---- Through the script.

BUILD = """
from comparison.faults import CONFIG
from comparison.ports import faulty_linen, faulty_torch

FAULTS = {"pile.1.along.branch.bend": "tanh", "tail": "maximum"}


def in_torch():
    return faulty_torch.Port(CONFIG, FAULTS)


def in_jax():
    return faulty_linen.build(CONFIG, FAULTS)
"""


@FRAMEWORKS
def test_two_faults_are_found_through_the_script(script, tmp_path, framework):
    (tmp_path / "port_of_mine.py").write_text(BUILD)
    save_weights(tmp_path / "weights", ModelWeights(CONFIG, dict(weights_of(CONFIG)), "canonical"), "canonical")
    model = f"{OTHER[framework]}:{tmp_path / 'weights'}"
    mine = f"{framework}:{tmp_path / 'port_of_mine.py'}:in_{framework}"
    for sides in ((model, mine), (mine, model)):
        code, out, _ = script(
            "compare", *sides, "--weights", tmp_path / "weights", "--dataset", "digits", "--images", 3, "--isolate"
        )
        assert code == 1
        assert f"They part at {CHANNEL}.gelu: " in out
        text = " ".join(out.split())
        assert (
            f"values are {'B' if sides[0] == mine else 'A'}'s with the tanh form of GELU instead of the exact" in text
        )
        assert f"values are {'B' if sides[0] == mine else 'A'}'s with the maximum over the patches" in text


# ---- No false alarm.


# Every size makes JAX compile every operation anew, so that most of its ports are left to the slow tests.
@pytest.mark.parametrize(
    ("framework", "seed"),
    [("torch", seed) for seed in range(100)]
    + [pytest.param("jax", seed, marks=[pytest.mark.slow] if seed >= 6 else []) for seed in range(100)],
)
def test_a_random_correct_port_raises_no_alarm(framework, seed):
    """Random sizes, names, layouts and prefixes; in float64 and float32, every other time with gradients."""
    random = np.random.default_rng(seed)
    precision, gradients = ("float64", "float32")[seed % 2], seed % 4 < 2
    config = random_ports.random_config(random)
    weights = random_weights(config, seed)
    odd = subject(framework, random_ports.BUILDERS[framework](config, random), config, weights)
    inputs = images(config, count=3)
    right = odd.record(inputs, precision, gradients)
    good = reference("torch", right.config, weights).record(inputs, precision, gradients)
    for pair in ((good, right), (right, good)):
        comparison = compare(*pair)
        assert comparison.agrees, (comparison.first_past_bound, comparison.cause)
        assert not comparison.observations
