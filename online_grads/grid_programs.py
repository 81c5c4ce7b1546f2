"""Which points of a grid may share a program: those that differ in numbers that need not be integers."""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import optax

from online_grads.config import Config
from online_grads.estimators.registry import ESTIMATORS
from online_grads.grid import Axis
from online_grads.grid_points import RATE, Point
from online_grads.signatures import fits, options


def groups(points: Iterable[Point]) -> list[list[Point]]:
    """Points that may share a program; groups that begin alike one after another."""
    found: dict[str, list[Point]] = {}
    for point in points:
        fixed = {key: value for key, value in point.values.items() if not _variable(point, key)}
        found.setdefault(json.dumps([point.place, [*point.values], fixed]), []).append(point)
    return sorted(found.values(), key=beginning)


def beginning(points: Sequence[Point]) -> str:
    """What decides where the training of a group begins: task, model and seeds."""
    config = config_of(points[0])
    tables = [config.tables.get(name) for name in ("task", "model", "run")]
    return json.dumps([*tables, config.estimators[0].seeds])


def numbers(points: Sequence[Point]) -> dict[str, str]:
    """In which numbers the points of a group differ, learning rates aside: key -> name of `assembly.at`."""
    keys = [key for key in points[0].values if _variable(points[0], key)]
    differ = [key for key in keys if len({point.values[key] for point in points}) > 1]
    return {key: name for key in differ if (name := Axis(key, ()).place) != RATE}


def parted(points: Sequence[Point], keys: Sequence[str]) -> list[list[Point]]:
    """The points, apart where they differ in these keys."""
    found: dict[str, list[Point]] = {}
    for point in points:
        found.setdefault(json.dumps([point.values[key] for key in keys]), []).append(point)
    return list(found.values())


def config_of(point: Point) -> Config:
    """Of a point that is not refused."""
    assert point.config is not None
    return point.config


def _variable(point: Point, key: str) -> bool:
    """Whether a value is a learning rate, or a number for which the constructor's annotation takes 0.5."""
    (chosen,), value = config_of(point).estimators, point.values[key]
    place = Axis(key, ()).place
    section, _, name = place.partition(".")
    if place == RATE:
        return True
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    constructor: Callable[..., Any]
    if section == "optimizer" and name in chosen.optimizer.options:
        constructor = getattr(optax, chosen.optimizer.name)
    elif section == "estimator" and name in chosen.options:
        constructor = ESTIMATORS[chosen.name].constructor
    else:
        return False
    return fits(0.5, options(constructor)[name].annotation)
