"""The checkpoints of a run: those that are kept, and what a damaged one costs."""

import shutil

import pytest
from helpers import example

from mixer_common.errors import UserError
from mixer_common.runs import checkpoint, history
from mixer_common.runs.folder import read_resumable


def steps(run):
    """The steps of the checkpoints before the newest."""
    folder = run / "checkpoints"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize(
    ("keep", "older"),
    [
        (1, []),
        (2, ["step-000000003"]),
        (3, ["step-000000002", "step-000000003"]),
        ("best", ["best", "step-000000003"]),
    ],
)
def test_the_newest_are_kept(tmp_path, keep, older):
    for step in range(1, 5):
        history.save(tmp_path, example(step=step), keep, is_best=step == 2)
    assert checkpoint.load(tmp_path / "checkpoint").progress.step == 4
    assert steps(tmp_path) == older
    if keep == "best":
        assert checkpoint.load_run(tmp_path / "checkpoints" / "best").progress.step == 2
    history.save(tmp_path, example(step=5), 1, is_best=False)
    assert [name for name in steps(tmp_path) if name != "best"] == []


def test_the_one_before_takes_the_place_of_a_damaged_one(tmp_path, capsys):
    for step in (3, 6, 9):
        history.save(tmp_path, example(step=step), 3, is_best=False)
    path = tmp_path / "checkpoint" / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert read_resumable(tmp_path).progress.step == 6
    output = capsys.readouterr().out
    assert "checkpoint/optimizer.safetensors was changed or damaged" in output
    assert "The one before is taken, of step 6; the steps after it are trained again." in output
    for name in ("step-000000006", "step-000000003"):
        (tmp_path / "checkpoints" / name / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"checkpoint/optimizer\.safetensors was changed or damaged"):
        read_resumable(tmp_path)


def test_a_damaged_checkpoint_is_replaced(tmp_path):
    for step in (3, 6):
        history.save(tmp_path, example(step=step), 2, is_best=False)
    (tmp_path / "checkpoint" / "progress.json").write_text("{")
    history.save(tmp_path, example(step=9), 2, is_best=False)
    assert checkpoint.load(tmp_path / "checkpoint").progress.step == 9
    assert steps(tmp_path) == ["step-000000003"]


def test_going_on_from_a_step(tmp_path, capsys):
    for step in (3, 6, 9):
        history.save(tmp_path, example(step=step), 3, is_best=False)
    assert read_resumable(tmp_path, 9).progress.step == 9
    assert capsys.readouterr().out == ""
    assert read_resumable(tmp_path, 3).progress.step == 3
    assert "The checkpoint of step 3 is taken" in capsys.readouterr().out
    with pytest.raises(UserError, match="has no checkpoint of step 4: choose one of 3, 6, 9"):
        read_resumable(tmp_path, 4)
    history.save(tmp_path, example(step=5), 3, is_best=False)
    assert steps(tmp_path) == ["step-000000003"]  # those of the course that was left are gone


def test_a_resumed_run_keeps_what_it_kept(tmp_path):
    assert history.kept_so_far(tmp_path) == 2
    for step in range(1, 7):
        history.save(tmp_path, example(step=step), 4, is_best=False)
    assert history.kept_so_far(tmp_path) == 4
    history.save(tmp_path, example(step=7), "best", is_best=True)
    assert history.kept_so_far(tmp_path) == "best"


def test_a_best_checkpoint_of_a_course_that_was_left_goes(tmp_path):
    for step in (3, 6):
        history.save(tmp_path, example(step=step), "best", is_best=True)
    history.save(tmp_path, example(step=5), "best", is_best=False)  # after --resume-from 3
    assert steps(tmp_path) == ["step-000000003"]


def test_the_one_before_is_there_where_the_newest_was_deleted(tmp_path):
    for step in (3, 6):
        history.save(tmp_path, example(step=step), 2, is_best=False)
    shutil.rmtree(tmp_path / "checkpoint")
    assert read_resumable(tmp_path).progress.step == 3
