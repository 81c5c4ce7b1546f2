"""A stream of single observations becomes chunks, in a thread, while the device works on earlier ones."""

import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from online_grads.arguments import counted
from online_grads.loop import StreamError
from online_grads.observations import Law
from online_grads.precision import x64
from online_grads.types import PyTree

AHEAD = 2  # chunks that wait, complete; one more is being gathered
POLL = 0.05  # seconds between two looks at what else has happened
PATIENCE = 0.1  # seconds that a thread in the midst of something is waited for


def is_stream(xs: Any) -> bool:
    """Whether it gives observations one by one: an iterator, a function that opens one, or an iterable
    that is no pytree of arrays.

    >>> is_stream(iter([(0.0, 1.0)])), is_stream([np.zeros(3)]), is_stream(np.zeros(3))
    (True, False, False)
    """
    if hasattr(xs, "__next__"):
        return True
    holds_arrays = isinstance(xs, Mapping | list | tuple) or hasattr(xs, "__array__")
    return not holds_arrays and (hasattr(xs, "__iter__") or callable(xs))


_blocked: list["Gathering"] = []  # they ended while their threads still waited for an observation


class Gathering:
    """Chunks of a stream of single observations.

    The first observation is the `Law` for all others. Rows are copied, so a stream may yield the same array
    again and again. Nothing is asked of the stream beyond the steps of `lengths`. It is opened, read and
    closed in the thread, with the caller's setting for 64 bits.

    Args:
        xs: an iterator or iterable of pairs (x, y), or a function from the first step to one. What is opened
            here is closed in the end; an iterator that came as such stays as it is, for its owner to go on
            with.
        lengths: the steps of each chunk; it may be endless.
        window: whole windows are handed on, even of a chunk that something went wrong in.
        start: the first step's number.
        asked: the number of steps after which the stream may end, None if it may do so anywhere.
        timeout: seconds to wait for an observation, None waits for ever.
    """

    def __init__(
        self,
        xs: Callable[[int], Iterable] | Iterable,
        lengths: Iterable[int],
        *,
        window: int = 1,
        start: int = 0,
        asked: int | None = None,
        timeout: float | None = None,
    ):
        self._xs: Any = xs
        self._source: Any = None  # until the thread opens it
        self._lengths, self._window, self._asked = lengths, window, asked
        self._timeout = math.inf if timeout is None else timeout
        self._queue: queue.Queue = queue.Queue(AHEAD)
        self._lock = threading.Lock()  # to store an observation, or to give up
        self._over = False  # nobody waits for more
        self._since = math.inf  # when the stream was asked for the observation that it has not given yet
        self._law: Law | None = None
        self._rows: list[np.ndarray] = []
        self._filled = 0  # of the rows
        self._step = start
        self._thread = threading.Thread(target=self._work, name="online-grads stream", daemon=True)

    def chunks(self) -> Iterator[tuple[int, PyTree] | None]:
        """(steps, (xs, ys)) pairs for `drive`; None after every moment in which nothing came.

        Raises:
            StreamError: the stream ends early, yields something else, raises, or keeps silent; all whole
                windows before have been handed on.
        """
        _blocked[:] = [other for other in _blocked if other._thread.is_alive()]
        if any(other._source is self._xs for other in _blocked):
            raise StreamError(
                "an earlier run, which has ended, still waits for this iterator's next observation: "
                "go on with a new one",
                self._step,
            )
        self._x64 = jax.config.read("jax_enable_x64")
        self._thread.start()
        try:
            while True:
                try:
                    item = self._queue.get(timeout=min(POLL, self._timeout))
                except queue.Empty:
                    if self._gave_up():
                        yield from self._left()
                        raise StreamError(
                            f"no observation for {self._timeout:g} s: the stream blocks at step {self._step}"
                            "; its iterator is given up, go on with a new one",
                            self._step,
                        ) from None
                    yield None
                    continue
                if item is None:
                    return
                if isinstance(item, StreamError):
                    raise item
                yield item
        finally:
            self._over = True
            self._thread.join(PATIENCE)
            if self._thread.is_alive():
                _blocked.append(self)

    def _gave_up(self) -> bool:
        with self._lock:
            self._over = time.monotonic() - self._since > self._timeout
        return self._over

    def _left(self) -> Iterator[tuple[int, PyTree]]:
        """What the thread, which blocks, had ready."""
        while not self._queue.empty():
            yield self._queue.get()
        yield from self._rest()

    def _rest(self) -> Iterator[tuple[int, PyTree]]:
        """The whole windows of the chunk that is being gathered."""
        whole = self._filled - self._filled % self._window
        if self._law is not None and whole:
            yield whole, self._law.tree([row[:whole] for row in self._rows])

    # From here on everything runs in the thread.

    def _work(self) -> None:
        with x64(self._x64):
            trouble = self._gather()
            with self._lock:
                self._since = math.inf
            for rest in self._rest():
                self._hand_on(rest)
            self._filled = 0
            closing = self._close()
            self._hand_on(trouble or closing)

    def _gather(self) -> StreamError | None:
        """Hand on chunks until the stream ends or goes wrong, and say how."""
        self._since = time.monotonic()
        try:
            self._source = iter(self._xs if hasattr(self._xs, "__iter__") else self._xs(self._step))
        except BaseException as error:
            return self._raised("opening the stream", error)
        for length in self._lengths:
            self._filled = 0
            while self._filled < length and not self._over:
                self._since = time.monotonic()
                try:
                    observation = next(self._source)
                except StopIteration:
                    return self._end()
                except BaseException as error:
                    return self._raised("the stream", error)
                try:
                    self._store(observation, length)
                except Exception as error:  # whatever it is, the loop must hear of it
                    return self._trouble(f"step {self._step} of the stream: {error}", error)
            if self._over or self._law is None:
                return None
            self._hand_on((length, self._law.tree(self._rows)))
        self._filled = 0
        return None

    def _store(self, observation: PyTree, length: int) -> None:
        with self._lock:
            self._since = math.inf
            if self._over:
                return
            if self._law is None:
                self._law = Law(observation)
            leaves = self._law.leaves(observation)
            if self._filled == 0:
                self._rows = self._law.rows(length)
            for row, leaf in zip(self._rows, leaves, strict=True):
                row[self._filled] = leaf
            self._filled += 1
            self._step += 1

    def _close(self) -> StreamError | None:
        """Close what was opened here; it may take as long as an observation."""
        if self._source is self._xs or not hasattr(self._source, "close"):
            return None
        self._since = time.monotonic()
        try:
            self._source.close()
        except BaseException as error:
            return self._raised("closing the stream", error)
        finally:
            self._since = math.inf
        return None

    def _hand_on(self, item: Any) -> None:
        while not self._over:
            try:
                return self._queue.put(item, timeout=POLL)
            except queue.Full:
                pass

    def _end(self) -> StreamError | None:
        rest = self._filled % self._window
        if self._asked is not None:
            return self._trouble(f"the stream ended after {self._step} of {self._asked} steps")
        if rest:
            fill = f"do not fill a window of {self._window}"
            return self._trouble(f"the last {counted(rest, 'step')} of the stream's {self._step} {fill}")
        if self._step == 0:
            return self._trouble("the stream has no steps")
        return None

    def _raised(self, what: str, error: BaseException) -> StreamError:
        return self._trouble(f"{what} raised {type(error).__name__} at step {self._step}: {error}", error)

    def _trouble(self, message: str, cause: BaseException | None = None) -> StreamError:
        trouble = StreamError(message, self._step)
        trouble.__cause__ = cause
        return trouble
