"""What every observation of a stream must look like: the first one."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from online_grads.arguments import counted
from online_grads.types import PyTree


class Law:
    """The structure, shapes and dtypes of an observation (x, y).

    A number of another dtype is taken if it is of the same kind or a simpler one: a float64 where float32
    came first, an int where a float came first, not the other way round. An integer must fit into the dtype
    that the first one has on the device.

    Args:
        observation: a pair (x, y) of pytrees of arrays or Python numbers, without a time axis.

    Raises:
        ValueError: it is not a pair, or holds no number, something else than numbers, or one too large.

    >>> law = Law((np.zeros(2), 0.5))
    >>> law.shown()
    'x float64[2], y float64[]'
    >>> law.leaves((np.ones(3), 1))
    Traceback (most recent call last):
    ValueError: x: expected float64[2], got float64[3]
    """

    def __init__(self, observation: PyTree):
        leaves, structure = jax.tree.flatten(_pair(observation))
        self.structure: Any = structure
        self.names = _names(observation)
        first = [_array(name, leaf) for name, leaf in zip(self.names, leaves, strict=True)]
        if not first:
            raise ValueError("an observation holds no numbers")
        for name, leaf in zip(self.names, first, strict=True):
            if not _is_number(leaf.dtype):
                raise ValueError(f"{name}: expected numbers, got {_called(leaf)}")
        self.shapes = [leaf.shape for leaf in first]
        self.dtypes = [leaf.dtype for leaf in first]
        self.on_device = [jnp.dtype(jax.dtypes.canonicalize_dtype(dtype)) for dtype in self.dtypes]
        self._taken: list[set[np.dtype]] = [set() for _ in first]  # of which every value fits
        for number, leaf in enumerate(first):
            self._check(number, leaf)

    def leaves(self, observation: PyTree) -> list[np.ndarray]:
        """The leaves of an observation as NumPy arrays; their dtypes may still be cast.

        Raises:
            ValueError: it does not look like the first one.
        """
        leaves, structure = jax.tree.flatten(observation)
        if structure != self.structure:
            got = ", ".join(_names(_pair(observation)))
            raise ValueError(f"expected {self.shown()}, got the leaves {got}: {structure}")
        arrays = []
        for number, leaf in enumerate(leaves):
            array = _array(self.names[number], leaf)
            if array.shape != self.shapes[number] or array.dtype not in self._taken[number]:
                self._check(number, array)
            arrays.append(array)
        return arrays

    def rows(self, length: int) -> list[np.ndarray]:
        """Room for so many observations, one array per leaf."""
        return [
            np.empty((length, *shape), dtype) for shape, dtype in zip(self.shapes, self.dtypes, strict=True)
        ]

    def tree(self, leaves: Sequence) -> PyTree:
        """(x, y) of these leaves."""
        x, y = jax.tree.unflatten(self.structure, leaves)
        return x, y

    def shown(self) -> str:
        """The law in words."""
        return ", ".join(
            f"{name} {dtype}{[*shape]}"
            for name, shape, dtype in zip(self.names, self.shapes, self.dtypes, strict=True)
        )

    def refused(self, error: Exception, window: int) -> str:
        """What to say when a learner refuses segments of observations that look like these."""
        whole = [
            name
            for name, dtype in zip(self.names, self.dtypes, strict=True)
            if not jnp.issubdtype(dtype, jnp.inexact)
        ]
        said = f"{self.shown()}, as a segment of {counted(window, 'step')}, is refused: {error}"
        if not whole:
            return said
        return f"{said}; where floating-point numbers are wanted, give float({whole[0]}) or .astype(float)"

    def _check(self, number: int, array: np.ndarray) -> None:
        dtype = self.dtypes[number]
        if (
            array.shape != self.shapes[number]
            or not _is_number(array.dtype)
            or not np.can_cast(array.dtype, dtype, "same_kind")
        ):
            expected = f"{dtype}{[*self.shapes[number]]}"
            raise ValueError(f"{self.names[number]}: expected {expected}, got {_called(array)}")
        here = self.on_device[number]
        if not jnp.issubdtype(here, jnp.integer) or np.can_cast(array.dtype, here):
            self._taken[number].add(array.dtype)
            return
        limits = jnp.iinfo(here)
        for value in (int(array.min()), int(array.max())) if array.size else ():
            if not limits.min <= value <= limits.max:
                raise ValueError(f"{self.names[number]}: {value} does not fit into {here}")


def _pair(observation: PyTree) -> PyTree:
    if not (isinstance(observation, tuple | list) and len(observation) == 2):
        raise ValueError(f"expected a pair (x, y), got {type(observation).__name__}")
    return observation


def _array(name: str, leaf: Any) -> np.ndarray:
    if isinstance(leaf, np.ma.MaskedArray):
        raise ValueError(f"{name}: a masked array would lose its mask; fill it")
    return np.asarray(leaf)


def _is_number(dtype: np.dtype) -> bool:
    return jnp.issubdtype(dtype, np.number) or jnp.issubdtype(dtype, np.bool_)


def _called(array: np.ndarray) -> str:
    return f"{array.dtype}{[*array.shape]}"


def _names(observation: PyTree) -> list[str]:
    """A name for every leaf: x, y['left'] ..."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tuple(observation))
    return ["xy"[path[0].idx] + jax.tree_util.keystr(path[1:]) for path, _ in paths]
