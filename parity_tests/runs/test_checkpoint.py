"""Checkpoints: exact, whole or not at all, and clear about what is wrong with one."""

import errno
import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import example

from mixer_common.config.train import MOMENTS
from mixer_common.errors import UserError
from mixer_common.runs import checkpoint, history
from mixer_common.weights.canonical import ModelWeights
from mixer_common.weights.files import load_weights, save_weights


@pytest.mark.parametrize("optimizer", MOMENTS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.9, "trivial_augment": True, "operations": ("rotate",)}])
def test_what_is_saved_is_loaded_to_the_bit(tmp_path, optimizer, dtype, changes):
    saved = example(optimizer=optimizer, dtype=dtype, **changes)
    checkpoint.save(tmp_path / "checkpoint", saved)
    loaded = checkpoint.load(tmp_path / "checkpoint")
    assert (loaded.config, loaded.progress) == (saved.config, saved.progress)
    assert loaded.moments.keys() == saved.moments.keys()
    assert ("trained_weights" in loaded.moments) == bool(changes)
    for before, after in (
        (saved.weights, loaded.weights),
        *((saved.moments[name], loaded.moments[name]) for name in saved.moments),
    ):
        assert list(before) == list(after)
        assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]
    assert sorted(path.name for path in (tmp_path / "checkpoint").iterdir()) == [
        "checksums.json",
        "config.json",
        "model.safetensors",
        "optimizer.safetensors",
        "progress.json",
    ]


@pytest.mark.parametrize("fail_at", range(1, 6))
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch, fail_at):
    checkpoint.save(tmp_path / "checkpoint", example(step=7))
    calls = []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == fail_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path / "checkpoint", example(step=8))
    assert checkpoint.load(tmp_path / "checkpoint").progress.step == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


def test_a_stop_between_the_renames_loses_nothing(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoint"
    checkpoint.save(folder, example(step=7))
    rename, renamed = Path.rename, []

    def stop_at_second(self: Path, target: Path) -> Path:
        renamed.append(self)
        if len(renamed) == 2:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(folder, example(step=8))
    monkeypatch.undo()
    assert not folder.exists()
    assert checkpoint.load(folder).progress.step == 7
    checkpoint.save(folder, example(step=9))
    assert checkpoint.load(folder).progress.step == 9


@pytest.mark.parametrize(
    "name", ["config.json", "checksums.json", "model.safetensors", "optimizer.safetensors", "progress.json"]
)
@pytest.mark.parametrize("damage", ["cut", "gone", "empty", "text"])
def test_a_damaged_file_is_named(tmp_path, name, damage):
    folder = tmp_path / "checkpoint"
    checkpoint.save(folder, example())
    data = (folder / name).read_bytes()
    if damage == "gone":
        (folder / name).unlink()
        if name == "checksums.json":  # version 0.1 wrote none
            return
    else:
        (folder / name).write_bytes({"cut": data[: len(data) // 2], "empty": b"", "text": b"not this"}[damage])
    with pytest.raises(UserError, match=name):
        checkpoint.load(folder)


def test_weights_of_another_model_are_listed(tmp_path):
    folder = tmp_path / "checkpoint"
    checkpoint.save(folder, example())
    values = json.loads((folder / "config.json").read_text())
    values["model"]["num_blocks"] = 3
    values["model"]["hidden_dim"] = 32
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"config\.json was changed or damaged after it was written: its checksum"):
        checkpoint.load(folder)
    (folder / "checksums.json").unlink()
    with pytest.raises(UserError, match=r"blocks\.2\.token_norm\.weight is missing.*head\.weight has shape"):
        checkpoint.load(folder)


def test_an_average_without_the_weights_as_trained_is_no_checkpoint(tmp_path):
    saved = example(ema_decay=0.9)
    moments = {name: arrays for name, arrays in saved.moments.items() if name != "trained_weights"}
    checkpoint.save(tmp_path / "checkpoint", replace(saved, moments=moments))
    with pytest.raises(UserError, match=r"trained_weights\.stem\.weight is missing"):
        checkpoint.load(tmp_path / "checkpoint")


def test_no_checkpoint_there(tmp_path):
    with pytest.raises(UserError, match="is no checkpoint"):
        checkpoint.load(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is no run"):
        checkpoint.load_run(tmp_path / "empty")


def test_a_checkpoint_is_read_from_its_run_and_by_itself(tmp_path):
    saved = example()
    checkpoint.save(tmp_path / "run" / "checkpoint", saved)
    (tmp_path / "run" / "config.json").write_text(saved.config.to_json())
    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoint"):
        assert checkpoint.load_run(folder).progress == saved.progress


def test_arrays_are_plain_safetensors(tmp_path):
    from safetensors.torch import load_file

    saved = example(dtype="float32")
    checkpoint.save(tmp_path / "checkpoint", saved)
    weights = load_file(tmp_path / "checkpoint" / "model.safetensors")
    assert all((weights[name].numpy() == saved.weights[name]).all() for name in saved.weights)
    moments = load_file(tmp_path / "checkpoint" / "optimizer.safetensors")
    np.testing.assert_array_equal(moments["second_moment.head.bias"], saved.moments["second_moment"]["head.bias"])


def test_a_flipped_bit_is_noticed_anywhere(tmp_path):
    """One bit at 100 places of the files together; what is only read for its weights notices those of the weights."""
    folder = tmp_path / "checkpoint"
    checkpoint.save(folder, example(dtype="float32"))
    random = np.random.default_rng(0)
    paths = sorted(folder.iterdir())
    for k in range(100):
        path = paths[k % len(paths)]
        original = path.read_bytes()
        data = bytearray(original)
        place = int(random.integers(len(data)))
        data[place] ^= 1 << int(random.integers(8))
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"checkpoint/.*use another"):
            checkpoint.load(folder)
        if path.name == "model.safetensors":
            with pytest.raises(UserError, match=r"model\.safetensors was changed or damaged"):
                load_weights(folder)
        path.write_bytes(original)
    checkpoint.load(folder)


def test_a_checkpoint_that_is_a_link_is_replaced_where_it_lies(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint").symlink_to(tmp_path / "disk" / "here")
    for step in (7, 8, 9):
        history.save(tmp_path / "run", example(step=step), keep=2, is_best=False)
    assert (tmp_path / "run" / "checkpoint").is_symlink()
    assert checkpoint.load(tmp_path / "disk" / "here").progress.step == 9
    assert sorted(path.name for path in (tmp_path / "disk" / "checkpoints").iterdir()) == ["step-000000008"]


def test_a_reader_beside_a_writer_gets_one_step(tmp_path):
    """Weights and progress of one step, although the folder is replaced again and again while it is read."""
    folder = tmp_path / "checkpoint"
    states = [example(step=step) for step in (1, 2)]
    for k, state in enumerate(states):
        states[k] = replace(state, weights={name: array + k for name, array in state.weights.items()})
    checkpoint.save(folder, states[0])
    stop, errors = threading.Event(), []

    def write() -> None:
        k = 0
        while not stop.is_set():
            k += 1
            checkpoint.save(folder, states[k % 2])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(30):
            state = checkpoint.load(folder)
            expected = states[state.progress.step - 1]
            if any((state.weights[name] != expected.weights[name]).any() for name in state.weights):
                errors.append(state.progress.step)
    finally:
        stop.set()
        writer.join()
    assert not errors


@pytest.mark.parametrize("content", ["{", '{"files": 1}', "[]"])
def test_checksums_of_somebody_else_beside_weights_are_not_read(tmp_path, content):
    saved = example(dtype="float32")
    save_weights(tmp_path / "weights.npz", ModelWeights(saved.config.model, dict(saved.weights), "canonical"), "npz")
    (tmp_path / "checksums.json").write_text(content)
    assert load_weights(tmp_path / "weights.npz").config.hidden_dim == saved.config.model.hidden_dim
