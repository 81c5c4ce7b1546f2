"""The leaves of trees of arrays: keys among them, copies, and what they take."""

import jax
import jax.numpy as jnp

from online_grads.types import PyTree


def is_key(leaf) -> bool:
    """Whether it is an array of typed keys.

    >>> is_key(jax.random.key(0)), is_key(jax.random.key_data(jax.random.key(0))), is_key(None)
    (True, False, False)
    """
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def key_data(tree: PyTree) -> PyTree:
    """The tree with the numbers of typed keys in their place.

    >>> key_data((jax.random.key(3), 1.0))
    (Array([0, 3], dtype=uint32), 1.0)
    """
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf, tree)


def copied(tree: PyTree) -> PyTree:
    """The tree as JAX arrays with memory of their own, which may be donated.

    >>> state = {"w": jnp.ones(2)}
    >>> copied(state)["w"].delete()
    >>> state["w"].is_deleted()
    False
    """
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)


def size_in_bytes(tree: PyTree) -> int:
    """What the arrays of a tree take, or would take where it has their shapes; keys as their numbers.

    >>> size_in_bytes((jax.random.key(3), jax.ShapeDtypeStruct((2, 3), jnp.float32)))
    32
    """
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
