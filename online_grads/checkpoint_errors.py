"""What is wrong with a checkpoint, and which older one there is instead."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from online_grads.checkpoint_format import Unreadable
from online_grads.checkpoint_steps import previous_of


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, read, or used.

    Attributes:
        path: the checkpoint.
        previous: the newest older checkpoint of its folder that is intact (of the same step if that could not
            be replaced); None if there is none, and where all that is wrong is that it differs from `like`.
    """

    def __init__(self, message: str, path: Path, previous: Path | None = None):
        super().__init__(message, path, previous)
        self.path = path
        self.previous = previous

    def __str__(self) -> str:
        return self.args[0]


T = TypeVar("T")


def reading(path: Path, read: Callable[[], T]) -> T:
    """What `read` gives; what is wrong with the checkpoint becomes an error that offers the one before.

    Raises:
        CheckpointError: if it is unreadable.
    """
    try:
        return read()
    except (Unreadable, OSError) as error:
        what = str(error) if isinstance(error, Unreadable) else f"cannot be read: {why(error)}"
        previous = previous_of(path)
        raise CheckpointError(f"{path} {what}{_offer(previous)}", path, previous) from error


def cannot_write(path: Path, error: OSError) -> CheckpointError:
    """The error that says so, and offers the newest one that is there."""
    previous = previous_of(path, itself=True)
    return CheckpointError(f"cannot write {path}: {why(error)}{_offer(previous)}", path, previous)


def _offer(previous: Path | None) -> str:
    return f"; the newest intact one is {previous}" if previous else ""


def why(error: OSError) -> str:
    """The system's reason, and which file it is about."""
    return f"{error.strerror} ({error.filename})" if error.filename else error.strerror or str(error)
