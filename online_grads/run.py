"""The host loop around `scan`: chunks, a progress bar, callbacks, and data that are not finite.

One compiled call per chunk of many steps; the state is donated from call to call, so there is one copy
of it on the device. `run` feeds the loop from arrays, the experiment of the command line from streams that
are generated inside the compiled call; both share `guarded` (what a call does) and `drive` (the loop).
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from online_grads.arguments import positive_int
from online_grads.learner import scan, segments
from online_grads.types import Array, Learner, LearnerState, Metrics, PyTree

KEEP = ("loss", "finite", "grad_norm", "info")


class DataError(ValueError):
    """The stream holds a NaN or an infinity.

    Attributes:
        step: the first such step of the stream, from 0.
        state: the learner's state before the chunk that holds it, fit to go on from.
        metrics: the `Metrics` of all chunks before that one, None if it is the first.
    """

    def __init__(self, message: str, step: int, state: PyTree, metrics: Metrics | None):
        super().__init__(message)
        self.step = step
        self.state = state
        self.metrics = metrics


def run(
    learner: Learner,
    state: LearnerState,
    xs: PyTree,
    ys: PyTree,
    *,
    window: int = 1,
    chunk: int = 1024,
    keep: tuple[str, ...] = KEEP,
    progress: bool = False,
    callback: Callable[[int, Metrics], Any] | None = None,
) -> tuple[LearnerState, Metrics]:
    """Drive a learner over a stream from the host, chunk by chunk.

    Args:
        learner: the `Learner`.
        state: its state; it is copied once and stays usable.
        xs, ys: the stream, [T, ...] with T a multiple of `window`. NumPy arrays (memory-mapped ones too)
            go to the device chunk by chunk.
        window: k, steps per segment.
        chunk: steps per compiled call, at most; a multiple of `window` at or below it is used, at least one.
        keep: the fields of `Metrics` that leave the device, the others are None. The outputs grow with
            the stream and are left out unless named here.
        progress: show a bar with steps per second.
        callback: called between chunks with the number of steps done and the chunk's metrics.

    Returns:
        (state, `Metrics` as NumPy arrays with a leading axis of T/window segments).

    Raises:
        ValueError: before anything is compiled, if the stream is empty, the window does not divide it,
            `chunk` is below 1, or `keep` names what is no field.
        DataError: if a step's x or y is not finite; it says which, and carries the state and the metrics
            up to the chunk before.
        ImportError: if `progress` is asked for without tqdm.

    >>> import jax, jax.numpy as jnp, optax
    >>> from online_grads import cells, from_cell, learner, losses, readouts, tbptt
    >>> cell, readout = cells.gru(2, 4), readouts.linear(4, 1)
    >>> model = from_cell(cell, readout, losses.squared_error, example=(jnp.zeros(2), jnp.zeros(1)))
    >>> online = learner(tbptt(model), optax.sgd(0.1))
    >>> state = online.init(*model.init(jax.random.key(0)), key=jax.random.key(1))
    >>> state, metrics = run(online, state, jnp.ones((60, 2)), jnp.ones((60, 1)), window=4, chunk=20)
    >>> int(state.step), metrics.loss.shape
    (15, (15,))
    """
    positive_int("chunk", chunk)
    unknown = sorted(set(keep) - set(Metrics._fields))
    if unknown:
        raise ValueError(f"keep names {', '.join(unknown)}; the fields are {', '.join(Metrics._fields)}")
    jax.eval_shape(lambda xs, ys: segments(xs, ys, window), xs, ys)
    total = jnp.shape(jax.tree.leaves((xs, ys))[0])[0]
    if not total:
        raise ValueError("the stream has no steps")
    return drive(
        lambda state, data: _advance(learner, state, data, window, tuple(keep)),
        jax.tree.map(partial(jnp.array, copy=True), state),
        _chunks(xs, ys, spans(total, window, chunk)),
        total=total,
        progress=progress,
        callback=callback,
    )


def drive(
    advance: Callable,
    state: PyTree,
    chunks: Iterable[tuple[int, Any]],
    *,
    total: int | None = None,
    progress: bool = False,
    label: str | None = None,
    callback: Callable[[int, Metrics], Any] | None = None,
) -> tuple[PyTree, Any]:
    """The loop itself: call `advance` on every chunk and bring its metrics to the host.

    Args:
        advance: (state, data) -> (state, Metrics, bad), as `guarded` returns them.
        state: may be donated by `advance`.
        chunks: (number of steps, data) pairs; it may be endless.
        total: the number of steps to come, if known.
        progress, label: show a bar, with this name.
        callback: as in `run`.

    Returns:
        (state, `Metrics` as NumPy arrays, all chunks joined; None if there was no chunk).

    Raises:
        DataError: as in `run`.
    """
    done, history = 0, list[Metrics]()
    with bar(total, label) if progress else contextlib.nullcontext(lambda length: None) as advanced:
        for length, data in chunks:
            state, metrics, bad = advance(state, data)
            metrics, bad = jax.device_get((metrics, bad))
            if min(bad) < length:
                step = done + int(min(bad))
                message = f"{'xs' if bad[0] <= bad[1] else 'ys'} is not finite at step {step} of the stream"
                raise DataError(message, step, state, _joined(history))
            history.append(metrics)
            done += length
            advanced(length)
            if callback is not None:
                callback(done, metrics)
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
    # One scalar predicate, so this stays a real branch: bad data cost nothing and donated states survive.
    state, metrics = jax.lax.cond(jnp.all(bad == length), body, skip, state, xs, ys)
    return state, metrics, bad


def keeping(learner: Learner, keep: tuple[str, ...]) -> Learner:
    """The same learner, reporting only the named fields of `Metrics`."""
    dropped = {name: None for name in Metrics._fields if name not in keep}

    def update(state, xs, ys):
        state, metrics = learner.update(state, xs, ys)
        return state, metrics._replace(**dropped)

    return Learner(learner.init, update)


def spans(total: int, window: int, chunk: int) -> Iterator[tuple[int, int]]:
    """(start, length) of the chunks of a stream: at most `chunk` steps each, whole windows.

    Equal chunks share one compiled program, so a number of chunks is preferred that divides the stream, up
    to twice as many as are needed; else the last one is shorter.

    >>> list(spans(12, 2, 5)), list(spans(14, 2, 8))
    ([(0, 4), (4, 4), (8, 4)], [(0, 8), (8, 6)])
    """
    updates, most = total // window, max(1, chunk // window)
    least = -(-updates // most)
    count = next((n for n in range(least, 2 * least) if updates % n == 0), least)
    length = window * -(-updates // count)
    for start in range(0, total, length):
        yield start, min(length, total - start)


# The learner is a static argument, so that calling `run` again with it does not compile again.
@partial(jax.jit, static_argnums=(0, 3, 4), donate_argnums=1)
def _advance(learner, state, data, window, keep):
    return guarded(lambda *args: scan(keeping(learner, keep), *args, window=window), state, *data)


def _chunks(xs: PyTree, ys: PyTree, parts: Iterable[tuple[int, int]]):
    for start, length in parts:
        yield length, jax.tree.map(partial(_part, start=start, length=length), (xs, ys))


def _part(leaf, *, start: int, length: int):
    if isinstance(leaf, jax.Array):
        return jax.lax.dynamic_slice_in_dim(leaf, start, length)
    return np.asarray(leaf)[start : start + length]


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
def bar(total: int | None, label: str | None, unit: str = "step"):
    """A progress bar, as a function to call with the number of units done.

    Raises:
        ImportError: tqdm is missing.
    """
    try:
        from tqdm import tqdm
    except ImportError:
        raise ImportError("a progress bar needs tqdm: pip install online-grads[run]") from None
    with tqdm(total=total, desc=label, unit=unit, unit_scale=True) as shown:
        yield shown.update
