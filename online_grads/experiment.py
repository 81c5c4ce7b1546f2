"""Train every estimator of a config on every seed and learning rate, in one program each.

The stream is generated inside the compiled program (`task.draw`), so that nothing but one loss, one flag
and one gradient norm per update leaves the device. All estimators see the same initial parameters and the
same stream for the same seed.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from online_grads import optimizers
from online_grads.assembly import Start, blaming, estimator_of, model_of, place, start, task_of, x64
from online_grads.config import Config, EstimatorConfig
from online_grads.estimators.registry import ESTIMATORS
from online_grads.learner import learner, scan
from online_grads.run import DataError, drive, guarded, keeping, spans
from online_grads.tables import ConfigError
from online_grads.tasks import Task
from online_grads.types import Learner, Metrics, Model, PyTree

RECORDED = ("loss", "finite", "grad_norm")
SMALL = 16  # entries of a model whose final parameters are reported


class Levels(NamedTuple):
    """How far a curriculum has come: at the start and after each chunk."""

    steps: np.ndarray  # [1 + chunks] of the stream
    reached: np.ndarray  # [rates, seeds, 1 + chunks]


class Result(NamedTuple):
    """What training one estimator gave; losses are in the task's unit."""

    config: EstimatorConfig
    loss: np.ndarray  # [rates, seeds, updates]
    finite: np.ndarray  # [rates, seeds, updates] bool
    grad_norm: np.ndarray  # [rates, seeds, updates]
    params: PyTree | None  # [rates, seeds, ...] where learning ended, None for models above 16 entries
    seconds_per_step: float  # of one seed at one learning rate: wall time / (steps × seeds × rates)
    compile_seconds: float
    state_bytes: int  # of one seed at one learning rate
    levels: Levels | None = None  # of a task with a curriculum


class Report(NamedTuple):
    """What an experiment gave, as far as it got."""

    config: Config
    task: Task
    results: tuple[Result, ...]
    failure: str | None  # why it ended early, if it did


class _Timed:
    """A jitted (state, length), compiled ahead of time for each length; it keeps the two times apart."""

    def __init__(self, function: Any, like: PyTree, length: int):
        begin = time.perf_counter()
        self.function = function
        self.traced = {length: function.trace(like, length)}
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
    advance: _Timed  # (state, length) -> (state, Metrics [updates, rates, seeds], bad), state donated
    state_bytes: int


def train(config: Config, *, progress: bool = False) -> Report:
    """Train every estimator of a config.

    Everything is built and traced before anything is trained, so that a mistake in the last estimator
    shows at once.

    Args:
        config: what to train.
        progress: show a bar with steps per second for each estimator.

    Returns:
        A `Report`. Data that are not finite end it early: `failure` says where, and the last of its
        results goes up to the chunk before. A seed that diverges is recorded and the others go on.

    Raises:
        ConfigError: a task, cell or estimator refuses its options or the model.

    >>> from online_grads.config import parse
    >>> report = train(parse({
    ...     "task": {"name": "influence_balancing"},
    ...     "run": {"updates": 20, "seeds": 2},
    ...     "optimizer": {"name": "sgd", "learning_rate": [1e-4, 1e-5]},
    ...     "estimator": [{"name": "tbptt", "window": 10}],
    ... }))
    >>> report.results[0].loss.shape
    (2, 2, 20)
    """
    with x64(config.run.precision == "float64"):
        task, model, starts = begin(config)
        trainers = [trainer(config, task, model, starts, chosen) for chosen in config.estimators]
        results: list[Result] = []
        for each in trainers:
            result, failure = _train(config, task, each, progress)
            results.append(result)
            if failure is not None:
                break
    return Report(config, task, tuple(results), failure)


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


def trainer(config: Config, task: Task, model: Model, starts: Start, chosen: EstimatorConfig) -> Trainer:
    """One estimator's program, vmapped over seeds and mapped over learning rates; traced already.

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
    rates = jnp.array(chosen.optimizer.learning_rate, config.run.precision)

    def learner_at(rate):
        made = optimizers.make(chosen.optimizer, rate, window=chosen.window, frozen=chosen.frozen)
        if task.traces is not None:
            made = optax.chain(task.traces, made)
        return _recording(learner(estimator, made), task)

    def init_one(rate, start):
        return learner_at(rate).init(start.params, start.hidden, key=start.key), start.stream

    def init(starts):
        # copied, since the state is donated and jit would hand on as it is an array that it does not change
        starts = jax.tree.map(lambda leaf: jnp.copy(leaf[: chosen.seeds]), starts)
        return jax.vmap(jax.vmap(init_one, (None, 0)), (0, None))(rates, starts)

    def at_rate(rate, state, length):
        learning, streams = state
        over_seeds = jax.vmap(partial(scan, learner_at(rate), window=chosen.window), (0, 1, 1), (0, 1))
        streams, data = jax.vmap(lambda stream: task.draw(stream, length), out_axes=(0, 1))(streams)
        learning, metrics, bad = guarded(over_seeds, learning, *data)
        if task.adapt is not None:
            streams = jax.vmap(task.adapt, (0, 1, 1))(streams, data[1], metrics.loss)
        if task.level is not None:
            metrics = metrics._replace(info={"level": jax.vmap(task.level)(streams)[None]})
        return (learning, streams), metrics, bad

    def advance(state, length):
        # one rate after another: batched products with many weight matrices gain nothing on a CPU, and
        # three batched influences no longer fit into its cache
        state, metrics, bad = jax.lax.map(lambda pair: at_rate(*pair, length), (rates, state))
        return state, jax.tree.map(lambda recorded: jnp.moveaxis(recorded, 0, 1), metrics), bad.min(axis=0)

    with blaming(config, place(chosen), (ValueError,)):
        init, like = jax.jit(init), jax.eval_shape(init, starts)
        (_, length), *_ = spans(chosen.steps, chosen.window, config.run.chunk)
        timed = _Timed(jax.jit(advance, static_argnums=1, donate_argnums=0), like, length)
    carried = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(like[0].estimator))
    return Trainer(chosen, starts, init, timed, carried // (len(rates) * chosen.seeds))


def _recording(learner: Learner, task: Task) -> Learner:
    """The learner, reporting what is recorded; a task's own score in place of the loss."""
    if task.score is None:
        return keeping(learner, RECORDED)
    score = task.score

    def update(state, xs, ys):
        state, metrics = learner.update(state, xs, ys)
        return state, metrics._replace(loss=jnp.mean(jax.vmap(score)(metrics.outputs, ys)))

    return keeping(Learner(learner.init, update), RECORDED)


def _train(config: Config, task: Task, trainer: Trainer, progress: bool) -> tuple[Result, str | None]:
    chosen, failure = trainer.config, None
    state = jax.block_until_ready(trainer.init(trainer.starts))
    begun = None if task.level is None else np.asarray(jax.vmap(jax.vmap(task.level))(state[1]))
    chunks = [(length, length) for _, length in spans(chosen.steps, chosen.window, config.run.chunk)]
    try:
        (learned, _), metrics = drive(
            trainer.advance,
            state,
            chunks,
            total=chosen.steps,
            progress=progress,
            label=chosen.label,
        )
    except DataError as error:
        (learned, _), metrics = error.state, error.metrics
        failure = f"{chosen.label}: {error}"
    rates, seeds = len(chosen.optimizer.learning_rate), chosen.seeds
    nothing = np.zeros((0, rates, seeds))
    recorded = (nothing, nothing.astype(bool), nothing) if metrics is None else metrics[:3]
    loss, finite, grad_norm = (np.moveaxis(values, 0, -1) for values in recorded)
    steps = max(1, loss.shape[-1] * chosen.window)
    small = sum(leaf[0, 0].size for leaf in jax.tree.leaves(learned.params)) <= SMALL
    result = Result(
        config=chosen,
        loss=loss * task.scale,
        finite=finite,
        grad_norm=grad_norm,
        params=jax.device_get(learned.params) if small else None,
        seconds_per_step=trainer.advance.seconds / (steps * rates * seeds),
        compile_seconds=trainer.advance.compile_seconds,
        state_bytes=trainer.state_bytes,
        levels=begun if begun is None else _levels(begun, metrics, [length for length, _ in chunks]),
    )
    return result, failure


def _levels(begun: np.ndarray, metrics: Metrics | None, lengths: list[int]) -> Levels:
    reached = np.stack([begun, *([] if metrics is None else metrics.info["level"])], axis=-1)
    return Levels(np.cumsum([0, *lengths])[: reached.shape[-1]], reached)
