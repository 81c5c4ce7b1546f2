"""The configuration of a run: TOML in, frozen dataclasses out, every mistake one line.

`SCHEMA` is the one description of the format; `online-grads run --help` prints it.
"""

import inspect
import math
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optax

from online_grads.cells import CELLS
from online_grads.estimators.registry import ESTIMATORS
from online_grads.tables import ConfigError, Section, override, unknown
from online_grads.tasks import TASKS

SCHEMA = """\
A config is a TOML file with these sections (a key shown with a value has it by default):

[task]
  name                  the stream to learn; the other keys are that task's own options
[model]                 left out where the task is about one particular model
  cell                  the recurrent cell; the other keys are that cell's own options
  hidden                its size; a list of sizes stacks as many cells
[run]
  steps | updates       how long to train: steps of the stream, or parameter updates
  seeds = 1             how many seeds, trained side by side
  seed = 0              the first of them
  precision = "float32" or "float64"
  axis                  what the figure shows, "steps" or "updates"; by default the one given above
  chunk = 4096          steps per compiled call, at most
[optimizer]
  name = "adam"         the other keys are that optimizer's own options, as optax names them
  learning_rate         a number, or a list: all are trained; the table and the figure show the best
                        (fewest diverged seeds, then lowest final loss), summary.json holds all
[[estimator]]           one table for each line of the figure
  name                  the estimator; the other keys are its own options
  label                 what the table and the figure call it; by default its name, window if not 1
  window = 1            steps per segment and parameter update; must divide the steps
  steps | updates       in place of [run]'s
  seeds                 in place of [run]'s: one is enough where nothing is random
  optimizer = {}        laid over [optimizer]; with another name it starts afresh
  feedback = "symmetric" or "random"    for estimators that take a feedback; random matrices are drawn
                        from [run]'s first seed
  inner_optimizer = {}  for estimators that learn a part of their own: name and learning_rate as in
                        [optimizer], one rate; by default the estimator's
  jacobian_optimizer = {}  likewise, for dni with a learned jacobian

--set section.key=value replaces a value, written as in TOML; a bare word is a string. estimator.key is
for all estimators, estimator.0.key for the first. Setting steps drops updates, and the other way round.
"""

# Optimizers that are made by optax.<name>(learning_rate, ...).
OPTIMIZERS = "adabelief adagrad adam adamw amsgrad lion nadam radam rmsprop sgd yogi".split()

# Arguments of estimators that take an optimizer.
OWN_OPTIMIZERS = ("inner_optimizer", "jacobian_optimizer")


@dataclass(frozen=True)
class TaskConfig:
    name: str
    options: dict[str, Any]


@dataclass(frozen=True)
class ModelConfig:
    cell: str
    hidden: tuple[int, ...]
    options: dict[str, Any]


@dataclass(frozen=True)
class RunConfig:
    seeds: int
    seed: int
    precision: str
    axis: str
    chunk: int


@dataclass(frozen=True)
class OptimizerConfig:
    name: str
    learning_rate: tuple[float, ...]
    options: dict[str, Any]


@dataclass(frozen=True)
class EstimatorConfig:
    name: str
    label: str
    window: int
    steps: int
    seeds: int
    optimizer: OptimizerConfig
    options: dict[str, Any]
    feedback: str | None = None  # None where the estimator takes none
    inner_optimizer: OptimizerConfig | None = None
    jacobian_optimizer: OptimizerConfig | None = None


@dataclass(frozen=True)
class Config:
    task: TaskConfig
    model: ModelConfig | None
    run: RunConfig
    estimators: tuple[EstimatorConfig, ...]
    source: str  # what error messages call it
    tables: dict[str, Any]  # as read, overrides applied


def load(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a config file.

    Args:
        path: the TOML file.
        overrides: `section.key=value`, as after --set.

    Returns:
        A `Config`.

    Raises:
        ConfigError: the file cannot be read, or something in it is unknown, missing or of a wrong type.
    """
    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except ValueError as error:  # not UTF-8, or not TOML
        raise ConfigError(f"{path}: {error}") from None
    for item in overrides:
        override(tables, item)
    return parse(tables, source=str(path))


def parse(tables: dict[str, Any], *, source: str = "config") -> Config:
    """Check the tables of a config and fill in the defaults.

    Args:
        tables: section -> {key: value}, as tomllib reads them.
        source: what error messages call it.

    Returns:
        A `Config`.

    Raises:
        ConfigError: something is unknown, missing or of a wrong type.

    >>> config = parse({
    ...     "task": {"name": "add"},
    ...     "model": {"cell": "gru", "hidden": 8},
    ...     "run": {"steps": 100},
    ...     "optimizer": {"name": "sgd", "learning_rate": 0.1},
    ...     "estimator": [{"name": "tbptt", "window": 10}],
    ... })
    >>> config.estimators[0].label, config.estimators[0].steps, config.run.seeds
    ('tbptt(10)', 100, 1)
    """
    try:
        return _config(tables, source)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def _config(tables: dict[str, Any], source: str) -> Config:
    known = ("task", "model", "run", "optimizer", "estimator")
    for name in tables:
        if name not in known:
            raise ConfigError(unknown(f"section [{name}]", name, known))
    task = _task(Section("task", tables.get("task", {})))
    model = _model(Section("model", tables["model"])) if "model" in tables else None
    run, length = _run(Section("run", tables.get("run", {})))
    rows = tables.get("estimator", [])
    if not isinstance(rows, list) or not rows:
        raise ConfigError("estimator: expected one [[estimator]] table or more")
    optimizer = Section("optimizer", tables.get("optimizer", {}))
    sections = [Section(f"estimator.{i}", row) for i, row in enumerate(rows)]
    estimators = tuple(_estimator(section, run, length, optimizer.rest) for section in sections)
    labels = [estimator.label for estimator in estimators]
    for i, section in enumerate(sections):
        if labels[i] in labels[:i]:
            raise section.error(
                "label", f"there is a {labels[i]!r} already; give this one a label of its own"
            )
    return Config(task, model, run, estimators, source, tables)


def _task(section: Section) -> TaskConfig:
    name = section.take("name", str, one_of=TASKS)
    return TaskConfig(name, section.options(TASKS[name]))


def _model(section: Section) -> ModelConfig:
    cell = section.take("cell", str, one_of=CELLS)
    hidden = section.take("hidden", int | tuple[int, ...])
    sizes = hidden if isinstance(hidden, tuple) else (hidden,)
    if not sizes or min(sizes) < 1:
        raise section.error("hidden", f"expected sizes of at least 1, got {list(sizes)}")
    return ModelConfig(cell, sizes, section.options(CELLS[cell]))


def _run(section: Section) -> tuple[RunConfig, tuple[str, int] | None]:
    length = _length(section)
    run = RunConfig(
        seeds=section.positive("seeds", 1),
        seed=section.take("seed", int, 0),
        precision=section.take("precision", str, "float32", one_of=("float32", "float64")),
        axis=section.take("axis", str, length[0] if length else "steps", one_of=("steps", "updates")),
        chunk=section.positive("chunk", 4096),
    )
    section.end()
    return run, length


def _length(section: Section) -> tuple[str, int] | None:
    """How long to train, in which unit, if this table says so."""
    given = {unit: section.positive(unit, None) for unit in ("steps", "updates")}
    if None not in given.values():
        raise section.error("updates", "steps are given too; give one of them")
    return next(((unit, number) for unit, number in given.items() if number is not None), None)


def _estimator(section: Section, run: RunConfig, length, optimizer: dict[str, Any]) -> EstimatorConfig:
    name = section.take("name", str, one_of=ESTIMATORS)
    window = section.positive("window", 1)
    label = section.take("label", str, name if window == 1 else f"{name}({window})")
    length = _length(section) or length
    if length is None:
        raise section.error("steps", "missing; give steps or updates, here or in [run]")
    unit, number = length
    if unit == "steps" and number % window:
        below = number - number % window
        near = f"{below} and {below + window}" if below else f"{window}"
        raise section.error("window", f"{window} does not divide {number} steps; it divides {near}")
    seeds = section.positive("seeds", run.seeds)
    own = Section(f"{section.where}.optimizer", section.take("optimizer", dict, {}))
    constructor = ESTIMATORS[name].constructor
    takes = inspect.signature(constructor).parameters
    feedback = None
    if "feedback" in takes:
        feedback = section.take("feedback", str, "symmetric", one_of=("symmetric", "random"))
    learning = {name: _own_optimizer(section, name) for name in OWN_OPTIMIZERS if name in takes}
    return EstimatorConfig(
        name=name,
        label=label,
        window=window,
        steps=number if unit == "steps" else number * window,
        seeds=seeds,
        optimizer=_optimizer(own, optimizer),
        options=section.options(constructor),
        feedback=feedback,
        **learning,
    )


def _own_optimizer(section: Section, name: str) -> OptimizerConfig | None:
    """The optimizer of a part that the estimator learns, if one is given."""
    table = section.take(name, dict, {})
    if not table:
        return None
    chosen = _optimizer(Section(f"{section.where}.{name}", table), {})
    if len(chosen.learning_rate) > 1:
        raise section.error(f"{name}.learning_rate", "expected one number, got a list")
    return chosen


def _optimizer(own: Section, shared: dict[str, Any]) -> OptimizerConfig:
    afresh = "name" in own and own.rest["name"] != shared.get("name", "adam")
    section = own if afresh else Section(own.where if own.rest else "optimizer", {**shared, **own.rest})
    name = section.take("name", str, "adam", one_of=OPTIMIZERS)
    rates = section.take("learning_rate", float | tuple[float, ...])
    rates = rates if isinstance(rates, tuple) else (rates,)
    if not rates or not all(math.isfinite(rate) and rate >= 0 for rate in rates):
        raise section.error("learning_rate", f"expected numbers ≥ 0, got {list(rates)}")
    return OptimizerConfig(name, tuple(map(float, rates)), section.options(getattr(optax, name)))
