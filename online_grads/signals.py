"""Ctrl-C and SIGTERM, held back until a piece of work is done."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM came; the chunk at work was finished and saved first.

    A script that does not catch it ends with its traceback and the exit status 1. One that should end with
    the status that shells expect catches it and exits with 128 + signal.

    Attributes:
        signal: its number.
        saved: the checkpoint; None if no chunk was finished since the start.
        state: the learner's state, as saved.
        metrics: the `Metrics` so far, as the call that was interrupted would have returned them.

    >>> try:
    ...     raise Interrupted(signal.SIGTERM, None)
    ... except Interrupted as interrupt:
    ...     print(interrupt)
    ...     raise SystemExit(128 + interrupt.signal) from None
    Traceback (most recent call last):
    SystemExit: 143
    """

    def __init__(self, number: int, saved: Path | None, state: Any = None, metrics: Any = None):
        super().__init__(number, saved)
        self.signal = number
        self.saved = saved
        self.state = state
        self.metrics = metrics

    def __str__(self) -> str:
        where = "there was nothing new to save" if self.saved is None else f"saved in {self.saved}"
        return f"{signal.Signals(self.signal).name}; {where}"


def handlers() -> dict[int, Any]:
    """What SIGINT and SIGTERM do now, where that may be changed for a while.

    It may not outside the main thread, nor of a signal that the process ignores.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    found = {number: signal.getsignal(number) for number in STOPPING}
    # None: a handler that was not set from Python, and could not be restored
    return {number: handler for number, handler in found.items() if handler not in (signal.SIG_IGN, None)}


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], int | None]]:
    """Hold SIGINT and SIGTERM back while the body runs.

    The body asks what came and acts on it when it can. A second signal of the same kind acts at once, as
    it would have, and so does, at the end of the body, one that the body never asked about; but if the body
    raises, it is that which goes on. A signal that the process ignores stays ignored. Outside the main
    thread, where Python delivers no signals, nothing is held back.

    Yields:
        A function: the number of the first signal that came, or None.

    >>> with deferred() as received:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     received() == signal.SIGTERM
    True
    """
    came: list[int] = []
    told = over = False

    def received() -> int | None:
        nonlocal told
        told = bool(came)
        return came[0] if came else None

    def hold(number, frame):
        nonlocal told
        # over: another signal's handler raised before this one was restored
        if over or number in came:
            told = True
            signal.signal(number, before[number])
            signal.raise_signal(number)
        else:
            came.append(number)

    before = handlers()
    try:
        for number in before:
            signal.signal(number, hold)
        yield received
    finally:
        over = True
        for number, old in before.items():
            signal.signal(number, old)
    if came and not told:
        signal.raise_signal(came[0])
