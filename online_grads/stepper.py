"""One observation at a time, and how long each takes."""

import time
from collections import deque
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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


class Stepper:
    """`step(state, x, y) -> (state, Metrics)`, one compiled program; made by `stepper`."""

    def __init__(self, learner: Learner, donate: bool):
        def update(state, x, y):
            state, metrics = learner.update(state, *jax.tree.map(lambda leaf: leaf[None], (x, y)))
            return state, metrics._replace(outputs=jax.tree.map(lambda leaf: leaf[0], metrics.outputs))

        self._update = jax.jit(update, donate_argnums=0 if donate else ())
        self._donate = donate
        self._law: Law | None = None
        self._floating: list[int] = []
        self._compiled: Any = None
        self._begun = False
        self._seconds: deque[float] = deque(maxlen=REMEMBERED)

    def compile(self, state: LearnerState, x: PyTree, y: PyTree) -> None:
        """Compile for a state and an observation like these; nothing is learned. The first call does it else.

        Raises:
            ValueError: x or y holds something else than numbers.
        """
        law = Law((x, y))
        self._floating = [n for n, dtype in enumerate(law.on_device) if jnp.issubdtype(dtype, jnp.inexact)]
        shapes = map(jax.ShapeDtypeStruct, law.shapes, law.on_device)
        self._compiled = self._update.lower(state, *law.tree([*shapes])).compile()
        self._law = law

    def __call__(self, state: LearnerState, x: PyTree, y: PyTree) -> tuple[LearnerState, Metrics]:
        """Learn from one observation, as `stepper` says."""
        compiles = self._law is None
        if compiles:
            self.compile(state, x, y)
        if self._donate and not self._begun:
            state = copied(state)
        begin = time.perf_counter()
        x, y = self._checked(state, (x, y))
        state, metrics = self._compiled(state, x, y)
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


def stepper(learner: Learner, *, donate: bool = True) -> Stepper:
    """One observation at a time, and a parameter update for each.

    For streams that are too slow, or too urgent, for chunks. Each call waits until the new state is there.
    The numbers are those of `run` with a chunk and a window of one step, bit by bit; programs for longer
    chunks may round differently. Estimators that want segments of several steps are for `run`.

    Args:
        learner: the `Learner`.
        donate: the new state takes the memory of the old one, which is gone then: go on with the state that
            is returned. Only the first call copies it before. False keeps every state, and is slower.

    Returns:
        `step(state, x, y)` -> (state, `Metrics`): x, y without a time axis, arrays on the host, pytrees of
        them, or Python numbers, and all like the first; the metrics too have no leading axis. Then
        `step.compile(state, x, y)` compiles ahead, and `step.latency()` says what the calls took.

        A step raises ValueError if x or y is not like the first one, before anything is compiled anew, and
        DataError if it is not finite; the state stays usable.

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
    return Stepper(learner, donate)
