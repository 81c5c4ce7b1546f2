"""Reverse KF-RTRL: per drive one random Kronecker product, drives times the influence of the inputs.

    M_t ≈ A_t ⊗ B_t,   E[A_t ⊗ B_t] = M_t          A [post], B [n, pre], for every drive

    B' = J_t B_{t-1}                                ν ~ {±1}^post
    A_t = p₀ A_{t-1} + p₁ ν                         p₀ = √((‖B'‖ + ε)/(‖A_{t-1}‖ + ε))
    B_t = B'/p₀ + (D_t ν) v_tᵀ/p₁                   p₁ = √((‖(D_t ν) v_tᵀ‖ + ε)/(‖ν‖ + ε))
    g_t = (∂ℓ_t/∂h_{t-1} B_{t-1}) A_{t-1} + ∂ℓ_t/∂w at fixed h_{t-1}

Cost per step: O(n² pre) time, memory n·pre + post. Unbiased with frozen parameters, with a variance
like UORO's: it is here because it completes the family. Weights that are added to no product
(gains, decays) are carried exactly. Any cell.

Reference: Marschall, Cho & Savin (2020), arXiv:1907.02649, section 4.1.4.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from online_grads.arguments import not_negative
from online_grads.estimators.past_facing.balance import balanced
from online_grads.estimators.past_facing.factored import DriveRule, factored
from online_grads.types import Array, Estimator, Model


class ReverseKfFactors(NamedTuple):
    """One drive's influence, A ⊗ B."""

    A: Array  # [post]
    B: Array  # [n, pre]


def reverse_kf_rtrl(
    model: Model, *, epsilon: float = 1e-7, direct: bool = True, allow_unused: bool = False
) -> Estimator:
    """An unbiased gradient from one random Kronecker product per drive, factored the other way round.

        M_t ≈ A_t ⊗ B_t,   A_t = p₀ A_{t-1} + p₁ ν,   B_t = J_t B_{t-1}/p₀ + (D_t ν) v_tᵀ/p₁

    Args:
        model: the model.
        epsilon: ε in the norm ratios, may be a tracer; with 0 a ratio of vanishing norms is 1.
        direct: exact direct part (default), or the papers' form that reads the moved influence.
        allow_unused: accept parameters that nothing uses.

    Returns:
        An `Estimator`, unbiased while the parameters are frozen. A segment is scanned step by step.

    Raises:
        ValueError: if epsilon is negative, a weight that is added to no product is too large to be carried
            exactly, or the model does not fit together.

    >>> import jax, jax.numpy as jnp
    >>> from online_grads import cells, from_cell, losses, readouts
    >>> cell, readout = cells.vanilla_rnn(2, 16), readouts.linear(16, 1)
    >>> model = from_cell(cell, readout, losses.squared_error, example=(jnp.zeros(2), jnp.zeros(1)))
    >>> state = reverse_kf_rtrl(model).init(*model.init(jax.random.key(0)), key=jax.random.key(1))
    >>> [(factors.A.shape, factors.B.shape) for factors in state.influence.products]
    [((1, 16), (1, 16, 19))]

    Reference: Marschall, Cho & Savin (2020), arXiv:1907.02649, section 4.1.4.
    """
    not_negative("epsilon", epsilon)
    return factored(
        model,
        DriveRule(
            lambda n, post, pre, dtype: ReverseKfFactors(jnp.zeros(post, dtype), jnp.zeros((n, pre), dtype)),
            partial(move, epsilon=epsilon),
            lambda factors, credit: jnp.outer(credit @ factors.B, factors.A),
            signs=lambda n, post, pre: (post,),
        ),
        direct=direct,
        allow_unused=allow_unused,
    )


def move(factors: ReverseKfFactors, transfer: Array, delta: Array, presynaptic: Array, signs: Array, epsilon):
    """One step with signs ν [post]."""
    old = balanced(factors.A, transfer @ factors.B, epsilon)
    new = balanced(signs, jnp.outer(delta @ signs, presynaptic), epsilon)
    return ReverseKfFactors(*jax.tree.map(jnp.add, old, new))
