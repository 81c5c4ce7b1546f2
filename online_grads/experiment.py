"""Train every estimator of a config on every seed and learning rate, in one program each.

The stream is generated inside the compiled program (`task.draw`), so that nothing but one loss, one flag
and one gradient norm per update leaves the device. All estimators see the same initial parameters and the
same stream for the same seed.
"""

import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from online_grads import optimizers
from online_grads.assembly import Start, at, blaming, estimator_of, model_of, place, start, task_of, x64
from online_grads.config import Config, EstimatorConfig
from online_grads.estimators.registry import ESTIMATORS
from online_grads.learner import learner, scan
from online_grads.resume import ResumeError, Saved, Saving, newest, opened
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
    advance: _Timed  # (state, length) -> (state, Metrics [updates, rates, seeds], bad), state donated
    state_bytes: int
    lengths: tuple[int, ...]  # of the chunks


def train(
    config: Config,
    *,
    progress: bool = False,
    checkpoints: str | os.PathLike | None = None,
    every: int | None = None,
    resume: bool = False,
) -> Report:
    """Train every estimator of a config.

    Everything is built and traced before anything is trained, so that a mistake in the last estimator
    shows at once.

    With checkpoints Ctrl-C and SIGTERM finish the chunk and save, and a later call goes on, in another
    process too: its report is then that of a training without an interruption to the last bit, times
    excepted. An estimator that is trained to the end keeps its last checkpoint; see
    `online_grads.learned`.

    Args:
        config: what to train.
        progress: show a bar with steps per second for each estimator.
        checkpoints: a folder for them, if they are wanted; it is made if it is missing.
        every: steps of the stream from one checkpoint to the next, which is saved at the end of the chunk
            (run.chunk) that reaches them. With `resume` it may be left out and stays what it was.
        resume: go on from the checkpoints in the folder. An estimator that has none there begins.

    Returns:
        A `Report`. Data that are not finite end it early: `failure` says where, and the last of its
        results goes up to the chunk before. A seed that diverges is recorded and the others go on.

    Raises:
        ConfigError: a task, cell or estimator refuses its options or the model.
        ResumeError: the folder holds checkpoints already, or with `resume` none, or some of another config.
        CheckpointError: a checkpoint cannot be written, or the one to go on from is damaged.
        ValueError: `every` is missing, below 1, or given without a folder.
        Interrupted: by a signal, after saving; a `KeyboardInterrupt`.

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
    saving = opened(config, checkpoints, every, resume=resume)
    with x64(config.run.precision == "float64"):
        task, model, starts = begin(config)
        trainers = [trainer(config, task, model, starts, chosen) for chosen in config.estimators]
        if saving is not None:
            saving.begin(config)
        results: list[Result] = []
        for each in trainers:
            result, failure = trained(task, each, progress, saving)
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


def trainer(
    config: Config,
    task: Task,
    model: Model,
    starts: Start,
    chosen: EstimatorConfig,
    others: Mapping[str, np.ndarray] | None = None,
) -> Trainer:
    """One estimator's program, vmapped over seeds and mapped over learning rates; traced already.

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
        # one rate after another: batched products with many weight matrices gain nothing on a CPU, and
        # three batched influences no longer fit into its cache
        state, metrics, bad = jax.lax.map(lambda pair: at_point(*pair, length), (points, state))
        return state, jax.tree.map(lambda recorded: jnp.moveaxis(recorded, 0, 1), metrics), bad.min(axis=0)

    with blaming(config, place(chosen), (ValueError,)):
        init, like = jax.jit(init), jax.eval_shape(init, starts)
        lengths = tuple(length for _, length in spans(chosen.steps, chosen.window, config.run.chunk))
        timed = _Timed(jax.jit(advance, static_argnums=1, donate_argnums=0), like, lengths[0])
    carried = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(like[0].estimator))
    return Trainer(chosen, starts, init, timed, carried // (len(rates) * chosen.seeds), lengths)


def _recording(learner: Learner, task: Task) -> Learner:
    """The learner, reporting what is recorded; a task's own score in place of the loss."""
    if task.score is None:
        return keeping(learner, RECORDED)
    score = task.score

    def update(state, xs, ys):
        state, metrics = learner.update(state, xs, ys)
        return state, metrics._replace(loss=jnp.mean(jax.vmap(score)(metrics.outputs, ys)))

    return keeping(Learner(learner.init, update), RECORDED)


def trained(
    task: Task, trainer: Trainer, progress: bool = False, saving: Saving | None = None
) -> tuple[Result, str | None]:
    """What training one estimator gave, and why it ended early, if it did."""
    chosen, timed, failure = trainer.config, trainer.advance, None
    done, begun = _begun(task, trainer, saving)
    kept: dict[str, Any] = {}
    if saving is not None:
        kept = {"save": partial(_save, saving, trainer, begun), "every": saving.every}
    try:
        state, metrics = drive(
            timed,
            begun.state,
            [(length, length) for length in trainer.lengths[_chunks(trainer, done) :]],
            start=done,
            total=chosen.steps,
            progress=progress,
            label=chosen.label,
            **kept,
        )
    except DataError as error:
        state, metrics = error.state, error.metrics
        failure = f"{chosen.label}: {error}"
    (learned, _), recorded = begun.then(state, metrics)
    loss, finite, grad_norm = (np.moveaxis(values, 0, -1) for values in recorded[:3])
    rates, seeds, updates = loss.shape
    steps = max(1, updates * chosen.window)
    small = sum(leaf[0, 0].size for leaf in jax.tree.leaves(learned.params)) <= SMALL
    result = Result(
        config=chosen,
        loss=loss * task.scale,
        finite=finite,
        grad_norm=grad_norm,
        params=jax.device_get(learned.params) if small else None,
        seconds_per_step=timed.seconds / (steps * rates * seeds),
        compile_seconds=timed.compile_seconds,
        state_bytes=trainer.state_bytes,
        levels=None if task.level is None else _levels(trainer, recorded.info["level"]),
    )
    return result, failure


def _begun(task: Task, trainer: Trainer, saving: Saving | None) -> tuple[int, Saved]:
    """The steps that are done already, the state after them and what was recorded."""
    chosen, timed = trainer.config, trainer.advance
    if saving is not None and (found := newest(saving.folder, chosen, partial(like, trainer))) is not None:
        done, saved, times = found
        timed.seconds += times["seconds"]
        timed.compile_seconds += times["compile_seconds"]
        return done, saved
    state = jax.block_until_ready(trainer.init(trainer.starts))
    recorded = like(trainer, 0).recorded
    if task.level is not None:
        recorded.info["level"] = np.asarray(jax.vmap(jax.vmap(task.level))(state[1]))[None]
    return 0, Saved(state, recorded)


def _save(
    saving: Saving, trainer: Trainer, begun: Saved, steps: int, state: PyTree, metrics: Metrics | None
) -> Path:
    timed = trainer.advance
    times = {"seconds": timed.seconds, "compile_seconds": timed.compile_seconds}
    return saving.save(trainer.config, steps, begun.then(state, metrics), times)


def like(trainer: Trainer, steps: int) -> Saved:
    """What is saved after so many steps: the shapes and dtypes of everything.

    Raises:
        ResumeError: no chunk ends there.
    """
    _, metrics, _ = trainer.advance.returns
    long = lambda length: lambda leaf: np.zeros((length, *leaf.shape[1:]), leaf.dtype)
    recorded = jax.tree.map(long(steps // trainer.config.window), metrics._replace(info={}))
    info = jax.tree.map(long(1 + _chunks(trainer, steps)), metrics.info)
    return Saved(jax.eval_shape(trainer.init, trainer.starts), recorded._replace(info=info))


def _chunks(trainer: Trainer, steps: int) -> int:
    """How many chunks so many steps are."""
    ends = [0, *accumulate(trainer.lengths)]
    if steps not in ends:
        raise ResumeError(f"{trainer.config.label}: saved after {steps} steps, which no chunk ends on")
    return ends.index(steps)


def _levels(trainer: Trainer, level: np.ndarray) -> Levels:
    return Levels(np.cumsum([0, *trainer.lengths])[: len(level)], np.moveaxis(level, 0, -1))
