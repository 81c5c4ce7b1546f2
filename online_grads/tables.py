"""Reading the tables of a config: what is taken is ticked off, what is left over is a mistake."""

import inspect
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from online_grads.arguments import counted, shown, unknown
from online_grads.signatures import expected, fits, options

REQUIRED = inspect.Parameter.empty
MOST = 2**31 - 1  # JAX counts in int32


class ConfigError(ValueError):
    """A mistake in a config: one line that says where, and what was possible."""


class UnknownKey(ConfigError):
    """A key that a table does not take, and those that it takes."""

    def __init__(self, message: str, key: str, possible: Iterable[str]):
        super().__init__(message, key, tuple(possible))
        self.key = key
        self.possible = tuple(possible)

    def __str__(self) -> str:
        return self.args[0]


class Section:
    """One table of a config, read key by key; every method raises `ConfigError`.

    Args:
        where: what error messages call the table, as after --set: run, estimator.0.
        table: its keys and values.

    >>> section = Section("run", {"seeds": 4, "sede": 10})
    >>> section.take("seeds", int), section.take("seed", int, 0)
    (4, 0)
    >>> section.end()
    Traceback (most recent call last):
    ...
    online_grads.tables.UnknownKey: run.sede: unknown key; did you mean 'seed'? possible: seed, seeds
    """

    def __init__(self, where: str, table: Any):
        if not isinstance(table, dict):
            raise ConfigError(f"{where}: expected a table, got {table!r}")
        self.where = where
        self.rest = {key: _frozen(value) for key, value in table.items()}
        self.known: list[str] = []

    def __contains__(self, key: str) -> bool:
        return key in self.rest

    def error(self, key: str, message: str) -> ConfigError:
        return ConfigError(f"{self.where}.{key}: {message}")

    def take(self, key: str, kind: Any, default: Any = REQUIRED, *, one_of: Iterable[str] = ()) -> Any:
        """The value of a key: of a kind, given as an annotation, and one of some names if there are any."""
        self.known.append(key)
        if key not in self.rest:
            if default is REQUIRED:
                wanted = f"possible: {', '.join(sorted(one_of))}" if one_of else f"expected {expected(kind)}"
                raise self.error(key, f"missing; {wanted}")
            return default
        value = self.rest.pop(key)
        self._check(key, value, kind)
        if one_of and value not in one_of:
            raise self.error(key, unknown(f"name {value!r}", value, one_of))
        return value

    def positive(self, key: str, default: Any = REQUIRED, *, least: int = 1) -> Any:
        """An integer of at least `least`."""
        value = self.take(key, int, default)
        if value is not default and value < least:
            raise self.error(key, f"must be at least {least}, got {value}")
        return value

    def distinct(self, key: str, values: tuple) -> tuple:
        """The values of a list, none of which may be there twice."""
        for i, value in enumerate(values):
            if value in values[:i]:
                raise self.error(key, f"{value!r} is there twice")
        return values

    def countable(self, key: str, number: int, what: str = "") -> None:
        """Refuse what does not fit into int32."""
        if abs(number) > MOST:
            limit = f"most {MOST}" if number > 0 else f"least {-MOST}"
            raise self.error(key, f"{what}must be at {limit}, got {number}")

    def options(self, constructor: Callable) -> dict[str, Any]:
        """All keys that are left, as arguments for a constructor."""
        given, self.rest = self.rest, {}
        possible = {n: p for n, p in options(constructor).items() if n not in self.known}
        for key, value in given.items():
            if key not in possible:
                raise self._unknown(key, [*self.known, *possible])
            self._check(key, value, possible[key].annotation)
        for key, parameter in possible.items():
            if parameter.default is REQUIRED and key not in given:
                raise self.error(key, f"missing; expected {expected(parameter.annotation)}")
        return given

    def end(self) -> None:
        """No key may be left."""
        for key in self.rest:
            raise self._unknown(key, self.known)

    def _unknown(self, key: str, possible: Iterable[str]) -> UnknownKey:
        return UnknownKey(f"{self.where}.{key}: {unknown('key', key, possible)}", key, possible)

    def _check(self, key: str, value: Any, kind: Any) -> None:
        if not fits(value, kind):
            raise self.error(key, f"expected {expected(kind)}, got {shown(value)}")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int):
                self.countable(key, number)


def override(tables: dict[str, Any], item: str) -> None:
    """Apply `section.key=value` to the tables of a config, in place.

    >>> tables = {"run": {"steps": 100}, "estimator": [{"name": "rtrl"}, {"name": "uoro"}]}
    >>> override(tables, "run.updates=7")
    >>> override(tables, "estimator.1.window=16")
    >>> tables
    {'run': {'updates': 7}, 'estimator': [{'name': 'rtrl'}, {'name': 'uoro', 'window': 16}]}
    """
    path, equals, text = item.partition("=")
    section, *keys = path.strip().split(".")
    if not equals or not [key for key in keys if not key.isdigit()] or not all(keys):
        raise ConfigError(f"--set {item}: expected section.key=value")
    _put(tables, section, keys, value_of(text, f"--set {item}"), f"--set {item}")


def lay(tables: dict[str, Any], over: dict[str, Any], where: str) -> None:
    """Lay tables over those of a config, in place, value by value; [estimator] goes over all estimators.

    >>> tables = {"run": {"steps": 100, "seeds": 4}, "estimator": [{"name": "rtrl"}]}
    >>> lay(tables, {"run": {"updates": 2}, "estimator": {"window": 3}}, "fast")
    >>> tables
    {'run': {'seeds': 4, 'updates': 2}, 'estimator': [{'name': 'rtrl', 'window': 3}]}
    """
    for section, table in over.items():
        if not isinstance(table, dict):
            raise ConfigError(f"{where}.{section}: expected a table, got {table!r}")
        for keys, value in _leaves(table):
            _put(tables, section, keys, value, f"{where}.{section}")


def _leaves(table: dict[str, Any]) -> Iterator[tuple[list[str], Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from (([key, *keys], leaf) for keys, leaf in _leaves(value))
        else:
            yield [key], value


def _put(tables: dict[str, Any], section: str, keys: list[str], value: Any, blame: str) -> None:
    """Set one value, in all estimators or in the one that the first key counts."""
    path, rows = ".".join([section, *keys[:-1]]), tables.setdefault(section, {})
    if section == "estimator" and keys[0].isdigit():
        index, *keys = keys
        if int(index) >= len(rows):
            raise ConfigError(f"{blame}: the config has {counted(len(rows), 'estimator')}, counted from 0")
        rows = [rows[int(index)]]
    for table in rows if isinstance(rows, list) else [rows]:
        for key in keys[:-1]:
            table = table.setdefault(key, {}) if isinstance(table, dict) else None
        if not isinstance(table, dict):
            raise ConfigError(f"{blame}: {path} is not a table")
        table.pop({"steps": "updates", "updates": "steps"}.get(keys[-1]), None)
        table[keys[-1]] = value


def value_of(text: str, blame: str) -> Any:
    """A value as after --set: of TOML, or a bare word, which is a string.

    >>> value_of("1e-3", ""), value_of("[4, 8]", ""), value_of("adam", "")
    (0.001, [4, 8], 'adam')
    """
    text = text.strip()
    if re.fullmatch(r"[A-Za-z_./~][\w./~-]*", text) and text not in ("true", "false", "inf", "nan"):
        return text
    try:
        (value,) = tomllib.loads(f"value = {text}").values()
    except ValueError:
        raise ConfigError(f"{blame}: {text!r} is not a TOML value") from None
    return value


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
