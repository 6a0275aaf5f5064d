"""The Python API of both packages: the same models, the same predictions, the same sentences for bad input."""

import ast
import doctest
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from flax import nnx
from helpers import SMALL, example, identical, random_weights

import mixer_jax
import mixer_jax.api
import mixer_torch
import mixer_torch.api
from mixer_common.comparison.bounds import forward_bounds
from mixer_common.comparison.differences import relative_error
from mixer_common.config.presets import MODELS
from mixer_common.errors import UserError
from mixer_common.plan.initial import initial_weights
from mixer_common.runs import checkpoint
from mixer_common.weights.canonical import ModelWeights
from mixer_common.weights.files import load_weights, save_weights
from mixer_common.weights.pixels import PIXEL_SCALES

ROOT = Path(__file__).parents[2]
PACKAGES = pytest.mark.parametrize("package", [mixer_jax, mixer_torch], ids=["jax", "torch"])
IMAGES = np.random.default_rng(0).integers(0, 256, (3, *SMALL.image_size, 3), dtype=np.uint8)


def numbers(values) -> np.ndarray:
    return values.detach().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


@PACKAGES
def test_the_examples_in_the_docstrings_run(package):
    result = doctest.testmod(package.api)
    assert result.failed == 0
    documented = [
        name for name in package.__all__ if f">>> import {package.__name__}" in getattr(package, name).__doc__
    ]
    assert documented == ["create", "load", "predict", "record", "save", "to_pixels", "weights"]
    assert result.attempted >= len(documented)


def test_both_packages_offer_the_same():
    assert mixer_jax.__all__ == mixer_torch.__all__
    assert all(
        (ROOT / package / "py.typed").is_file()
        for package in ("mixer_bench", "mixer_common", "mixer_jax", "mixer_torch")
    )


def test_a_live_model_crosses_in_one_line(precision):
    arrays = {name: array.astype(precision) for name, array in random_weights(SMALL).items()}
    model = mixer_torch.create(SMALL, weights=arrays)
    twin = mixer_jax.create(model.config, weights=mixer_torch.weights(model))
    back = mixer_torch.create(twin.config, weights=mixer_jax.weights(twin))
    assert model.config == twin.config == back.config == SMALL
    assert all(identical(mixer_torch.weights(one), arrays) for one in (model, back))
    assert identical(mixer_jax.weights(twin), arrays)
    predictions = [mixer_torch.predict(model, IMAGES), mixer_jax.predict(twin, IMAGES)]
    assert np.abs(predictions[0] - predictions[1]).max() <= {"float32": 1e-5, "float64": 1e-13}[precision]
    assert (mixer_torch.predict(back, IMAGES) == predictions[0]).all()


@PACKAGES
@pytest.mark.parametrize(
    "convert",
    [
        lambda array: array,
        lambda array: array.T.copy().T,
        torch.from_numpy,
        lambda array: torch.nn.Parameter(torch.from_numpy(array)),
        jnp.asarray,
        lambda array: nnx.Param(jnp.asarray(array)),
    ],
    ids=["numpy", "transposed", "tensor", "parameter", "jax", "nnx"],
)
def test_weights_may_be_arrays_of_any_framework(package, convert):
    arrays = random_weights(SMALL)
    shuffled = dict(reversed(arrays.items()))
    model = package.create(SMALL, weights={name: convert(array) for name, array in shuffled.items()})
    assert identical(package.weights(model), arrays)


@PACKAGES
@pytest.mark.parametrize(
    "convert",
    [
        lambda array: array.astype(ml_dtypes.bfloat16),
        lambda array: torch.nn.Parameter(torch.from_numpy(array).bfloat16()),
        lambda array: jnp.asarray(array, jnp.bfloat16),
        lambda array: array.astype(np.float16),
    ],
    ids=["numpy", "parameter", "jax", "float16"],
)
def test_numbers_of_16_bits_become_float32(package, convert):
    arrays = {name: convert(array) for name, array in random_weights(SMALL).items()}
    for name, array in package.weights(package.create(SMALL, weights=arrays)).items():
        assert array.dtype == np.float32
        given = arrays[name]
        assert (
            array == (given.float().detach().numpy() if hasattr(given, "float") else given.astype(np.float32))
        ).all()


def test_a_live_model_in_bfloat16_predicts_and_crosses():
    arrays = random_weights(SMALL)
    in_torch = mixer_torch.create(SMALL, weights=arrays).bfloat16()
    graphdef, state = nnx.split(mixer_jax.create(SMALL, weights=arrays))
    in_jax = nnx.merge(graphdef, jax.tree.map(lambda p: p.astype(jnp.bfloat16), state))
    assert identical(mixer_torch.weights(in_torch), mixer_jax.weights(in_jax))
    bound = 8 * forward_bounds(SMALL, "bfloat16")["head"]
    whole = mixer_torch.predict(mixer_torch.create(SMALL, weights=arrays), IMAGES)
    for predictions in (mixer_torch.predict(in_torch, IMAGES), mixer_jax.predict(in_jax, IMAGES)):
        assert 0 < np.abs(predictions - whole).max() <= bound


@PACKAGES
def test_weights_are_copies(package):
    arrays = random_weights(SMALL)
    model = package.create(SMALL, weights=arrays)
    arrays["stem.bias"][:] = 1
    package.weights(model)["stem.bias"][:] = 2
    assert identical(package.weights(model), random_weights(SMALL))


@PACKAGES
def test_the_seed_draws_the_weights_and_details_change_the_config(package):
    model = package.create("nano", num_classes=3, seed=5, image_size=(40, 32), gelu="exact")
    assert model.config == replace(MODELS["nano"], num_classes=3, image_size=(40, 32), gelu="exact")
    assert identical(package.weights(model), initial_weights(model.config, 5))


def test_pixels_logits_and_probabilities_are_equal():
    arrays = random_weights(SMALL)
    models = [mixer_jax.create(SMALL, weights=arrays), mixer_torch.create(SMALL, weights=arrays)]
    images = np.random.default_rng(1).integers(0, 256, (4, 30, 21, 3), dtype=np.uint8)
    ours, theirs = (package.to_pixels(images) for package in (mixer_jax, mixer_torch))
    assert numbers(ours).tobytes() == numbers(theirs).tobytes()
    assert (numbers(ours) == np.float32(1 / 255) * (2 * images.astype(np.float32) - 255)).all()
    ours, theirs = (package.to_pixels(images, SMALL.image_size) for package in (mixer_jax, mixer_torch))
    assert ours.shape == theirs.shape == (4, *SMALL.image_size, 3)
    assert np.abs(numbers(ours) - numbers(theirs)).max() < 1e-6
    logits = [numbers(model(pixels)) for model, pixels in zip(models, (ours, theirs), strict=True)]
    assert relative_error(logits[0], logits[1]) <= forward_bounds(SMALL, "float32")["head"]
    probabilities = np.exp(logits[1].astype(np.float64))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    for package, model in zip((mixer_jax, mixer_torch), models, strict=True):
        predicted = package.predict(model, images)
        assert predicted.dtype == np.float64
        assert np.abs(predicted - probabilities).max() < 1e-5
        assert package.predict(model, images[:0]).shape == (0, SMALL.num_classes)


@PACKAGES
def test_images_may_be_tensors_of_either_framework(package):
    model = package.create(SMALL, weights=random_weights(SMALL))
    expected = package.predict(model, IMAGES)
    for images in (torch.from_numpy(IMAGES), jnp.asarray(IMAGES), np.asfortranarray(IMAGES), IMAGES[::-1][::-1]):
        assert (package.predict(model, images) == expected).all()
        assert (numbers(package.to_pixels(images)) == numbers(package.to_pixels(IMAGES))).all()


@PACKAGES
@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("model", "canonical"),
        ("model.npz", "npz"),
        ("model.msgpack", "msgpack"),
        ("model.safetensors", "timm"),
        ("model.pth", "lucidrains"),
    ],
)
def test_every_format_is_saved_and_loaded(package, name, format, tmp_path):
    model = package.create(SMALL, weights=random_weights(SMALL))
    path = tmp_path / name
    package.save(model, path, format)
    details = {"gelu": SMALL.gelu, "layer_norm_epsilon": SMALL.layer_norm_epsilon, "image_size": SMALL.image_size}
    for other in (mixer_jax, mixer_torch):
        for given in (path, str(path)):
            loaded = other.load(given, **details)
            assert identical(other.weights(loaded), random_weights(SMALL))
            assert replace(loaded.config, init=SMALL.init) == SMALL


@PACKAGES
def test_a_file_of_16_bits_is_loaded_as_float32(package, tmp_path):
    halves = {name: array.astype(np.float16) for name, array in random_weights(SMALL).items()}
    save_weights(tmp_path / "half.npz", ModelWeights(SMALL, halves, "canonical"), "npz")
    loaded = package.weights(package.load(tmp_path / "half.npz", image_size=SMALL.image_size))
    assert identical(loaded, {name: array.astype(np.float32) for name, array in halves.items()})


@PACKAGES
def test_runs_and_checkpoints_are_loaded_with_what_they_tell(package, tmp_path):
    state = example(dtype="float32")
    checkpoint.save(tmp_path / "run" / "checkpoint", state)
    for path in (tmp_path / "run", str(tmp_path / "run" / "checkpoint")):
        model = package.load(path)
        assert model.config == state.config.model
        assert identical(package.weights(model), dict(state.weights))
    assert package.load(tmp_path / "run", gelu="tanh").config.gelu == "tanh"


@PACKAGES
def test_what_a_file_does_not_tell_is_stated_as_in_the_scripts(package, tmp_path):
    trained, average = (random_weights(SMALL, seed) for seed in (0, 1))
    saved = {f"net.{name}": torch.from_numpy(array) for name, array in trained.items()}
    saved |= {f"ema.{name}": torch.from_numpy(array) for name, array in average.items()}
    torch.save(saved, tmp_path / "both.pth")
    for prefer, arrays in (("model", trained), ("ema", average), ("net", trained), (None, average)):
        loaded = package.load(tmp_path / "both.pth", prefer=prefer, image_size=SMALL.image_size)
        assert identical(package.weights(loaded), arrays)
    package.save(package.create(SMALL, weights=trained), tmp_path / "a.npz", "npz")
    half = {"pixels": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))}
    for pixels in ("imagenet", PIXEL_SCALES["imagenet"], [(0.485, 0.456, 0.406), (0.229, 0.224, 0.225)]):
        folded = package.weights(package.load(tmp_path / "a.npz", pixels=pixels))
        expected = load_weights(tmp_path / "a.npz", pixels=PIXEL_SCALES["imagenet"])
        assert identical(folded, expected.arrays)
    assert identical(package.weights(package.load(tmp_path / "a.npz", **half)), trained)
    # Two norms exchanged, as nothing in the file tells.
    names = {
        "blocks.{i}.token_norm.weight": "MixerBlock_{i}/LayerNorm_1/scale",
        "blocks.{i}.channel_norm.weight": {"name": "MixerBlock_{i}/LayerNorm_0/scale", "layout": "o"},
    }
    (tmp_path / "names.toml").write_text(
        '"blocks.{i}.token_norm.weight" = "MixerBlock_{i}/LayerNorm_1/scale"\n'
        '"blocks.{i}.channel_norm.weight" = {name = "MixerBlock_{i}/LayerNorm_0/scale", layout = "o"}\n'
    )
    for given in (names, tmp_path / "names.toml", str(tmp_path / "names.toml")):
        exchanged = package.weights(package.load(tmp_path / "a.npz", names=given))
        assert (exchanged["blocks.0.token_norm.weight"] == trained["blocks.0.channel_norm.weight"]).all()
        assert (exchanged["blocks.1.channel_norm.bias"] == trained["blocks.1.token_norm.bias"]).all()


@PACKAGES
def test_nothing_is_replaced_unasked(package, tmp_path):
    package.save(package.create("tiny"), tmp_path / "model")
    with pytest.raises(UserError, match=r"exists already: replace it with overwrite=True, or choose"):
        package.save(package.create("tiny", seed=1), tmp_path / "model")
    package.save(package.create("tiny", seed=2), tmp_path / "model", overwrite=True)
    assert identical(package.weights(package.load(tmp_path / "model")), initial_weights(MODELS["tiny"], 2))


ONES = np.ones((2, 32, 32, 3), np.uint8)
SHAPES = [
    (
        ONES.transpose(0, 3, 1, 2),
        r"images have shape \(2, 3, 32, 32\), but must have \(B, H, W, 3\): move the channels",
    ),
    (ONES[0], r"images have shape \(32, 32, 3\), but must have \(B, H, W, 3\): give even a single one an axis"),
    (ONES[..., :1], r"images have shape \(2, 32, 32, 1\), but must have \(B, H, W, 3\): give every pixel its red"),
    (ONES.astype(np.float32), "images hold float32, but must be bytes from 0 to 255"),
    ("cat.png", "images are of type str, but must be an array of uint8"),
]


@PACKAGES
@pytest.mark.parametrize(("images", "sentence"), SHAPES)
def test_bad_images_are_one_sentence(package, images, sentence):
    for use in (package.to_pixels, lambda images: package.predict(package.create("tiny"), images)):
        with pytest.raises(UserError, match=sentence):
            use(images)


@PACKAGES
@pytest.mark.parametrize(
    ("pixels", "sentence"),
    [
        (np.ones((2, 3, 32, 32), np.float32), r"pixels have shape \(2, 3, 32, 32\), .* move the channels"),
        (np.ones((2, 32, 32, 4), np.float32), r"pixels have shape \(2, 32, 32, 4\), .* its red, green and blue"),
        (
            np.ones((2, 28, 32, 3), np.float32),
            r"must have \(B, 32, 32, 3\): resize them with to_pixels\(images, \(32, 32\)\)",
        ),
        (np.ones((2, 32, 32, 3), np.uint8), "pixels hold whole numbers, .* make them of images with to_pixels"),
    ],
)
def test_bad_pixels_are_one_sentence(package, pixels, sentence):
    pixels = jnp.asarray(pixels) if package is mixer_jax else torch.from_numpy(pixels)
    with pytest.raises(UserError, match=sentence):
        package.create("tiny")(pixels)


@PACKAGES
@pytest.mark.parametrize(
    ("model", "details", "sentence"),
    [
        ("tini", {}, r"unknown model 'tini' \(did you mean tiny\?\): choose one of tutorial, tiny"),
        (3, {}, "model is 3, but must be a ModelConfig or one of tutorial, tiny"),
        ("tiny", {"classes": 3}, "unknown field of ModelConfig 'classes'.*: choose one of image_size, "),
        ("tiny", {"gelu": "relu"}, "gelu is 'relu': choose one of exact, tanh"),
        ("tiny", {"num_classes": 0}, "num_classes is 0, but must be at least 1"),
        ("tiny", {"seed": -1}, "seed is -1, but must be a whole number"),
        ("tiny", {"seed": 0.5}, "seed is 0.5, but must be a whole number"),
        ("tiny", {"device": "abacus"}, "device is 'abacus'"),
        ("tiny", {"weights": [1]}, "weights are of type list, but must be a dict"),
        ("tiny", {"weights": {}}, r"the set of weights does not fit the model: stem\.weight is missing"),
        (
            "tiny",
            {"num_classes": 3, "weights": initial_weights(MODELS["tiny"], 0)},
            r"head\.bias has shape \(10,\) instead of \(3,\)",
        ),
        (
            "tiny",
            {"weights": {n: a.astype(int) for n, a in initial_weights(MODELS["tiny"], 0).items()}},
            r"stem\.weight holds int64",
        ),
    ],
)
def test_bad_arguments_of_create_are_one_sentence(package, model, details, sentence):
    with pytest.raises(UserError, match=sentence):
        package.create(model, **details)


@PACKAGES
def test_bad_files_and_details_are_one_sentence(package, tmp_path):
    package.save(package.create("tiny"), tmp_path / "tiny.npz", "npz")
    for path, details, sentence in (
        (tmp_path / "none.npz", {}, "none.npz does not exist"),
        (tmp_path / "tiny.npz", {"activation": "tanh"}, "unknown detail of weights 'activation': choose one of gelu, "),
        (tmp_path / "tiny.npz", {"gelu": "relu"}, "gelu is 'relu': choose one of"),
        (tmp_path / "tiny.npz", {"image_size": 64}, "mixes 64 patches of 4 pixels"),
        (tmp_path / "tiny.npz", {"pixels": "vgg"}, "unknown scale of pixels 'vgg': choose one of inception, "),
        (tmp_path / "tiny.npz", {"pixels": 0.5}, "pixels: the mean is 0.5 and the deviation 0.5, but expected three"),
        (tmp_path / "tiny.npz", {"names": {"stem": "a"}}, "names names 'stem', which is no array of a Mixer"),
        (tmp_path / "tiny.npz", {"prefer": "model", "names": {"head.weight": 3}}, "names: head.weight is 3"),
    ):
        with pytest.raises(UserError, match=sentence):
            package.load(path, **details)
    for path, format, sentence in (
        ("model.onnx", "onnx", "unknown format 'onnx': choose one of canonical, npz"),
        ("model.zip", "npz", "does not end in .npz"),
    ):
        with pytest.raises(UserError, match=sentence):
            package.save(package.create("tiny"), tmp_path / path, format)
    with pytest.raises(UserError, match=r"image_size is 'large', but must be height and width"):
        package.to_pixels(ONES, "large")


def test_a_model_of_another_precision_is_one_sentence():
    with pytest.raises(UserError, match="the model is in float16: convert it to one of float32, bfloat16, float64"):
        mixer_torch.predict(mixer_torch.create("tiny").half(), ONES)


ALONE = """
import sys
from importlib.abc import MetaPathFinder

class Blocked(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
{framework}
heavy = {{"matplotlib", "tyro", "rich", "tensorboardX", "tensorflow_datasets", "sklearn", "pyarrow", "jinja2"}}
before = set(sys.modules)
import {package} as package

def added():
    return heavy & {{name.split(".")[0] for name in set(sys.modules) - before}}

assert not added(), added()
import numpy as np
model = package.create("tiny", num_classes=5)
images = np.zeros((2, 32, 32, 3), np.uint8)
assert tuple(model(package.to_pixels(images)).shape) == (2, 5)
package.save(model, "model.npz", "npz")
again = package.load("model.npz", gelu="exact", layer_norm_epsilon=1e-5)
assert (package.predict(model, images) == package.predict(again, images)).all()
assert not added(), added()
try:
    package.load("model.pth")
except package.UserError as error:
    print(error)
assert not {blocked} & set(sys.modules)
"""


@pytest.mark.parametrize(
    ("package", "framework", "blocked"),
    [
        ("mixer_jax", "import flax.nnx, jax, optax", {"torch", "torchvision"}),
        ("mixer_torch", "import torch", {"jax", "jaxlib", "flax", "optax"}),
    ],
)
def test_each_package_works_without_the_other_framework(package, framework, blocked, tmp_path):
    """In a process of its own that cannot import it; what the framework itself imports does not count as heavy."""
    mixer_torch.save(mixer_torch.create("tiny"), tmp_path / "model.pth", "timm")
    program = ALONE.format(package=package, framework=framework, blocked=blocked)
    finished = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    expected = "PyTorch is needed here, but the package torch is not installed: install it with: pip install "
    assert finished.stdout.startswith(expected) == (package == "mixer_jax")
    assert finished.stdout.count("\n") == (package == "mixer_jax")


def test_the_example_crosses_in_ten_lines(capsys):
    path = ROOT / "examples" / "cross_in_ten_lines.py"
    runpy.run_path(str(path))
    assert float(capsys.readouterr().out.split()[-1]) < 1e-6
    lines = ast.parse(path.read_text()).body[1:]  # without the docstring
    assert len(lines) <= 10
