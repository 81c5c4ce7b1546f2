"""What the logs share: when they write, and how they end."""

import weakref
from collections.abc import Callable
from pathlib import Path

from online_grads.arguments import positive_int
from online_grads.logs.callback import scalars
from online_grads.types import Metrics


class Log:
    """A callback that writes a chunk's `scalars` somewhere; made by `json_lines` and `tensorboard`.

    `with` closes it in the end. Without, it is closed when it is no longer used or the process ends; what
    it was told is written already.
    """

    def __init__(
        self,
        write: Callable[[int, dict[str, float]], None],
        close: Callable[[], None],
        *,
        every: int,
        start: int,
    ):
        self._write = write
        self._every = every
        self._step = start
        self.close = weakref.finalize(self, close)  # which acts once

    def __call__(self, step: int, metrics: Metrics, /) -> None:
        """Write, if this chunk reaches another `every` steps.

        Raises:
            ValueError: the step is not after the one before.
            OSError: it cannot be written, for instance as the disk is full.
        """
        if step <= self._step:
            raise ValueError(
                f"the log has come to step {self._step} already and is told of step {step}; "
                "a run needs a log of its own"
            )
        before, self._step = self._step, int(step)
        if self._step // self._every > before // self._every:
            self._write(self._step, scalars(metrics))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


def first_step(every: int, resume_at: int | None) -> int:
    """The step that a log begins after."""
    positive_int("every", every)
    return 0 if resume_at is None else positive_int("resume_at", resume_at, least=0)


def exists_already(path: Path) -> str:
    """What is said of a log that is there already."""
    return f"{path}: there is a log already; go on with it from a step by resume_at=..., or name another"
