"""Files of weights and the script that converts them: the same bytes there and back, bad input, large models."""

import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace

import flax.serialization
import jax
import jax.numpy as jnp
import mlp_mixer_pytorch
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import timm
import torch
from helpers import SCRIPTS, SMALL, TINY, example, identical, model_weights, random_weights, tree

from mixer_common.config.model import weight_shapes
from mixer_common.config.presets import MODELS
from mixer_common.errors import UserError
from mixer_common.runs import checkpoint
from mixer_common.weights import msgpack_files
from mixer_common.weights.canonical import ModelWeights
from mixer_common.weights.files import load_weights, save_weights
from mixer_common.weights.formats import FORMATS, to_format
from mixer_common.weights.recognition import recognise_weights

FILES = {
    "canonical": "weights",
    "npz": "weights.npz",
    "msgpack": "weights.msgpack",
    "timm": "weights.safetensors",
    "lucidrains": "weights.pth",
    "tutorial": "tutorial.pth",
    "omihub": "omihub.pt",
    "jeonsworld": "jeonsworld.bin",
    "mmpretrain": "mmpretrain.pth",
}


def source_of(format: str, config=SMALL) -> ModelWeights:
    """Weights that the format can hold."""
    block = config.block if config.block in FORMATS[format].blocks else FORMATS[format].blocks[0]
    return model_weights(replace(config, block=block))


def test_a_training_state_around_the_weights_is_left_out(tmp_path):
    weights = model_weights(SMALL)
    inner = tree(to_format(weights, "npz"))
    for outer in (
        {"params": inner, "step": 3, "opt_state": {"0": {"mu": inner, "count": np.int32(3)}}},
        {"target": inner},
        {"opt": {"target": inner, "state": {"step": np.zeros(1, np.int32)}}},
    ):
        (tmp_path / "state").write_bytes(flax.serialization.msgpack_serialize(outer))
        assert identical(load_weights(tmp_path / "state").arrays, weights.arrays)
    wrapped = {"params/" + name: array for name, array in to_format(weights, "npz").items()}
    with pytest.raises(UserError, match="params/extra is not expected"):
        recognise_weights(wrapped | {"params/extra": np.zeros(1)}, "here")
    state = {f"module.{name}": torch.from_numpy(array) for name, array in to_format(weights, "timm").items()}
    for key in ("state_dict", "model", "model_state_dict"):
        torch.save({key: state, "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "training.pth")
        assert identical(load_weights(tmp_path / "training.pth").arrays, weights.arrays)


@pytest.mark.parametrize("chunk", [2**30, 100])
def test_msgpack_is_flax_s_own(tmp_path, monkeypatch, chunk):
    """The same bytes, and read the same, chunks included; a chunk of 100 bytes splits most arrays in many."""
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", chunk)
    monkeypatch.setattr(msgpack_files, "MAX_CHUNK_BYTES", chunk)
    weights = model_weights(SMALL)
    nested = tree(to_format(weights, "msgpack"))
    theirs = flax.serialization.msgpack_serialize(nested)
    assert (b"chunked" in theirs) == (chunk == 100)
    save_weights(tmp_path / "ours.msgpack", weights, "msgpack")
    assert (tmp_path / "ours.msgpack").read_bytes() == theirs
    restored = flax.serialization.msgpack_restore((tmp_path / "ours.msgpack").read_bytes())
    assert jax.tree.all(jax.tree.map(np.array_equal, restored, nested))
    (tmp_path / "theirs").write_bytes(flax.serialization.to_bytes(nested))
    assert identical(load_weights(tmp_path / "theirs").arrays, weights.arrays)


def test_safetensors_are_the_library_s_own(tmp_path):
    weights = model_weights(SMALL)
    weights.arrays["head.bias"] = weights.arrays["head.bias"].astype(np.float64)
    weights.arrays["norm.bias"] = weights.arrays["norm.bias"].astype(np.float16)
    for format in ("timm", "lucidrains"):
        save_weights(tmp_path / f"{format}.safetensors", weights, format)
        assert (tmp_path / f"{format}.safetensors").read_bytes() == safetensors.numpy.save(to_format(weights, format))


@pytest.mark.parametrize("block", ["mixer", "tutorial"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_every_format_to_every_format_keeps_every_bit(tmp_path, dtype, block):
    weights = model_weights(replace(SMALL, block=block))
    formats = [format for format in FORMATS if block in FORMATS[format].blocks]
    arrays = {name: array.astype(dtype) for name, array in weights.arrays.items()}
    arrays["head.weight"].flat[:5] = [np.nan, np.inf, -np.inf, -0.0, np.finfo(dtype).smallest_subnormal]
    weights = replace(weights, arrays=arrays)
    for first in formats:
        save_weights(tmp_path / FILES[first], weights, first, overwrite=True)
        here = load_weights(tmp_path / FILES[first])
        assert here.format == first
        assert all(array.flags.c_contiguous for array in here.arrays.values())
        for second in formats:
            target = tmp_path / f"2{FILES[second]}"
            save_weights(target, here, second, overwrite=True)
            there = load_weights(target)
            assert identical(there.arrays, weights.arrays), (first, second)
            assert there.config.image_size == (12, 20)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_bfloat16_is_widened_without_a_change(tmp_path):
    values = {name: jnp.asarray(array, jnp.bfloat16) for name, array in random_weights(SMALL).items()}
    exact = {name: np.asarray(array, np.float32) for name, array in values.items()}
    arrays = to_format(ModelWeights(SMALL, {key: np.asarray(value) for key, value in values.items()}, "npz"), "npz")
    (tmp_path / "a").write_bytes(flax.serialization.msgpack_serialize(tree(arrays)))
    with open(tmp_path / "b", "wb") as file:
        np.savez(file, **arrays)
    state = {
        name: torch.from_numpy(array).bfloat16()
        for name, array in to_format(replace(model_weights(SMALL), arrays=exact), "timm").items()
    }
    torch.save(state, tmp_path / "c")
    safetensors.torch.save_file(state, tmp_path / "d")
    for name in "abcd":
        assert identical(load_weights(tmp_path / name).arrays, exact), name


def test_what_it_is_the_content_tells_not_the_name(tmp_path):
    weights = model_weights(SMALL)
    torch.save(
        {name: torch.from_numpy(array) for name, array in to_format(weights, "timm").items()},
        tmp_path / "legacy",
        _use_new_zipfile_serialization=False,
    )
    for format, name in FILES.items():
        if format != "tutorial":
            save_weights(tmp_path / name, weights, format)
    (tmp_path / "weights" / "model.safetensors").rename(tmp_path / "canonical")
    for i, name in enumerate(
        ("legacy", "canonical", *(name for name in list(FILES.values())[1:] if name != FILES["tutorial"]))
    ):
        renamed = (tmp_path / name).rename(tmp_path / f"{i}.bin")
        assert identical(load_weights(renamed).arrays, weights.arrays), name


def test_a_config_beside_canonical_weights_tells_everything(tmp_path):
    config = replace(MODELS["tutorial"], gelu="tanh", layer_norm_epsilon=3e-6, stochastic_depth=0.25)
    save_weights(tmp_path / "w", model_weights(config), "canonical")
    for path in (tmp_path / "w", tmp_path / "w" / "model.safetensors"):
        weights = load_weights(path)
        assert (weights.config, weights.assumed, weights.format) == (config, (), "canonical")
    assert load_weights(tmp_path / "w", gelu="exact").config == replace(config, gelu="exact")
    (tmp_path / "w" / "config.json").unlink()
    bare = load_weights(tmp_path / "w")
    # As many patches as channels: both blocks have these shapes.
    assert bare.assumed == ("gelu", "layer_norm_epsilon", "image_size", "block", "pixels")
    assert bare.config == TINY
    assert load_weights(tmp_path / "w", block="tutorial").config == MODELS["tutorial"]


@pytest.mark.parametrize("format", FORMATS)
def test_a_path_may_be_a_string(tmp_path, format):
    weights, path = source_of(format), str(tmp_path / FILES[format])
    save_weights(path, weights, format)
    assert identical(load_weights(path).arrays, weights.arrays)


def test_reading_and_writing_report_their_bytes(tmp_path):
    reports = []
    for format, name in FILES.items():
        reports.clear()
        save_weights(tmp_path / name, source_of(format), format, lambda *report: reports.append(report))
        load_weights(tmp_path / name, lambda *report: reports.append(report))
        for activity in ("writing", "reading"):
            done = [report[1:] for report in reports if report[0] == activity]
            assert [part for part, _ in done] == sorted(part for part, _ in done)
            assert done[-1][0] == done[-1][1] > 0, (format, activity)


class Payload:
    """Unpickled, it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mknod, (str(self.path),)


def damaged(folder, kind: str):
    """A file that cannot be converted, and a part of the error about it."""
    path, weights = folder / "source", model_weights(SMALL)
    if kind == "text":
        path.write_text("These are no weights.\n")
        return path, "is no file of weights, it begins with b'These ar'"
    if kind == "empty":
        path.touch()
        return path, "is empty"
    if kind == "missing":
        return path, "does not exist"
    if kind == "folder":
        path.mkdir()
        return path, "holds no weights"
    if kind.startswith("truncated"):
        format = {"torch": "lucidrains", "legacy": "timm", "safetensors": "timm"}.get(kind.split()[1], kind.split()[1])
        whole = folder / FILES[format]
        if kind.endswith("legacy"):
            torch.save(
                {name: torch.from_numpy(array) for name, array in to_format(weights, "timm").items()},
                whole,
                _use_new_zipfile_serialization=False,
            )
        else:
            save_weights(whole, weights, format)
        content = whole.read_bytes()
        whole.unlink()
        path.write_bytes(content[: 2 * len(content) // 3])
        return path, "it was cut short or changed"
    if kind == "torch payload":
        torch.save({"weight": torch.zeros(3), "other": Payload(folder / "created")}, path)
        return path, "pickled objects other than tensors"
    if kind == "pickle payload":
        path.write_bytes(pickle.dumps({"weight": Payload(folder / "created")}, protocol=4))
        return path, "pickled objects other than tensors"
    if kind == "npz payload":
        with open(path, "wb") as file:
            np.savez(file, weight=np.array([Payload(folder / "created")]))
        return path, "holds pickled objects (weight.npy)"
    if kind == "torch module":
        torch.save(torch.nn.Linear(2, 2), path)
        return path, "pickled objects other than tensors"
    if kind == "torch numbers":
        torch.save({"weight": torch.zeros(3), "epoch": 3}, path)
        return path, "holds other things than named tensors: epoch (int)"
    if kind == "vit":
        torch.save(timm.create_model("vit_tiny_patch16_224", pretrained=False, depth=1).state_dict(), path)
        return path, "holds no MLP-Mixer in any format known"
    arrays = to_format(weights, "npz")
    arrays["stem/bias"] = np.zeros(23)
    arrays["stray/kernel"] = arrays.pop("head/kernel")
    with open(path, "wb") as file:
        np.savez(file, **arrays)
    return path, "head/kernel is missing; stray/kernel is not expected; stem/bias has shape (23,) instead of (24,)."


@pytest.mark.parametrize(
    "kind",
    [
        "text",
        "empty",
        "missing",
        "folder",
        "truncated safetensors",
        "truncated npz",
        "truncated msgpack",
        "truncated torch",
        "truncated legacy",
        "torch payload",
        "pickle payload",
        "npz payload",
        "torch module",
        "torch numbers",
        "vit",
        "misfits",
    ],
)
def test_bad_input_is_one_clear_sentence(script, tmp_path, kind):
    source, message = damaged(tmp_path, kind)
    before = sorted(tmp_path.rglob("*"))
    code, _, stderr = script("convert", source, tmp_path / "out.npz", "--to", "npz")
    assert code == 2
    assert stderr.startswith(f"error: {source} ")
    assert message in stderr
    assert stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before  # no output, no part of one, and no payload has run


@pytest.mark.parametrize("name", FILES.values())
def test_damage_anywhere_is_refused_or_harmless(tmp_path, name):
    """Cut short or with up to three bytes changed, a file is read or is a UserError, never another one."""
    format = {file: format for format, file in FILES.items()}[name]
    save_weights(tmp_path / name, source_of(format), format)
    path = tmp_path / name if name != FILES["canonical"] else tmp_path / name / "model.safetensors"
    whole, random, refused = path.read_bytes(), np.random.default_rng(0), 0
    for i in range(100):
        content = bytearray(whole)
        for _ in range(i % 4):
            # Headers, at either end, are where damage does most.
            content[random.choice([-1, 1]) * int(random.integers(1, 1000))] = random.integers(256)
        path.write_bytes(content if i % 4 else content[: random.integers(len(content))])
        try:
            load_weights(path)
        except UserError:
            refused += 1
    assert refused >= 25


@pytest.mark.parametrize(
    ("format", "target", "message"),
    [
        ("tim", "out.npz", "unknown format 'tim': choose one of canonical, npz, msgpack, timm, lucidrains"),
        ("npz", "out.pth", "out.pth does not end in .npz, which npz is written as"),
        ("msgpack", "out", "out does not end in .msgpack"),
        ("timm", "out.npz", "out.npz does not end in .safetensors or .pth or .pt or .bin"),
        ("canonical", "out.safetensors", "named like a file, but canonical is written as a folder"),
        ("npz", "there.npz", "exists already: replace it with --overwrite"),
        ("timm", "out.pth", "the timm format has no tutorial block"),
        ("msgpack", "out.msgpack", "the msgpack format has no tutorial block"),
        ("omihub", "out.pth", "the omihub format has no tutorial block"),
        ("tutorial", "out.npz", "out.npz does not end in .safetensors or .pth or .pt or .bin"),
    ],
)
def test_what_cannot_be_written_is_refused(script, tmp_path, format, target, message):
    save_weights(tmp_path / "source", model_weights(MODELS["tutorial"]), "canonical")
    (tmp_path / "there.npz").write_bytes(b"precious")
    before = sorted(tmp_path.rglob("*"))
    code, _, stderr = script("convert", tmp_path / "source", tmp_path / target, "--to", format)
    assert code == 2
    assert stderr.startswith("error: ")
    assert message in stderr
    assert stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "there.npz").read_bytes() == b"precious"


def test_overwriting_replaces_weights_and_nothing_else(script, tmp_path):
    source = tmp_path / "source"
    save_weights(source, model_weights(TINY), "canonical")
    save_weights(tmp_path / "weights", model_weights(SMALL), "canonical")
    run = tmp_path / "run"
    shutil.copytree(source, run / "checkpoint")
    shutil.copy(source / "config.json", run)

    def convert(target, format, start=source):
        return script("convert", start, target, "--to", format, "--overwrite")

    assert convert(tmp_path / "weights", "canonical")[0] == 0
    assert load_weights(tmp_path / "weights").config == TINY
    save_weights(tmp_path / "a.npz", model_weights(SMALL), "npz")
    assert convert(tmp_path / "a.npz", "npz")[0] == 0
    assert identical(load_weights(tmp_path / "a.npz").arrays, load_weights(source).arrays)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / "link").symlink_to(source)
    for target, format, start, message in (
        (run, "canonical", source, "is no folder of weights alone"),
        (tmp_path / "a.npz", "npz", tmp_path / "a.npz", "what is converted"),
        (source, "canonical", source, "what is converted"),
        (tmp_path / "link", "canonical", source, "what is converted"),
        (source, "canonical", source / "model.safetensors", "what is converted"),
        (source / "model.safetensors", "timm", source, "what is converted"),
        (run / "checkpoint" / "model.safetensors", "timm", run, "what is converted"),
    ):
        code, _, stderr = convert(target, format, start)
        assert (code, message in stderr) == (2, True), (target, stderr)
    for folder in ("a.npz", "a.pth"):
        (tmp_path / "f" / folder).mkdir(parents=True)
        assert "is a folder" in convert(tmp_path / "f" / folder, "npz" if folder == "a.npz" else "timm")[2]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.fixture
def small_disk():
    """A limit on the size of files stands for the disk's: the writing fails in the same place."""
    resource = pytest.importorskip("resource", reason="the system has no limits on files")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk_leaves_nothing(script, tmp_path, request, format):
    save_weights(tmp_path / "source", source_of(format, TINY), "canonical")
    target = tmp_path / "out" / FILES[format]
    target.parent.mkdir()
    request.getfixturevalue("small_disk")
    code, _, stderr = script("convert", tmp_path / "source", target, "--to", format)
    assert code == 2
    assert stderr.startswith(f"error: File too large ({target.parent}/.")
    assert stderr.count("\n") == 1
    assert not list(target.parent.iterdir())


def test_the_script_says_what_it_found_assumed_changed_and_wrote(script, tmp_path):
    np.savez(tmp_path / "in.npz", **to_format(model_weights(TINY), "npz"))
    code, stdout, _ = script(
        "convert",
        tmp_path / "in.npz",
        tmp_path / "out.safetensors",
        "--to",
        "timm",
        "--num-classes",
        3,
        "--image-size",
        64,
    )
    assert code == 0
    for message in (
        "in.npz: npz, 78,986 parameters, float32",
        "tiny: images 32x32, patches 4x4, 2 mixer blocks",
        "tokens_mlp_dim 32",
        "--image-shape",
        "Assumed  gelu tanh, layer_norm_epsilon 1e-06, images 32x32, pixels -1..1, which the file does not tell",
        "image size: from 8x8 to 16x16 patches: block-diagonal",
        "head: zeros for 3 classes in place of 10",
        "out.safetensors: timm",
        "The reader must set gelu tanh instead of exact: timm files do not hold it.",
    ):
        assert message in stdout, message
    weights = load_weights(tmp_path / "out.safetensors")
    assert (weights.config.image_size, weights.config.num_classes) == ((64, 64), 3)
    assert not weights.arrays["head.weight"].any()
    code, stdout, _ = script(
        "convert",
        tmp_path / "in.npz",
        tmp_path / "out",
        "--to",
        "canonical",
        "--gelu",
        "exact",
        "--layer-norm-epsilon",
        1e-5,
        "--image-shape",
        16,
        64,
        "--pixel-mean",
        "inception",
    )
    assert code == 0
    assert "Assumed" not in stdout
    assert "must set" not in stdout
    assert load_weights(tmp_path / "out").config == replace(TINY, init="flax", image_size=(16, 64))


def test_a_run_is_converted_and_its_weights_are_its_checkpoint_s(script, tmp_path):
    state = example()
    checkpoint.save(tmp_path / "run" / "checkpoint", state)
    (tmp_path / "run" / "config.json").write_text(state.config.to_json())
    for source in (tmp_path / "run", tmp_path / "run" / "checkpoint"):
        code, stdout, _ = script("convert", source, tmp_path / "out.pth", "--to", "timm", "--overwrite")
        assert code == 0
        assert "Assumed" not in stdout
        assert identical(load_weights(tmp_path / "out.pth").arrays, state.weights)


@pytest.mark.parametrize(
    ("config", "format"),
    [
        (replace(TINY, num_classes=3), "timm"),
        (SMALL, "timm"),
        (SMALL, "lucidrains"),
        (replace(SMALL, hidden_dim=49, tokens_mlp_dim=47), "lucidrains"),
        (replace(MODELS["s32"], num_classes=2), "timm"),
    ],
)
def test_the_call_that_the_script_prints_makes_the_model(script, tmp_path, config, format):
    save_weights(tmp_path / "in", model_weights(config), "canonical")
    code, stdout, _ = script("convert", tmp_path / "in", tmp_path / "out.pth", "--to", format)
    assert code == 0
    call = next(line for line in stdout.splitlines() if "Load it into " in line).partition("Load it into ")[2]
    names = {"timm": timm, "mlp_mixer_pytorch": mlp_mixer_pytorch}
    eval(call, names).load_state_dict(torch.load(tmp_path / "out.pth", weights_only=True), strict=True)


@pytest.mark.slow
def test_the_largest_model_needs_little_memory(tmp_path):
    """h14, 1.73 GB: through every format and back, to the bit, in less than three times its size."""
    config = MODELS["h14"]
    random = np.random.default_rng(0)
    arrays = {name: random.standard_normal(shape, np.float32) for name, shape in weight_shapes(config).items()}
    save_weights(tmp_path / "0.npz", ModelWeights(config, arrays, "npz"), "npz")
    size = (tmp_path / "0.npz").stat().st_size
    previous = tmp_path / "0.npz"
    for name, format in (
        ("1", "canonical"),
        ("2.msgpack", "msgpack"),
        ("3.safetensors", "timm"),
        ("4.pth", "lucidrains"),
        ("5.npz", "npz"),
    ):
        code = (
            "import runpy, sys\nfrom mixer_common.machine import peak_memory\n"
            "try: runpy.run_path(sys.argv[0], run_name='__main__')\nfinally: print(peak_memory())"
        )
        command = (SCRIPTS / "convert.py", previous, tmp_path / name, "--to", format)
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.argv = {list(map(str, command))}\n{code}"],
            capture_output=True,
            text=True,
            check=True,
        )
        peak = int(done.stdout.split()[-1])
        assert size < peak < 3 * size, (name, peak)
        if previous != tmp_path / "0.npz":
            shutil.rmtree(previous) if previous.is_dir() else previous.unlink()
        previous = tmp_path / name
    assert subprocess.run(["cmp", tmp_path / "0.npz", previous], check=False).returncode == 0


def test_a_target_is_the_same_by_any_name(script, tmp_path):
    """Through a folder that does not exist, through links, inside a checkpoint: nothing is lost."""
    save_weights(tmp_path / "a.npz", model_weights(SMALL), "npz")
    before = (tmp_path / "a.npz").read_bytes()
    code, _, err = script("convert", tmp_path / "a.npz", tmp_path / "none" / ".." / "a.npz", "--to", "npz")
    assert code == 2
    assert "is what is converted" in err
    assert (tmp_path / "a.npz").read_bytes() == before
    save_weights(tmp_path / "real", model_weights(TINY), "canonical")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert script("convert", tmp_path / "a.npz", tmp_path / "link", "--to", "canonical", "--overwrite")[0] == 0
    assert (tmp_path / "link").is_symlink()
    assert identical(load_weights(tmp_path / "real").arrays, model_weights(SMALL).arrays)
    checkpoint.save(tmp_path / "run" / "checkpoint", example())
    code, _, err = script("convert", tmp_path / "a.npz", tmp_path / "run" / "checkpoint" / "b.npz", "--to", "npz")
    assert code == 2
    assert "lies in a checkpoint" in err


def test_a_checkpoint_cut_off_between_its_renames_is_found(tmp_path):
    checkpoint.save(tmp_path / "run" / "checkpoint", example())
    (tmp_path / "run" / "checkpoint").rename(tmp_path / "run" / ".checkpoint.old")
    assert identical(load_weights(tmp_path / "run").arrays, dict(example().weights))


def test_more_memory_than_there_is(script, tmp_path):
    save_weights(tmp_path / "a.npz", model_weights(SMALL), "npz")
    code, _, err = script("convert", tmp_path / "a.npz", tmp_path / "b.npz", "--to", "npz", "--num-classes", 10**14)
    assert code == 2
    assert "there is not enough memory" in err
