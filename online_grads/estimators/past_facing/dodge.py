"""DODGE, directional gradient descent: the exact influence of a few fixed random directions.

    s_t = J_t s_{t-1} + (∂h_t/∂θ) u = M_t u          u ~ {±1}^p, drawn once per episode
    g   = (∂L/∂h_0 · s_0) u + ∂L/∂θ at fixed h_0      E[(q M u) u] = q M, since E[u uᵀ] = 1

averaged over d independent directions. A segment of k steps is one composed step. A direction must
stay the same while it is carried, or the influence would mix directions; a reset draws a new one. In a
stream without resets, what reaches back before the segment is learned along d directions only.

Cost per step: d tangents and one cotangent, O(d p); memory d (n + p). A model with resets draws d p
signs for every block, in case it resets. Unbiased with frozen parameters; the variance of the past's
part is (p − 1)/d times its squared norm, p the entries of θ. `direct=False` needs no cotangent
through the transition at all: g_t = (∂ℓ_t/∂h_t · s_t) u. Any cell.

Reference: Silver, Goyal, Danihelka, Hessel & van Hasselt (2022), Learning by directional gradient
descent, ICLR.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from online_grads.analysis import analyse
from online_grads.arguments import positive_int
from online_grads.estimators.past_facing.base import Influence, past_facing
from online_grads.estimators.past_facing.signs import random_signs
from online_grads.linearize import Leaves
from online_grads.types import Array, Estimator, Model


class DodgeInfluence(NamedTuple):
    """The influence along d directions."""

    s: Array  # [d, n]  M_t u
    directions: list  # the transition's parameter leaves, [d, ...]: u


def dodge(model: Model, *, directions: int = 1, direct: bool = True, allow_unused: bool = False) -> Estimator:
    """An unbiased gradient from the exact influence along a few random directions.

        s_t = J_t s_{t-1} + (∂h_t/∂θ) u          g = (∂L/∂h_0 · s_0) u + ∂L/∂θ at fixed h_0

    Args:
        model: the model; `with_resets` says where an episode ends and new directions are drawn.
        directions: d, at least 1.
        direct: exact direct part (default), or pure forward mode, along the directions alone.
        allow_unused: accept parameters that nothing uses.

    Returns:
        An `Estimator`, unbiased while the parameters are frozen.

    Raises:
        ValueError: if directions is below 1, or the model does not fit together.

    >>> import jax, jax.numpy as jnp
    >>> from online_grads import cells, from_cell, losses, readouts
    >>> cell, readout = cells.gru(2, 4), readouts.linear(4, 1)
    >>> model = from_cell(cell, readout, losses.squared_error, example=(jnp.zeros(2), jnp.zeros(1)))
    >>> estimator = dodge(model, directions=3)
    >>> state = estimator.init(*model.init(jax.random.key(0)), key=jax.random.key(1))
    >>> state.influence.s.shape
    (3, 4)

    Reference: Silver et al. (2022), ICLR, section 3.
    """
    count = positive_int("directions", directions)
    found = analyse(model, allow_unused=allow_unused)
    leaves = Leaves(found)

    def draw(key):
        return random_signs(key, [jax.ShapeDtypeStruct((count, *w.shape), w.dtype) for w in leaves.weights])

    def init(h, key):
        return DodgeInfluence(jnp.zeros((count, *h.shape), h.dtype), draw(key))

    def propagate(influence, segment, noise):
        return influence._replace(s=jax.vmap(segment.push)(*influence))

    def contract(influence, credit):
        scale = influence.s @ credit / count
        return [jnp.tensordot(scale.astype(u.dtype), u, 1) for u in influence.directions]

    # the directions drawn with every block are candidates: a reset puts them in force
    forget = lambda influence, candidate: DodgeInfluence(jnp.zeros_like(influence.s), candidate)
    influence = Influence(init, propagate, contract, noise=draw, forget=forget)
    return past_facing(found, leaves, influence, block=None if direct else 1, direct=direct)
