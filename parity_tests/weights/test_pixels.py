"""Weights made for pixels of other scales: the same function here, on the same bytes."""

import json

import numpy as np
import pytest
import torch
from timm.models.mlp_mixer import MlpMixer

import mixer_jax.model
import mixer_torch.model
from mixer_common.comparison.differences import relative_error
from mixer_common.errors import UserError
from mixer_common.weights.files import load_weights
from mixer_common.weights.pixels import PIXEL_SCALES, PixelScale, describe_scale, stated_scale

SCALES = {**PIXEL_SCALES, "own": PixelScale((0.1, 0.5, 0.9), (0.2, 0.5, 1.0))}


@pytest.fixture
def model() -> MlpMixer:
    torch.manual_seed(0)
    model = MlpMixer(img_size=32, patch_size=8, num_blocks=2, embed_dim=32, num_classes=5).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    return model


def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8)


def their_logits(model: torch.nn.Module, scale: PixelScale, dtype: torch.dtype = torch.float32) -> np.ndarray:
    mean, std = (torch.tensor(values, dtype=dtype).reshape(1, 3, 1, 1) for values in scale)
    with torch.no_grad():
        pixels = torch.from_numpy(images()).permute(0, 3, 1, 2).to(dtype) / 255
        return model.to(dtype)((pixels - mean) / std).numpy()


def our_logits(weights, dtype: str = "float32") -> list[np.ndarray]:
    pixels = (images().astype(dtype) / 255) * 2 - 1
    arrays = {name: array.astype(dtype) for name, array in weights.arrays.items()}
    return [
        np.asarray(mixer_jax.model.build_model(weights.config, arrays)(pixels)),
        mixer_torch.model.build_model(weights.config, arrays)(torch.from_numpy(pixels)).detach().numpy(),
    ]


@pytest.mark.parametrize("name", SCALES)
def test_the_stated_scale_gives_the_model_s_own_logits(tmp_path, model, precision, name):
    dtype = getattr(torch, precision)
    torch.save(model.to(dtype).state_dict(), tmp_path / "model.pth")
    theirs = their_logits(model, SCALES[name], dtype)
    weights = load_weights(tmp_path / "model.pth", pixels=SCALES[name])
    assert "pixels" not in weights.assumed
    for ours in our_logits(weights, precision):
        assert relative_error(ours, theirs) < (1e-5 if precision == "float32" else 1e-13)
    assumed = load_weights(tmp_path / "model.pth")
    assert "pixels" in assumed.assumed
    wrong = relative_error(our_logits(assumed, precision)[0], theirs)
    assert (wrong < 1e-5) == (name == "inception")
    stem, own = (each.arrays["stem.weight"] for each in (weights, assumed))
    assert stem.dtype == own.dtype


@pytest.mark.parametrize("layout", ["timm", "timm's older", "Hugging Face's"])
def test_a_folder_s_config_is_believed(tmp_path, model, layout):
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    mean, std = (list(values) for values in PIXEL_SCALES["imagenet"])
    inner = {"mean": mean, "std": std, "input_size": [3, 16, 64]}
    config, name = {
        "timm": ({"architecture": "mixer", "num_classes": 5, "pretrained_cfg": inner}, "config.json"),
        "timm's older": ({"num_classes": 5, **inner}, "config.json"),
        "Hugging Face's": ({"image_mean": mean, "image_std": std}, "preprocessor_config.json"),
    }[layout]
    (tmp_path / name).write_text(json.dumps(config))
    weights = load_weights(tmp_path)
    theirs = their_logits(model, PIXEL_SCALES["imagenet"])
    assert weights.notes == (
        f"pixels of mean 0.485 0.456 0.406, std 0.229 0.224 0.225 (imagenet), of {tmp_path / name}",
    )
    assert weights.config.image_size == ((32, 32) if layout == "Hugging Face's" else (16, 64))
    square = load_weights(tmp_path, image_size=32)
    assert all(relative_error(ours, theirs) < 1e-5 for ours in our_logits(square))
    stated = load_weights(tmp_path, pixels=PIXEL_SCALES["none"], image_size=32)
    assert relative_error(our_logits(stated)[0], their_logits(model, PIXEL_SCALES["none"])) < 1e-5
    (tmp_path / name).write_text(
        json.dumps({"mean": [1, 2], "std": [0.5, 0.5, 0.5]} | {"image_mean": 3, "image_std": 4})
    )
    with pytest.raises(UserError, match=f"{name}: the mean is .* but expected three numbers each"):
        load_weights(tmp_path)


@pytest.mark.parametrize("unit", [1, 255])
@pytest.mark.parametrize("place", ["", "normalize."])
def test_a_model_s_own_buffers_tell_the_scale(tmp_path, model, unit, place):
    mean, std = (unit * torch.tensor(values).reshape(3, 1, 1) for values in PIXEL_SCALES["cifar10"])
    prefix = "1." if place else ""
    state = {prefix + name: value for name, value in model.state_dict().items()}
    torch.save({f"{place}mean": mean, f"{place}std": std} | state, tmp_path / "model.pth")
    weights = load_weights(tmp_path / "model.pth")
    theirs = their_logits(model, PIXEL_SCALES["cifar10"])
    assert all(relative_error(ours, theirs) < 1e-5 for ours in our_logits(weights))
    assert weights.notes[0].endswith(f"of the file's own {place}mean and {place}std")


def test_the_script_states_the_scale(script, tmp_path, model):
    torch.save(model.state_dict(), tmp_path / "model.pth")
    numbers = [["--pixel-mean", 0.485, 0.456, 0.406, "--pixel-std", 0.229, 0.224, 0.225], ["--pixel-mean", "imagenet"]]
    for i, options in enumerate(numbers):
        code, stdout, _ = script("convert", tmp_path / "model.pth", tmp_path / f"{i}.npz", "--to", "npz", *options)
        assert code == 0
        assert "pixels" not in stdout
        found = load_weights(tmp_path / f"{i}.npz", gelu="exact")
        assert relative_error(our_logits(found)[0], their_logits(model, PIXEL_SCALES["imagenet"])) < 1e-5
    code, stdout, _ = script("convert", tmp_path / "model.pth", tmp_path / "b.npz", "--to", "npz")
    assert "pixels -1..1, which the file does not tell; change it with" in stdout
    code, stdout, stderr = script(
        "train_torch", "--init-from", tmp_path / "model.pth", "--pixel-mean", "none", "--dataset", "digits",
        "--steps", 1, "--learning-rate", 1e-9, "--image-size", 32, "--out", tmp_path / "run",
    )  # fmt: skip
    assert code == 0, stderr
    trained = load_weights(tmp_path / "run").arrays["stem.weight"]
    assert np.allclose(trained, model.state_dict()["stem.proj.weight"].numpy() / 2, atol=1e-5)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (["0.5", "0.5"], ["1", "1", "1"], "expected three numbers each"),
        (["123.7", "116.3", "103.5"], ["58", "57", "57"], "of pixels from 0 to 1, or one of inception, imagenet"),
        (["a", "b", "c"], ["1", "1", "1"], "the mean is a b c"),
        (["0", "0", "0"], ["0", "1", "1"], "expected three numbers each"),
        (["nan", "0", "0"], ["1", "1", "1"], "expected three numbers each"),
        (["0", "0", "0"], None, "--pixel-mean is stated without --pixel-std: state both"),
        (None, ["1", "1", "1"], "--pixel-std is stated without --pixel-mean: state both"),
        (["imagenet"], ["cifar10"], "do not belong together"),
        (["imagenet"], ["1", "1", "1"], "do not belong together"),
        (["imagenet", "0"], None, "stands for all colours"),
    ],
)
def test_no_scale(mean, std, message):
    with pytest.raises(UserError, match=message):
        stated_scale(mean, std)


def test_names_of_scales():
    assert stated_scale(None, None) is None
    assert stated_scale(["none"], None) == stated_scale(None, ["none"]) == stated_scale(["0"] * 3, ["1"] * 3)
    assert describe_scale(PIXEL_SCALES["inception"]) == "pixels -1..1 (inception)"
