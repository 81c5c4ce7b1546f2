"""One observation at a time, and how long each takes."""

import time
from collections import deque
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from online_grads.arguments import boolean, counted
from online_grads.checks import TRACING, check_learner, check_like, check_owner, check_state
from online_grads.leaves import copied
from online_grads.loop import DataError
from online_grads.observations import Law
from online_grads.types import Learner, LearnerState, Metrics, PyTree

REMEMBERED = 10_000  # latencies


class Latency(NamedTuple):
    """Seconds from the call of a step until the new state is there, over the last calls."""

    calls: int  # how many they were
    mean: float
    p50: float
    p99: float
    worst: float

    def __str__(self) -> str:
        shown = ", ".join(f"{name} {_readable(getattr(self, name))}" for name in ("p50", "p99", "worst"))
        return f"{counted(self.calls, 'call')}: {shown}"


def _readable(seconds: float) -> str:
    scale, unit = next((pair for pair in ((1, "s"), (1e3, "ms")) if seconds * pair[0] >= 1), (1e6, "µs"))
    return f"{seconds * scale:.3g} {unit}"


class Stepper:
    """`step(state, x, y) -> (state, Metrics)`, one compiled program; made by `stepper`."""

    def __init__(self, learner: Learner, donate: bool):
        def update(state, x, y):
            given = state
            state, metrics = learner.update(given, *jax.tree.map(lambda leaf: leaf[None], (x, y)))
            check_like(state, given)
            return state, metrics._replace(outputs=jax.tree.map(lambda leaf: leaf[0], metrics.outputs))

        self._learner = learner
        self._update = jax.jit(update, donate_argnums=0 if donate else ())
        self._donate = donate
        self._law: Law | None = None
        self._floating: list[int] = []
        self._compiled: Any = None
        self._like: PyTree = None  # a state's shapes
        self._begun = False
        self._seconds: deque[float] = deque(maxlen=REMEMBERED)

    def compile(self, state: LearnerState, x: PyTree, y: PyTree) -> None:
        """Compile for a state and an observation like these; nothing is learned. The first call does it else.

        Raises:
            TypeError: it is no state of a learner.
            ValueError: it is another learner's; x or y holds something else than numbers, or is refused.
        """
        check_state(state)
        law = Law((x, y))
        self._floating = [n for n, dtype in enumerate(law.on_device) if jnp.issubdtype(dtype, jnp.inexact)]
        shapes = map(jax.ShapeDtypeStruct, law.shapes, law.on_device)
        try:
            lowered = self._update.lower(state, *law.tree([*shapes]))
        except TRACING as error:
            check_owner(self._learner, state)
            if isinstance(error, ValueError):
                raise ValueError(law.refused(error, window=1)) from error
            raise
        self._compiled, self._like = lowered.compile(), jax.eval_shape(lambda state: state, state)
        self._law = law

    def __call__(self, state: LearnerState, x: PyTree, y: PyTree) -> tuple[LearnerState, Metrics]:
        """Learn from one observation, as `stepper` says."""
        compiles = self._law is None
        if compiles:
            self.compile(state, x, y)
        check_state(state)
        if self._donate and not self._begun:
            state = copied(state)
        begin = time.perf_counter()
        x, y = self._checked(state, (x, y))
        try:
            state, metrics = self._compiled(state, x, y)
        except TypeError:
            check_like(self._like, state)
            raise
        state.step.block_until_ready()
        if not compiles:
            self._seconds.append(time.perf_counter() - begin)
        self._begun = True
        return state, metrics

    def latency(self) -> Latency:
        """What the calls took, over the last 10,000; neither compilation nor the call that compiled counts.

        Raises:
            ValueError: there was no such call yet.
        """
        if not self._seconds:
            raise ValueError("no latency yet: the first call compiles and does not count")
        seconds = np.array(self._seconds)
        p50, p99 = np.quantile(seconds, [0.5, 0.99])
        return Latency(len(seconds), float(seconds.mean()), float(p50), float(p99), float(seconds.max()))

    def _checked(self, state: LearnerState, observation: tuple) -> PyTree:
        law = self._law
        assert law is not None
        leaves = [
            leaf.astype(dtype, copy=False)
            for leaf, dtype in zip(law.leaves(observation), law.on_device, strict=True)
        ]
        for number in self._floating:
            if not np.isfinite(leaves[number]).all():
                step = int(state.step)
                raise DataError(f"{law.names[number]} is not finite at step {step}", step, state)
        return law.tree(leaves)


def stepper(learner: Learner, *, donate: bool = False) -> Stepper:
    """One observation at a time, and a parameter update for each.

    For streams that are too slow, or too urgent, for chunks. Each call waits until the new state is there.
    The numbers are those of `run` with a chunk and a window of one step, bit by bit; programs for longer
    chunks may round differently. Estimators that want segments of several steps are for `run`.

    Args:
        learner: the `Learner`.
        donate: the new state takes the memory of the old one, which is gone then: go on with the state that
            is returned. Only the first call copies it before. This is faster, by tens of microseconds where
            the state is large, but an exception that comes between a call and the assignment of what it
            returns, as Ctrl-C can, loses the state.

    Returns:
        `step(state, x, y)` -> (state, `Metrics`): x, y without a time axis, arrays on the host, pytrees of
        them, or Python numbers, and all like the first; the metrics too have no leading axis. Then
        `step.compile(state, x, y)` compiles ahead, and `step.latency()` says what the calls took.

        A step raises ValueError if x or y is not like the first one, or the state another learner's or
        donated, before anything is compiled anew, and DataError if x or y is not finite; the state stays
        usable. Integers first are integers for ever: a model of floating-point numbers wants `float(x)`.

        Ctrl-C leaves `state` as it was before the step or after it. To stop between steps:

            with og.deferred() as received:
                while received() is None:
                    state, metrics = step(state, *observation())
            og.checkpoint.save_step(folder, int(state.step), state)

    Raises:
        TypeError: `learner` is no `Learner`, or `donate` not True or False.

    >>> import jax, jax.numpy as jnp, optax
    >>> from online_grads import cells, from_cell, learner, losses, readouts, snap
    >>> cell, readout = cells.gru(2, 4), readouts.linear(4, 1)
    >>> model = from_cell(cell, readout, losses.squared_error, example=(jnp.zeros(2), jnp.zeros(1)))
    >>> online = learner(snap(model), optax.sgd(0.1))
    >>> state, step = online.init(*model.init(jax.random.key(0)), key=jax.random.key(1)), stepper(online)
    >>> for x in np.ones((10, 2)):
    ...     state, metrics = step(state, x, np.ones(1))
    >>> int(state.step), step.latency().calls, metrics.loss.shape
    (10, 9, ())
    """
    check_learner(learner)
    boolean("donate", donate)
    return Stepper(learner, donate)
