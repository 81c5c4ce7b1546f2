"""Ctrl-C and SIGTERM end a command alike, each with the exit status that shells expect."""

import contextlib
import signal
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
    """Let SIGTERM raise `Terminated` in the body, as Ctrl-C raises KeyboardInterrupt.

    It stays as it is where the process ignores it, and outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    if before in (signal.SIG_IGN, None):
        yield
        return

    def terminate(number, frame):
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
