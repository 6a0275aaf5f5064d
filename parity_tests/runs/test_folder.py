"""The folder of a run: begun, resumed, and what it refuses."""

import errno
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from helpers import example

from mixer_common.config.model import ImageSize
from mixer_common.errors import UserError
from mixer_common.runs.checkpoint import RunConfig
from mixer_common.runs.folder import RunFolder, lock_resumable, read_losses, read_resumable

LOSSES = np.arange(10, dtype=np.float32)


def row(epoch: int, step: int) -> dict[str, float]:
    return {
        "epoch": epoch,
        "step": step,
        "train_loss": 1.0,
        "test_loss": 2.0,
        "test_accuracy": 0.5,
        "learning_rate": 0.1,
    }


def stopped_run(path: Path, step: int = 7, losses: np.ndarray = LOSSES) -> RunConfig:
    """A run whose checkpoint is at `step`, with losses and metrics of later steps, as if it was killed between."""
    state = example(step=step)
    with RunFolder.begin(path, state.config, overwrite=False) as run:
        run.add_losses(losses[:4], 0)
        run.add_metrics(row(1, 4))
        run.add_losses(losses[4:], 4)
        run.add_metrics(row(2, 8))
        run.save(state.progress, state.weights, state.moments)
    return state.config


def test_a_new_folder(tmp_path):
    path, config = tmp_path / "deep" / "run", example().config
    with RunFolder.begin(path, config, overwrite=False) as run:
        assert run.losses().shape == (0,)
        assert run.metrics == []
    assert RunConfig.from_json(path / "config.json") == config
    assert run.pictures.is_dir()
    with pytest.raises(UserError, match=r"exists already: continue it with --resume, replace it with --overwrite"):
        RunFolder.begin(path, config, overwrite=False)
    (path / "summary.json").write_text("{}")
    with RunFolder.begin(path, config, overwrite=True):
        pass
    assert not (path / "summary.json").exists()


def test_a_resumed_folder_drops_what_came_after_the_checkpoint(tmp_path):
    config = stopped_run(tmp_path / "run")
    state = read_resumable(tmp_path / "run")
    assert state.progress.step == 7
    extended = replace(config, train=replace(config.train, steps=99))
    with RunFolder.resume(tmp_path / "run", extended, 7, lock_resumable(tmp_path / "run")) as run:
        np.testing.assert_array_equal(run.losses(), LOSSES[:7])
        assert run.metrics == [row(1, 4)]
        run.add_losses(LOSSES[:3] + 100, 7)
        run.save(replace(state.progress, step=10), state.weights, state.moments)
    assert read_losses(tmp_path / "run").tolist() == [0, 1, 2, 3, 4, 5, 6, 100, 101, 102]
    assert RunConfig.from_json(tmp_path / "run" / "config.json") == extended
    assert read_resumable(tmp_path / "run").config == extended


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_losses_keep_their_precision(tmp_path, dtype):
    stopped_run(tmp_path / "run", losses=LOSSES.astype(dtype) / 3)
    losses = read_losses(tmp_path / "run")
    assert losses.dtype == dtype
    assert losses.tobytes() == (LOSSES.astype(dtype) / 3).tobytes()


def test_a_run_that_cannot_be_resumed(tmp_path):
    with pytest.raises(UserError, match=r"config\.json is missing"):
        lock_resumable(tmp_path / "nothing")
    with RunFolder.begin(tmp_path / "new", example().config, overwrite=False):
        pass
    with pytest.raises(UserError, match="was stopped before its first checkpoint: begin it anew with --overwrite"):
        read_resumable(tmp_path / "new")


@pytest.mark.parametrize(
    ("name", "content", "message", "losses", "steps"),
    [
        ("step_losses.npy", b"\x93NUMPY", "the run's losses, cannot be read", [np.nan] * 7, [4]),
        ("step_losses.npy", None, "the run's losses, cannot be read", [np.nan] * 7, [4]),
        ("metrics.jsonl", b'{"step": 4}\n{"st\n[]', "3 of 3 lines of .*metrics.jsonl are damaged", range(7), []),
        ("metrics.jsonl", None, "", range(7), []),
    ],
)
def test_a_run_goes_on_without_a_damaged_history(tmp_path, capsys, name, content, message, losses, steps):
    config = stopped_run(tmp_path / "run")
    path = tmp_path / "run" / name
    path.unlink() if content is None else path.write_bytes(content)
    with RunFolder.resume(tmp_path / "run", config, 7, lock_resumable(tmp_path / "run")) as run:
        np.testing.assert_array_equal(run.losses(), np.array(list(losses), np.float32))
        assert [row["step"] for row in run.metrics] == steps
        run.add_losses(LOSSES[:3], 7)
        run.save(example(step=10).progress, example().weights, example().moments)
    output = capsys.readouterr().out
    assert re.search(message, output) if message else output == ""
    assert len(read_losses(tmp_path / "run")) == 10


def test_losses_that_the_checkpoint_is_ahead_of_are_nan(tmp_path, capsys):
    config = stopped_run(tmp_path / "run", step=11)
    with RunFolder.resume(tmp_path / "run", config, 11, lock_resumable(tmp_path / "run")) as run:
        np.testing.assert_array_equal(run.losses(), [*range(10), np.nan])
    assert "holds 10 losses of the 11 steps so far" in capsys.readouterr().out


def test_a_damaged_summary_is_written_anew(tmp_path):
    with RunFolder.begin(tmp_path / "run", example().config, overwrite=False) as run:
        (tmp_path / "run" / "summary.json").write_text("{")
        assert not run.has_summary(7)
        with pytest.raises(ValueError, match="JSON"):
            run.write_summary({"test_loss": np.nan})


def test_one_process_trains_a_run(tmp_path):
    stopped_run(tmp_path / "run")
    code = (
        "import sys\nfrom pathlib import Path\nfrom mixer_common.runs.lock import lock_run\n"
        f"held = lock_run(Path({str(tmp_path / 'run')!r}))\nprint('locked', flush=True)\nsys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        message = f"run is being trained by process {other.pid} on .* since 2"
        with pytest.raises(UserError, match=message):
            lock_resumable(tmp_path / "run")
        with pytest.raises(UserError, match=message):
            RunFolder.begin(tmp_path / "run", example().config, overwrite=True)
        assert len(read_losses(tmp_path / "run")) == 10  # nothing was removed
    finally:
        other.kill()  # as a crash would: the system gives the lock back
        other.wait()
    lock_resumable(tmp_path / "run").release()


def test_overwriting_removes_what_a_run_wrote_and_nothing_else(tmp_path):
    run = tmp_path / "run"
    stopped_run(run)
    (run / "pictures" / "curves.png").touch()
    own = [run / "thesis.tex", run / "pictures" / "mine.png", run / "checkpoint" / "notes.txt"]
    for path in own:
        path.write_text("mine")
    with RunFolder.begin(run, example().config, overwrite=True):
        pass
    assert all(path.read_text() == "mine" for path in own)
    left = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert {name for name in left if not name.startswith("events.out")} == {
        ".lock", ".lock.json", "config.json", *(str(path.relative_to(run)) for path in own)
    }  # fmt: skip


@pytest.mark.parametrize("config", ["{}", "no JSON", '{"model": {}, "train": {}}'])
def test_overwriting_spares_what_is_no_run(tmp_path, config):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "config.json").write_text(config)
    (tmp_path / "p" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="is no run, so --overwrite does not delete it"):
        RunFolder.begin(tmp_path / "p", example().config, overwrite=True)
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["config.json", "thesis.tex"]


def test_a_run_that_was_ended_before_its_config_can_be_overwritten(tmp_path):
    (tmp_path / "run" / "pictures").mkdir(parents=True)
    (tmp_path / "run" / ".config.json.new").write_text("{")
    with RunFolder.begin(tmp_path / "run", example().config, overwrite=True):
        pass
    assert not (tmp_path / "run" / ".config.json.new").exists()


def test_a_full_disk_ends_the_events_and_nothing_else(tmp_path, monkeypatch, capsys):
    with RunFolder.begin(tmp_path / "run", example().config, overwrite=False) as run:
        from tensorboardX.record_writer import RecordWriter

        def fail(self: RecordWriter, data: bytes) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(RecordWriter, "write", fail)
        run.add_losses(LOSSES, 0)
        run.add_metrics(row(1, 4))
        run.save(example(step=7).progress, example().weights, example().moments)
    assert capsys.readouterr().err.count("No space left on device); the training goes on without them.") == 1
    assert len(read_losses(tmp_path / "run")) == 10


def test_a_summary_belongs_to_a_step(tmp_path):
    with RunFolder.begin(tmp_path / "run", example().config, overwrite=False) as run:
        assert not run.has_summary(7)
        run.write_summary({"steps": 7})
        assert run.has_summary(7)
        assert not run.has_summary(8)


def test_the_config_writes_height_and_width_and_reads_what_version_0_1_wrote(tmp_path):
    config = replace(example().config, model=replace(example().config.model, image_size=(16, 24)))
    path = tmp_path / "config.json"
    path.write_text(config.to_json())
    values = json.loads(path.read_text())
    assert values["model"]["image_size"] == [16, 24]
    assert RunConfig.from_json(path) == config
    for width, size in ((24, (16, 24)), (0, (16, 16))):
        older = asdict(config)
        older["model"] |= {"image_size": 16, "image_width": width}
        path.write_text(json.dumps(older))
        assert RunConfig.from_json(path).model.image_size == ImageSize(*size)


def scalars(run: Path) -> list[tuple[str, int, float]]:
    """Tag, step and value of the scalars in a run's event files, in the order of the files' names."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(run.glob("events.out.tfevents.*")):
        data, place = path.read_bytes(), 0
        while place < len(data):  # length of the record (8 bytes), its checksum (4), the record, its checksum (4)
            length = int.from_bytes(data[place : place + 8], "little")
            event = Event.FromString(data[place + 12 : place + 12 + length])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            place += length + 16
    return found


def test_tensorboard_gets_every_fiftieth_loss_and_every_epoch(tmp_path):
    losses = np.arange(120, dtype=np.float32)
    with RunFolder.begin(tmp_path / "run", example().config, overwrite=False) as run:
        for first, last in ((0, 1), (1, 50), (50, 51), (51, 120)):
            run.add_losses(losses[first:last], first)
        run.add_metrics(row(1, 120))
    assert scalars(tmp_path / "run") == [
        ("loss/step", 0, 0.0),
        ("loss/step", 50, 50.0),
        ("loss/step", 100, 100.0),
        ("loss/train", 120, 1.0),
        ("loss/test", 120, 2.0),
        ("accuracy/test", 120, 0.5),
        ("learning_rate", 120, pytest.approx(0.1)),
    ]


def test_opening_the_events_imports_no_torch_and_leaves_it_importable(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom mixer_common.runs.events import Events\n"
        f"Events(Path({str(tmp_path)!r}), 0).close()\n"
        "print('tensorboardX' in sys.modules, 'torch' in sys.modules)\nimport torch\nprint(torch.__name__)"
    )
    process = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert process.stdout.split() == ["True", "False", "torch"]
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1
