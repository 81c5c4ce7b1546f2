"""Rank-one terms whose two factors have the same norm: what keeps random signs from adding variance.

A product a ⊗ b does not change when a grows by ρ and b shrinks by it, but the noise of
(a + ν c) ⊗ (b + ν d) does: it is least where the factors of every term are balanced.
"""

import jax
import jax.numpy as jnp

from online_grads.numerics import norm
from online_grads.types import Array, PyTree


def balanced(left: PyTree, right: PyTree, epsilon, size: Array | None = None) -> tuple[PyTree, PyTree]:
    """(ρ·left, right/ρ) with ρ = √((‖right‖ + ε)/(‖left‖ + ε)), over all leaves of each.

    `size` is ‖right‖ where that is known.

    >>> left, right = balanced(jnp.array([4.0]), [jnp.array([1.0]), jnp.array([0.0])], 0.0)
    >>> float(left[0]), float(right[0][0])
    (2.0, 2.0)
    """
    rho = ratio(norm(right) if size is None else size, norm(left), epsilon)
    scaled = lambda rho, tree: jax.tree.map(lambda leaf: rho.astype(leaf.dtype) * leaf, tree)
    return scaled(rho, left), scaled(1 / rho, right)


def ratio(over: Array, under: Array, epsilon) -> Array:
    """√((over + ε)/(under + ε)), 1 where either vanishes."""
    over, under = over + epsilon, under + epsilon
    usable = (over > 0) & (under > 0)
    return jnp.sqrt(jnp.where(usable, over, 1) / jnp.where(usable, under, 1))
