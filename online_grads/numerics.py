"""Sums and norms of low-precision numbers, taken in at least float32."""

import jax
import jax.numpy as jnp
import optax

from online_grads.types import Array, PyTree


def wide(dtype) -> jnp.dtype:
    """The floating dtype, or float32 if it has less than 32 bits."""
    dtype = jnp.dtype(dtype)
    return jnp.dtype(jnp.float32) if dtype.itemsize < 4 else dtype


def widened(tree: PyTree) -> PyTree:
    """The tree with leaves of less than 32 bits as float32."""
    return jax.tree.map(lambda leaf: leaf.astype(wide(leaf.dtype)), tree)


def like(tree: PyTree, dtypes: PyTree) -> PyTree:
    """The tree with the dtypes of another one."""
    return jax.tree.map(lambda leaf, other: leaf.astype(other.dtype), tree, dtypes)


def norm(tree: PyTree) -> Array:
    """The global 2-norm [] of all leaves."""
    return optax.tree.norm(widened(tree))
