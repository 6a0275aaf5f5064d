"""Training that starts from given weights: other classes, another image size, a frozen backbone; both frameworks."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import FRAMEWORKS, random_weights

from mixer_common.config.model import ModelConfig
from mixer_common.config.presets import MODELS
from mixer_common.runs import checkpoint
from mixer_common.weights.canonical import ModelWeights
from mixer_common.weights.files import save_weights

OTHER = replace(MODELS["tiny"], image_size=16, num_classes=7, gelu="tanh", layer_norm_epsilon=1e-6)
SHORT = ("--dataset", "digits", "--precision", "float64")


def source(folder, config: ModelConfig, format: str = "canonical", name: str = "start") -> dict[str, np.ndarray]:
    weights = random_weights(config)
    save_weights(folder / name, ModelWeights(config, weights, "canonical"), format)
    return weights


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--image-size", 32), id="block-diagonal", marks=pytest.mark.slow),
        pytest.param(("--image-size", 24), id="interpolated", marks=pytest.mark.slow),
        pytest.param(("--image-size", 16, "--freeze-backbone", "--learning-rate", 0.01), id="frozen"),
        pytest.param(
            ("--image-size", 32, "--freeze-backbone", "--learning-rate", 0.03, "--recipe", "adamw", "--batch-size", 16),
            id="frozen-adamw",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_both_frameworks_draw_the_same_curve(script, tmp_path, options):
    start = source(tmp_path, OTHER)
    curves, ends = [], []
    for framework in ("jax", "torch"):
        out = tmp_path / framework
        code, stdout, err = script(
            f"train_{framework}", "--init-from", tmp_path / "start", *SHORT, *options, "--steps", 80, "--out", out
        )
        assert code == 0, err
        assert f"canonical weights in {tmp_path / 'start'}" in stdout
        assert "head: 7 classes replaced by zeros for 10" in stdout
        assert ("image size: " in stdout) == (options[1] != 16)
        curves.append(np.load(out / "step_losses.npy"))
        ends.append(checkpoint.load(out / "checkpoint"))
    # The head starts as zeros: every class is as likely as the other.
    assert curves[0][0] == pytest.approx(np.log(10), rel=1e-12)
    assert curves[0][-20:].mean() < curves[0][0] - 0.02
    np.testing.assert_allclose(*curves, rtol=0, atol=1e-10)
    for state in ends:
        assert (state.config.model.gelu, state.config.model.layer_norm_epsilon) == ("tanh", 1e-6)
        assert state.config.init_from == str(tmp_path / "start")
        stays = [name for name in state.weights if "--freeze-backbone" in options and not name.startswith("head.")]
        for name in stays:
            if options[1] == 16:
                np.testing.assert_array_equal(state.weights[name], start[name])
            np.testing.assert_array_equal(state.weights[name], ends[0].weights[name])
            assert not any(state.moments[moment][name].any() for moment in state.moments)
        assert state.moments["first_moment"]["head.weight"].any()


@pytest.mark.parametrize(
    ("framework", "format", "name"),
    [
        ("torch", "npz", "start.npz"),
        ("jax", "msgpack", "start.msgpack"),
        ("torch", "timm", "start.safetensors"),
        ("jax", "lucidrains", "start.pth"),
    ],
)
def test_every_format_starts_a_run(script, tmp_path, framework, format, name):
    """With a learning rate of zero the weights stay, so what the run holds is what the file held."""
    config = replace(OTHER, num_classes=10, image_size=32)
    weights = source(tmp_path, config, format, name)
    code, stdout, err = script(
        f"train_{framework}",
        "--init-from",
        tmp_path / name,
        "--dataset",
        "digits",
        "--steps",
        2,
        "--learning-rate",
        0,
        "--out",
        tmp_path / "run",
    )
    assert code == 0, err
    assert "assumed, since the file does not tell: gelu " in stdout
    assert "head:" not in stdout  # as many classes: it stays
    state = checkpoint.load(tmp_path / "run" / "checkpoint")
    assert state.config.model_name == "tiny"
    assert state.config.model.gelu == ("tanh" if format in ("npz", "msgpack") else "exact")
    for name, array in weights.items():
        assert state.weights[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("framework", ["jax", pytest.param("torch", marks=pytest.mark.slow)])
def test_a_frozen_run_resumes_to_the_same_bits(script, tmp_path, framework):
    source(tmp_path, OTHER)
    given = ("--init-from", tmp_path / "start", "--dataset", "digits", "--freeze-backbone")
    for out, steps in (("whole", 30), ("cut", 12)):
        assert script(f"train_{framework}", *given, "--steps", steps, "--out", tmp_path / out)[0] == 0
    code, stdout, _ = script(f"train_{framework}", "--out", tmp_path / "cut", "--resume", "--steps", 30)
    assert code == 0
    assert "from step 12" in stdout
    whole, cut = (tmp_path / out for out in ("whole", "cut"))
    for name in ("step_losses.npy", "checkpoint/model.safetensors", "checkpoint/optimizer.safetensors"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes()


def test_a_run_continues_in_a_new_one(script, tmp_path):
    assert (
        script(
            "train_torch",
            "--dataset",
            "digits",
            "--model",
            "nano",
            "--num-blocks",
            1,
            "--steps",
            5,
            "--out",
            tmp_path / "first",
        )[0]
        == 0
    )
    code, stdout, _ = script(
        "train_jax",
        "--init-from",
        tmp_path / "first",
        "--dataset",
        "digits",
        "--steps",
        5,
        "--out",
        tmp_path / "second",
    )
    assert code == 0
    assert "MLP-Mixer custom" in stdout
    state = checkpoint.load(tmp_path / "second" / "checkpoint")
    assert (state.config.model.num_blocks, state.progress.step) == (1, 5)


@FRAMEWORKS
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--init-from", "{start}", "--model", "tiny"), "leave --model out"),
        (("--init_from", "{start}", "--model", "tiny"), "leave --model out"),
        (("--init-from", "{start}", "--resume"), "leave one of them out"),
        (("--init-from", "{start}", "--out", "{start}", "--overwrite"), "is part of what the run begins from"),
        (("--init-from", "{start}", "--image-width", "32"), "image_width 32 cannot be chosen for given weights"),
        (("--init-from", "{start}", "--image-size", "320000"), "there is not enough memory"),
        (("--init-from", "nothing"), "nothing"),
        (
            ("--init-from", "{start}", "--hidden-dim", "96"),
            "stem.weight has shape (64, 3, 4, 4) instead of (96, 3, 4, 4)",
        ),
        (("--init-from", "{start}", "--image-size", "30"), "image_size 30 is not a multiple of patch_size 4"),
        (("--init-from", "{start}", "--num-classes", "12"), "num_classes is 12, but digits has 10 classes"),
    ],
)
def test_bad_input_is_one_sentence(script, tmp_path, framework, arguments, message):
    source(tmp_path, OTHER)
    code, _, err = script(
        f"train_{framework}",
        "--out",
        tmp_path / "run",
        "--dataset",
        "digits",
        *(argument.format(start=tmp_path / "start") for argument in arguments),
    )
    assert code == 2
    assert message in err
    assert err.startswith("error: ")
    assert not (tmp_path / "run").exists()
    assert {path.name for path in (tmp_path / "start").iterdir()} == {"config.json", "model.safetensors"}


def test_images_that_are_not_square_start_a_run_on_square_ones(script, tmp_path):
    source(tmp_path, replace(OTHER, image_size=(8, 32)))
    code, stdout, err = script(
        "train_jax",
        "--init-from",
        tmp_path / "start",
        "--dataset",
        "digits",
        "--image-size",
        16,
        "--steps",
        2,
        "--out",
        tmp_path / "run",
    )
    assert code == 0, err
    assert "from 2x8 to 4x4 patches: interpolated" in stdout
    assert checkpoint.load(tmp_path / "run" / "checkpoint").config.model.image_size == (16, 16)


def test_what_was_stated_is_not_called_assumed(script, tmp_path):
    source(tmp_path, OTHER, "npz", "start.npz")
    code, stdout, _ = script(
        "train_torch",
        "--init-from",
        tmp_path / "start.npz",
        "--dataset",
        "digits",
        "--gelu",
        "exact",
        "--image-size",
        32,
        "--steps",
        1,
        "--out",
        tmp_path / "run",
    )
    assert code == 0
    assert "does not tell: layer_norm_epsilon 1e-06, images 16x16, pixels -1..1\n" in stdout


def test_converted_weights_tell_no_data(script, tmp_path):
    source(tmp_path, OTHER)
    code, _, err = script("evaluate", tmp_path / "start")
    assert code == 2
    assert "start is no run, so that nothing tells its data: name them with --dataset." in err
