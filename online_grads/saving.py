"""How `run` saves a state, and goes on from what it saved."""

import os
import tempfile
from pathlib import Path
from typing import Any

from online_grads import checkpoint
from online_grads.checkpoint import CheckpointError
from online_grads.files import make_folder
from online_grads.leaves import copied
from online_grads.types import LearnerState


def begun(
    folder: str | os.PathLike, state: LearnerState, window: int, resume: bool
) -> tuple[LearnerState, int]:
    """(the state of the newest checkpoint, the steps done); without one a copy of that given, 0.

    Raises:
        ValueError: there is one and `resume` is not asked for, or it is of another window.
        CheckpointError: it cannot be read.
    """
    newest = checkpoint.latest(folder)
    if newest is None:
        return copied(state), 0
    if not resume:
        raise ValueError(
            f"{folder} holds checkpoints, the newest is {newest.name}: go on with resume=True, or "
            "name another folder"
        )
    notes = checkpoint.notes(newest)
    if "steps" not in notes:
        raise ValueError(f"{newest} was not saved by run: its notes do not say how many steps were done")
    if (before := notes.get("window", window)) != window:
        raise ValueError(
            f"{newest} was saved by a run with window={before}, now it is {window}: go on with the same, or "
            "restore it and begin in another folder"
        )
    return checkpoint.restore(newest, state), notes["steps"]


def check_writable(folder: Path) -> None:
    """Make the folder and try it, so that what cannot be saved is not computed first.

    Raises:
        CheckpointError: it cannot be written to.
    """
    try:
        make_folder(folder)
        with tempfile.TemporaryDirectory(prefix=".", dir=folder):
            pass
    except OSError as error:
        raise CheckpointError(f"cannot write to {folder}: {error.strerror}", folder) from error


def save(
    folder: str | os.PathLike, last: int, window: int, done: int, state: LearnerState, metrics: Any
) -> Path:
    """Write the checkpoint of a step, as `drive` asks for it."""
    return checkpoint.save_step(folder, done, state, last=last, notes={"steps": done, "window": window})
