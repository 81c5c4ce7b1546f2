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
        self.answered = weakref.finalize(self, dropped, number).detach


def status(interrupt: KeyboardInterrupt) -> int:
    """The exit status of a process that ends by an interruption: 130 by Ctrl-C, 143 by SIGTERM.

    Who asks for it will end the process, or the part of its work that was interrupted.

    >>> status(KeyboardInterrupt()), status(Stopped(signal.SIGTERM, print))
    (130, 143)
    """
    if isinstance(interrupt, Stopped):
        interrupt.answered()
    return 128 + int(getattr(interrupt, "signal", signal.SIGINT))


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let SIGINT and SIGTERM raise `Stopped` in the body until it answers, which is to ask for its `status`.

    An exception may be dropped on its way: Python does so with one that is raised in a finalizer or in a
    callback of the garbage collector, and JAX, which has such a callback, also with one amid the naming of a
    function. What becomes of it shows when it is freed unanswered; the signal is then sent again.

    A signal that the process ignores stays ignored, and outside the main thread nothing changes.
    """
    over = False
    again: list[threading.Timer] = []

    def dropped(number: int) -> None:
        if not over:
            # a while later: who drops exceptions is still at it, and would drop the next one too
            again.append(threading.Timer(0.1, os.kill, (os.getpid(), number)))
            again[-1].daemon = True
            again[-1].start()

    def stop(number, frame):
        raise Stopped(number, dropped)

    def others(error):
        if not isinstance(error.exc_value, Stopped):
            report(error)

    before, report = handlers(), sys.unraisablehook
    try:
        sys.unraisablehook = others
        for number in before:
            signal.signal(number, stop)
        yield
    finally:
        over = True
        for number, old in before.items():
            signal.signal(number, old)
        sys.unraisablehook = report
        for timer in again:
            timer.cancel()
