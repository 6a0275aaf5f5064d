"""The checkpoints of a run: checkpoint/ is the newest, checkpoints/ holds those before it and the best one."""

import shutil
from pathlib import Path
from typing import Literal, TypeAlias

from mixer_common.errors import UserError
from mixer_common.runs import checkpoint
from mixer_common.runs.checkpoint import Checkpoint, read_progress

# The number of checkpoints that are kept, with the newest; "best": the newest two, and the one of the best epoch.
Keep: TypeAlias = int | Literal["best"]
FOLDER = "checkpoints"


def save(run: Path, state: Checkpoint, keep: Keep, is_best: bool) -> None:
    """Writes the newest checkpoint, and deletes those that are not kept.

    is_best: no epoch before had a higher test accuracy. A damaged checkpoint is replaced, and not kept.
    """
    newest, folder = run / "checkpoint", _folder(run)
    count = 2 if keep == "best" else keep
    previous = None
    if count > 1 and (step := _step(newest)) is not None:
        previous = folder / f"step-{step:09d}"
    checkpoint.save(newest, state, previous)
    found, best = older(run), folder / "best"
    # Those of later steps belong to a course that the run left when it was resumed from an earlier one.
    earlier = sorted((step for step in found if step < state.progress.step), reverse=True)
    for step in found.keys() - earlier[: count - 1]:
        shutil.rmtree(found[step], ignore_errors=True)
    if best.exists() and (_step(best) or 0) > state.progress.step:
        shutil.rmtree(best, ignore_errors=True)
    if keep == "best" and is_best:
        folder.mkdir(exist_ok=True)
        checkpoint.save(best, state)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def kept_so_far(run: Path) -> Keep:
    """What a run that is resumed keeps where the user does not say: as many as before, at least two, or the best."""
    return "best" if (_folder(run) / "best").exists() else max(2, len(older(run)) + 1)


def load(run: Path, step: int | None) -> tuple[Checkpoint, list[str]]:
    """The checkpoint that a run goes on from, and lines for people where it is not the newest.

    step: of the checkpoint that the user names; None: the newest that is whole. Raises UserError where there is none.
    """
    if step is not None:
        return _of_step(run, step)
    try:
        return checkpoint.load(run / "checkpoint"), []
    except UserError as error:
        lines = [f"warning: {error}"]
        for other, path in sorted(older(run).items(), reverse=True):
            try:
                state = checkpoint.load(path)
            except UserError as next_error:
                lines.append(f"warning: {next_error}")
                continue
            lines.append(f"         The one before is taken, of step {other:,}; the steps after it are trained again.")
            return state, lines
        raise


def _of_step(run: Path, step: int) -> tuple[Checkpoint, list[str]]:
    newest, found = _step(run / "checkpoint"), older(run)
    if step == newest:
        return checkpoint.load(run / "checkpoint"), []
    if step not in found:
        steps = sorted({*found, *([] if newest is None else [newest])})
        raise UserError(
            f"{run} has no checkpoint of step {step}: choose one of {', '.join(map(str, steps)) or 'none'}."
        )
    return checkpoint.load(found[step]), [f"         The checkpoint of step {step:,} is taken; later ones go."]


def _step(folder: Path) -> int | None:
    """The step of a checkpoint; None where it is missing or damaged."""
    try:
        return read_progress(checkpoint.complete(folder) / "progress.json").step
    except UserError:
        return None


def older(run: Path) -> dict[int, Path]:
    """The checkpoints before the newest, by step."""
    paths = _folder(run).glob("step-*")
    return {int(path.name[5:]): path for path in paths if path.name[5:].isdecimal()}


def _folder(run: Path) -> Path:
    """The folder of the checkpoints before the newest, on the same disk, to which a link may lead."""
    return (run / "checkpoint").resolve().parent / FOLDER
