"""From a config to its task, models, estimators and seeds."""

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from online_grads import optimizers
from online_grads.cells import CELLS, stack
from online_grads.config import OWN_OPTIMIZERS, Config, EstimatorConfig
from online_grads.estimators import feedback
from online_grads.estimators.registry import ESTIMATORS
from online_grads.model import from_cell, with_resets
from online_grads.precision import x64 as x64
from online_grads.readouts import linear
from online_grads.tables import ConfigError
from online_grads.tasks import TASKS, Task
from online_grads.types import Array, Estimator, Model, PyTree

FEEDBACK = 2**31  # apart from the keys that a seed is split into


class Start(NamedTuple):
    """What a seed decides."""

    params: PyTree
    hidden: PyTree
    stream: PyTree  # the task's state
    key: Array  # for the estimator's noise


def task_of(config: Config) -> Task:
    """The task of a config.

    Raises:
        ConfigError: the task refuses its options.
    """
    with blaming(config, "task", (TypeError, ValueError, OSError)):
        return TASKS[config.task.name](**config.task.options, dtype=jnp.dtype(config.run.precision))


def model_of(config: Config, task: Task, chosen: EstimatorConfig | None = None) -> Model:
    """The model of a config, or the variant of it that an estimator is given.

    Raises:
        ConfigError: task and model do not fit, or the cell refuses its options.
    """
    where, options = "model", {} if config.model is None else config.model.options
    if chosen is not None and chosen.model:
        where, options = f"{place(chosen)}: model", {**options, **chosen.model}
    with blaming(config, where, (TypeError, ValueError)):
        model = _model(config, task, options)
        # the hidden state that cells begin with is the same for every key
        return with_resets(model, jax.jit(model.init)(jax.random.key(0))[1]) if task.resets else model


def _model(config: Config, task: Task, options: dict) -> Model:
    dtype, chosen = jnp.dtype(config.run.precision), config.model
    if task.model is not None:
        if chosen is not None:
            raise ValueError(f"leave it out, the task {config.task.name!r} brings its own")
        return task.model
    if chosen is None:
        raise ValueError(f"missing, the task {config.task.name!r} needs a cell")
    if task.resets and chosen.cell == "constructive_columns":
        raise ValueError(
            f"constructive_columns grows with the steps, and every reset of the task {config.task.name!r} "
            "begins the growth anew: take a task without episodes, or another cell"
        )
    if len(task.example[0].shape) != 1:
        raise ValueError(f"cells take vectors, the task gives {task.example[0]}")
    (inputs,), layers = task.example[0].shape, []
    for hidden in chosen.hidden:
        layers.append(CELLS[chosen.cell](inputs, hidden, **options, dtype=dtype))
        inputs = layers[-1].size
    cell = layers[0] if len(layers) == 1 else stack(*layers)
    readout = (task.readout or linear)(cell.size, task.outputs, dtype=dtype)
    if task.build is not None:
        return task.build(cell, readout)
    if task.loss is None:
        raise ValueError(f"the task {config.task.name!r} brings neither a model nor a loss")
    return from_cell(cell, readout, task.loss, example=task.example)


def estimator_of(config: Config, chosen: EstimatorConfig, model: Model) -> Estimator:
    """An estimator of a config, for a model.

    Raises:
        ConfigError: the estimator refuses its options or the model.
    """
    options = dict(chosen.options)
    if chosen.feedback == "random":
        options["feedback"] = feedback.random(jax.random.fold_in(jax.random.key(config.run.seed), FEEDBACK))
    for name in OWN_OPTIMIZERS:
        if (own := getattr(chosen, name)) is not None:
            options[name] = optimizers.make(own, *own.learning_rate)
    with blaming(config, place(chosen), (TypeError, ValueError)):
        return ESTIMATORS[chosen.name].constructor(model, **options)


def at(chosen: EstimatorConfig, point: Mapping[str, Any]) -> EstimatorConfig:
    """The estimator with other numbers, which may be tracers: optimizer.<key> and estimator.<option>.

    >>> sgd = optimizers.OptimizerConfig("sgd", (0.1,), {})
    >>> chosen = EstimatorConfig("kernl", "kernl", 1, 10, 1, sgd, {"sigma": 0.1})
    >>> other = at(chosen, {"optimizer.learning_rate": 0.2, "estimator.sigma": 0.3, "optimizer.momentum": 0})
    >>> other.optimizer.learning_rate, other.optimizer.options, other.options
    ((0.2,), {'momentum': 0}, {'sigma': 0.3})
    """
    optimizer, options = chosen.optimizer, dict(chosen.options)
    for name, value in point.items():
        section, key = name.split(".")
        if section == "estimator":
            options[key] = value
        elif key == "learning_rate":
            optimizer = replace(optimizer, learning_rate=(value,))
        elif key == "slowdown":
            optimizer = replace(optimizer, slowdown=value)
        else:
            optimizer = replace(optimizer, options={**optimizer.options, key: value})
    return replace(chosen, optimizer=optimizer, options=options)


def start(task: Task, model: Model, seed: Array) -> Start:
    """Parameters, stream and noise of a seed []."""
    for_model, for_stream, for_noise = jax.random.split(jax.random.key(seed), 3)
    params, hidden = model.init(for_model)
    return Start(params, hidden, task.init(for_stream), for_noise)


def place(chosen: EstimatorConfig) -> str:
    """What error messages call an estimator of a config."""
    return f"estimator.{chosen.index} ({chosen.name})"


@contextlib.contextmanager
def blaming(config: Config, where: str, kinds: tuple[type[Exception], ...]):
    """What a constructor refuses here is a mistake in the config."""
    try:
        yield
    except kinds as error:
        raise ConfigError(f"{config.source}: {where}: {' '.join(str(error).split())}") from error
