"""A learner over a whole stream, driven from the host."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from online_grads.arguments import positive_int
from online_grads.learner import scan, segments
from online_grads.loop import DataError as DataError
from online_grads.loop import drive, guarded, keeping, spans
from online_grads.types import Learner, LearnerState, Metrics, PyTree

KEEP = ("loss", "finite", "grad_norm", "info")


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
