"""Unbiased online recurrent optimisation: an influence of rank one, unbiased by random signs.

    M_t ≈ s̃_t θ̃_tᵀ,   E[s̃_t θ̃_tᵀ] = M_t            s̃ [n], θ̃ [p]

    s̃' = Φ s̃_0            θ̂ = νᵀ ∂h_b/∂θ            ν ~ {±1}ⁿ
    ρ₀ = √((‖θ̃_0‖ + ε)/(‖s̃'‖ + ε))                 ρ₁ = √((‖θ̂‖ + ε)/(‖ν‖ + ε))
    s̃_b = ρ₀ s̃' + ρ₁ ν                              θ̃_b = θ̃_0/ρ₀ + θ̂/ρ₁
    g = (∂L/∂h_0 · s̃_0) θ̃_0 + ∂L/∂θ at fixed h_0

A segment of k steps is one composed step (b = k, "memory-k"): backpropagation inside it is exact
and only what comes before it is estimated. `direct=False` reads g_t = (∂ℓ_t/∂h_t · s̃_t) θ̃_t after
every single step instead, the noisier form that comparison papers plot. In ‖θ̂‖ of a single step a
weight that is used twice counts twice; every positive ρ₁ is unbiased.

Cost per step: one forward pass, one tangent and two cotangents, O(p); memory O(n + p). Unbiased
with frozen parameters. Any cell with a custom_jvp or no custom rule.

Reference: Tallec & Ollivier (2017), Unbiased online recurrent optimization, arXiv:1702.05043,
Algorithm 1; memory-T UORO is its section 4.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from online_grads.analysis import analyse
from online_grads.arguments import not_negative
from online_grads.estimators.past_facing.balance import balanced
from online_grads.estimators.past_facing.base import Influence, past_facing, zeroed
from online_grads.estimators.past_facing.signs import random_signs
from online_grads.linearize import Weights
from online_grads.types import Array, Estimator, Model


class UoroInfluence(NamedTuple):
    """The two factors of the influence."""

    s: Array  # [n]  s̃_t
    theta: list  # θ̃_t, like the effective weights, or like θ where that is smaller


def uoro(
    model: Model,
    *,
    epsilon: float = 1e-7,
    direct: bool = True,
    remat: bool = False,
    allow_unused: bool = False,
) -> Estimator:
    """An unbiased gradient at the cost of backpropagation, from a rank-one influence.

    Args:
        model: the model.
        epsilon: ε in the norm ratios, may be a tracer; with 0 a ratio of vanishing norms is 1.
        direct: exact direct part (default), or the papers' form with a step-by-step read-out.
        remat: take the segment's steps anew on the way back, in place of storing what they computed:
            on long segments a fraction of the memory for one more forward pass.
        allow_unused: accept parameters that nothing uses.

    Returns:
        An `Estimator`, unbiased while the parameters are frozen.

    Raises:
        TypeError: if remat is not True or False.
        ValueError: if epsilon is negative, or the model does not fit together.

    >>> import jax, jax.numpy as jnp
    >>> from online_grads import cells, from_cell, gradient, losses, readouts, tbptt
    >>> cell, readout = cells.gru(2, 4), readouts.linear(4, 1)
    >>> model = from_cell(cell, readout, losses.squared_error, example=(jnp.zeros(2), jnp.zeros(1)))
    >>> params, hidden = model.init(jax.random.key(0))
    >>> stream = jnp.ones((6, 2)), jnp.ones((6, 1))
    >>> noisy = jax.vmap(lambda key: gradient(uoro(model), params, hidden, *stream, key=key))
    >>> mean = jax.tree.map(lambda g: g.mean(0), noisy(jax.random.split(jax.random.key(1), 4000)))
    >>> whole = gradient(tbptt(model), params, hidden, *stream, key=jax.random.key(1), window=6)
    >>> all(jnp.allclose(a, b, atol=0.02) for a, b in zip(*map(jax.tree.leaves, (mean, whole))))
    True

    Reference: Tallec & Ollivier (2017), arXiv:1702.05043, Algorithm 1.
    """
    not_negative("epsilon", epsilon)
    found = analyse(model, allow_unused=allow_unused)
    structure, flat = Weights(found, dense=True), found.flat

    def init(h, key):
        trained = structure.weights[: structure.trained]
        return UoroInfluence(jnp.zeros_like(h), [jnp.zeros(w.shape, w.dtype) for w in trained])

    return past_facing(
        found,
        structure,
        Influence(
            init,
            partial(propagate, epsilon=epsilon),
            outer,
            noise=lambda key: random_signs(key, [jax.ShapeDtypeStruct((flat.size,), flat.dtype)])[0],
            forget=zeroed,
        ),
        block=None if direct else 1,
        direct=direct,
        remat=remat,
    )


def propagate(influence: UoroInfluence, segment, noise: Array, epsilon) -> UoroInfluence:
    """Move the factors over a segment with signs `noise` [n]."""
    s, theta = balanced(segment.push(influence.s), influence.theta, epsilon)
    immediate, size = segment.pull_end_with_norm(noise)
    signs, immediate = balanced(noise, immediate, epsilon, size)
    return UoroInfluence(s + signs, jax.tree.map(jnp.add, theta, immediate))


def outer(influence: UoroInfluence, credit: Array) -> list:
    """(credit · s̃) θ̃."""
    scale = credit @ influence.s
    return [scale.astype(leaf.dtype) * leaf for leaf in influence.theta]
