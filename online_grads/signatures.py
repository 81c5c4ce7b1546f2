"""Which options a constructor takes, read from its signature, and whether a configured value fits.

A config names constructors and their keyword arguments; checking both here makes a misspelt option one
line before anything runs.
"""

import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

# Arguments that the library itself fills in.
SUPPLIED = ("model", "inputs", "hidden", "learning_rate", "dtype", "axis_name")
WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "a string", dict: "a table"}
PLURALS = {int: "integers", float: "numbers", str: "strings"}
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def options(constructor: Callable) -> dict[str, inspect.Parameter]:
    """The arguments of a constructor that a config may set: no functions, none that the library supplies.

    >>> def cell(inputs, hidden, *, alpha: float = 1.0, dtype=None, activation: Callable = abs): ...
    >>> list(options(cell))
    ['alpha']
    """
    parameters = inspect.signature(constructor, eval_str=True).parameters
    return {
        name: p
        for name, p in parameters.items()
        if name not in SUPPLIED and p.kind not in VARIADIC and not _is_function(p.annotation)
    }


def fits(value: Any, annotation: Any) -> bool:
    """Whether a TOML value (lists as tuples) may stand where this annotation does; in doubt, yes.

    >>> fits(1, float), fits(True, int), fits((1, 2), tuple[int, ...]), fits("x", int | None)
    (True, False, True, False)
    >>> fits((1, 2), tuple[int, int]), fits((1,), tuple[int, int])
    (True, False)
    """
    arguments = typing.get_args(annotation)
    origin = typing.get_origin(annotation) or annotation
    if origin in (Any, inspect.Parameter.empty):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin in (int, float):
        return isinstance(value, (int, origin)) and not isinstance(value, bool)
    if _is_list(origin):
        if not isinstance(value, tuple) or _length(annotation) not in (None, len(value)):
            return False
        kinds = [kind for kind in arguments if kind is not Ellipsis] or [Any]
        return all(any(fits(v, kind) for kind in kinds) for v in value)
    return isinstance(value, origin) if isinstance(origin, type) else True


def expected(annotation: Any) -> str:
    """The annotation in words.

    >>> expected(int | None), expected(tuple[int, ...]), expected(float | int)
    ('an integer', 'a list of integers', 'a number')
    >>> expected(tuple[int, int])
    'a list of 2 integers'
    """
    arguments = typing.get_args(annotation)
    origin = typing.get_origin(annotation) or annotation
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if origin in (typing.Union, types.UnionType):
        sayable = [a for a in arguments if a in WORDS or _is_list(a)]
        return " or ".join(expected(a) for a in sayable if not (a is int and float in arguments))
    if _is_list(origin):
        length, kinds = _length(annotation), {*arguments} - {Ellipsis}
        words = PLURALS.get(kinds.pop()) if len(kinds) == 1 else None
        number = "" if length is None else f"{length} "
        return f"a list of {number}{words}" if words else "a list"
    return WORDS.get(origin, getattr(origin, "__name__", str(origin)))


def _length(annotation: Any) -> int | None:
    """Of the list that tuple[int, int] takes; None where any length will do."""
    arguments = typing.get_args(annotation)
    fixed = typing.get_origin(annotation) is tuple and Ellipsis not in arguments
    return len(arguments) if fixed else None


def _is_function(annotation: Any) -> bool:
    """A Callable, a pair of them, or one of these or None."""
    kinds = [kind for kind in typing.get_args(annotation) if kind is not types.NoneType]
    if isinstance(annotation, types.UnionType):
        return all(_is_function(kind) for kind in kinds)
    return _is(annotation, "Callable") or hasattr(annotation, "_fields")


def _is(annotation: Any, *names: str) -> bool:
    return getattr(typing.get_origin(annotation) or annotation, "__name__", None) in names


def _is_list(annotation: Any) -> bool:
    return _is(annotation, "tuple", "list", "Sequence")
