"""Equations of known arrays, computed: in NumPy wherever that is the same to the last bit.

JAX compiles a program for every equation of another shape, which takes longer than all the rest of finding
a pattern.
"""

from collections.abc import Callable

import numpy as np

from online_grads import jaxprs


def compute(equation, values, otherwise: Callable = jaxprs.bind) -> list:
    """The results of one equation for known values, by `otherwise(equation, values)` if not in NumPy."""
    name, arrays = equation.primitive.name, all(isinstance(value, np.ndarray) for value in values)
    if name not in _IN_NUMPY or not arrays or (name in _FROM_INTEGERS and values[0].dtype.kind not in "biu"):
        return otherwise(equation, values)
    with np.errstate(over="ignore"):  # integers wrap around
        results = _IN_NUMPY[name](equation.params, *values)
    results = results if isinstance(results, list) else [results]
    return [r.reshape(v.aval.shape) for r, v in zip(results, equation.outvars, strict=True)]


def _broadcast(given, array):
    axes, shape = given["broadcast_dimensions"], given["shape"]
    sizes = [array.shape[axes.index(axis)] if axis in axes else 1 for axis in range(len(shape))]
    return np.broadcast_to(array.reshape(sizes), shape)


def _iota(given):
    shape, dimension = given["shape"], given["dimension"]
    along = np.arange(shape[dimension], dtype=given["dtype"])
    return np.broadcast_to(np.expand_dims(along, [a for a in range(len(shape)) if a != dimension]), shape)


def _slice(given, array):
    steps = given["strides"] or (1,) * array.ndim
    spans = zip(given["start_indices"], given["limit_indices"], steps, strict=True)
    return array[tuple(slice(*span) for span in spans)]


# Of the equation's parameters and its operands.
_IN_NUMPY: dict[str, Callable] = {
    "broadcast_in_dim": _broadcast,
    "concatenate": lambda given, *arrays: np.concatenate(arrays, given["dimension"]),
    "iota": _iota,
    "reshape": lambda given, array: array.transpose(given["dimensions"] or range(array.ndim)),
    "rev": lambda given, array: np.flip(array, given["dimensions"]),
    "select_n": lambda given, which, *cases: np.choose(which, cases),
    "slice": _slice,
    "split": lambda given, array: np.split(array, np.cumsum(given["sizes"])[:-1], given["axis"]),
    "squeeze": lambda given, array: array,
    "stack": lambda given, *arrays: np.stack(arrays, given["axis"]),
    "transpose": lambda given, array: array.transpose(given["permutation"]),
    "add": lambda given, one, other: np.add(one, other),
    "convert_element_type": lambda given, array: array.astype(given["new_dtype"]),
    "eq": lambda given, one, other: np.equal(one, other),
    "ge": lambda given, one, other: np.greater_equal(one, other),
    "lt": lambda given, one, other: np.less(one, other),
    "sub": lambda given, one, other: np.subtract(one, other),
}
# of floats these round, which is left to JAX
_FROM_INTEGERS = {"add", "convert_element_type", "sub"}
