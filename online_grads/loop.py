"""The host loop: chunks, a progress bar, callbacks, checkpoints, interrupts, and data that are not finite.

One compiled call per chunk of many steps; the state is donated from call to call, so there is one copy
of it on the device. `run` feeds the loop from what a user has, the experiment of the command line from
streams that are generated inside the compiled call; both share `guarded` (what a call does) and `drive`.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from online_grads.signals import Interrupted, deferred
from online_grads.types import Array, Learner, Metrics, PyTree


class StreamError(ValueError):
    """The stream cannot be followed any further; what came before has been learned from.

    Attributes:
        step: the step of the stream at which it went wrong, from 0.
        state: the learner's state after the last chunk before that step, fit to go on from.
        metrics: the `Metrics` so far, as the call would have returned them; None if there was no chunk.
    """

    def __init__(self, message: str, step: int, state: PyTree = None, metrics: Metrics | None = None):
        super().__init__(message, step)
        self.step = step
        self.state = state
        self.metrics = metrics

    def __str__(self) -> str:
        return self.args[0]


class DataError(StreamError):
    """The stream holds a NaN or an infinity."""


def drive(
    advance: Callable,
    state: PyTree,
    chunks: Iterable[tuple[int, Any] | None],
    *,
    start: int = 0,
    total: int | None = None,
    progress: bool = False,
    label: str | None = None,
    callback: Callable[[int, Metrics], Any] | None = None,
    save: Callable[[int, PyTree, Callable[[], Metrics | None]], Path] | None = None,
    every: int | None = None,
    joined: bool = True,
) -> tuple[PyTree, Any]:
    """The loop itself: call `advance` on every chunk and bring its metrics to the host.

    Args:
        advance: (state, data) -> (state, Metrics, bad), as `guarded` returns them.
        state: may be donated by `advance`.
        chunks: (number of steps, data) pairs; it may be endless. None instead of a pair says that nothing
            has come yet, so that signals are seen while a stream blocks.
        start: steps done before; everything below counts from there.
        total: the steps of the whole stream, those before `start` included, if known.
        progress, label: show a bar, with this name.
        callback: called after each chunk with the number of steps done and the chunk's metrics.
        save: (steps done, state, a function that gives the metrics as they would be returned now) -> where it
            saved them. It is called after the callback, at the first end of a chunk that reaches another
            `every` steps, at the end of the stream, before a `StreamError` is raised or what the callback
            raises, and when SIGINT or SIGTERM came, which then wait for the end of the chunk. It must not
            keep the state itself, which is donated again. What it raises gets the attributes `state` and
            `metrics`.
        every: None saves at the ends only.
        joined: keep the metrics of all chunks; else only those of the last, and memory stays constant.

    Returns:
        (state, `Metrics` as NumPy arrays; None if there was no chunk).

    Raises:
        DataError: a chunk's data are not finite.
        StreamError: as `chunks` raises it; state and metrics are filled in.
        Interrupted: SIGINT or SIGTERM came and `save` is given, whatever else went wrong in that chunk.
            Without `save` they act at once.
    """
    done, history, saved = start, list[Metrics](), start
    place: Path | None = None

    def store() -> None:
        nonlocal saved, place
        if save is not None and saved != done:
            try:
                place = save(done, state, partial(_joined, history))
            except Exception as error:
                vars(error).update(state=state, metrics=_joined(history))
                raise
            saved = done

    def leave_if_asked() -> None:
        number = received()
        if number is not None:
            store()
            raise Interrupted(number, place, state, _joined(history))

    def learned() -> Iterator[tuple[int, Metrics] | None]:
        nonlocal state
        try:
            for chunk in chunks:
                if chunk is None:
                    yield None
                    continue
                length, data = chunk
                state, metrics, bad = advance(state, data)
                metrics, bad = jax.device_get((metrics, bad))
                if min(bad) < length:
                    step = done + int(min(bad))
                    which = "xs" if bad[0] <= bad[1] else "ys"
                    raise DataError(f"{which} is not finite at step {step} of the stream", step)
                yield length, metrics
        except StreamError as error:
            error.state, error.metrics = state, _joined(history)
            store()
            leave_if_asked()
            raise

    with contextlib.ExitStack() as stack:
        advanced = stack.enter_context(bar(total, label, start=start)) if progress else lambda length: None
        received = stack.enter_context(deferred()) if save is not None else lambda: None
        for chunk in learned():
            if chunk is not None:
                length, metrics = chunk
                if not joined:
                    history.clear()
                history.append(metrics)
                done += length
                advanced(length)
                if callback is not None:
                    try:
                        callback(done, metrics)
                    except Exception:
                        store()
                        leave_if_asked()
                        raise
                if every is not None and done // every > saved // every:
                    store()
            leave_if_asked()
        store()
        leave_if_asked()
    return state, _joined(history)


def guarded(body: Callable, state: PyTree, xs: PyTree, ys: PyTree) -> tuple[PyTree, Metrics, Array]:
    """Run `body` on a chunk unless the chunk's data are not finite; then leave the state as it was.

    Args:
        body: (state, xs, ys) -> (state, metrics), pure.
        state: what `body` carries.
        xs, ys: the chunk, time first.

    Returns:
        (state, metrics, bad [2]): the first non-finite step of xs and of ys, their length if there is none.
    """
    length = jnp.shape(jax.tree.leaves((xs, ys))[0])[0]
    bad = jnp.stack([_first_not_finite(xs, length), _first_not_finite(ys, length)])
    shapes = jax.eval_shape(body, state, xs, ys)[1]
    skip = lambda state, xs, ys: (state, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes))
    # One scalar predicate, so this is a real branch: bad data cost nothing and donated states survive. Under
    # vmap both sides run, and one is selected.
    state, metrics = jax.lax.cond(jnp.all(bad == length), body, skip, state, xs, ys)
    return state, metrics, bad


def keeping(learner: Learner, keep: tuple[str, ...]) -> Learner:
    """The same learner, reporting only the named fields of `Metrics`."""
    dropped = {name: None for name in Metrics._fields if name not in keep}

    def update(state, xs, ys):
        state, metrics = learner.update(state, xs, ys)
        return state, metrics._replace(**dropped)

    return Learner(learner.init, update)


def chunk_lengths(total: int, window: int, chunk: int) -> Iterator[int]:
    """How many steps the chunks of a stream have: at most `chunk` each, whole windows.

    Equal chunks share one compiled program, so a number of chunks is preferred that divides the stream, up
    to twice as many as are needed; else the last one is shorter.

    >>> list(chunk_lengths(12, 2, 5)), list(chunk_lengths(14, 2, 8))
    ([4, 4, 4], [8, 6])
    """
    updates, most = total // window, max(1, chunk // window)
    least = -(-updates // most)
    count = next((n for n in range(least, 2 * least) if updates % n == 0), least)
    length = window * -(-updates // count)
    for start in range(0, total, length):
        yield min(length, total - start)


def _first_not_finite(tree: PyTree, length: int) -> Array:
    finite = jnp.ones(length, bool)
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            finite &= jnp.all(jnp.isfinite(leaf), axis=tuple(range(1, leaf.ndim)))
    return jnp.where(jnp.all(finite), length, jnp.argmin(finite)).astype(jnp.int32)


def _joined(history: list[Metrics]) -> Any:
    if not history:
        return None
    return jax.tree.map(lambda *parts: np.concatenate(parts), *history)


@contextlib.contextmanager
def bar(total: int | None, label: str | None, unit: str = "step", start: int = 0):
    """A progress bar, as a function to call with the number of units done since; `start` were done before.

    Raises:
        ImportError: tqdm is missing.
    """
    try:
        from tqdm import tqdm
    except ImportError:
        raise ImportError("a progress bar needs tqdm: pip install online-grads[run]") from None
    with tqdm(total=total, desc=label, unit=unit, unit_scale=True, initial=start) as shown:
        yield shown.update
