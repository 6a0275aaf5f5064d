"""All arrays of two checkpoints compared without running anything, and the settings of two runs."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from helpers import example, model_weights

from mixer_common.comparison.checkpoint_printing import print_checkpoints, print_settings
from mixer_common.comparison.checkpoints import StoredArrays, compare_checkpoints, open_arrays
from mixer_common.comparison.settings import differing_runs, run_settings
from mixer_common.config.model import weight_shapes
from mixer_common.config.presets import MODELS
from mixer_common.config.train import moment_names
from mixer_common.runs import checkpoint
from mixer_common.weights.files import save_weights

TINY = MODELS["tiny"]
COUNT = len(weight_shapes(TINY))


def stored(arrays: dict[str, np.ndarray], **moments: dict[str, np.ndarray]) -> StoredArrays:
    return StoredArrays("a", "arrays", TINY, {"weights": arrays, **moments})


@pytest.fixture
def run(tmp_path):
    """Saves a checkpoint as tmp_path/NAME/checkpoint; changes: of its arrays, by group and name."""

    def save(name, state=None, **changes):
        state = state or example(ema_decay=0.9)
        for group, (array_name, change) in changes.items():
            arrays = state.weights if group == "weights" else state.moments[group]
            array = arrays[array_name].copy()
            change(array)
            arrays[array_name] = array
        checkpoint.save(tmp_path / name / "checkpoint", state)
        (tmp_path / name / "config.json").write_text(state.config.to_json())
        return str(tmp_path / name)

    return save


def test_equal_checkpoints_are_equal_to_the_bit(run):
    a, b = open_arrays(run("a")), open_arrays(f"jax:{run('b')}")
    comparison = compare_checkpoints(a, b)
    assert list(a.groups) == ["weights", *moment_names(example(ema_decay=0.9).config.train)]
    assert "trained_weights" in a.groups
    assert len(comparison.arrays) == 4 * COUNT
    assert all(array.equal for array in comparison.arrays)
    assert comparison.agrees
    assert comparison.settings == ()


@pytest.mark.parametrize("group", ["weights", "first_moment", "second_moment", "trained_weights"])
def test_one_bit_is_found_in_every_group(run, group, capsys):
    def flip_last_bit(array):
        array.reshape(-1)[3:4].view(np.uint64)[0] ^= np.uint64(1)

    a = open_arrays(run("a"))
    b = open_arrays(run("b", **{group: ("blocks.1.channel_mixing.fc2.weight", flip_last_bit)}))
    comparison = compare_checkpoints(a, b)
    (found,) = (array for array in comparison.arrays if not array.equal)
    assert (found.group, found.difference.name) == (group, "blocks.1.channel_mixing.fc2.weight")
    assert 0 < found.difference.max_error < 1e-15
    assert not comparison.agrees
    assert compare_checkpoints(a, b, tolerance=1e-12).agrees
    assert not compare_checkpoints(a, b, tolerance=1e-20).agrees
    print_checkpoints(comparison)
    out = capsys.readouterr().out
    name = found.difference.name if group == "weights" else f"{group}.{found.difference.name}"
    assert f"1 of {4 * COUNT} arrays differ, most {name}, by " in out
    assert f"{group}: arrays that differ" in out
    assert "No logit depends" not in out
    assert len([line for line in out.splitlines() if line.split()[:1] == [found.difference.name]]) == 1


def test_what_equals_as_a_number_and_not_to_the_bit_differs():
    zeros = {"head.bias": np.zeros(10, np.float32)}
    for other in (-zeros["head.bias"], np.zeros(10)):
        comparison = compare_checkpoints(stored(zeros), stored({"head.bias": other}))
        assert not comparison.agrees
        assert comparison.arrays[0].difference.max_error == 0
        assert compare_checkpoints(stored(zeros), stored({"head.bias": other}), tolerance=0.0).agrees
    nan = {"head.bias": np.full(10, np.nan, np.float32)}
    assert compare_checkpoints(stored(nan), stored(nan), tolerance=0.1).agrees
    assert not compare_checkpoints(stored(zeros), stored(nan), tolerance=0.1).agrees


def test_arrays_that_only_one_side_has(run, tmp_path, capsys):
    bias, weight = {"head.bias": np.ones(10)}, {"head.weight": np.ones((10, 64))}
    comparison = compare_checkpoints(stored({**bias, **weight}), stored(bias))
    assert [(array.difference.name, array.difference.note) for array in comparison.arrays if not array.equal] == [
        ("head.weight", "only in A")
    ]
    assert not comparison.agrees
    assert not compare_checkpoints(stored(bias), stored({"head.bias": np.ones(9)}), tolerance=9.0).agrees

    # A file of weights has no moments, which is no difference; a checkpoint of another optimizer has others.
    a = open_arrays(run("adam", example()))
    save_weights(tmp_path / "weights", replace(model_weights(TINY), arrays=dict(example().weights)), "canonical")
    comparison = compare_checkpoints(a, open_arrays(str(tmp_path / "weights")))
    assert comparison.agrees
    print_checkpoints(comparison)
    out = capsys.readouterr().out
    assert "A holds first_moment and second_moment, too, and B does not." in out
    assert f"All {COUNT} arrays are equal to the bit." in out
    (tmp_path / "adam" / "checkpoint" / "optimizer.safetensors").unlink()
    assert list(open_arrays(str(tmp_path / "adam")).groups) == ["weights"]
    comparison = compare_checkpoints(a, open_arrays(run("sgd", example(optimizer="sgd"))))
    assert not comparison.agrees
    assert (comparison.only_in_a, comparison.only_in_b) == (("first_moment", "second_moment"), ("momentum",))
    print_checkpoints(comparison)
    out = capsys.readouterr().out
    assert "B holds momentum, too, and A does not." in out
    assert "but one side holds more" in out


def test_a_bias_that_reaches_no_logit_is_marked(run, capsys):
    """Its arrays differ between two runs that are equal in all that they compute, so the table says what they are."""
    other = run("b", weights=("blocks.0.token_mixing.fc2.bias", lambda array: array.fill(1)))
    comparison = compare_checkpoints(open_arrays(run("a")), open_arrays(other), tolerance=0.1)
    assert [array.difference.name for array in comparison.arrays if array.reaches_no_logit and not array.equal] == [
        "blocks.0.token_mixing.fc2.bias"
    ]
    assert not comparison.agrees
    print_checkpoints(comparison)
    out = capsys.readouterr().out
    assert "* past" in out
    assert "* No logit depends on this bias" in out


def test_the_script_compares_weights_only(script, run, tmp_path):
    """Exit codes 0, 1 and 2; the file of figures has every array."""
    path = tmp_path / "figures.json"
    code, out, _ = script("compare", run("a"), run("b"), "--weights-only")
    assert code == 0
    assert f"All {4 * COUNT} arrays are equal to the bit." in out
    assert "after 7 steps on somewhere" in out
    other = run("c", weights=("stem.bias", lambda array: array.fill(np.nan)))
    code, out, _ = script("compare", f"jax:{tmp_path / 'a'}", other, "--weights-only", "--json", path)
    assert code == 1
    assert f"1 of {4 * COUNT} arrays differ, most stem.bias, by nan" in out
    values = json.loads(path.read_text())
    assert values["agrees"] is False
    assert len(values["arrays"]) == 4 * COUNT
    (row,) = (row for row in values["arrays"] if not row["equal"])
    assert (row["group"], row["name"], row["max_error"], row["max_error_is"]) == ("weights", "stem.bias", None, "NaN")
    code, _, err = script("compare", run("a"), tmp_path / "nothing", "--weights-only")
    assert code == 2
    assert "nothing does not exist" in err


def test_no_framework_is_imported(run):
    code = (
        "import sys; from mixer_common.comparison.checkpoints import *; from mixer_common.comparison import "
        "checkpoint_printing as printing; sides = [open_arrays(path) for path in sys.argv[1:]]; "
        "printing.print_checkpoints(compare_checkpoints(*sides)); "
        "assert not {'jax', 'torch', 'flax', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, run("a"), run("b")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "arrays are equal to the bit" in done.stdout


# ---- Settings.


def test_two_runs_settings_that_differ_are_told(run, tmp_path, capsys):
    a, b = example(step=7), example(step=9, learning_rate=0.125, seed=1, trivial_augment=True, operations=("rotate",))
    b = replace(b, config=replace(b.config, dataset_fingerprint="fedcba9876543210"))
    paths = [run("a", a), run("b", b)]
    for path, version in zip(paths, ("0.10.2", "0.12.0"), strict=True):
        (tmp_path / path / "summary.json").write_text(json.dumps({"versions": {"jax": version, "numpy": "2.4"}}))
    sides = [open_arrays(path) for path in paths]
    differing = {
        setting.name: (setting.a, setting.b)
        for setting in differing_runs(TINY, replace(TINY, gelu="tanh"), sides[0].run, sides[1].run)
    }
    assert differing == {
        "gelu": ("exact", "tanh"),
        "learning_rate": ("0.001", "0.125"),
        "seed": ("0", "1"),
        "trivial_augment": ("False", "True"),
        "operations": ("–", "rotate"),
        "dataset_fingerprint": ("0123456789abcdef", "fedcba9876543210"),
        "steps done": ("7", "9"),
        "trained with jax": ("0.10.2", "0.12.0"),
    }
    print_settings(compare_checkpoints(*sides).settings)
    out = capsys.readouterr().out
    assert "dataset_fingerprint" in out
    assert "trained with jax" in out


def test_equal_settings_print_nothing(capsys):
    print_settings(differing_runs(TINY, TINY, {"seed": 0}, {}))
    assert capsys.readouterr().out == ""


def test_the_settings_of_a_run_are_plain_json(tmp_path):
    settings = run_settings(tmp_path, example(ema_decay=0.9))
    assert json.loads(json.dumps(settings)) == settings
    assert settings["ema_decay"] == 0.9
    assert settings["trained by"] == "jax from step 0, torch from step 3"
