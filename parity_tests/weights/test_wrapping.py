"""What people wrap around weights: prefixes, keys, averaged weights, parts, folders, heads, numbers of other types."""

import argparse
import json
from dataclasses import replace

import flax.serialization
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
from helpers import SMALL, identical, model_weights, tree
from timm.models.mlp_mixer import MlpMixer
from torch.optim.swa_utils import AveragedModel

from mixer_common.config.model import ModelConfig
from mixer_common.errors import UserError
from mixer_common.weights.files import load_weights
from mixer_common.weights.formats import FORMATS, to_format
from mixer_common.weights.recognition import recognise_weights


def state_dict(seed: int = 0, format: str = "timm") -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in to_format(model_weights(SMALL, seed), format).items()}


def same(found, seed: int = 0) -> bool:
    return identical(found.arrays, model_weights(SMALL, seed).arrays)


PREFIXES = (
    "module.",
    "_orig_mod.",
    "model.",
    "net.",
    "backbone.",
    "1.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "m/x.",
)


@pytest.mark.parametrize("format", [format for format in FORMATS if format != "tutorial"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_any_prefix_is_stripped(format, prefix):
    arrays = {prefix + name: array for name, array in to_format(model_weights(SMALL), format).items()}
    found = recognise_weights(arrays, "here")
    assert same(found)
    assert found.format == ("npz" if format == "msgpack" else format)
    with pytest.raises(UserError, match=f"{prefix}stray is not expected"):
        recognise_weights(arrays | {f"{prefix}stray": np.zeros(1)}, "here")


def test_the_prefix_is_stripped_in_every_container(tmp_path):
    state = {f"module.{name}": value for name, value in state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pth")
    np.savez(tmp_path / "c.npz", **{name: value.numpy() for name, value in state.items()})
    flat = {f"model/{name}": array for name, array in to_format(model_weights(SMALL), "npz").items()}
    (tmp_path / "d.msgpack").write_bytes(flax.serialization.msgpack_serialize(tree(flat)))
    for name in ("a.safetensors", "b.pth", "c.npz", "d.msgpack"):
        assert same(load_weights(tmp_path / name)), name


@pytest.mark.parametrize(
    "key",
    ["state_dict", "model_state_dict", "model", "model_ema", "state_dict_ema", "ema", "net", "weights", "a/state_dict"],
)
def test_keys_around_a_state_dict(tmp_path, key):
    wrapped = {"epoch": 3, "best": 0.5, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}}
    inner = wrapped
    for part in key.split("/")[:-1]:
        inner = inner.setdefault(part, {})
    inner[key.split("/")[-1]] = state_dict()
    torch.save(wrapped, tmp_path / "training.pth")
    assert same(load_weights(tmp_path / "training.pth"))


def test_lightning_s_and_torch_s_own_wrappers(tmp_path):
    model = MlpMixer(
        img_size=(12, 20), patch_size=4, num_blocks=2, embed_dim=24, mlp_ratio=(7.5 / 24, 33.5 / 24), num_classes=5
    )
    model.load_state_dict(state_dict())
    states = {f"model.{name}": value for name, value in state_dict().items()}
    lightning = {
        "state_dict": states | {"accuracy.total": torch.zeros(1)},
        "epoch": 1,
        "optimizer_states": [{"state": {}}],
    }
    for wrapped in (lightning, AveragedModel(model).state_dict(), torch.compile(model).state_dict()):
        torch.save(wrapped, tmp_path / "wrapped.pth")
        assert same(load_weights(tmp_path / "wrapped.pth"))


@pytest.fixture
def timm_checkpoint(tmp_path):
    """As timm's CheckpointSaver writes it, its Namespace of arguments included."""
    path = tmp_path / "timm.pth"
    raw, averaged = state_dict(1), {f"module.{name}": value for name, value in state_dict(2).items()}
    torch.save({"epoch": 9, "args": argparse.Namespace(lr=0.1), "state_dict": raw, "state_dict_ema": averaged}, path)
    return path


def test_averaged_weights_are_read_as_timm_reads_them_and_the_others_are_named(timm_checkpoint):
    found = load_weights(timm_checkpoint)
    assert same(found, 2)
    (note,) = found.notes
    assert note.startswith("the averaged weights under state_dict_ema/module; the file also holds weights under ")
    assert note.endswith("state_dict (--prefer model)")
    assert same(load_weights(timm_checkpoint, prefer="ema"), 2)
    trained = load_weights(timm_checkpoint, prefer="model")
    assert same(trained, 1)
    assert "averaged weights under state_dict_ema/module (--prefer ema)" in trained.notes[0]
    assert same(load_weights(timm_checkpoint, prefer="state_dict"), 1)
    with pytest.raises(UserError, match=r"holds no weights under 'nets': --prefer takes ema, model, or one of 'state"):
        load_weights(timm_checkpoint, prefer="nets")
    with pytest.raises(UserError, match="holds no averaged weights, only weights without a prefix: leave --prefer out"):
        recognise_weights(state_dict(), "here", prefer="ema")


def test_the_scripts_take_the_preference(script, tmp_path, timm_checkpoint):
    for prefer, seed in (("ema", 2), ("model", 1)):
        code, stdout, _ = script(
            "convert", timm_checkpoint, tmp_path / "out.npz", "--to", "npz", "--prefer", prefer, "--overwrite"
        )
        assert code == 0
        assert "Read     the " in stdout
        assert same(load_weights(tmp_path / "out.npz"), seed)
    arguments = ("--dataset", "digits", "--steps", 1, "--image-size", 8, "--out", tmp_path / "run")
    code, stdout, stderr = script("train_torch", "--init-from", timm_checkpoint, "--prefer", "model", *arguments)
    assert code == 0, stderr
    assert "the weights under state_dict; the file also holds averaged weights" in stdout
    code, _, stderr = script("train_torch", "--prefer", "model", *arguments)
    assert code == 2
    assert "--init-from, which is left out" in stderr


def test_averaged_flax_parameters_and_an_optimizer_s_moments():
    raw, averaged, moments = (tree(to_format(model_weights(SMALL, seed), "npz")) for seed in (1, 2, 3))
    state = {
        "opt_state": {"0": {"mu": moments, "nu": moments}},
        "params": raw,
        "ema_params": averaged,
        "step": np.int32(3),
    }
    assert same(recognise_weights(state, "here"), 2)
    assert same(recognise_weights(state, "here", prefer="model"), 1)
    assert same(recognise_weights({"model": {"params": raw}, "step": np.zeros(1)}, "here"), 1)
    assert same(recognise_weights({"state": {"ema_params": averaged}}, "here"), 2)
    with pytest.raises(UserError, match="holds no MLP-Mixer in any format known"):
        recognise_weights({"opt_state": {"0": {"mu": moments}}}, "here")


@pytest.mark.parametrize("separator", ["/", "\\", "."])
@pytest.mark.parametrize("block", ["MixerBlock", "CheckpointMixerBlock"])
def test_flax_paths_with_other_separators_and_of_remat(separator, block):
    arrays = {
        f"params{separator}" + name.replace("/", separator).replace("MixerBlock", block): array
        for name, array in to_format(model_weights(SMALL), "npz").items()
    }
    assert same(recognise_weights(arrays, "here"))


def test_numbers_of_eight_bits_are_named(tmp_path):
    arrays = to_format(model_weights(SMALL), "npz")
    narrow = {name: np.asarray(jnp.asarray(array, jnp.float8_e4m3fn)) for name, array in arrays.items()}
    (tmp_path / "a.msgpack").write_bytes(flax.serialization.msgpack_serialize(tree(narrow)))
    with pytest.raises(
        UserError, match="holds numbers of the type float8_e4m3fn: expected floating-point numbers of 16"
    ):
        load_weights(tmp_path / "a.msgpack")
    state = {name: value.to(torch.float8_e4m3fn) for name, value in state_dict().items()}
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(UserError, match="Float8_e4m3fn"):
        load_weights(tmp_path / "a.pth")
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="F8_E4M3: expected floating-point numbers of 16 bits"):
        load_weights(tmp_path / "a.safetensors")


def test_half_shared_and_strided_tensors(tmp_path):
    state = state_dict()
    exact = {name: value.half().float() for name, value in state.items()}
    torch.save({name: value.half() for name, value in exact.items()}, tmp_path / "half.pth")
    half = load_weights(tmp_path / "half.pth")
    assert {array.dtype.name for array in half.arrays.values()} == {"float16"}
    wide = recognise_weights(exact, "here")
    assert all((half.arrays[name].astype(np.float32) == array).all() for name, array in wide.arrays.items())
    strided = {name: value.T.contiguous().T if value.ndim == 2 else value for name, value in state.items()}
    strided["norm.bias"] = strided["blocks.0.norm1.bias"] = torch.arange(48.0)[::2]
    assert not strided["head.weight"].is_contiguous()
    torch.save(strided, tmp_path / "strided.pth")
    found = load_weights(tmp_path / "strided.pth").arrays
    assert (found["head.weight"] == state["head.weight"].numpy()).all()
    assert (found["norm.bias"] == np.arange(0, 48, 2)).all()
    assert all(array.flags.c_contiguous for array in found.values())


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_parts_with_an_index(tmp_path, kind):
    state, names = state_dict(), list(state_dict())
    stem, save = ("model", safetensors.torch.save_file) if kind == "safetensors" else ("pytorch_model", torch.save)
    files = [f"{stem}-0000{i + 1}-of-00003.{kind}" for i in range(3)]
    places = {name: files[i % 3] for i, name in enumerate(names)}
    for file in files:
        save({name: state[name] for name in names if places[name] == file}, tmp_path / file)
    index = tmp_path / f"{stem}.{kind}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    reports = []
    for path in (tmp_path, index):
        assert same(load_weights(path, lambda *report: reports.append(report)))
    assert reports[-1][1] == reports[-1][2] == sum((tmp_path / file).stat().st_size for file in files)
    save({name: state[name] for name in names if places[name] == files[2] or name == names[0]}, tmp_path / files[2])
    with pytest.raises(UserError, match=f"names parts of which two hold {names[0]}, one of them {files[2]}: remove"):
        load_weights(tmp_path)
    save({name: state[name] for name in names if places[name] == files[2]}, tmp_path / files[2])
    index.write_text(json.dumps({"weight_map": places | {"stray": files[0]}}))
    with pytest.raises(UserError, match="names arrays that its files do not hold, stray"):
        load_weights(tmp_path)
    (tmp_path / files[1]).unlink()
    with pytest.raises(UserError, match=f"names {files[1]}, which is not beside it"):
        load_weights(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "../secret"}}))
    with pytest.raises(UserError, match="is no index of a model's parts"):
        load_weights(tmp_path)


def test_folders_of_others(tmp_path):
    torch.save(state_dict(), tmp_path / "pytorch_model.bin")
    assert same(load_weights(tmp_path))
    torch.save(state_dict(1), tmp_path / "best.pth")
    assert same(load_weights(tmp_path))
    (tmp_path / "pytorch_model.bin").unlink()
    assert same(load_weights(tmp_path), 1)
    torch.save(state_dict(2), tmp_path / "last.pth")
    with pytest.raises(UserError, match=r"several files of weights, best.pth, last.pth: name one"):
        load_weights(tmp_path)


@pytest.mark.parametrize("format", FORMATS)
def test_a_missing_head_is_one_of_zeros(format):
    config = SMALL if "mixer" in FORMATS[format].blocks else replace(SMALL, block="tutorial")
    arrays = to_format(model_weights(config), format)
    headless = dict(list(arrays.items())[:-2])
    found = recognise_weights(headless, "here", without_head=True)
    assert (found.has_head, found.config.num_classes, found.config.num_patches) == (False, 1, SMALL.num_patches)
    assert not found.arrays["head.weight"].any()
    body = dict(list(found.arrays.items())[:-2])
    assert identical(body, dict(list(model_weights(config).arrays.items())[:-2]))
    with pytest.raises(UserError, match=r"here holds the weights of a Mixer without its head .*--num-classes"):
        recognise_weights(headless, "here")
    half = dict(list(arrays.items())[:-1])
    with pytest.raises(UserError, match="is missing"):
        recognise_weights(half, "here", without_head=True)


def test_the_scripts_give_a_head(script, tmp_path):
    model = MlpMixer(img_size=32, patch_size=8, num_blocks=2, embed_dim=16, num_classes=0)
    torch.save(model.state_dict(), tmp_path / "nohead.pth")
    code, stdout, _ = script("convert", tmp_path / "nohead.pth", tmp_path / "o.npz", "--to", "npz", "--num-classes", 5)
    assert code == 0
    assert "head: zeros for 5 classes in place of none" in stdout
    assert load_weights(tmp_path / "o.npz").config.num_classes == 5
    code, _, stderr = script("convert", tmp_path / "nohead.pth", tmp_path / "p.npz", "--to", "npz")
    assert (code, stderr.count("\n")) == (2, 1)
    code, stdout, stderr = script(
        "train_torch",
        "--init-from",
        tmp_path / "nohead.pth",
        "--dataset",
        "digits",
        "--steps",
        1,
        "--out",
        tmp_path / "r",
    )
    assert code == 0, stderr
    assert "head: the file holds none; zeros for 10 classes" in stdout


def test_arrays_from_python():
    arrays = to_format(model_weights(SMALL), "npz")
    assert same(recognise_weights({"params": tree(arrays)}, "here"))
    jax_arrays = {name: jnp.asarray(array, jnp.bfloat16) for name, array in arrays.items()}
    narrow = recognise_weights(jax_arrays, "here").arrays
    wide = recognise_weights({name: np.asarray(a, np.float32) for name, a in jax_arrays.items()}, "here").arrays
    assert identical(narrow, wide)
    parameters = {name: torch.nn.Parameter(value) for name, value in state_dict().items()}
    assert same(recognise_weights(parameters, "here"))


def test_numbers_of_numpy_in_a_config():
    config = ModelConfig(
        num_blocks=np.int64(2),
        image_size=np.int32(32),
        layer_norm_epsilon=np.float64(1e-5),
        stochastic_depth=np.float32(0),
    )
    assert config == ModelConfig()
    assert {type(value) for value in (config.num_blocks, *config.image_size)} == {int}
    assert ModelConfig(image_size=(np.int64(32), 32)) == ModelConfig()
    with pytest.raises(UserError, match=r"num_blocks is 2\.0, but must be a whole number"):
        ModelConfig(num_blocks=np.float64(2))
