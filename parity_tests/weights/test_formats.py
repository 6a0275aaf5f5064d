"""Formats of other projects: the same function in their own model and in ours, sizes found, errors in their names."""

from dataclasses import replace

import flax.serialization
import jax
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import timm
import torch
from helpers import SMALL, TINY, identical, model_weights, tree
from hypothesis import given, settings
from hypothesis import strategies as st
from mlp_mixer_pytorch import MLPMixer
from timm.models.mlp_mixer import MlpMixer

import mixer_jax.model
import mixer_torch.model
import mixer_torch.state_dict_files
from mixer_common.comparison.differences import relative_error
from mixer_common.config.model import ModelConfig, weight_shapes
from mixer_common.config.presets import MODELS
from mixer_common.errors import UserError
from mixer_common.plan.initial import initial_weights
from mixer_common.weights.canonical import ModelWeights, replace_head
from mixer_common.weights.files import load_weights, save_weights
from mixer_common.weights.formats import FORMATS, to_format
from mixer_common.weights.recognition import recognise_weights

# Parameters of the models that the paper's authors test, 224 px and 1000 classes.
PARAMETERS = {"b16": 59_880_472, "b32": 60_293_428, "l16": 208_196_168}


def empty_weights(config: ModelConfig) -> ModelWeights:
    """The shapes of any size, without their memory."""
    return ModelWeights(
        config,
        {name: np.broadcast_to(np.float32(0), shape) for name, shape in weight_shapes(config).items()},
        "canonical",
    )


def in_block_of(format: str, config: ModelConfig) -> ModelConfig:
    """The config with a block that the format has."""
    return config if config.block in FORMATS[format].blocks else replace(config, block=FORMATS[format].blocks[0])


def older_names(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The authors' tree as they first named it, with their singleton axes."""
    older = {}
    for name, array in arrays.items():
        for new, old in (
            ("stem/", "embedding/"),
            ("MixerBlock_", "Mixer/encoderblock_"),
            ("pre_head_layer_norm", "Mixer/encoder_norm"),
        ):
            name = name.replace(new, old)
        if "_mixing/" in name:
            path, dense, leaf = name.rsplit("/", 2)
            name, array = f"{path}_phase_0/{leaf}{int(dense[-1]) + 1}", array[None]
        older[name] = array
    return older


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """No weight is zero and every path matters; a head that starts at zero would hide all others."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def assert_same_function(model: torch.nn.Module, weights: ModelWeights) -> None:
    """Logits of either framework within 1e-5 of their model's own, relative to their scale, in float32."""
    config = weights.config
    pixels = np.random.default_rng(1).uniform(-1, 1, (2, *config.image_size, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = model(torch.from_numpy(pixels).permute(0, 3, 1, 2)).numpy()
        in_torch = mixer_torch.model.build_model(config, weights.arrays)(torch.from_numpy(pixels)).numpy()
    in_jax = np.asarray(jax.jit(mixer_jax.model.build_model(config, weights.arrays).__call__)(pixels))
    assert relative_error(in_jax, theirs) < 1e-5
    assert relative_error(in_torch, theirs) < 1e-5


def assert_round_trip(state: dict[str, torch.Tensor], weights: ModelWeights, target, format: str) -> None:
    """Written as `format`, the file holds what their model held, to the bit."""
    save_weights(target, weights, format)
    back = (
        safetensors.torch.load_file(target)
        if target.suffix == ".safetensors"
        else torch.load(target, weights_only=True)
    )
    assert {name: (value.dtype, value.shape) for name, value in back.items()} == {
        name: (value.dtype, value.shape) for name, value in state.items()
    }
    assert all(back[name].numpy().tobytes() == value.numpy().tobytes() for name, value in state.items())


def check_their_model(model: torch.nn.Module, format: str, folder, **details) -> ModelWeights:
    state = shaken(model).state_dict()
    safetensors.torch.save_file(state, folder / "in.safetensors")
    torch.save(state, folder / "in.pth")
    weights, other = (load_weights(folder / name, **details) for name in ("in.safetensors", "in.pth"))
    assert weights.format == other.format == format
    assert weights.config == other.config
    assert identical(weights.arrays, other.arrays)
    assert_same_function(model, weights)
    assert_round_trip(state, weights, folder / "out.safetensors", format)
    assert_round_trip(state, weights, folder / "out.pth", format)
    return weights


@pytest.mark.parametrize(
    "name", ["s32", *(pytest.param(name, marks=pytest.mark.slow) for name in ("s16", "b32", "b16", "l32", "l16"))]
)
def test_timm_s_models(tmp_path, name):
    weights = check_their_model(timm.create_model(f"mixer_{name}_224", pretrained=False), "timm", tmp_path)
    assert weights.config == replace(MODELS[name], gelu="exact", layer_norm_epsilon=1e-6, init="pytorch")
    assert weights.assumed == ("gelu", "layer_norm_epsilon", "image_size", "pixels")


@pytest.mark.parametrize(
    ("size", "patch", "dim", "ratio", "details"),
    [
        (32, 4, 64, (0.5, 4.0), {}),
        (24, 8, 18, (0.5, 1.5), {}),
        ((16, 48), 8, 20, (0.25, 2.0), {"image_size": (16, 48)}),  # the most nearly square is 24 x 32
        ((16, 24), 8, 20, (0.25, 2.0), {}),
    ],
)
def test_timm_s_other_sizes(tmp_path, size, patch, dim, ratio, details):
    model = MlpMixer(img_size=size, patch_size=patch, embed_dim=dim, num_blocks=3, mlp_ratio=ratio, num_classes=7)
    weights = check_their_model(model, "timm", tmp_path, **details)
    assert weights.config.image_size == (size if isinstance(size, tuple) else (size, size))


@pytest.mark.parametrize(
    ("size", "patch", "dim", "details"),
    [
        (32, 4, 64, {}),
        (24, 8, 18, {}),
        ((24, 40), 8, 20, {}),
        ((40, 24), 8, 20, {"image_size": (40, 24)}),
        pytest.param(224, 32, 512, {}, marks=pytest.mark.slow),
    ],
)
def test_lucidrains_models(tmp_path, size, patch, dim, details):
    model = MLPMixer(
        image_size=size,
        channels=3,
        patch_size=patch,
        dim=dim,
        depth=3,
        num_classes=7,
        expansion_factor=2,
        expansion_factor_token=0.75,
    )
    weights = check_their_model(model, "lucidrains", tmp_path, **details)
    assert weights.config.image_size == (size if isinstance(size, tuple) else (size, size))
    assert (weights.config.gelu, weights.config.layer_norm_epsilon) == ("exact", 1e-5)


def test_lucidrains_token_mixing_may_be_linear():
    weights = model_weights(SMALL)
    arrays = to_format(weights, "lucidrains")
    linear = {name: array[..., 0] if array.ndim == 3 else array for name, array in arrays.items()}
    assert [name for name in arrays if arrays[name].shape != linear[name].shape] == [
        f"{i}.0.fn.{j}.weight" for i in (2, 3) for j in (0, 3)
    ]
    assert identical(recognise_weights(linear, "here").arrays, weights.arrays)


def test_a_stated_detail_changes_the_function(tmp_path):
    """The test of equal functions can fail: the other GELU, the other epsilon and the other shape each do."""
    model = shaken(MlpMixer(img_size=(16, 48), patch_size=8, embed_dim=20, num_blocks=3, num_classes=7))
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    shape = {"image_size": (16, 48)}
    assert_same_function(model, recognise_weights(state, "here", **shape))
    for wrong in ({"gelu": "tanh"}, {"layer_norm_epsilon": 1e-3}):
        with pytest.raises(AssertionError):
            assert_same_function(model, recognise_weights(state, "here", **shape, **wrong))
    assert recognise_weights(state, "here").config.image_size == (24, 32)


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS.items())
def test_the_paper_s_models_are_recognised_by_their_shapes(name, parameters):
    weights = empty_weights(MODELS[name])
    for format in FORMATS:
        if format == "tutorial":  # the paper's models have the other block
            continue
        arrays = to_format(weights, format)
        assert sum(array.size for array in arrays.values()) == parameters
        found = recognise_weights(arrays, "here")
        assert found.config == replace(MODELS[name], **FORMATS[format].details)
        assert {key: array.shape for key, array in found.arrays.items()} == weight_shapes(MODELS[name])
    older = recognise_weights(older_names(to_format(weights, "npz")), "here")
    assert (older.format, older.config) == ("npz", MODELS[name])


def test_the_authors_names():
    """As their code builds them: vit_jax/models_mixer.py, and the renaming in big_vision/models/mlp_mixer.py."""
    arrays = to_format(model_weights(SMALL), "npz")
    assert {name: array.shape for name, array in arrays.items() if "Block_1" not in name} == {
        "stem/kernel": (4, 4, 3, 24),
        "stem/bias": (24,),
        "MixerBlock_0/LayerNorm_0/scale": (24,),
        "MixerBlock_0/LayerNorm_0/bias": (24,),
        "MixerBlock_0/token_mixing/Dense_0/kernel": (15, 7),
        "MixerBlock_0/token_mixing/Dense_0/bias": (7,),
        "MixerBlock_0/token_mixing/Dense_1/kernel": (7, 15),
        "MixerBlock_0/token_mixing/Dense_1/bias": (15,),
        "MixerBlock_0/LayerNorm_1/scale": (24,),
        "MixerBlock_0/LayerNorm_1/bias": (24,),
        "MixerBlock_0/channel_mixing/Dense_0/kernel": (24, 33),
        "MixerBlock_0/channel_mixing/Dense_0/bias": (33,),
        "MixerBlock_0/channel_mixing/Dense_1/kernel": (33, 24),
        "MixerBlock_0/channel_mixing/Dense_1/bias": (24,),
        "pre_head_layer_norm/scale": (24,),
        "pre_head_layer_norm/bias": (24,),
        "head/kernel": (24, 5),
        "head/bias": (5,),
    }
    older = older_names(arrays)
    assert {
        "embedding/kernel",
        "Mixer/encoderblock_1/token_mixing_phase_0/kernel2",
        "Mixer/encoder_norm/scale",
        "Mixer/encoderblock_0/channel_mixing_phase_0/bias1",
        "head/kernel",
    } <= older.keys()


@pytest.mark.parametrize("config", [SMALL, pytest.param(MODELS["b16"], marks=pytest.mark.slow)], ids=["small", "b16"])
def test_both_of_the_authors_namings_in_both_containers(tmp_path, config):
    weights = model_weights(config)
    arrays = to_format(weights, "npz")
    np.savez(tmp_path / "new.npz", **arrays)
    np.savez(tmp_path / "older.npz", **older_names(arrays))
    (tmp_path / "new.msgpack").write_bytes(flax.serialization.msgpack_serialize(tree(arrays)))
    (tmp_path / "older.msgpack").write_bytes(flax.serialization.msgpack_serialize(tree(older_names(arrays))))
    for name in ("new.npz", "older.npz", "new.msgpack", "older.msgpack"):
        found = load_weights(tmp_path / name)
        assert found.format == name.rpartition(".")[2]
        assert identical(found.arrays, weights.arrays)
        assert (found.config.gelu, found.config.layer_norm_epsilon, found.config.init) == ("tanh", 1e-6, "flax")
        save_weights(tmp_path / "again.npz", found, "npz", overwrite=True)
        with np.load(tmp_path / "again.npz", allow_pickle=False) as again:
            assert identical(dict(again), {key: np.ascontiguousarray(array) for key, array in arrays.items()})


SIZES = st.integers(1, 12)


@settings(max_examples=100, deadline=None)
@given(
    st.builds(
        lambda rows, columns, patch, **sizes: ModelConfig(
            image_size=(rows * patch, columns * patch), patch_size=patch, **sizes
        ),
        rows=st.integers(1, 6),
        columns=st.integers(1, 6),
        patch=st.integers(1, 5),
        num_classes=SIZES,
        hidden_dim=SIZES,
        tokens_mlp_dim=SIZES,
        channels_mlp_dim=SIZES,
        num_blocks=st.integers(1, 11),
    ),
    st.sampled_from(list(FORMATS)),
)
def test_any_size_is_found_again(config, format):
    config = in_block_of(format, config)
    weights = ModelWeights(config, initial_weights(config, 0), "canonical")
    height, width = config.image_size
    found = recognise_weights(to_format(weights, format), "here", image_size=(height, width))
    assert identical(found.arrays, weights.arrays)
    assert found.config == replace(config, **FORMATS[format].details)
    square = recognise_weights(to_format(weights, format), "here").config
    assert square.num_patches == config.num_patches
    assert square.grid[0] <= square.grid[1]


def test_shapes_that_only_one_block_has_tell_the_block(tmp_path):
    for block in ("mixer", "tutorial"):
        config = replace(TINY, hidden_dim=24, block=block)
        found = recognise_weights(model_weights(config).arrays, "here")
        assert (found.config, "block" in found.assumed) == (config, False)


def test_a_new_head_is_zero():
    weights = model_weights(SMALL)
    changed = replace_head(weights, 9)
    assert changed.config == replace(SMALL, num_classes=9)
    assert {name: array.shape for name, array in changed.arrays.items()} == weight_shapes(changed.config)
    assert list(changed.arrays) == list(weights.arrays)
    for name, array in changed.arrays.items():
        assert not array.any() if name.startswith("head.") else array is weights.arrays[name]


def test_all_that_does_not_fit_is_listed_in_the_file_s_names():
    for format in FORMATS:
        arrays = to_format(model_weights(in_block_of(format, replace(SMALL, num_blocks=4))), format)
        names = list(arrays)
        lost, cut, whole = (
            next(name for name in names if name.rsplit("/" if "/" in name else ".", 1)[0] == layer)
            for layer in _layers_of(format)
        )
        arrays["stray"] = arrays.pop(lost)
        arrays[cut] = arrays[cut][:3]
        arrays[whole] = arrays[whole].astype(np.int32)
        with pytest.raises(UserError) as error:
            recognise_weights(arrays, "the file")
        for part in (
            "the file",
            f"{lost} is missing",
            "stray is not expected",
            f"{cut} has shape (3, ",
            f"{whole} holds int32",
        ):
            assert part in str(error.value), format
        assert str(error.value).count(";") == 3


def _layers_of(format: str) -> tuple[str, str, str]:
    """The first token mixing layer of block 1, the first channel mixing layer of block 2, the norm."""
    return {
        "canonical": ("blocks.1.token_mixing.fc1", "blocks.2.channel_mixing.fc1", "norm"),
        "timm": ("blocks.1.mlp_tokens.fc1", "blocks.2.mlp_channels.fc1", "norm"),
        "lucidrains": ("3.0.fn.0", "4.1.fn.0", "6"),
        "tutorial": ("mixer_blocks.1.token_mixing.0", "mixer_blocks.2.channel_mixing.0", "layer_norm"),
        "omihub": ("mixer_layers.1.mlp1.fc1", "mixer_layers.2.mlp2.fc1", "ln"),
        "jeonsworld": ("layer.1.token_mlp_block.fc0", "layer.2.channel_mlp_block.fc0", "pre_head_ln"),
        "mmpretrain": (
            "backbone.layers.1.token_mix.layers.0.0",
            "backbone.layers.2.channel_mix.layers.0.0",
            "backbone.ln1",
        ),
    }.get(format, ("MixerBlock_1/token_mixing/Dense_0", "MixerBlock_2/channel_mixing/Dense_0", "pre_head_layer_norm"))


@pytest.mark.parametrize("block", [0, 1, 2])
@pytest.mark.parametrize("format", FORMATS)
def test_a_lost_block_is_missed(format, block):
    arrays = to_format(model_weights(in_block_of(format, replace(SMALL, num_blocks=3))), format)
    parts = {
        "lucidrains": f"{block + 2}.",
        "npz": f"MixerBlock_{block}/",
        "msgpack": f"MixerBlock_{block}/",
        "tutorial": f"mixer_blocks.{block}.",
        "omihub": f"mixer_layers.{block}.",
        "jeonsworld": f"layer.{block}.",
        "mmpretrain": f"backbone.layers.{block}.",
    }
    lost = [name for name in arrays if name.startswith(parts.get(format, f"blocks.{block}."))]
    rest = {name: array for name, array in arrays.items() if name not in lost}
    if block == 2 and format != "lucidrains":  # nothing tells that there was a third
        assert recognise_weights(rest, "here").config.num_blocks == 2
    else:
        with pytest.raises(UserError) as error:
            recognise_weights(rest, "here")
        assert len(lost) == 12
        assert all(f"{name} is missing" in str(error.value) for name in lost)


def test_bytes_in_the_other_order_are_swapped():
    weights = model_weights(SMALL)
    swapped = {name: array.astype(">f4") for name, array in to_format(weights, "npz").items()}
    assert identical(recognise_weights(swapped, "here").arrays, weights.arrays)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("format", FORMATS)
def test_images_have_three_channels(format, channels):
    weights = model_weights(in_block_of(format, TINY))
    weights.arrays["stem.weight"] = np.zeros((64, channels, 4, 4), np.float32)
    with pytest.raises(UserError, match="has shape"):
        recognise_weights(to_format(weights, format), "here")


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18", "resmlp_12_224", "gmlp_ti16_224"])
def test_other_networks_are_no_mixer(name):
    with torch.device("meta"):
        state = timm.create_model(name, pretrained=False).state_dict()
    arrays = {key: np.broadcast_to(np.float32(0), value.shape) for key, value in state.items()}
    with pytest.raises(UserError) as error:
        recognise_weights(arrays, "the file")
    for part in ("the file holds no MLP-Mixer in any format known", *FORMATS, *list(arrays)[:3]):
        assert part in str(error.value)


def test_a_stated_shape_must_have_the_patches():
    arrays = to_format(model_weights(SMALL), "timm")
    assert recognise_weights(arrays, "here", image_size=(20, 12)).config.image_size == (20, 12)
    with pytest.raises(UserError, match="here mixes 15 patches of 4 pixels, but an image of 12x12 has 9"):
        recognise_weights(arrays, "here", image_size=12)
    with pytest.raises(UserError, match="not a multiple of patch_size"):
        recognise_weights(arrays, "here", image_size=(13, 20))
    with pytest.raises(UserError, match="mixer block only"):
        recognise_weights(arrays, "here", block="tutorial")
    with pytest.raises(TypeError, match="stochastic_depth"):
        recognise_weights(arrays, "here", stochastic_depth=0.1)
