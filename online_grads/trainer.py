"""The training of one estimator of a config as one compiled program, all its seeds and learning rates in it.

The stream is generated inside the program (`task.draw`), so that nothing but one loss, one flag and one
gradient norm per update leaves the device. All estimators see the same initial parameters and the same stream
for the same seed.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from online_grads import optimizers
from online_grads.assembly import Start, at, blaming, estimator_of, model_of, place, start, task_of
from online_grads.config import Config, EstimatorConfig
from online_grads.estimators.registry import ESTIMATORS
from online_grads.learner import learner, scan
from online_grads.leaves import size_in_bytes
from online_grads.loop import chunk_lengths, guarded, keeping
from online_grads.tables import ConfigError
from online_grads.tasks import Task
from online_grads.types import Learner, Model, PyTree

RECORDED = ("loss", "finite", "grad_norm")

# Points whose states take at most this many bytes together are trained side by side.
ON_CPU, ON_ACCELERATOR = 2**17, 2**26


class Timed:
    """A jitted (state, length), compiled ahead of time for each length; it keeps the two times apart."""

    def __init__(self, function: Any, like: PyTree, length: int):
        begin = time.perf_counter()
        self.function = function
        self.traced = {length: function.trace(like, length)}
        self.returns = self.traced[length].out_info
        self.compiled: dict[int, Any] = {}
        self.compile_seconds, self.seconds = time.perf_counter() - begin, 0.0

    def __call__(self, state: PyTree, length: int) -> Any:
        begin = time.perf_counter()
        if length not in self.compiled:
            traced = self.traced.pop(length, None) or self.function.trace(state, length)
            self.compiled[length] = traced.lower().compile()
            self.compile_seconds += time.perf_counter() - begin
            begin = time.perf_counter()
        advanced = jax.block_until_ready(self.compiled[length](state))
        self.seconds += time.perf_counter() - begin
        return advanced


class Trainer(NamedTuple):
    """One estimator's training as a compiled program."""

    config: EstimatorConfig
    starts: Start  # every leaf [seeds, ...]
    init: Callable  # starts -> (learners, streams), every leaf [rates, seeds, ...]
    advance: Timed  # (state, length) -> (state, Metrics [updates, rates, seeds], bad), state donated
    state_bytes: int
    lengths: tuple[int, ...]  # of the chunks


def begin(config: Config) -> tuple[Task, Model, Start]:
    """The task and the model of a config, and where its seeds start, every leaf [seeds, ...].

    Raises:
        ConfigError: the task or the cell refuses its options, or they do not fit together.
    """
    task = task_of(config)
    model = model_of(config, task)
    return task, model, _starts(config, task, model)


def _starts(config: Config, task: Task, model: Model) -> Start:
    seeds = config.run.seed + np.arange(max(config.run.seeds, *(row.seeds for row in config.estimators)))
    return jax.jit(jax.vmap(partial(start, task, model)))(seeds)


def trainer(
    config: Config,
    task: Task,
    model: Model,
    starts: Start,
    chosen: EstimatorConfig,
    others: Mapping[str, np.ndarray] | None = None,
) -> Trainer:
    """One estimator's program, traced already: vmapped over seeds, and over rates where that is faster.

    Args:
        config, task, model, starts: as `begin` makes them.
        chosen: the estimator.
        others: numbers that change along with the learning rates, each [rates], named as for
            `assembly.at`. None of them is checked, as the program has no values for them yet.

    Raises:
        ConfigError: the estimator refuses its options or the model, or emits too late for the task's traces.
    """
    if task.traces is not None and ESTIMATORS[chosen.name].delay != "none":
        raise ConfigError(
            f"{config.source}: {place(chosen)}: its gradients come late ({ESTIMATORS[chosen.name].delay}), "
            "when the traces of the task are at another step"
        )
    if chosen.model:
        model = model_of(config, task, chosen)
        starts = _starts(config, task, model)  # a variant may have other parameters
    estimator = estimator_of(config, chosen, model)
    rates = chosen.optimizer.learning_rate
    numbers = {"optimizer.learning_rate": rates, **(others or {})}
    points = {name: jnp.array(values, config.run.precision) for name, values in numbers.items()}
    variable = any(name.startswith("estimator.") for name in points)

    def learner_at(point):
        here = at(chosen, point)
        made = optimizers.make(
            here.optimizer, *here.optimizer.learning_rate, window=chosen.window, frozen=chosen.frozen
        )
        if task.traces is not None:
            made = optax.chain(task.traces, made)
        return _recording(learner(estimator_of(config, here, model) if variable else estimator, made), task)

    def init_one(point, start):
        return learner_at(point).init(start.params, start.hidden, key=start.key), start.stream

    def init(starts):
        # copied, since the state is donated and jit would hand on as it is an array that it does not change
        starts = jax.tree.map(lambda leaf: jnp.copy(leaf[: chosen.seeds]), starts)
        return jax.vmap(jax.vmap(init_one, (None, 0)), (0, None))(points, starts)

    def at_point(point, state, length):
        learning, streams = state
        over_seeds = jax.vmap(partial(scan, learner_at(point), window=chosen.window), (0, 1, 1), (0, 1))
        streams, data = jax.vmap(lambda stream: task.draw(stream, length), out_axes=(0, 1))(streams)
        learning, metrics, bad = guarded(over_seeds, learning, *data)
        if task.adapt is not None:
            streams = jax.vmap(task.adapt, (0, 1, 1))(streams, data[1], metrics.loss)
        if task.level is not None:
            metrics = metrics._replace(info={"level": jax.vmap(task.level)(streams)[None]})
        return (learning, streams), metrics, bad

    def advance(state, length):
        each = lambda pair: at_point(*pair, length)
        over_points = jax.vmap(each) if _side_by_side(state) else partial(jax.lax.map, each)
        state, metrics, bad = over_points((points, state))
        return state, jax.tree.map(lambda recorded: jnp.moveaxis(recorded, 0, 1), metrics), bad.min(axis=0)

    with blaming(config, place(chosen), (ValueError,)):
        init, like = jax.jit(init), jax.eval_shape(init, starts)
        lengths = tuple(chunk_lengths(chosen.steps, chosen.window, config.run.chunk))
        timed = Timed(jax.jit(advance, static_argnums=1, donate_argnums=0), like, lengths[0])
    state_bytes = size_in_bytes(like[0].estimator) // (len(rates) * chosen.seeds)
    return Trainer(chosen, starts, init, timed, state_bytes, lengths)


def _side_by_side(state: PyTree) -> bool:
    """Whether to vmap over the points of a state, every leaf [points, ...], rather than to map over them.

    On a CPU it makes small programs 1.4 to 5 times as fast, as their time goes into the number of operations;
    from twice as much state on it may as well be slower, for every point has matrices of its own (python -m
    tests.benchmarks.side_by_side). An accelerator idles at one small product after another; its limit keeps
    what the program needs, which grows with the points, small beside its memory.
    """
    points = len(jax.tree.leaves(state)[0])
    most = ON_CPU if jax.default_backend() == "cpu" else ON_ACCELERATOR
    return points > 1 and size_in_bytes(state) <= most


def _recording(learner: Learner, task: Task) -> Learner:
    """The learner, reporting what is recorded; a task's own score in place of the loss."""
    if task.score is None:
        return keeping(learner, RECORDED)
    score = task.score

    def update(state, xs, ys):
        state, metrics = learner.update(state, xs, ys)
        return state, metrics._replace(loss=jnp.mean(jax.vmap(score)(metrics.outputs, ys)))

    return keeping(Learner(learner.init, update), RECORDED)
