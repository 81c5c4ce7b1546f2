"""Checks that constructors share: what was expected, what came."""

import math
import numbers
import operator

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
        ValueError: it is negative, or NaN.

    >>> not_negative("epsilon", 0.0)
    """
    if _known_number(name, value) and not value >= 0:
        raise ValueError(f"{name} must be at least 0, got {value}")


def above(name: str, value, least: float, most: float = math.inf) -> None:
    """Refuse a number outside (least, most]; a tracer passes, as its value is not known yet.

    Raises:
        TypeError: it is not a number.
        ValueError: it is outside.

    >>> above("sigma", 0.1, 0)
    """
    if _known_number(name, value) and not least < value <= most:
        limit = "" if most == math.inf else f" and at most {most}"
        raise ValueError(f"{name} must be above {least}{limit}, got {value}")


def probability(name: str, value) -> None:
    """Refuse a number outside [0, 1); a tracer passes, as its value is not known yet.

    Raises:
        TypeError: it is not a number.
        ValueError: it is outside.

    >>> probability("cut", 0.1)
    """
    if _known_number(name, value) and not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), got {value}")


def _known_number(name, value) -> bool:
    """Whether the number is no tracer."""
    if isinstance(value, jax.core.Tracer):
        return False
    scalar = isinstance(value, numbers.Real) or (hasattr(value, "dtype") and jnp.ndim(value) == 0)
    if isinstance(value, bool) or not scalar:
        raise TypeError(f"{name} must be a number, got {value!r}")
    return True


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


def float_dtype(dtype):
    """A real floating dtype that this JAX configuration can hold; None is JAX's default float.

    Raises:
        TypeError: it is not a real floating dtype.
        ValueError: it has 64 bits and JAX's 64-bit mode is off, where JAX would quietly use 32.

    >>> float_dtype(jnp.float32)
    dtype('float32')
    """
    if dtype is None:
        return jnp.result_type(float)
    wanted = jnp.dtype(dtype)
    if not jnp.issubdtype(wanted, jnp.floating):
        raise TypeError(f"dtype must be a real floating dtype, got {wanted}")
    if wanted.itemsize > 4 and not jax.config.jax_enable_x64:
        raise ValueError(f"dtype {wanted} needs jax.config.update('jax_enable_x64', True)")
    return wanted


def optimizer_or(default: optax.GradientTransformation, name: str, given) -> optax.GradientTransformation:
    """The optax optimizer given, or the default for None.

    Raises:
        TypeError: it is none.

    >>> optimizer_or(optax.sgd(0.1), "inner_optimizer", None).init(())
    (EmptyState(), EmptyState())
    """
    if given is None:
        return default
    if not (hasattr(given, "init") and hasattr(given, "update")):
        raise TypeError(f"{name} must be an optax GradientTransformation, got {given!r}")
    return given
