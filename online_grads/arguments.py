"""Checks that constructors share: what was expected, what came."""

import difflib
import math
import numbers
import operator
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import optax


def positive_int(name: str, value, *, least: int = 1) -> int:
    """`value` as a Python int ≥ `least`.

    Raises:
        TypeError: it is not an integer.
        ValueError: it is below `least`.

    >>> positive_int("hidden", 3)
    3
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def not_negative(name: str, value) -> None:
    """Refuse a negative number; a tracer passes, as its value is not known yet.

    Raises:
        TypeError: it is not a number.
        ValueError: it is negative, infinite or NaN.

    >>> not_negative("epsilon", 0.0)
    """
    number = _number(name, value)
    if number is not None and number < 0:
        raise ValueError(f"{name} must be at least 0, got {value}")


def above(name: str, value, least: float, most: float = math.inf) -> None:
    """Refuse a number outside (least, most]; a tracer passes, as its value is not known yet.

    Raises:
        TypeError: it is not a number.
        ValueError: it is outside, infinite or NaN.

    >>> above("sigma", 0.1, 0)
    """
    number = _number(name, value)
    if number is not None and not least < number <= most:
        limit = "" if most == math.inf else f" and at most {most}"
        raise ValueError(f"{name} must be above {least}{limit}, got {value}")


def probability(name: str, value) -> None:
    """Refuse a number outside [0, 1); a tracer passes, as its value is not known yet.

    Raises:
        TypeError: it is not a number.
        ValueError: it is outside.

    >>> probability("cut", 0.1)
    """
    _inside(name, value, "[0, 1)", lambda number: 0 <= number < 1)


def fraction(name: str, value) -> None:
    """Refuse a number outside [0, 1]; a tracer passes, as its value is not known yet.

    Raises:
        TypeError: it is not a number.
        ValueError: it is outside.

    >>> fraction("trace_decay", 1.0)
    """
    _inside(name, value, "[0, 1]", lambda number: 0 <= number <= 1)


def finite(name: str, value) -> None:
    """Refuse anything but a finite number; a tracer passes, as its value is not known yet.

    Raises:
        TypeError: it is not a number.
        ValueError: it is infinite or NaN.

    >>> finite("forget_bias", -1)
    """
    _number(name, value)


def boolean(name: str, value) -> None:
    """Refuse anything but True and False.

    Raises:
        TypeError: it is neither.

    >>> boolean("local", False)
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def _inside(name: str, value, interval: str, holds: Callable[[float], bool]) -> None:
    number = _number(name, value)
    if number is not None and not holds(number):
        raise ValueError(f"{name} must be in {interval}, got {value}")


def _number(name: str, value) -> float | None:
    """The value in Python, so that comparing it inside jit is not traced; None for a tracer."""
    if isinstance(value, jax.core.Tracer):
        return None
    real = isinstance(value, numbers.Real)
    if hasattr(value, "dtype") and jnp.ndim(value) == 0:
        real = jnp.issubdtype(value.dtype, jnp.integer) or jnp.issubdtype(value.dtype, jnp.floating)
    if isinstance(value, bool) or not real:
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(number := float(value)):
        raise ValueError(f"{name} must be finite, got {value}")
    return number


def in_order(**limits) -> None:
    """Refuse two limits of which the first is above the second.

    Raises:
        ValueError: it is.

    >>> in_order(shortest=1, longest=5)
    """
    (low, least), (high, most) = limits.items()
    if least > most:
        raise ValueError(f"{low} must be at most {high}, got {least} and {most}")


def number_in(low: float, high: float, **values) -> None:
    """Refuse anything but numbers in the open interval (low, high).

    Raises:
        TypeError: a value is not a number.
        ValueError: it is outside.

    >>> number_in(0, 1, decay=0.9)
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(f"{name} must be a number, got {value!r}")
        if not low < float(value) < high:
            raise ValueError(f"{name} must be in ({low}, {high}), got {value}")


def float_dtype(dtype, name: str = "dtype"):
    """A real floating dtype that this JAX configuration can hold; None is JAX's default float.

    Raises:
        TypeError: it is not a real floating dtype.
        ValueError: it has 64 bits and JAX's 64-bit mode is off, where JAX would quietly use 32.

    >>> float_dtype(jnp.float32)
    dtype('float32')
    """
    if dtype is None:
        return jnp.result_type(float)
    try:
        wanted = jnp.dtype(dtype)
    except TypeError:
        wanted = dtype
    if not (isinstance(wanted, jnp.dtype) and jnp.issubdtype(wanted, jnp.floating)):
        raise TypeError(f"{name} must be a real floating dtype, got {wanted}")
    if jax.dtypes.canonicalize_dtype(wanted) != wanted:
        raise ValueError(f"{name} {wanted} needs jax.config.update('jax_enable_x64', True)")
    return wanted


def unknown(what: str, name: str, names: Iterable[str]) -> str:
    """One line that says that a name is unknown, what is close to it, and what is possible.

    >>> unknown("cell 'gruu'", "gruu", ["gru", "lstm"])
    "unknown cell 'gruu'; did you mean 'gru'? possible: gru, lstm"
    """
    names = sorted(names)
    if not names:
        return f"unknown {what}; none is possible"
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown {what}; {hint}possible: {', '.join(names)}"


def shown(value) -> str:
    """A value as TOML writes it, where tuples are lists.

    >>> shown((1, 2)), shown("x")
    ('[1, 2]', "'x'")
    """
    return repr(list(value) if isinstance(value, tuple) else value)


def counted(number: int, noun: str) -> str:
    """So many of something.

    >>> counted(1, "row"), counted(2, "row")
    ('1 row', '2 rows')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def an_optimizer(name: str, given, default: optax.GradientTransformation | None = None):
    """The optax optimizer given, or the default in place of None.

    Raises:
        TypeError: it is no optimizer.

    >>> an_optimizer("inner_optimizer", None, optax.sgd(0.1)).init(())
    (EmptyState(), EmptyState())
    """
    given = default if given is None else given
    if not (hasattr(given, "init") and hasattr(given, "update")):
        raise TypeError(f"{name} must be an optax GradientTransformation, got {given!r}")
    return given
