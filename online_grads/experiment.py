"""Train every estimator of a config on every seed and learning rate, and go on where that was interrupted."""

import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from online_grads.assembly import x64
from online_grads.config import Config, EstimatorConfig
from online_grads.loop import DataError, drive
from online_grads.resume import ResumeError, Saved, Saving, newest, opened
from online_grads.tasks import Task
from online_grads.trainer import Trainer, begin, trainer
from online_grads.types import Metrics, PyTree

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
        resume: go on from the checkpoints in the folder. An estimator that has none there begins, and with
            `every` so does a training that has none.

    Returns:
        A `Report`. Data that are not finite end it early: `failure` says where, and the last of its
        results goes up to the chunk before. A seed that diverges is recorded and the others go on.

    Raises:
        ConfigError: a task, cell or estimator refuses its options or the model.
        ResumeError: the folder holds checkpoints already, or with `resume` and without `every` none, or some
            of another config; another process is training there, or it cannot be written to.
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
        results: list[Result] = []
        with nullcontext() if saving is None else saving.begun(config):
            for each in trainers:
                result, failure = trained(task, each, progress, saving)
                results.append(result)
                if failure is not None:
                    break
    return Report(config, task, tuple(results), failure)


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
    saving: Saving,
    trainer: Trainer,
    begun: Saved,
    steps: int,
    state: PyTree,
    metrics: Callable[[], Metrics | None],
) -> Path:
    timed = trainer.advance
    times = {"seconds": timed.seconds, "compile_seconds": timed.compile_seconds}
    return saving.save(trainer.config, steps, begun.then(state, metrics()), times)


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
