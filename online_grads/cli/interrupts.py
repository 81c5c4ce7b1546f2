"""Ctrl-C and SIGTERM end a command alike, each with the exit status that shells expect."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""

    signal = signal.SIGTERM


def status(interrupt: KeyboardInterrupt) -> int:
    """The exit status of a process that ends by an interruption: 130 by Ctrl-C, 143 by SIGTERM.

    >>> status(KeyboardInterrupt()), status(Terminated())
    (130, 143)
    """
    return 128 + int(getattr(interrupt, "signal", signal.SIGINT))


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM raise `Terminated` in the body, as Ctrl-C raises KeyboardInterrupt, and neither get lost.

    SIGTERM stays as it is where the process ignores it, and both do outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    with _undropped():
        if before in (signal.SIG_IGN, None):
            yield
            return
        signal.signal(signal.SIGTERM, _terminate)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)


def _terminate(number, frame):
    raise Terminated


@contextlib.contextmanager
def _undropped() -> Iterator[None]:
    """Send a signal again whose exception Python dropped.

    That it does with what is raised in a finalizer or in a callback of the garbage collector, of which JAX
    has one that takes time: it hands the exception to `sys.unraisablehook`, which cannot raise it either.
    """
    before = sys.unraisablehook
    timers = []

    def again(dropped: "sys.UnraisableHookArgs") -> None:
        if not isinstance(dropped.exc_value, KeyboardInterrupt):
            before(dropped)
            return
        number = status(dropped.exc_value) - 128
        # when this hook and the callback it was called for have ended
        timers.append(threading.Timer(0.1, os.kill, (os.getpid(), number)))
        timers[-1].daemon = True
        timers[-1].start()

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = before
        for timer in timers:
            timer.cancel()
