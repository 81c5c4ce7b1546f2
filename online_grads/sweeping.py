"""Train the points of a sweep, in as few programs as their shapes allow.

Learning rates, and every other number that an optimizer or an estimator takes as an array, are mapped
over inside one program (`trainer.trainer`); whether it does is found by tracing. Every other value, an
integer, a size, a word, an option of the task, has a program of its own.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np

from online_grads import optimizers
from online_grads.assembly import blaming, estimator_of, model_of, place, x64
from online_grads.config import Config
from online_grads.experiment import trained
from online_grads.grid import Axis
from online_grads.grid_points import Grid, Point
from online_grads.grid_programs import beginning, config_of, groups, numbers, parted
from online_grads.loop import bar
from online_grads.scores import Score, diverged, scores, tenths
from online_grads.tables import ConfigError
from online_grads.tasks import Task
from online_grads.trainer import Trainer, begin, trainer

# by the constructors, and by a device that has no memory left
REFUSALS = (ConfigError, MemoryError, jax.errors.JaxRuntimeError)


class Meaning(NamedTuple):
    """What the losses of a task mean."""

    unit: str
    references: dict[str, float]
    with_level: bool  # it has a curriculum


class Row(NamedTuple):
    """What became of one point; losses in the task's unit."""

    point: Point
    refused: str | None = None  # why there is no score
    score: Score | None = None
    last: np.ndarray | None = None  # [seeds] mean loss over the last tenth of the updates
    diverged: np.ndarray | None = None  # [seeds] bool
    program: int | None = None  # counts the programs
    meaning: Meaning | None = None


class Sweep(NamedTuple):
    """What a sweep gave, as far as it got."""

    config: Config
    axes: tuple[Axis, ...]
    rows: tuple[Row, ...]  # in the order of the points; those that it did not come to are not there
    points: int  # of the whole sweep
    unit: str  # of all losses
    programs: int
    compile_seconds: float
    run_seconds: float
    failure: str | None  # of the data, where they were not finite
    interrupt: KeyboardInterrupt | None


def train_grid(made: Grid, *, progress: bool = False) -> Sweep:
    """Train every estimator of a config at every point of a grid.

    A point that cannot be built, such as one of too high a rank for its cell, or that the device has no
    memory for, has a row that says why, and the others go on. So has one of a task whose losses have
    another unit than those before, with which they cannot be ranked.

    Args:
        made: the points.
        progress: show a bar that counts points.

    Returns:
        A `Sweep`. Ctrl-C ends it early, with the rows of the programs that were done.

    Raises:
        ConfigError: all of its points are refused.
        KeyboardInterrupt: it came before the first program was done.

    >>> from online_grads.config import parse
    >>> from online_grads.grid_points import grid
    >>> config = parse({
    ...     "task": {"name": "influence_balancing"}, "run": {"updates": 20},
    ...     "optimizer": {"name": "sgd", "learning_rate": 1e-4},
    ...     "estimator": [{"name": "tbptt", "window": 10}],
    ... })
    >>> found = train_grid(grid(config, [Axis("optimizer.learning_rate", (1e-5, 1e-4, 1e-3))]))
    >>> len(found.rows), found.programs
    (3, 1)
    """
    interrupt = None
    shown = bar(len(made.points), "points", "point") if progress else contextlib.nullcontext(_silent)
    with shown as advanced:
        work = _Work(advanced)
        for point in made.points:
            if point.refused is not None:
                work.refuse([point], point.refused)
        try:
            for group in groups(point for point in made.points if point.refused is None):
                work.train(group)
        except KeyboardInterrupt as error:
            if not work.programs:
                raise
            interrupt = error
    rows = tuple(work.rows[id(point)] for point in made.points if id(point) in work.rows)
    if work.unit is None:
        raise ConfigError(f"every point is refused; the first: {rows[0].refused}")
    return Sweep(
        config=made.config,
        axes=made.axes,
        rows=rows,
        points=len(made.points),
        unit=work.unit,
        programs=work.programs,
        compile_seconds=work.compile_seconds,
        run_seconds=work.run_seconds,
        failure=work.failure,
        interrupt=interrupt,
    )


class _Work:
    """The programs one after another, and what becomes of their points."""

    def __init__(self, advanced: Callable[[int], Any]):
        self.advanced = advanced
        self.rows: dict[int, Row] = {}  # by the point's id
        self.programs, self.compile_seconds, self.run_seconds = 0, 0.0, 0.0
        self.unit: str | None = None
        self.failure: str | None = None
        self._begun: tuple[str, Any] = ("", None)

    def refuse(self, points: Sequence[Point], why: str) -> None:
        self.rows.update({id(point): Row(point, why) for point in points})
        self.advanced(len(points))

    def train(self, group: Sequence[Point]) -> None:
        """Train points that differ in numbers alone."""
        with x64(config_of(group[0]).run.precision == "float64"):
            try:
                self._begin(group)
            except REFUSALS as error:
                return self.refuse(group, _why(error))
            names = numbers(group)
            if names:
                # a program has no values that it could check
                group = [point for point in group if self._admitted(point)]
            mapped = self._mapped(group, names)
            for points in parted(group, [key for key in names if key not in mapped]):
                self._train(points, {key: names[key] for key in mapped})

    def _begin(self, group: Sequence[Point]) -> None:
        key = beginning(group)
        if self._begun[0] != key:
            begun = begin(config_of(group[0]))
            self._check_unit(begun[0], config_of(group[0]))
            self._begun = (key, begun)

    def _check_unit(self, task: Task, config: Config) -> None:
        if self.unit not in (None, task.unit):
            raise ConfigError(
                f"{config.source}: task.name: losses of {config.task.name!r}, in {task.unit!r}, cannot be "
                f"ranked with those of others, in {self.unit!r}; give it a sweep of its own"
            )

    def _admitted(self, point: Point) -> bool:
        """Whether the constructors admit a point's numbers; else it is refused."""
        config = config_of(point)
        (chosen,), task = config.estimators, self._begun[1][0]
        try:
            estimator_of(config, chosen, model_of(config, task, chosen))
            with blaming(config, place(chosen), (TypeError, ValueError)):
                optimizers.make(chosen.optimizer, *chosen.optimizer.learning_rate)
        except ConfigError as error:
            self.refuse([point], str(error))
            return False
        return True

    def _mapped(self, points: Sequence[Point], names: Mapping[str, str]) -> list[str]:
        """The keys whose values may be arrays inside a program."""
        if not points or not names or self._traces(points, names):
            return [*names]
        return [key for key in names if len(names) > 1 and self._traces(points, {key: names[key]})]

    def _traces(self, points: Sequence[Point], names: Mapping[str, str]) -> bool:
        try:
            self._trainer(points, names)
        except Exception:  # whatever a constructor does with an array that it wanted as a number
            return False
        return True

    def _trainer(self, points: Sequence[Point], names: Mapping[str, str]) -> Trainer:
        config = config_of(points[0])
        (chosen,) = config.estimators
        rates = [config_of(point).estimators[0].optimizer.learning_rate[0] for point in points]
        chosen = replace(chosen, optimizer=replace(chosen.optimizer, learning_rate=tuple(rates)))
        others = {name: np.array([point.values[key] for point in points]) for key, name in names.items()}
        task, model, starts = self._begun[1]
        return trainer(config, task, model, starts, chosen, others)

    def _train(self, points: Sequence[Point], names: Mapping[str, str]) -> None:
        try:
            made = self._trainer(points, names)
            result, failure = trained(self._begun[1][0], made)
        except REFUSALS as error:
            return self.refuse(points, _why(error))
        task: Task = self._begun[1][0]
        self.unit = task.unit
        meaning = Meaning(task.unit, dict(task.references), task.level is not None)
        self.programs += 1
        self.compile_seconds += made.advance.compile_seconds
        self.run_seconds += made.advance.seconds
        if failure is not None:
            self.failure = self.failure or failure
            return self.refuse(points, failure)
        found = zip(points, scores(result), tenths(result)[1], diverged(result), strict=True)
        for point, score, last, lost in found:
            self.rows[id(point)] = Row(point, None, score, last, lost, self.programs - 1, meaning)
        self.advanced(len(points))


def _why(error: Exception) -> str:
    return " ".join(str(error).split()) or "out of memory"


def _silent(points: int) -> None:
    """In place of a bar."""
