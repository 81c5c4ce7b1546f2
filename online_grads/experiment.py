"""Train every estimator of a config on every seed and learning rate, in one program each.

The stream is generated inside the compiled program (`task.draw`), so that nothing but one loss, one flag
and one gradient norm per update leaves the device. All estimators see the same initial parameters and the
same stream for the same seed.
"""

import contextlib
import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from online_grads.cells import CELLS, stack
from online_grads.config import OWN_OPTIMIZERS, Config, EstimatorConfig, OptimizerConfig
from online_grads.estimators import feedback
from online_grads.estimators.registry import ESTIMATORS
from online_grads.learner import learner, scan
from online_grads.model import from_cell
from online_grads.readouts import linear
from online_grads.run import DataError, drive, guarded, keeping, spans
from online_grads.tables import ConfigError
from online_grads.tasks import TASKS, Task
from online_grads.types import Array, Estimator, Model, PyTree

RECORDED = ("loss", "finite", "grad_norm")
FEEDBACK = 2**31  # apart from the keys that a seed is split into
SMALL = 16  # entries of a model whose final parameters are reported


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


class _Trainer(NamedTuple):
    config: EstimatorConfig
    init: Callable  # starts -> state: learners [rates, seeds, ...] and streams [seeds, ...]
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
    with _x64(config.run.precision == "float64"):
        task, model = _build(config)
        seeds = config.run.seed + np.arange(max(chosen.seeds for chosen in config.estimators))
        starts = jax.jit(jax.vmap(partial(_start, task, model)))(seeds)
        trainers = []
        for i, chosen in enumerate(config.estimators):
            where = f"estimator.{i} ({chosen.name})"
            with _blaming(config, where, (TypeError, ValueError)):
                estimator = _estimator(config, chosen, model)
            with _blaming(config, where, (ValueError,)):
                trainers.append(_trainer(config, task, chosen, estimator, starts))
        results: list[Result] = []
        for trainer in trainers:
            result, failure = _train(config, task, trainer, starts, progress)
            results.append(result)
            if failure is not None:
                break
    return Report(config, task, tuple(results), failure)


def _build(config: Config) -> tuple[Task, Model]:
    dtype = jnp.dtype(config.run.precision)
    chosen = config.model
    with _blaming(config, "task", (TypeError, ValueError, OSError)):
        task = TASKS[config.task.name](**config.task.options, dtype=dtype)
    with _blaming(config, "model", (TypeError, ValueError)):
        if task.model is not None:
            if chosen is not None:
                raise ValueError(f"leave it out, the task {config.task.name!r} brings its own")
            return task, task.model
        if chosen is None:
            raise ValueError(f"missing, the task {config.task.name!r} needs a cell")
        if task.loss is None:
            raise ValueError(f"the task {config.task.name!r} brings neither a model nor a loss")
        if len(task.example[0].shape) != 1:
            raise ValueError(f"cells take vectors, the task gives {task.example[0]}")
        sizes = (*task.example[0].shape, *chosen.hidden)
        layers = [
            CELLS[chosen.cell](inputs, hidden, **chosen.options, dtype=dtype)
            for inputs, hidden in itertools.pairwise(sizes)
        ]
        cell = layers[0] if len(layers) == 1 else stack(*layers)
        readout = linear(cell.size, task.outputs, dtype=dtype)
        return task, from_cell(cell, readout, task.loss, example=task.example)


def _estimator(config: Config, chosen: EstimatorConfig, model: Model) -> Estimator:
    options = dict(chosen.options)
    if chosen.feedback == "random":
        options["feedback"] = feedback.random(jax.random.fold_in(jax.random.key(config.run.seed), FEEDBACK))
    for name in OWN_OPTIMIZERS:
        if (own := getattr(chosen, name)) is not None:
            (rate,) = own.learning_rate
            options[name] = _optimizer(own)(rate)
    return ESTIMATORS[chosen.name].constructor(model, **options)


def _optimizer(chosen: OptimizerConfig) -> Callable:
    """learning rate -> the optax optimizer."""
    return partial(getattr(optax, chosen.name), **chosen.options)


class _Start(NamedTuple):
    """What a seed decides."""

    params: PyTree
    hidden: PyTree
    stream: PyTree  # the task's state
    key: Array  # for the estimator's noise


def _start(task: Task, model: Model, seed: Array) -> _Start:
    for_model, for_stream, for_noise = jax.random.split(jax.random.key(seed), 3)
    params, hidden = model.init(for_model)
    return _Start(params, hidden, task.init(for_stream), for_noise)


def _trainer(
    config: Config, task: Task, chosen: EstimatorConfig, estimator: Estimator, starts: _Start
) -> _Trainer:
    """One estimator's program, vmapped over seeds and mapped over learning rates; traced already."""
    make = _optimizer(chosen.optimizer)
    rates = jnp.array(chosen.optimizer.learning_rate, config.run.precision)

    def init_one(rate, start):
        return learner(estimator, make(rate)).init(start.params, start.hidden, key=start.key)

    def init(starts):
        # copied, since the state is donated and jit would hand on as it is an array that it does not change
        starts = jax.tree.map(lambda leaf: jnp.copy(leaf[: chosen.seeds]), starts)
        return jax.vmap(jax.vmap(init_one, (None, 0)), (0, None))(rates, starts), starts.stream

    def scan_one(rate, state, xs, ys):
        return scan(keeping(learner(estimator, make(rate)), RECORDED), state, xs, ys, window=chosen.window)

    over_seeds = jax.vmap(scan_one, in_axes=(None, 0, 1, 1), out_axes=(0, 1))

    def over_rates(states, xs, ys):
        # one rate after another: batched products with many weight matrices gain nothing on a CPU, and
        # three batched influences no longer fit into its cache
        states, metrics = jax.lax.map(lambda pair: over_seeds(*pair, xs, ys), (rates, states))
        return states, jax.tree.map(lambda recorded: jnp.moveaxis(recorded, 0, 1), metrics)

    def advance(state, length):
        learning, streams = state
        streams, data = jax.vmap(lambda stream: task.draw(stream, length), out_axes=(0, 1))(streams)
        learning, metrics, bad = guarded(over_rates, learning, *data)
        return (learning, streams), metrics, bad

    init, like = jax.jit(init), jax.eval_shape(init, starts)
    (_, length), *_ = spans(chosen.steps, chosen.window, config.run.chunk)
    timed = _Timed(jax.jit(advance, static_argnums=1, donate_argnums=0), like, length)
    carried = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(like[0].estimator))
    return _Trainer(chosen, init, timed, carried // (len(rates) * chosen.seeds))


def _train(
    config: Config, task: Task, trainer: _Trainer, starts: _Start, progress: bool
) -> tuple[Result, str | None]:
    chosen, failure = trainer.config, None
    chunks = [(length, length) for _, length in spans(chosen.steps, chosen.window, config.run.chunk)]
    try:
        (learned, _), metrics = drive(
            trainer.advance,
            jax.block_until_ready(trainer.init(starts)),
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
    )
    return result, failure


@contextlib.contextmanager
def _blaming(config: Config, where: str, kinds: tuple[type[Exception], ...]):
    """What a constructor refuses here is a mistake in the config."""
    try:
        yield
    except kinds as error:
        raise ConfigError(f"{config.source}: {where}: {' '.join(str(error).split())}") from error


def _x64(on: bool):
    """The context in which JAX computes in float64, or does not, whatever the caller's setting."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(on)
    from jax.experimental import enable_x64  # type: ignore[attr-defined]

    return enable_x64(on)
