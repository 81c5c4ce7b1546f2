"""The configuration of a run: TOML in, frozen dataclasses out, every mistake one line.

`SCHEMA` is the one description of the format; `online-grads run --help` prints it.
"""

import copy
import inspect
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from online_grads import optimizers
from online_grads.arguments import unknown
from online_grads.cells import CELLS
from online_grads.config_types import (
    CompareConfig,
    Config,
    EstimatorConfig,
    ModelConfig,
    RunConfig,
    TaskConfig,
)
from online_grads.estimators.registry import ESTIMATORS
from online_grads.schema import SCHEMA as SCHEMA
from online_grads.tables import ConfigError, Section, lay, override
from online_grads.tasks import TASKS

# Arguments of estimators that take an optimizer.
OWN_OPTIMIZERS = ("inner_optimizer", "jacobian_optimizer")


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
    return parse(tables, overrides, source=str(path))


def parse(tables: dict[str, Any], overrides: Iterable[str] = (), *, source: str = "config") -> Config:
    """Check the tables of a config and fill in the defaults.

    Args:
        tables: section -> {key: value}, as tomllib reads them.
        overrides: `section.key=value`, as after --set; they win over [fast].
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
    given = list(overrides)
    try:
        return _config(_laid(tables, given), source)
    except ConfigError as error:
        error.args = (f"{source}: {error}", *error.args[1:])
        raise


def _laid(tables: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """The tables as they count: [fast] laid over them if [run] asks for it, then the overrides."""

    def laid(fast: bool):
        read = copy.deepcopy({name: table for name, table in tables.items() if name != "fast"})
        if fast:
            lay(read, Section("fast", tables.get("fast", {})).rest, "fast")
        for item in overrides:
            override(read, item)
        return read

    plain = laid(fast=False)
    run = plain.get("run")
    if not isinstance(run, dict) or run.get("fast") is not True:
        return plain
    if "fast" not in tables:
        raise ConfigError("run.fast: there is no [fast] section")
    return laid(fast=True)


def _config(tables: dict[str, Any], source: str) -> Config:
    known = ("task", "model", "run", "optimizer", "estimator", "compare")
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
    estimators = tuple(
        _estimator(section, model, run, length, optimizer.rest, i) for i, section in enumerate(sections)
    )
    labels = [estimator.label for estimator in estimators]
    for i, section in enumerate(sections):
        if labels[i] in labels[:i]:
            raise section.error(
                "label", f"there is a {labels[i]!r} already; give this one a label of its own"
            )
    for label in run.only:
        if label not in labels:
            raise ConfigError(f"run.only: {unknown(f'label {label!r}', label, labels)}")
    estimators = tuple(chosen for chosen in estimators if not run.only or chosen.label in run.only)
    compare = _compare(Section("compare", tables.get("compare", {})), estimators)
    return Config(task, model, run, estimators, compare, source, tables)


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
        seed=section.positive("seed", 0, least=0),
        precision=section.take("precision", str, "float32", one_of=("float32", "float64")),
        axis=section.take("axis", str, length[0] if length else "steps", one_of=("steps", "updates")),
        chunk=section.positive("chunk", 4096),
        only=section.distinct("only", section.take("only", tuple[str, ...], ())),
        fast=section.take("fast", bool, False),
    )
    section.end()
    section.countable("seed", run.seed + run.seeds - 1, "the last seed ")
    return run, length


def _compare(section: Section, estimators: tuple[EstimatorConfig, ...]) -> CompareConfig:
    labels = [estimator.label for estimator in estimators]
    compare = CompareConfig(
        by=section.take("by", str, labels[0], one_of=labels),
        at=section.take("at", tuple[int, ...], (0,)),
        streams=section.positive("streams", 8),
        keys=section.positive("keys", 16),
        warmup=section.positive("warmup", 100, least=0),
        steps=section.positive("steps", 20),
        lags=section.take("lags", int, 0),
    )
    section.end()
    if not compare.at or list(compare.at) != sorted(set(compare.at)) or compare.at[0] < 0:
        raise section.error("at", f"expected steps ≥ 0 in ascending order, got {list(compare.at)}")
    drawn = compare.streams * (compare.warmup + compare.steps)
    section.countable("streams", drawn, "streams × (warmup + steps) ")
    if compare.keys == 1 and any(ESTIMATORS[estimator.name].stochastic for estimator in estimators):
        raise section.error("keys", "expected 2 or more, as some of the estimators are random, got 1")
    if not 0 <= compare.lags <= compare.steps:
        raise section.error("lags", f"expected 0 to {compare.steps}, the steps, got {compare.lags}")
    return compare


def _length(section: Section) -> tuple[str, int] | None:
    """How long to train, in which unit, if this table says so."""
    given = {unit: section.positive(unit, None) for unit in ("steps", "updates")}
    if None not in given.values():
        raise section.error("updates", "steps are given too; give one of them")
    return next(((unit, number) for unit, number in given.items() if number is not None), None)


def _estimator(
    section: Section,
    model: ModelConfig | None,
    run: RunConfig,
    length,
    optimizer: dict[str, Any],
    index: int,
) -> EstimatorConfig:
    name = section.take("name", str, one_of=ESTIMATORS)
    window = section.positive("window", 1)
    label = section.take("label", str, name if window == 1 else f"{name}({window})")
    length = _length(section) or length
    if length is None:
        raise section.error("steps", "missing; give steps or updates, here or in [run]")
    unit, number = length
    if unit == "steps" and number % window:
        below = number - number % window
        near = f"; it divides {below} and {below + window}" if below else ""
        raise section.error("window", f"{window} does not divide {number} steps{near}")
    steps = number if unit == "steps" else number * window
    section.countable("window", steps, "updates × window ")
    seeds = section.positive("seeds", run.seeds)
    section.countable("seeds", run.seed + seeds - 1, "the last seed ")
    own = Section(f"{section.where}.optimizer", section.take("optimizer", dict, {}))
    constructor = ESTIMATORS[name].constructor
    takes = inspect.signature(constructor).parameters
    feedback = None
    if "feedback" in takes:
        feedback = section.take("feedback", str, "symmetric", one_of=("symmetric", "random"))
    learning = {name: optimizers.read_one(section, name) for name in OWN_OPTIMIZERS if name in takes}
    variant = Section(f"{section.where}.model", section.take("model", dict, {}))
    if variant.rest and model is None:
        raise section.error("model", "there is no [model] to lay it over")
    return EstimatorConfig(
        name=name,
        label=label,
        window=window,
        steps=steps,
        seeds=seeds,
        optimizer=optimizers.read(own, optimizer),
        frozen=section.distinct("frozen", section.take("frozen", tuple[str, ...], ())),
        model=variant.options(CELLS[model.cell]) if model else {},
        options=section.options(constructor),
        feedback=feedback,
        index=index,
        **learning,
    )
