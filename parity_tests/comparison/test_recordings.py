"""Recordings in files: the same arrays to the bit, streamed or not; checked when they are read; as sides."""

import json
import os
import struct
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from helpers import FRAMEWORKS, SCRIPTS, SMALL, identical, model_weights, random_weights

from mixer_common.comparison import recording_files
from mixer_common.comparison.compare import compare
from mixer_common.comparison.recording import Inputs, Recording, RecordingSubject
from mixer_common.comparison.recording_files import (
    is_recording,
    load_recording,
    new_recording,
    open_recording,
    save_recording,
)
from mixer_common.comparison.sides import OpenedModel, WeightsSubject
from mixer_common.config.model import activation_names, weight_shapes
from mixer_common.errors import UserError
from mixer_common.interface import load_framework
from mixer_common.weights.files import load_weights, save_weights
from mixer_common.weights.safetensors_files import RECORDING_KEY

IMAGES = np.random.default_rng(0).integers(0, 256, (3, *SMALL.image_size, 3), np.uint8)
INPUTS = Inputs(IMAGES, np.array([0, 4, 7], np.int32), "3 images of noise")
DIGITS = ("--dataset", "digits", "--images", 3)


def subject(framework: str = "torch", losses: np.ndarray | None = None, seed: int = 0) -> WeightsSubject:
    program = load_framework(framework)
    run = {"batch_size": 4, "learning_rate": 0.1, "flip": True, "class_names": ["a", "é"]} if losses is not None else {}
    model = OpenedModel("the/model", "a small Mixer", framework, model_weights(SMALL, seed), losses, run)
    return WeightsSubject(model, program, partial(program.prepare, "cpu"))


def assert_equal(a: Recording, b: Recording) -> None:
    assert replace(a.origin, step_losses=None) == replace(b.origin, step_losses=None)
    assert (a.config, a.observations, a.inputs.description) == (b.config, b.observations, b.inputs.description)
    assert a.inputs.sha256 == b.inputs.sha256
    assert identical(a.weights, b.weights)
    assert identical(a.activations, b.activations)
    for first, second in (
        (a.gradients, b.gradients),
        (a.activation_gradients, b.activation_gradients),
        (a.origin.step_losses and {"": a.origin.step_losses}, b.origin.step_losses and {"": b.origin.step_losses}),
    ):
        assert (first is None) == (second is None)
        assert identical(first or {}, second or {})


# ---- Streaming.


@FRAMEWORKS
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float64"])
def test_a_sink_gets_every_activation_as_it_is_computed(framework, precision):
    """In network order, the same bits as without a sink, and nothing is left in memory."""
    program = load_framework(framework)
    device = program.prepare("cpu", precision)
    arguments = (SMALL, random_weights(SMALL), IMAGES, precision, device)
    streamed: dict[str, np.ndarray] = {}
    rest = program.activations(*arguments, sink=lambda name, array: streamed.update({name: array.copy(order="C")}))
    assert rest == {}
    assert list(streamed) == activation_names(SMALL)
    assert identical(streamed, program.activations(*arguments))


@FRAMEWORKS
def test_what_a_sink_raises_is_raised(framework, caplog, capfd):
    program = load_framework(framework)
    device = program.prepare("cpu", "float32")
    taken: list[str] = []

    def full(name, array):
        taken.append(name)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        program.activations(SMALL, random_weights(SMALL), IMAGES, "float32", device, sink=full)
    assert taken == ["stem"]
    assert "Traceback" not in caplog.text + "".join(capfd.readouterr())


# ---- Files.


@FRAMEWORKS
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("gradients", [False, True])
def test_a_streamed_file_holds_what_would_be_in_memory(tmp_path, framework, precision, gradients):
    losses = np.array([2.5, np.nan, 1], precision)
    side, streamed, saved = (
        subject(framework, losses),
        tmp_path / "new" / "streamed.safetensors",
        tmp_path / "b.safetensors",
    )
    side.record_to_file(streamed, INPUTS, precision, gradients)
    recording = side.record(INPUTS, precision, gradients)
    save_recording(saved, recording)
    assert streamed.read_bytes() == saved.read_bytes()
    loaded = load_recording(streamed)
    np.testing.assert_array_equal(loaded.origin.step_losses, losses)
    assert_equal(
        replace(loaded, origin=replace(loaded.origin, step_losses=None)),
        replace(recording, origin=replace(recording.origin, step_losses=None)),
    )
    assert list(loaded.activations) == activation_names(SMALL)
    assert list(loaded.weights) == list(weight_shapes(SMALL))
    assert [path.name for path in streamed.parent.iterdir()] == ["streamed.safetensors"]


def test_a_recording_is_a_safetensors_file_of_aligned_arrays(tmp_path):
    path = tmp_path / "a.safetensors"
    subject().record_to_file(path, INPUTS, "float64", True)
    with safetensors.safe_open(path, framework="np") as file:
        names, metadata = set(file.keys()), json.loads(file.metadata()[RECORDING_KEY])
    assert {
        "activations.stem",
        "activation_gradients.head",
        "weights.head.bias",
        "weight_gradients.stem.weight",
    } < names
    assert {"inputs.images", "inputs.labels"} < names
    assert metadata["inputs"] == {"sha256": INPUTS.sha256, "description": "3 images of noise"}
    assert metadata["origin"]["versions"]["torch"]
    loaded = load_recording(path)
    assert all(array.flags.aligned and not array.flags.writeable for array in loaded.activations.values())
    np.testing.assert_array_equal(loaded.inputs.images, IMAGES)


def test_observations_notes_and_missing_arrays_are_kept(tmp_path):
    """Somebody's own module may lack a layer, and its recording says so."""
    recording = subject().record(INPUTS, "float32")
    partial_recording = replace(
        recording,
        weights={name: array for name, array in recording.weights.items() if not name.startswith("norm.")},
        activations={name: array for name, array in recording.activations.items() if name != "norm"},
        observations=("it has no final norm",),
        origin=replace(recording.origin, notes=("layers were matched by value", "„quotes“")),
    )
    save_recording(tmp_path / "a.safetensors", partial_recording)
    assert_equal(load_recording(tmp_path / "a.safetensors"), partial_recording)


def test_a_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    subject().record_to_file(path, INPUTS, "float32")
    before = path.read_bytes()
    add = recording_files.RecordingWriter.add

    def fails(self, group, name, array):
        if name == "blocks.1.token_norm":
            raise OSError(28, "No space left on device")
        add(self, group, name, array)

    for framework in ("jax", "torch"):
        with monkeypatch.context() as patch:
            patch.setattr(recording_files.RecordingWriter, "add", fails)
            with pytest.raises(OSError, match="No space left") as error:
                subject(framework).record_to_file(path, INPUTS, "float32")
        assert error.value.filename == str(path)
    with (
        pytest.raises(ValueError, match=r"weights\.stem\.weight"),
        new_recording(
            path,
            SMALL,
            INPUTS,
            subject().record(INPUTS, "float32").origin,
            {"weights.stem.weight": (np.dtype("<f4"), (1,))},
        ),
    ):
        pass
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["a.safetensors"]


# ---- What is no whole recording.


def changed(path: Path, change) -> Path:
    """A copy of a recording whose header and data went through `change`."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header, rest = json.loads(data[8 : 8 + size]), bytearray(data[8 + size :])
    metadata = json.loads(header["__metadata__"][RECORDING_KEY])
    change(header, metadata, rest)
    header["__metadata__"] = {RECORDING_KEY: json.dumps(metadata)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    other = path.with_name("changed.safetensors")
    other.write_bytes(struct.pack("<Q", len(text)) + text + rest)
    return other


def other_version(header, metadata, data):
    metadata["version"] = 2


def no_config(header, metadata, data):
    del metadata["config"]


def other_config(header, metadata, data):
    metadata["config"]["hidden_dim"] = 25


def fewer_blocks(header, metadata, data):
    metadata["config"]["num_blocks"] = 1


def unknown_field(header, metadata, data):
    metadata["config"]["depth"] = 3


def unknown_framework(header, metadata, data):
    metadata["origin"]["framework"] = "tensorflow"


def no_device(header, metadata, data):
    del metadata["origin"]["device"]


def wrong_type(header, metadata, data):
    metadata["origin"]["model"] = 7


def other_image(header, metadata, data):
    data[-1] ^= 1


def other_hash(header, metadata, data):
    metadata["inputs"]["sha256"] = "0" * 64


def other_name(header, metadata, data):
    header["activations.tail"] = header.pop("activations.head")


def observations_of_another_kind(header, metadata, data):
    metadata["observations"] = "none"


def no_images(header, metadata, data):
    header["inputs.pixels"] = header.pop("inputs.images")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_version, "is a recording of format version 2, and this version of the program reads 1"),
        (no_config, "its metadata lacks config"),
        (other_config, "of its weights, stem.weight has shape (24, 3, 4, 4) instead of (25, 3, 4, 4)"),
        (fewer_blocks, "its model has no activation blocks.1.token_norm"),
        (unknown_field, "does not hold a ModelConfig: missing [], unknown ['depth']"),
        (unknown_framework, "its framework is 'tensorflow'"),
        (no_device, "does not hold a Origin: missing ['device']"),
        (wrong_type, "its origin holds something else than texts and tables"),
        (other_image, "its images and labels have the SHA-256"),
        (other_hash, "and its metadata says 000000000000"),
        (other_name, "its model has no activation tail"),
        (observations_of_another_kind, "its observations are 'none'"),
        (no_images, "it does not hold its images and labels"),
    ],
)
def test_a_changed_recording_is_refused(script, tmp_path, change, message):
    path = tmp_path / "a.safetensors"
    subject().record_to_file(path, INPUTS, "float32")
    other = changed(path, change)
    assert is_recording(other)
    with pytest.raises(UserError) as error:
        load_recording(other)
    assert message in str(error.value)
    assert str(other) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("share", [0.999, 0.5, 0.05])
def test_a_truncated_recording_is_refused(tmp_path, share):
    path = tmp_path / "a.safetensors"
    subject().record_to_file(path, INPUTS, "float32")
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    assert is_recording(path)
    with pytest.raises(UserError, match=r"is no complete recording .* cut short or changed"):
        load_recording(path)


def test_weights_are_no_recording_and_a_recording_no_weights(tmp_path):
    recording, weights = tmp_path / "a.safetensors", tmp_path / "timm.safetensors"
    subject().record_to_file(recording, INPUTS, "float32")
    save_weights(weights, model_weights(replace(SMALL, image_size=16)), "timm")
    assert not is_recording(weights)
    assert open_recording(str(weights)) is None
    assert open_recording(str(tmp_path)) is None
    with pytest.raises(UserError, match="is no recording"):
        load_recording(weights)
    with pytest.raises(UserError, match="does not exist"):
        load_recording(tmp_path / "nothing.safetensors")
    with pytest.raises(UserError, match="is a recording of what a model computed, no file of weights"):
        load_weights(recording)


# ---- As sides.


def test_a_recording_gives_what_was_recorded_and_nothing_else(tmp_path):
    path = tmp_path / "a.safetensors"
    subject().record_to_file(path, INPUTS, "float64")
    side = open_recording(f"torch:{path}")
    assert isinstance(side, RecordingSubject)
    assert (side.config, side.framework) == (SMALL, "torch")
    recording = side.record(INPUTS, "float64")
    assert recording.origin.name == f"torch:{path}"
    assert recording.origin.model == "a recording in float64 of the/model, a small Mixer"
    assert identical(recording.activations, subject().record(INPUTS, "float64").activations)
    others = Inputs(IMAGES[::-1], INPUTS.labels, "others")
    for arguments, message in (
        ((others, "float64"), "was recorded on 3 images of noise"),
        ((INPUTS, "float32"), "was recorded in float64, not in float32"),
        ((INPUTS, "float64", True), "was recorded without gradients"),
        ((INPUTS, "float64", False, {}), "cannot go on from the activations of another model"),
    ):
        with pytest.raises(UserError, match=message):
            side.record(*arguments)
    with pytest.raises(UserError, match="cannot be computed with other weights"):
        side.with_weights({})
    with pytest.raises(UserError, match="was recorded in torch, so it is no side of jax"):
        open_recording(f"jax:{path}")


def test_recordings_of_both_frameworks_agree_and_part_where_they_should(tmp_path):
    paths = [tmp_path / f"{name}.safetensors" for name in ("jax", "torch", "other")]
    for path, side in zip(paths, (subject("jax"), subject("torch"), subject("torch", seed=1)), strict=True):
        side.record_to_file(path, INPUTS, "float64", gradients=True)
    a, b, other = (load_recording(path) for path in paths)
    assert compare(a, b).agrees
    assert len(compare(a, b).gradients) == len(weight_shapes(SMALL))
    parts = compare(a, other)
    assert not parts.agrees
    assert parts.first_past_bound
    assert parts.first_past_bound.name == "stem"


# ---- The scripts.


@pytest.fixture
def model(tmp_path):
    save_weights(tmp_path / "model", model_weights(SMALL), "canonical")
    return tmp_path / "model"


def test_a_golden_file_is_held_against_a_live_side(script, tmp_path, model):
    """Recorded in JAX with gradients, compared with PyTorch, where no data set is needed: exit codes 0, 1 and 2."""
    golden = tmp_path / "golden.safetensors"
    code, out, err = script("record", model, golden, *DIGITS, "--gradients")
    assert (code, err) == (0, "")
    assert "Images     3 test images of scikit-learn's bundled handwritten digits" in out
    assert f"Model      {model}: canonical weights of custom" in out
    assert f"Recording  {golden}, " in out
    for sides in ((golden, f"torch:{model}"), (f"torch:{model}", golden), (golden, golden)):
        code, out, _ = script("compare", *sides, "--dataset", "cifar10", "--data-dir", tmp_path, "--gradients")
        assert code == 0
        assert "They agree" in out
        assert "A recording holds its images: --images, --dataset and --data-dir have no effect." in out
        assert "Images     3 test images of scikit-learn's bundled handwritten digits" in out
        assert "a recording in float64 of " in out
    code, out, _ = script("compare", golden, f"torch:{model}", "--isolate")
    assert code == 0
    assert "have no effect" not in out

    other = model_weights(SMALL)
    other.arrays["blocks.1.channel_mixing.fc1.bias"][3] += 0.25
    save_weights(tmp_path / "other", other, "canonical")
    code, out, _ = script("compare", golden, tmp_path / "other")
    assert code == 1
    assert "They part at blocks.1.channel_mixing.fc1: " in out

    script("record", f"torch:{model}", tmp_path / "more.safetensors", "--dataset", "digits", "--images", 4)
    code, _, err = script("compare", golden, tmp_path / "more.safetensors")
    assert code == 2
    assert "was recorded on 4 test images of scikit-learn's" in err


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_live_side_computes_in_the_precision_of_the_recording(script, tmp_path, model, precision):
    golden = tmp_path / "golden.safetensors"
    assert script("record", f"torch:{model}", golden, *DIGITS, "--precision", precision)[0] == 0
    code, out, _ = script("compare", golden, f"jax:{model}")
    assert code == 0
    assert f"Precision  {precision}\n" in out
    code, out, _ = script("compare", golden, f"jax:{model}", "--precision", "float64")
    assert code == 0
    assert f"a recording in {precision} of " in out


def test_a_module_is_recorded(script, tmp_path):
    """Its layers are matched first, so that its recording is one like any other."""
    port = Path(__file__).with_name("ports") / "torch_port.py"
    code, out, _ = script("record", f"torch:{port}:build", tmp_path / "port.safetensors", *DIGITS, "--gradients")
    assert code == 0
    assert "Model " in out
    code, out, _ = script("compare", tmp_path / "port.safetensors", f"torch:{port}:build", "--gradients")
    assert code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{model}", "out.npz"), "out.npz does not end in .safetensors"),
        (("{model}", "{model}/new.safetensors", "--images", 0), "--images is 0"),
        (("{model}", "{model}/model.safetensors"), "exists already"),
        (
            ("{model}", "{model}/model.safetensors", "--overwrite"),
            "is no recording, so --overwrite does not replace it",
        ),
        (("{golden}", "{model}/new.safetensors"), "is a recording already"),
        (("nothing", "{model}/new.safetensors"), "nothing does not exist"),
        (("{model}", "{golden}"), "exists already: replace it with --overwrite"),
    ],
)
def test_record_refuses_in_one_sentence(script, tmp_path, model, arguments, message):
    golden = tmp_path / "golden.safetensors"
    subject().record_to_file(golden, INPUTS, "float32")
    before = golden.read_bytes()
    code, _, err = script("record", *(str(text).format(model=model, golden=golden) for text in arguments))
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert golden.read_bytes() == before
    assert not (model / "new.safetensors").exists()


def test_a_truncated_recording_and_a_recording_as_weights_are_one_sentence(script, tmp_path, model):
    golden = tmp_path / "golden.safetensors"
    subject().record_to_file(golden, INPUTS, "float32")
    code, _, err = script("convert", golden, tmp_path / "out.npz", "--to", "npz")
    assert code == 2
    assert "is a recording of what a model computed, no file of weights" in err
    code, _, err = script("record", model, golden, *DIGITS, "--overwrite")
    assert code == 0
    golden.write_bytes(golden.read_bytes()[:-1])
    for sides in ((golden, model), (model, golden)):
        code, _, err = script("compare", *sides)
        assert code == 2
        assert err.count("\n") == 1
        assert "is no complete recording" in err


# ---- Another version.

OTHER_PYTHON = os.environ.get("MLP_MIXER_OTHER_PYTHON", "")


@pytest.mark.slow
@pytest.mark.skipif(not OTHER_PYTHON, reason="needs MLP_MIXER_OTHER_PYTHON, the interpreter of another environment")
@pytest.mark.parametrize("gradients", [(), ("--gradients",)])
def test_a_recording_of_another_environment(script, tmp_path, model, gradients):
    """Python, JAX and NumPy of other versions than these: the same numbers within rounding."""
    path = tmp_path / "other.safetensors"
    options = ("--precision", "float32", *map(str, DIGITS), *gradients)
    subprocess.run([OTHER_PYTHON, SCRIPTS / "record.py", f"jax:{model}", path, *options], check=True)
    ours = tmp_path / "ours.safetensors"
    assert script("record", f"jax:{model}", ours, *options)[0] == 0
    assert load_recording(path).origin.versions != load_recording(ours).origin.versions
    code, out, _ = script("compare", ours, path)
    assert code == 0
    assert "They agree" in out
