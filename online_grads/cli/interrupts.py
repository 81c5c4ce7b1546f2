"""Ctrl-C and SIGTERM end a command alike, each with the exit status that shells expect."""

import contextlib
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator

from online_grads.signals import handlers


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM came."""

    def __init__(self, number: int, dropped: Callable[[int], None]):
        super().__init__()
        self.signal = number
        self.freed = weakref.finalize(self, dropped, number)
        self.freed.atexit = False


def answer(interrupt: BaseException) -> int:
    """End what was interrupted: the signal is not sent again, nor one that came before it.

    Returns:
        The exit status of a process that ends by it: 130 by Ctrl-C, 143 by SIGTERM.

    >>> answer(KeyboardInterrupt()), answer(Stopped(signal.SIGTERM, print))
    (130, 143)
    """
    error: BaseException | None = interrupt
    while error is not None:
        if isinstance(error, Stopped):
            error.freed.detach()
        error = error.__context__
    return 128 + int(getattr(interrupt, "signal", signal.SIGINT))


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let SIGINT and SIGTERM raise `Stopped` in the body, which has to `answer` it.

    Python and JAX drop exceptions in some places: in finalizers, in callbacks of the garbage collector, and
    where JAX looks up a function's name. A `Stopped` that is freed before it was answered has been dropped,
    and its signal is sent again 0.1 s later.

    A signal that the process ignores stays ignored, and outside the main thread nothing changes.
    """
    over = False
    again: list[threading.Timer] = []

    def dropped(number: int) -> None:
        # who drops exceptions is still at it, and would drop one that came at once
        again.append(threading.Timer(0.1, send, [number]))
        again[-1].daemon = True
        again[-1].start()

    def send(number: int) -> None:
        if not over:
            os.kill(os.getpid(), number)

    def stop(number, frame):
        if over:  # while the handlers are restored
            signal.signal(number, before[number])
            signal.raise_signal(number)
        else:
            raise Stopped(number, dropped)

    def report_others(error):
        if not isinstance(error.exc_value, Stopped):
            report(error)

    before, report = handlers(), sys.unraisablehook
    try:
        sys.unraisablehook = report_others
        for number in before:
            signal.signal(number, stop)
        yield
    finally:
        over = True
        for timer in again:
            timer.cancel()
        sys.unraisablehook = report
        for number, old in before.items():
            signal.signal(number, old)
