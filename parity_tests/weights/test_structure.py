"""Ports with names that no table knows: recognised by shapes and order, ambiguities named, written back to the bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import SMALL, identical, model_weights, random_weights
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer_common.config.model import ModelConfig, weight_shapes
from mixer_common.errors import UserError
from mixer_common.weights.canonical import replace_head
from mixer_common.weights.files import load_weights, save_weights
from mixer_common.weights.formats import to_format
from mixer_common.weights.patterns import Source, file_arrays, from_pattern, read_names, to_pattern
from mixer_common.weights.recognition import recognise_weights
from mixer_common.weights.structure import recognise_structure

# Vocabularies of made-up ports: stem, blocks, the six modules of a block, norm, head.
VOCABULARIES = {
    "words": (
        "embed",
        "layers.{}",
        "tok_ln",
        "tok.up",
        "tok.down",
        "chan_ln",
        "chan.up",
        "chan.down",
        "final",
        "classifier",
    ),
    "numbers": ("conv1", "stage.{}", "n.1", "m.0.0", "m.0.3", "n.2", "m.1.0", "m.1.3", "n_out", "out"),
    "letters": ("q", "z{}", "aa", "bb", "cc", "dd", "ee", "ff", "gg", "hh"),
    "numbered": ("seq.0", "seq.1.blk_{}", "0.ln", "0.l1", "0.l2", "1.ln", "1.l1", "1.l2", "seq.2", "seq.3"),
}
ROLES = ("stem", "token_norm", "token_mixing.fc1", "token_mixing.fc2", "channel_norm", "channel_mixing.fc1",
         "channel_mixing.fc2", "norm", "head")  # fmt: skip
LAYOUTS = {
    "torch": {"stem": "o i h w", "token": "o i", "linear": "o i"},
    "conv1d": {"stem": "o i h w", "token": "o i 1", "linear": "o i"},
    "head conv1d": {"stem": "o i h w", "token": "o i", "linear": "o i", "head": "o i 1"},
    "flax": {"stem": "h w i o", "token": "i o", "linear": "i o"},
}


def port(config: ModelConfig, vocabulary: str, layouts: dict[str, str], prefix: str, biases: bool = True):
    """The mapping of a made-up port, in network order."""
    stem, block, *inner, norm, head = VOCABULARIES[vocabulary]
    modules = {"stem": stem, "norm": norm, "head": head}
    flax = layouts["linear"] == "i o"
    names = {}
    for name, shape in weight_shapes(config).items():
        layer, leaf = name.rsplit(".", 1)
        if layer.startswith("blocks."):
            _, number, role = layer.split(".", 2)
            path = f"{block.format(int(number))}.{inner[ROLES.index(role) - 1]}"
        else:
            role, path = layer, modules[layer]
        is_norm = len(shape) == 1 and leaf == "weight"
        kind = "token" if role.startswith("token_mixing") else "stem" if role == "stem" else "linear"
        pattern = "o" if len(shape) == 1 else layouts.get(role, layouts[kind])
        file_leaf = {"weight": "scale" if is_norm and flax else "kernel" if flax else "weight", "bias": "bias"}[leaf]
        if leaf == "weight" or biases:
            names[name] = Source(f"{prefix}{path}.{file_leaf}", pattern)
    return names


def arrays_of(config: ModelConfig, names) -> dict[str, np.ndarray]:
    weights = random_weights(config)
    return {source.name: to_pattern(weights[name], source.pattern) for name, source in names.items()}


SIZES = st.integers(2, 9)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 4), columns=st.integers(1, 4), patch=st.integers(2, 4), num_classes=SIZES, hidden_dim=SIZES,
    tokens_mlp_dim=SIZES, channels_mlp_dim=SIZES, num_blocks=st.integers(1, 11),
    vocabulary=st.sampled_from(list(VOCABULARIES)), layout=st.sampled_from(list(LAYOUTS)),
    prefix=st.sampled_from(["", "model.", "a/b.", "net2."]), biases=st.booleans(),
    block=st.sampled_from(["mixer", "tutorial"]),
)  # fmt: skip
def test_random_ports_go_there_and_back(
    rows, columns, patch, vocabulary, layout, prefix, biases, block, num_blocks, **sizes
):
    config = ModelConfig(
        image_size=(rows * patch, columns * patch), patch_size=patch, block=block, num_blocks=num_blocks, **sizes
    )
    names = port(config, vocabulary, LAYOUTS[layout], prefix, biases)
    theirs = arrays_of(config, names)
    found = recognise_weights(theirs, "here", block=block, image_size=config.image_size)
    expected = {
        name: array if name in names else np.zeros_like(array) for name, array in random_weights(config).items()
    }
    assert identical({name: np.ascontiguousarray(a) for name, a in found.arrays.items()}, expected)
    details = ("gelu", "layer_norm_epsilon", "init")
    assert replace(found.config, **{name: getattr(config, name) for name in details}) == config
    structure = recognise_structure({name: array.shape for name, array in theirs.items()}, "here", block, {})
    assert structure.names == names
    assert identical(file_arrays(found.arrays, structure.names, "there"), theirs)


@pytest.mark.parametrize("separator", "./")
def test_words_tell_what_sorted_names_of_any_separator_do_not(separator):
    config = replace(SMALL, image_size=(28, 28), tokens_mlp_dim=31)
    words = {"fc1": "expand", "fc2": "reduce", "token_norm": "ln_tokens", "channel_norm": "ln_channels"}
    theirs = {}
    for name, array in random_weights(config).items():
        for ours, word in words.items():
            name = name.replace(ours, word)
        theirs[name.replace(".", separator)] = array
    found = recognise_weights(dict(sorted(theirs.items())), "here")
    assert found.format == "structure"
    assert identical({name: np.ascontiguousarray(a) for name, a in found.arrays.items()}, random_weights(config))


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("layout", ["torch", "conv1d", "flax"])
@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("block", ["mixer", "tutorial"])
def test_ports_without_a_head(tmp_path, vocabulary, layout, biases, block):
    config = replace(SMALL, block=block)
    names = port(config, vocabulary, LAYOUTS[layout], "net.", biases)
    names = {name: source for name, source in names.items() if not name.startswith("head.")}
    theirs = arrays_of(config, names)
    with pytest.raises(UserError, match="here holds the weights of a Mixer without its head: state the number of"):
        recognise_weights(theirs, "here", block=block)
    found = recognise_weights(theirs, "here", without_head=True, block=block)
    assert not found.has_head
    assert found.config.num_classes == 1
    expected = random_weights(config)
    for name, array in found.arrays.items():
        if name.startswith("head."):
            assert not array.any()
        else:
            assert (array == (expected[name] if name in names else 0)).all(), name
    assert identical(file_arrays(found.arrays, found.names, "there"), theirs)
    np.savez(tmp_path / "theirs.npz", **theirs)
    replaced = replace_head(load_weights(tmp_path / "theirs.npz", without_head=True, block=block), 7)
    assert replaced.arrays["head.weight"].shape == (7, config.hidden_dim)


@pytest.mark.parametrize("vocabulary", ["words", "numbers", "numbered"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_sorted_names_are_told_apart_by_words_and_numbers(vocabulary, layout):
    names = port(SMALL, vocabulary, LAYOUTS[layout], "")
    found = recognise_weights(dict(sorted(arrays_of(SMALL, names).items())), "here")
    assert identical({name: np.ascontiguousarray(a) for name, a in found.arrays.items()}, random_weights(SMALL))


def test_sorted_names_that_tell_nothing_are_ambiguous(tmp_path):
    names = port(SMALL, "letters", LAYOUTS["torch"], "")
    theirs = dict(sorted(arrays_of(SMALL, names).items()))
    with pytest.raises(UserError) as error:
        recognise_weights(theirs, "the file")
    # Nothing tells which norm is first, nor whether there are 15 patches and 7 hidden values or the other way round.
    for part in ("the file can be read in 4 ways", "z0.bb.weight", " or ", "z0.cc.weight", "--names"):
        assert part in str(error.value)
    fc1 = '"blocks.{i}.token_mixing.fc1.weight" = "z{i}.bb.weight"\n'
    (tmp_path / "names.toml").write_text(fc1)
    with pytest.raises(UserError, match=r"can be read in 2 ways .* is z0.aa.weight .* or .* is z0.dd.weight"):
        recognise_weights(theirs, "the file", names=read_names(tmp_path / "names.toml"))
    for norm in ("aa", "dd"):
        (tmp_path / "names.toml").write_text(f'{fc1}"blocks.{{i}}.token_norm.weight" = "z{{i}}.{norm}.weight"\n')
        found = recognise_weights(theirs, "the file", names=read_names(tmp_path / "names.toml"))
        assert (found.arrays["blocks.1.token_norm.weight"] == theirs[f"z1.{norm}.weight"]).all()
        assert found.config.num_patches == 15


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("order", ["h w i", "i h w"])
def test_the_order_of_a_patch_s_pixels_must_be_stated(tmp_path, order, transposed):
    layouts = LAYOUTS["flax" if transposed else "torch"] | {"stem": f"({order}) o" if transposed else f"o ({order})"}
    theirs = arrays_of(SMALL, port(SMALL, "words", layouts, ""))
    with pytest.raises(UserError, match=r"stem.weight is embed.* in the layout .*h w i.* or .*i h w"):
        recognise_weights(theirs, "the file")
    leaf = "kernel" if transposed else "weight"
    (tmp_path / "names.toml").write_text(f'"stem.weight" = {{name = "embed.{leaf}", layout = "{layouts["stem"]}"}}\n')
    found = recognise_weights(theirs, "the file", names=read_names(tmp_path / "names.toml"))
    assert identical({name: np.ascontiguousarray(a) for name, a in found.arrays.items()}, random_weights(SMALL))


def test_as_many_patches_as_channels_leave_the_block_open():
    config = ModelConfig()  # 64 patches, 64 channels
    theirs = arrays_of(config, port(config, "words", LAYOUTS["torch"], ""))
    found = recognise_weights(theirs, "here")
    assert found.config.block == "mixer"
    assert "block" in found.assumed
    assert recognise_weights(theirs, "here", block="tutorial").config.block == "tutorial"
    assert identical({name: np.ascontiguousarray(a) for name, a in found.arrays.items()}, random_weights(config))


def test_the_mapping_is_printed_whole_with_its_missing_biases():
    names = port(SMALL, "words", LAYOUTS["torch"], "", biases=False)
    found = recognise_weights(arrays_of(SMALL, names), "here")
    for name, source in names.items():
        assert any(name in note and f"{source.name}  ({source.pattern})" in note for note in found.notes)
    assert "zeros, since the file has none: stem.bias, blocks.0.token_norm.bias" in found.notes[-1]
    with pytest.raises(UserError, match=r"there has no place for stem.bias, .*which are not zero"):
        file_arrays(random_weights(SMALL), names, "there")


def test_what_is_no_mixer():
    names = port(SMALL, "words", LAYOUTS["torch"], "")
    theirs = arrays_of(SMALL, names)
    with pytest.raises(UserError, match=r"holds cls_token of shape \(1, 1, 24\), a class token"):
        recognise_weights({"cls_token": np.zeros((1, 1, 24), np.float32)} | theirs, "here")
    lost = [name for name in theirs if name.startswith("layers.1.tok.up")]
    for wrong in (
        {name: array for name, array in theirs.items() if name not in lost},
        theirs | {"pos_embed": np.zeros((1, 15, 24), np.float32)},
        theirs | {"layers.0.tok.up.weight": np.zeros((7, 14), np.float32)},
        {name: array for name, array in theirs.items() if "final" not in name},
    ):
        with pytest.raises(UserError, match="here holds no MLP-Mixer in any format known"):
            recognise_weights(wrong, "here")
    with pytest.raises(UserError, match="int32 instead of floating-point numbers"):
        recognise_weights({name: array.astype(np.int32) for name, array in theirs.items()}, "here")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "is no TOML file"),
        ('"stem.weight" = 3', "stem.weight is 3, but expected lines such as"),
        ('"stm.weight" = "a"', "names 'stm.weight', which is no array of a Mixer: choose one of stem.weight"),
        ('"stem.weight" = {name = "a", layout = "o i"}', "the layout 'o i' does not name the axes o i h w once each"),
        ('"stem.weight" = {layout = "o i h w"}', "but expected lines such as"),
        ('"head.bias" = "nowhere"', "here holds no Mixer whose names are as stated"),
    ],
)
def test_bad_tables_of_names(tmp_path, text, message):
    (tmp_path / "names.toml").write_text(text)
    theirs = arrays_of(SMALL, port(SMALL, "words", LAYOUTS["torch"], ""))
    with pytest.raises(UserError) as error:
        recognise_weights(theirs, "here", names=read_names(tmp_path / "names.toml"))
    assert message in str(error.value)
    with pytest.raises(UserError, match="does not exist"):
        read_names(tmp_path / "none.toml")


@pytest.mark.parametrize("pattern", ["o i h w", "h w i o", "o (h w i)", "(i h w) o", "1 o (i h w)"])
def test_patterns_there_and_back(pattern):
    array = np.arange(5 * 3 * 4 * 4).reshape(5, 3, 4, 4)
    assert (from_pattern(to_pattern(array, pattern), pattern, array.shape) == array).all()
    assert to_pattern(array, "o (h w i)")[2, 7] == array[2, 1, 0, 2]  # row 0, column 2, colour 1


def test_the_scripts_read_and_write_a_port_s_names(script, tmp_path):
    """convert.py --like writes into the names, the layouts and the order of a given file, in any container."""
    for i, (vocabulary, layout) in enumerate([("words", "conv1d"), ("numbers", "torch"), ("numbered", "flax")]):
        names = port(SMALL, vocabulary, LAYOUTS[layout], "module.")
        theirs = arrays_of(SMALL, names)
        torch.save({name: torch.from_numpy(array.copy()) for name, array in theirs.items()}, tmp_path / f"{i}.pth")
        new = model_weights(replace(SMALL, num_classes=9, hidden_dim=20), seed=3)
        save_weights(tmp_path / "new", new, "canonical", overwrite=True)
        for suffix in ("pth", "safetensors", "npz"):
            target = tmp_path / f"out{i}.{suffix}"
            code, stdout, stderr = script("convert", tmp_path / "new", target, "--like", tmp_path / f"{i}.pth")
            assert code == 0, stderr
            assert "Names    stem.weight" in stdout
            expected = {source.name: to_pattern(new.arrays[name], source.pattern) for name, source in names.items()}
            assert load_weights(target).config.hidden_dim == 20
            if suffix == "pth":
                back = {name: value.numpy() for name, value in torch.load(target, weights_only=True).items()}
                assert identical(back, {name: expected[name] for name in theirs})
        code, stdout, _ = script("convert", tmp_path / f"{i}.pth", tmp_path / f"{i}.npz", "--to", "npz")
        assert code == 0
        assert "Read     by its structure: blocks.1.channel_mixing.fc2.bias" in stdout
        assert identical(load_weights(tmp_path / f"{i}.npz").arrays, random_weights(SMALL))


def test_like_a_known_format_or_what_cannot_be_alike(script, tmp_path):
    prefixed = {f"net.{name}": torch.from_numpy(a) for name, a in to_format(model_weights(SMALL), "timm").items()}
    torch.save({"state_dict": prefixed, "epoch": 3}, tmp_path / "timm.pth")
    save_weights(tmp_path / "new", model_weights(SMALL, seed=3), "canonical")
    code, _, stderr = script("convert", tmp_path / "new", tmp_path / "out.pth", "--like", tmp_path / "timm.pth")
    assert code == 0, stderr
    assert list(torch.load(tmp_path / "out.pth", weights_only=True)) == list(prefixed)
    assert identical(load_weights(tmp_path / "out.pth").arrays, random_weights(SMALL, 3))
    save_weights(tmp_path / "deep", model_weights(replace(SMALL, num_blocks=3)), "canonical")
    for options, message in (
        (("deep", "out2.pth", "--like", tmp_path / "timm.pth"), "has 2 blocks, and the weights to write have 3"),
        (("new", "out2.pth"), "state the format to write with --to, or with --like a file"),
        (("new", "out2.pth", "--to", "timm", "--like", tmp_path / "timm.pth"), "leave one of them out"),
        (("new", "out2.xyz", "--like", tmp_path / "timm.pth"), "out2.xyz does not end in .safetensors or .npz"),
    ):
        code, _, stderr = script("convert", tmp_path / options[0], tmp_path / options[1], *options[2:])
        assert (code, message in stderr, stderr.count("\n")) == (2, True, 1), stderr


def test_training_begins_from_a_port_with_odd_names(script, tmp_path):
    config = ModelConfig(patch_size=4)
    layouts = LAYOUTS["torch"] | {"stem": "o (h w i)"}
    theirs = arrays_of(config, port(config, "words", layouts, ""))
    torch.save({name: torch.from_numpy(array.copy()) for name, array in theirs.items()}, tmp_path / "port.pth")
    arguments = ("--init-from", tmp_path / "port.pth", "--dataset", "digits", "--steps", 1, "--image-size", 32)
    code, _, stderr = script("train_torch", *arguments, "--out", tmp_path / "run")
    assert (code, "can be read in 2 ways" in stderr) == (2, True)
    (tmp_path / "n.toml").write_text('"stem.weight" = {name = "embed.weight", layout = "o (h w i)"}\n')
    code, stdout, stderr = script(
        "train_torch", *arguments, "--names", tmp_path / "n.toml", "--learning-rate", 1e-9, "--out", tmp_path / "run"
    )
    assert code == 0, stderr
    assert "by its structure: stem.weight" in stdout
    trained = load_weights(tmp_path / "run").arrays["stem.weight"]
    assert np.allclose(trained, random_weights(config)["stem.weight"], atol=1e-5)


def test_averaged_weights_of_odd_names_beside_the_others():
    sets = {}
    for seed, prefix in ((1, "state_dict/net."), (2, "state_dict_ema/net.")):
        names = port(SMALL, "words", LAYOUTS["torch"], prefix)
        sets |= {source.name: random_weights(SMALL, seed)[name] for name, source in names.items()}
    found = recognise_weights(sets, "here")
    assert identical(found.arrays, random_weights(SMALL, 2))
    assert "the file also holds weights under state_dict (--prefer model)" in found.notes[0]
    assert identical(recognise_weights(sets, "here", prefer="model").arrays, random_weights(SMALL, 1))


def test_a_table_of_every_name_needs_no_structure(tmp_path):
    """Names without a module: W1, b1, and so on, where nothing joins a bias to its weight."""
    short = {f"blocks.{{i}}.{role}": f"L{{i}}_{letter}" for role, letter in zip(ROLES[1:7], "nabmcd", strict=True)}
    short |= {"stem": "E", "norm": "N", "head": "H"}
    table, theirs, weights = [], {}, random_weights(SMALL)
    for layer, name in short.items():
        for leaf in ("weight", "bias"):
            layout = ', layout = "i o"' if leaf == "weight" and ("fc" in layer or layer == "head") else ""
            layout = ', layout = "(i h w) o"' if (layer, leaf) == ("stem", "weight") else layout
            table.append(f'"{layer}.{leaf}" = {{name = "{leaf[0]}{name}"{layout}}}')
            for i in range(2 if "{i}" in layer else 1):
                array = weights[f"{layer}.{leaf}".replace("{i}", str(i))]
                pattern = layout.split('"')[1] if layout else " ".join("oihw"[: array.ndim])
                theirs[f"{leaf[0]}{name}".replace("{i}", str(i))] = to_pattern(array, pattern)
    with pytest.raises(UserError, match="holds no MLP-Mixer"):
        recognise_weights(theirs, "here")
    (tmp_path / "names.toml").write_text("\n".join(table))
    names = read_names(tmp_path / "names.toml")
    found = recognise_weights(dict(sorted(theirs.items())), "here", names=names)
    assert identical({name: np.ascontiguousarray(a) for name, a in found.arrays.items()}, weights)
    assert identical(
        file_arrays(found.arrays, found.names, "here") | {}, {s.name: theirs[s.name] for s in found.names.values()}
    )
    for wrong in (theirs | {"stray": np.zeros(3)}, theirs | {"wL1_a": theirs["wL0_a"].T}):
        with pytest.raises(UserError, match="holds no Mixer whose names are as stated"):
            recognise_weights(wrong, "here", names=names)
