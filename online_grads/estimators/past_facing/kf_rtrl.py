"""KF-RTRL: per drive one random Kronecker product, presynaptic vector times drive Jacobian.

    M_t ≈ u_t ⊗ B_t,   E[u_t ⊗ B_t] = M_t          u [pre], B [n, post], for every drive

    B' = J_t B_{t-1}                                c₁, c₂ ~ {±1}
    u_t = c₁ p₁ u_{t-1} + c₂ p₂ v_t                 p₁ = √((‖B'‖ + ε)/(‖u_{t-1}‖ + ε))
    B_t = c₁ B'/p₁ + c₂ D_t/p₂                      p₂ = √((‖D_t‖ + ε)/(‖v_t‖ + ε))
    g_t = u_{t-1} (∂ℓ_t/∂h_{t-1} B_{t-1}) + ∂ℓ_t/∂w at fixed h_{t-1}

v is [h; x; 1] for a drive W h + U x + b, and D_t = ∂h_t/∂z its full Jacobian (an LSTM's [2n, 4n]):
nothing is taken as diagonal. Weights that are added to no product (gains, decays) are carried exactly.

Cost per step: O(n² post) time, one product J B; memory n·post + pre. Unbiased with frozen
parameters; its variance is about n times smaller than UORO's. Any cell.

Reference: Mujika, Meier & Steger (2018), Approximating real-time recurrent learning with random
Kronecker factors, arXiv:1805.10842, Theorem 1.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from online_grads.arguments import not_negative
from online_grads.estimators.past_facing.balance import balanced
from online_grads.estimators.past_facing.factored import DriveRule, factored
from online_grads.types import Array, Estimator, Model


class KfFactors(NamedTuple):
    """One drive's influence, u ⊗ B."""

    u: Array  # [pre]
    B: Array  # [n, post]


def kf_rtrl(
    model: Model, *, epsilon: float = 1e-7, direct: bool = True, allow_unused: bool = False
) -> Estimator:
    """An unbiased gradient from one random Kronecker product per drive.

        M_t ≈ u_t ⊗ B_t,   u_t = c₁ p₁ u_{t-1} + c₂ p₂ v_t,   B_t = c₁ J_t B_{t-1}/p₁ + c₂ D_t/p₂

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
    >>> from online_grads import cells, from_cell, losses, memory, readouts, rtrl
    >>> cell, readout = cells.lstm(2, 16), readouts.linear(16, 1)
    >>> model = from_cell(cell, readout, losses.squared_error, example=(jnp.zeros(2), jnp.zeros(1)))
    >>> params, hidden = model.init(jax.random.key(0))
    >>> memory(rtrl(model), params, hidden) // memory(kf_rtrl(model), params, hidden)
    18

    Reference: Mujika, Meier & Steger (2018), arXiv:1805.10842, Theorem 1.
    """
    not_negative("epsilon", epsilon)
    return factored(
        model,
        DriveRule(
            lambda n, post, pre, dtype: KfFactors(jnp.zeros(pre, dtype), jnp.zeros((n, post), dtype)),
            partial(move, epsilon=epsilon),
            lambda factors, credit: jnp.outer(factors.u, credit @ factors.B),
            signs=lambda n, post, pre: (2,),
        ),
        direct=direct,
        allow_unused=allow_unused,
    )


def move(factors: KfFactors, transfer: Array, delta: Array, presynaptic: Array, signs: Array, epsilon):
    """One step with signs (c₁, c₂)."""
    old = balanced(factors.u, transfer @ factors.B, epsilon)
    new = balanced(presynaptic, delta, epsilon)
    return KfFactors(*jax.tree.map(lambda one, other: signs[0] * one + signs[1] * other, old, new))
