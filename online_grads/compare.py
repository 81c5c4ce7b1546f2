"""Compare the gradients of all estimators of a config at points of a training, each network frozen there."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from online_grads.assembly import Start, blaming, estimator_of, model_of, place, x64
from online_grads.config import CompareConfig, Config, EstimatorConfig
from online_grads.diagnostics import (
    Credit,
    Decrease,
    Quality,
    alignments,
    credit,
    decrease,
    estimates,
    exact,
    leaf_slices,
    observed,
    quality,
    through_state,
)
from online_grads.estimators.registry import ESTIMATORS
from online_grads.loop import bar, chunk_lengths
from online_grads.tables import ConfigError
from online_grads.tasks import Task
from online_grads.trainer import begin, trainer
from online_grads.types import Array, Model, PyTree

THROUGH = "through the state"  # the parameters that the transition uses
ESTIMATES = 32  # estimates per network whose loss decrease is averaged: each costs a product with the Hessian


class Compared(NamedTuple):
    """One estimator; its lists have one entry per point of the training."""

    config: EstimatorConfig
    quality: list[Quality]  # for the groups of parameters
    decrease: list[Decrease]  # mean over networks, at the estimator's first learning rate; numbers
    draws: np.ndarray  # [cases, keys, p] at the last point, parameters of the first group
    credit: Credit | None  # likewise


class Comparison(NamedTuple):
    """What `online-grads compare` found."""

    config: Config
    task: Task
    at: tuple[int, ...]  # steps of the training
    groups: tuple[str, ...]  # of parameters: those that act through the state, all, then each leaf
    rows: tuple[Compared, ...]
    alignment: np.ndarray  # [1 + rows, 1 + rows] at the last point, first group; the exact gradient first


def compare(config: Config, *, progress: bool = False) -> Comparison:
    """Compare all estimators' gradients with the exact one and with one another.

    The networks are those of the seeds, trained by one of the estimators; at each point of the training
    they are frozen and read the next `streams` stretches of their streams. (A curriculum looks at the
    losses at the points, too, and may so come further than in `train`.)

    Args:
        config: what to compare; see [compare] in `online_grads.config.SCHEMA`.
        progress: show a bar.

    Returns:
        A `Comparison`.

    Raises:
        ConfigError: a task, cell or estimator refuses its options or the model, a window does not divide
            the steps of a stretch or those up to a point, a variant of the model computes something else,
            or the training diverges before its last point.

    >>> from online_grads.config import parse
    >>> found = compare(parse({
    ...     "task": {"name": "add"},
    ...     "model": {"cell": "vanilla_rnn", "hidden": 8},
    ...     "run": {"steps": 100},
    ...     "optimizer": {"name": "sgd", "learning_rate": 1e-4},
    ...     "estimator": [{"name": "rtrl"}, {"name": "tbptt", "window": 5}],
    ...     "compare": {"streams": 2},
    ... }))
    >>> [bool(row.quality[0].alignment[0] > 0.999) for row in found.rows]
    [True, False]
    """
    chosen = config.compare
    (by,) = (each for each in config.estimators if each.label == chosen.by)
    for each in config.estimators:
        _whole(config, each, chosen.steps, "steps")
    for at in chosen.at:
        _whole(config, by, at, "at")
    with x64(config.run.precision == "float64"):
        task, model, starts = begin(config)
        starts = jax.tree.map(lambda leaf: leaf[: config.run.seeds], starts)
        drawn = [_drawing(config, task, model, starts, row, i) for i, row in enumerate(config.estimators)]
        truth, step, groups = _exact(chosen, model), _step(chosen, model), _groups(model)
        through = groups[THROUGH]
        rows = [Compared(each, [], [], np.zeros(0), None) for each in config.estimators]
        shown = bar(len(rows) * len(chosen.at), "compare", "estimator") if progress else _silent()
        with shown as advanced:
            for params, streams in _training(config, task, model, starts, by):
                arguments = (params, starts, *_stretches(chosen, task, streams))
                e, due = map(_cases, truth(*arguments))
                for i, draw in enumerate(drawn):
                    found = draw(*arguments)
                    row, g = rows[i], _cases(found.whole)
                    row.quality.append(quality(g, e, [*groups.values()]))
                    row.decrease.append(step(*arguments, found.whole, row.config.optimizer.learning_rate[0]))
                    # the readout has a part in lag 0 that is no credit through the state
                    by_lag = _cases(found.by_lag)[..., through].mean(axis=2)
                    reach = credit(by_lag, due[..., through]) if by_lag.shape[1] else None
                    rows[i] = row._replace(draws=g[..., through], credit=reach)
                    advanced(1)
    matrix = alignments([e[:, None, through], *(row.draws for row in rows)])
    return Comparison(config, task, chosen.at, tuple(groups), tuple(rows), matrix)


def _silent():
    return contextlib.nullcontext(lambda count: None)


def _cases(leaf: Array) -> np.ndarray:
    """[cases, ...] from [networks, stretches, ...]."""
    return np.concatenate(np.asarray(leaf, np.float64))


def _whole(config: Config, row: EstimatorConfig, steps: int, key: str) -> None:
    if steps % row.window:
        raise ConfigError(
            f"{config.source}: compare.{key}: {row.label} has a window of {row.window} steps, "
            f"which does not divide {steps}"
        )


def _training(
    config: Config, task: Task, model: Model, starts: Start, by: EstimatorConfig
) -> Iterator[tuple[PyTree, PyTree]]:
    """(parameters, streams), every leaf [seeds, ...], at each point of the training."""
    rate = dataclasses.replace(by.optimizer, learning_rate=by.optimizer.learning_rate[:1])
    steps = max(*config.compare.at, by.window)
    chosen = dataclasses.replace(by, seeds=config.run.seeds, optimizer=rate, steps=steps)
    trained = trainer(config, task, model, starts, chosen)
    state, done = trained.init(starts), 0
    for at in config.compare.at:
        for length in chunk_lengths(at - done, by.window, config.run.chunk) if at > done else ():
            state, metrics, bad = trained.advance(state, length)
            if min(bad) < length or not metrics.finite.all():
                what = "the stream" if min(bad) < length else f"the training with {by.label}"
                raise ConfigError(f"{config.source}: compare.at: {what} is not finite before step {at}")
        done = at
        # copied, as the next advance donates them
        yield jax.tree.map(lambda leaf: jnp.copy(leaf[0]), (state[0].params, state[1]))


def _stretches(chosen: CompareConfig, task: Task, streams: PyTree) -> tuple[PyTree, PyTree]:
    """(xs, ys), every leaf [seeds, streams, warmup + steps, ...]: what comes next in the streams."""
    length = chosen.warmup + chosen.steps
    draw = jax.vmap(lambda stream: task.draw(stream, chosen.streams * length)[1])
    data = jax.jit(draw)(streams)
    return jax.tree.map(lambda leaf: leaf.reshape(len(leaf), chosen.streams, length, *leaf.shape[2:]), data)


def _drawing(
    config: Config, task: Task, model: Model, starts: Start, row: EstimatorConfig, index: int
) -> Callable:
    """(params, starts, xs, ys) -> `Gradients` of an estimator, [seeds, streams, ...]."""
    chosen, variant = config.compare, model_of(config, task, row) if row.model else model
    estimator = estimator_of(config, row, observed(variant))
    if row.model:
        with blaming(config, place(row), (TypeError, ValueError)):
            _check_variant(task, model, variant, starts)
    keys = chosen.keys if ESTIMATORS[row.name].stochastic else 1
    lags = chosen.lags if ESTIMATORS[row.name].by_lag else 0
    settings = {"warmup": chosen.warmup, "window": row.window, "lags": lags}

    def network(params, start, xs, ys):
        # other noise than the training's, and than other estimators'
        noise = jax.random.split(jax.random.fold_in(start.key, index + 1), (chosen.streams, keys))
        one = lambda xs, ys, keys: estimates(
            model, estimator, params, start.hidden, xs, ys, keys=keys, **settings
        )
        return jax.vmap(one)(xs, ys, noise)

    return _over_networks(network)


def _check_variant(task: Task, model: Model, variant: Model, starts: Start) -> None:
    """A variant may differentiate otherwise; its parameters and what it computes must be the same."""
    shapes = [jax.eval_shape(each.init, jax.random.key(0)) for each in (model, variant)]
    if shapes[0] != shapes[1]:
        raise ValueError("with its model parameters or hidden state are others than with [model]")
    first = jax.tree.map(lambda leaf: leaf[0], starts)
    xs, ys = task.draw(first.stream, 20)[1]

    def losses(of):
        def step(h, xy):
            h = of.transition(first.params, h, xy[0])
            return h, of.loss(first.params, h, xy[1])[0]

        return jax.lax.scan(step, first.hidden, (xs, ys))[1]

    if not np.allclose(losses(model), losses(variant), rtol=1e-3, atol=1e-6):
        raise ValueError("with its model the losses are others than with [model], so are the gradients")


def _exact(chosen: CompareConfig, model: Model) -> Callable:
    """(params, starts, xs, ys) -> the exact `Gradients`, [seeds, streams, ...]."""

    def network(params, start, xs, ys):
        one = lambda xs, ys: exact(
            model, params, start.hidden, xs, ys, warmup=chosen.warmup, lags=chosen.lags
        )
        return jax.vmap(one)(xs, ys)

    return _over_networks(network)


def _step(chosen: CompareConfig, model: Model) -> Callable:
    """(params, starts, xs, ys, draws, rate) -> the mean `Decrease`."""

    def network(rate, params, start, xs, ys, draws):
        part = lambda begin, end: jax.tree.map(lambda leaf: leaf[:, begin:end], (xs, ys))
        settle = lambda xs: jax.lax.scan(
            lambda h, x: (model.transition(params, h, x), None), start.hidden, xs
        )[0]
        settled = jax.vmap(settle)(part(0, chosen.warmup)[0])
        return decrease(model, params, settled, *part(chosen.warmup, None), draws, rate)

    compiled = jax.jit(lambda rate, *arguments: jax.lax.map(lambda each: network(rate, *each), arguments))

    def step(params, starts, xs, ys, draws, rate):
        draws = draws.reshape(len(draws), -1, draws.shape[-1])
        some = draws[:, :: -(-draws.shape[1] // ESTIMATES)]
        return Decrease(*(float(value.mean()) for value in compiled(rate, params, starts, xs, ys, some)))

    return step


def _over_networks(network: Callable) -> Callable:
    """One network after another: their influences need not all fit into memory."""
    return jax.jit(lambda *arguments: jax.lax.map(lambda each: network(*each), arguments))


def _groups(model: Model) -> dict[str, np.ndarray]:
    """Groups of the p entries of a gradient, as indices."""
    params, _ = jax.eval_shape(model.init, jax.random.key(0))
    leaves = {name: np.r_[entries] for name, entries in leaf_slices(params).items()}
    return {THROUGH: through_state(model), "all": np.concatenate([*leaves.values()]), **leaves}
