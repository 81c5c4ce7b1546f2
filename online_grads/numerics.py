"""Sums and norms of low-precision numbers, taken in at least float32."""

import jax
import jax.numpy as jnp
import optax

from online_grads.types import Array, PyTree


def widened(tree: PyTree) -> PyTree:
    """The tree with leaves of less than 32 bits as float32."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if leaf.dtype.itemsize < 4 else leaf, tree)


def like(tree: PyTree, dtypes: PyTree) -> PyTree:
    """The tree with the dtypes of another one."""
    return jax.tree.map(lambda leaf, other: leaf.astype(other.dtype), tree, dtypes)


def norm(tree: PyTree) -> Array:
    """The global 2-norm [] of all leaves."""
    return optax.tree.norm(widened(tree))
