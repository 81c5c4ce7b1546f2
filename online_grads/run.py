"""A learner over a whole stream, driven from the host."""

import contextlib
import inspect
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from online_grads import saving
from online_grads.arguments import above, positive_int
from online_grads.checks import TRACING, check_learner, check_owner, check_state
from online_grads.learner import scan, segments
from online_grads.leaves import copied
from online_grads.loop import DataError as DataError
from online_grads.loop import StreamError, chunk_lengths, drive, guarded, keeping
from online_grads.observations import Law
from online_grads.streams import Gathering, is_stream
from online_grads.types import Learner, LearnerState, Metrics, PyTree

KEEP = ("loss", "finite", "grad_norm", "info")


def run(
    learner: Learner,
    state: LearnerState,
    xs: PyTree | Iterable | Callable[[int], Iterable],
    ys: PyTree = None,
    *,
    steps: int | None = None,
    window: int = 1,
    chunk: int = 1024,
    timeout: float | None = None,
    keep: tuple[str, ...] = KEEP,
    history: bool | None = None,
    progress: bool = False,
    callback: Callable[[int, Metrics], Any] | None = None,
    checkpoints: str | os.PathLike | None = None,
    every: int | None = None,
    last: int = 3,
    resume: bool = False,
) -> tuple[LearnerState, Any]:
    """Drive a learner over a stream from the host, chunk by chunk.

    A stream of single observations (a generator, a socket, a sensor) may never end. A thread gathers the
    next chunks while the device works; what it has gathered ahead, three chunks at most, is not learned from
    if a NaN, a signal or an error of yours ends the run. A chunk is complete before the device sees it: where
    observations come slowly, take a small `chunk`, or `stepper`.

    Args:
        learner: the `Learner`.
        state: its state; it is copied once and stays usable.
        xs, ys: arrays of the whole stream, [T, ...] with T a multiple of `window`; NumPy arrays
            (memory-mapped ones too) go to the device chunk by chunk. Or, `ys` left out, an iterator or
            iterable of pairs (x, y) of one step each, without a time axis, as arrays on the host, pytrees
            of them, or Python numbers; all look like the first, so integers first are integers for ever,
            and a model of floating-point numbers wants `float(x)`. A list or a tuple is taken for arrays:
            wrap one of pairs in `iter`. Or a function from the number of the first step to such an
            iterable. It runs in another thread, where your JAX contexts do not hold: make NumPy there.
        steps: how many steps of the stream are learned from, a multiple of `window`; by default all.
        window: k, steps per segment.
        chunk: steps per compiled call, at most; a multiple of `window` at or below it is used, at least one.
        timeout: seconds to wait for an observation of a stream; by default for ever. An iterator that kept
            silent is given up, as a thread still waits for it and takes what it gives next: go on with a
            new one.
        keep: the fields of `Metrics` that leave the device, the others are None. The outputs grow with
            the stream and are left out unless named here.
        history: return the metrics of all chunks, else only those of the last, so that memory stays constant.
            By default all for arrays, the last for a stream.
        progress: show a bar with steps per second.
        callback: called between chunks with the number of steps done and the chunk's metrics.
        checkpoints: a folder for checkpoints, made if it is missing. The state is saved there at the end,
            when something is wrong with the stream, when the callback raises, and when SIGINT or SIGTERM
            comes, which then waits for the end of the chunk. `checkpoint.steps` of the folder says how far
            it is, the `checkpoint.notes` of each hold `steps` and `window`.
        every: also save at the first end of a chunk that reaches another so many steps.
        last: so many checkpoints are kept, the newest.
        resume: go on from the newest checkpoint, if there is one: `state` only says what it looks like,
            arrays go on behind the steps that are done, a function is asked to begin there, and an iterator
            or iterable goes on with what it yields next. `steps` counts from the stream's very beginning,
            and metrics are those since the resume. The numbers are those of an uninterrupted run, bit by
            bit, but for chunks of one window only: their program may round differently.

    Returns:
        (state, `Metrics` as NumPy arrays with a leading axis of segments; None if nothing was left to do).

    Raises:
        ValueError: before anything is compiled, if the stream is empty, the window does not divide it,
            `chunk` is below 1, `keep` names what is no field, the state is another learner's or was donated,
            the arrays do not fit the model, the folder holds checkpoints and `resume` is not asked for, or
            the newest is of another window, or of a later step than is asked for.
        TypeError: if `learner`, `state` or `callback` is something else, or the stream an async iterator.
        DataError: if a step's x or y is not finite; it says which, and carries the state and the metrics
            up to the chunk before.
        StreamError: if a stream ends before `steps` or within a window, yields something else than before
            or, first, than the model takes, raises, or is silent for `timeout`; all whole windows before are
            learned from first, and it carries the state and the metrics. Every `DataError` is one too.
        Interrupted: if SIGINT or SIGTERM came and there are checkpoints; without them both act at once.
        CheckpointError: if a checkpoint cannot be read; if the folder cannot be written to, before anything
            is compiled, or later on: it carries the state and the metrics then.
        ImportError: if `progress` is asked for without tqdm.

    >>> import jax, jax.numpy as jnp, optax
    >>> from online_grads import cells, from_cell, learner, losses, readouts, tbptt
    >>> cell, readout = cells.gru(2, 4), readouts.linear(4, 1)
    >>> model = from_cell(cell, readout, losses.squared_error, example=(jnp.zeros(2), jnp.zeros(1)))
    >>> online = learner(tbptt(model), optax.sgd(0.1))
    >>> begun = online.init(*model.init(jax.random.key(0)), key=jax.random.key(1))
    >>> state, metrics = run(online, begun, jnp.ones((60, 2)), jnp.ones((60, 1)), window=4, chunk=20)
    >>> int(state.step), metrics.loss.shape
    (15, (15,))
    >>> sensor = ((np.ones(2), np.ones(1)) for _ in itertools.count())
    >>> state, metrics = run(online, begun, sensor, steps=60, window=4, chunk=20)
    >>> int(state.step), metrics.loss.shape
    (15, (5,))
    """
    check_learner(learner)
    check_state(state)
    positive_int("chunk", chunk)
    positive_int("window", window)
    positive_int("last", last)
    if every is not None:
        positive_int("every", every)
    unknown = sorted(set(keep) - set(Metrics._fields))
    if unknown:
        raise ValueError(f"keep names {', '.join(unknown)}; the fields are {', '.join(Metrics._fields)}")
    if not (callback is None or callable(callback)):
        raise TypeError(f"callback must be a function, got {callback!r}")
    total = _steps(xs, ys, steps, window, timeout)
    done = 0
    if checkpoints is not None:
        state, done = saving.begun(checkpoints, state, window, resume)
    elif resume or every is not None:
        raise ValueError("every and resume need a folder for checkpoints")
    else:
        state = copied(state)
    if total is not None and done > total:
        raise ValueError(f"{total} steps are asked for, but the newest checkpoint is of step {done} already")
    if done == total:
        return state, None
    if checkpoints is not None:
        saving.check_writable(Path(checkpoints))
    if is_stream(xs):
        lengths = _lengths(total, done, window, chunk)
        gathering = Gathering(xs, lengths, window=window, start=done, asked=steps, timeout=timeout)
        chunks: Any = gathering.chunks()
    else:
        chunks = _chunks(xs, ys, done, _lengths(total, done, window, chunk))
    with contextlib.closing(chunks):
        return drive(
            partial(_advanced, learner, window, tuple(keep), done if is_stream(xs) else None),
            state,
            chunks,
            start=done,
            total=total,
            progress=progress,
            callback=callback,
            save=None if checkpoints is None else partial(saving.save, checkpoints, last, window),
            every=every,
            joined=not is_stream(xs) if history is None else history,
        )


def _steps(xs: PyTree, ys: PyTree, steps: int | None, window: int, timeout: float | None) -> int | None:
    """The number of steps to learn from, None for a stream without end."""
    if steps is not None and positive_int("steps", steps) % window:
        raise ValueError(f"a window of {window} steps does not divide steps={steps}")
    if hasattr(xs, "__aiter__") or inspect.isasyncgenfunction(xs):
        raise TypeError(
            "an async iterator is no iterator: take `stepper`, as in "
            "`async for x, y in stream: state, metrics = step(state, x, y)`"
        )
    if is_stream(xs):
        if ys is not None:
            raise ValueError("a stream gives pairs (x, y), so ys must be left out")
        if timeout is not None:
            above("timeout", timeout, 0)
        return steps
    if timeout is not None:
        raise ValueError("arrays do not keep anyone waiting: timeout is for a stream of single observations")
    try:
        jax.eval_shape(lambda xs, ys: segments(xs, ys, window if steps is None else 1), xs, ys)
    except ValueError as error:
        if ys is not None or not isinstance(xs, list | tuple):
            raise
        raise ValueError(f"{error}; pairs (x, y) of single steps are a stream: wrap them in iter") from None
    total = jnp.shape(jax.tree.leaves((xs, ys))[0])[0]
    if not total:
        raise ValueError("the stream has no steps")
    if steps is not None and steps > total:
        raise ValueError(f"steps={steps}, but the stream has {total}")
    return total if steps is None else steps


def _advanced(learner, window, keep, begun, state, data):
    """`_advance`; what tracing it raises is said in the caller's words. A stream `begun` at a step."""
    try:
        return _advance(learner, state, data, window, keep)
    except TRACING as error:
        check_owner(learner, state)
        if begun is not None and isinstance(error, ValueError):
            law = Law(jax.tree.map(lambda leaf: leaf[0], data))
            raise StreamError(f"step {begun} of the stream: {law.refused(error, window)}", begun) from error
        if begun is None and not jax.tree.leaves(data[1]):
            said = "ys was left out: run(learner, state, xs, ys), or single pairs (x, y), wrapped in iter"
            raise ValueError(f"{said}; {error}") from error
        raise


# The learner is a static argument, so that calling `run` again with it does not compile again.
@partial(jax.jit, static_argnums=(0, 3, 4), donate_argnums=1)
def _advance(learner, state, data, window, keep):
    return guarded(lambda *args: scan(keeping(learner, keep), *args, window=window), state, *data)


def _lengths(total: int | None, done: int, window: int, chunk: int) -> Iterator[int]:
    if total is None:
        return itertools.repeat(window * max(1, chunk // window))
    if (total - done) % window:
        rest = f"the {total - done} steps after the checkpoint"
        raise ValueError(f"a window of {window} steps does not divide {rest}")
    return chunk_lengths(total - done, window, chunk)


def _chunks(xs: PyTree, ys: PyTree, start: int, lengths: Iterable[int]):
    for length in lengths:
        yield length, jax.tree.map(partial(_part, start=start, length=length), (xs, ys))
        start += length


def _part(leaf, *, start: int, length: int):
    if isinstance(leaf, jax.Array):
        return jax.lax.dynamic_slice_in_dim(leaf, start, length)
    return np.asarray(leaf)[start : start + length]
