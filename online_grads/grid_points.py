"""The points of a sweep: a config of its own for each of an estimator's settings.

    points = ⋃ over estimators of the product of the axes that this estimator takes

`estimator.rank` goes to the estimators with such an option, `estimator.1.rank` to that one; a key of the
optimizer to those whose optimizer takes it; every other key to all, over what an estimator has of its own.
"""

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from online_grads.arguments import counted, unknown
from online_grads.config import Config, EstimatorConfig, parse
from online_grads.grid import MOST, OWN, Axis
from online_grads.tables import ConfigError, UnknownKey, lay

RATE = "optimizer.learning_rate"


class Point(NamedTuple):
    """One setting of one estimator."""

    label: str
    place: int  # of the estimator in the file
    values: dict[str, Any]  # of the axes that it takes, key -> value
    tables: dict[str, Any]  # a config's, with this estimator alone
    config: Config | None  # None if it is refused
    refused: str | None  # why


class Grid(NamedTuple):
    """All points, and the axes that they differ in."""

    config: Config
    axes: tuple[Axis, ...]
    points: tuple[Point, ...]  # estimator by estimator, the last axis running fastest


def grid(config: Config, axes: Sequence[Axis]) -> Grid:
    """The points of a sweep over the estimators of a config.

    An estimator whose config lists several learning rates is swept over these too, if no axis replaces
    them. A point that its config's other values do not admit is refused and says why.

    Args:
        config: what to train at every point.
        axes: the keys to sweep.

    Raises:
        ConfigError: no estimator takes a key, no point a value, a key comes twice, or there are too many
            points.

    >>> config = parse({
    ...     "task": {"name": "influence_balancing"}, "run": {"updates": 10}, "optimizer": {"name": "sgd"},
    ...     "estimator": [{"name": "rtrl"}, {"name": "snap", "optimizer": {"learning_rate": 0.1}}],
    ... } | {"optimizer": {"name": "sgd", "learning_rate": 0.2}})
    >>> made = grid(config, [Axis(RATE, (0.3, 0.4)), Axis("estimator.order", (1, 2))])
    >>> [(point.label, *point.values.values()) for point in made.points]
    [('rtrl', 0.3), ('rtrl', 0.4), ('snap', 0.3, 1), ('snap', 0.3, 2), ('snap', 0.4, 1), ('snap', 0.4, 2)]
    """
    plans: list[_Plan] = []
    untaken: dict[str, list[UnknownKey]] = {axis.key: [] for axis in axes}
    extra: set[float] = set()
    for axis in axes:
        _check_index(axis, [chosen.index for chosen in config.estimators])
    for chosen in config.estimators:
        mine = [axis for axis in axes if axis.estimator in (None, chosen.index)]
        _check_places(mine)
        rates = chosen.optimizer.learning_rate
        if len(rates) > 1 and RATE not in [axis.place for axis in mine]:
            extra.update(rates)
            mine.append(Axis(RATE, rates))
        plans += _plans(config, chosen, mine, untaken)
    for axis in axes:
        if not any(axis.key in map(_key, plan.axes) for plan in plans):
            raise _nobody(config, axis, untaken[axis.key])
    total = sum(math.prod(len(axis.values) for axis in plan.axes) for plan in plans)
    if total > MOST:
        raise ConfigError(f"--over: {total} points are more than {MOST}")
    points = [point for plan in plans for point in _points(config, plan)]
    for axis in axes:
        _check_values(axis, points)
    return Grid(config, (*axes, *([Axis(RATE, tuple(sorted(extra)))] if extra else [])), tuple(points))


class _Plan(NamedTuple):
    """An estimator and the axes that it takes."""

    chosen: EstimatorConfig
    base: dict[str, Any]
    axes: list[Axis]


def _plans(
    config: Config, chosen: EstimatorConfig, axes: Sequence[Axis], untaken: dict[str, list[UnknownKey]]
) -> Iterator[_Plan]:
    """One for each choice of names, on which it depends what else is taken; why not is put into `untaken`."""

    def taken(axis: Axis, names: dict[str, Any]) -> bool:
        try:
            _parsed(config, _with(base, {**names, axis.key: axis.values[0]}), chosen.index)
        except UnknownKey as error:
            if error.key in axis.key.split("."):
                untaken[axis.key].append(error)
                return False
        except ConfigError:  # a point's mistake
            pass
        return True

    base = _base(config, chosen)
    naming = [axis for axis in axes if axis.key.endswith((".name", ".cell")) and taken(axis, {})]
    for values in itertools.product(*(axis.values for axis in naming)):
        names = dict(zip(map(_key, naming), values, strict=True))
        others = [
            axis for axis in axes if axis.key not in names and not axis.key.endswith((".name", ".cell"))
        ]
        found = [axis for axis in others if taken(axis, names)]
        yield _Plan(chosen, base, [*(Axis(key, (value,)) for key, value in names.items()), *found])


def _key(axis: Axis) -> str:
    return axis.key


def _base(config: Config, chosen: EstimatorConfig) -> dict[str, Any]:
    """The tables of a config with one estimator alone."""
    tables = copy.deepcopy({name: table for name, table in config.tables.items() if name != "compare"})
    tables["run"] = {key: value for key, value in tables["run"].items() if key not in ("only", "fast")}
    tables["estimator"] = [tables["estimator"][chosen.index]]
    return tables


def _points(config: Config, plan: _Plan) -> Iterator[Point]:
    chosen, base, axes = plan
    label = _label(config, chosen, base, axes)
    for values in itertools.product(*(axis.values for axis in axes)):
        given = {axis.key: value for axis, value in zip(axes, values, strict=True)}
        tables = _with(base, given)
        tables["estimator"][0]["label"] = label
        found, refused = None, None
        try:
            found = _parsed(config, tables, chosen.index)
            if len(found.estimators[0].optimizer.learning_rate) > 1:
                raise ConfigError(f"--over: {RATE} is one number at each point, not a list")
        except ConfigError as error:
            found, refused = None, str(error)
        yield Point(label, chosen.index, given, tables, found, refused)


def _label(config: Config, chosen: EstimatorConfig, base, axes: Sequence[Axis]) -> str:
    """As in the config; without the window that stands in it by default, if windows are swept."""
    others = [other.label for other in config.estimators if other is not chosen]
    windows = any(axis.place == "estimator.window" for axis in axes)
    if windows and "label" not in base["estimator"][0] and chosen.name not in others:
        return chosen.name
    return chosen.label


def _with(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """The tables with other values, which win over what the estimator has of its own."""
    tables = copy.deepcopy(base)
    for name, value in values.items():
        section, *keys = name.split(".")
        if keys[0].isdigit():
            del keys[0]
        lay(tables, {section: _nested(keys, value)}, "--over")
        row = tables["estimator"][0]
        same = {"steps", "updates"} if keys[0] in ("steps", "updates") else {keys[0]}
        if section == "run" and keys[0] in OWN and same & row.keys():
            lay(tables, {"estimator": _nested(keys, value)}, "--over")
        own = row.get(section)
        # with a name of its own it starts afresh from the shared table
        if isinstance(own, dict) and (keys[0] in own or ("name" in own and keys[0] != "name")):
            lay(tables, {"estimator": {section: _nested(keys, value)}}, "--over")
    return tables


def _nested(keys: Sequence[str], value: Any) -> dict[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    return value


def _parsed(config: Config, tables: dict[str, Any], index: int) -> Config:
    """The config of one estimator, which is still called by its place in the file."""
    try:
        found = parse(tables, source=config.source)
    except ConfigError as error:
        said = str(error).replace("estimator.0", f"estimator.{index}")
        error.args = (said, *error.args[1:])
        raise
    return replace(found, estimators=(replace(found.estimators[0], index=index),))


def _nobody(config: Config, axis: Axis, errors: Sequence[UnknownKey]) -> ConfigError:
    """The error that says what would be possible with one estimator or another."""
    possible = {name for error in errors for name in error.possible}
    return ConfigError(f"{config.source}: --over {axis.key}: {unknown('key', errors[0].key, possible)}")


def _check_index(axis: Axis, indices: Sequence[int]) -> None:
    index = axis.estimator
    if index is not None and index not in indices:
        there = ", ".join(map(str, indices))
        raise ConfigError(
            f"--over {axis.key}: {counted(len(indices), 'estimator')} to train, counted {there}"
        )


def _check_places(axes: Sequence[Axis]) -> None:
    """No two axes may set the same value of an estimator."""
    for i, axis in enumerate(axes):
        for other in axes[:i]:
            if axis.place == other.place:
                raise ConfigError(f"--over {axis.key}: {other.key} sets the same value already")


def _check_values(axis: Axis, points: Sequence[Point]) -> None:
    """A value that is refused at every point is a mistake."""
    for value in axis.values:
        those = [p for p in points if axis.key in p.values and p.values[axis.key] is value]
        if all(point.refused is not None for point in those):
            raise ConfigError(those[0].refused)
