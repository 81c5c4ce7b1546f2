"""NoBackTrack: a rank-one influence with one random sign and one scale per hidden entry.

    M_t ≈ s̃_t θ̃_tᵀ,   E[s̃_t θ̃_tᵀ] = M_t            s̃ [n], θ̃ [p]; the paper's v and w

    s̃_t = ν₀ ρ₀ J_t s̃_{t-1} + Σ_i ν_i ρ_i e_i        ν₀, ν_i ~ {±1}
    θ̃_t = ν₀ θ̃_{t-1}/ρ₀ + Σ_i ν_i I_t[i, :]/ρ_i      I_t = ∂h_t/∂w at fixed h_{t-1}
    ρ₀ = √((‖θ̃_{t-1}‖ + ε)/(‖J_t s̃_{t-1}‖ + ε))      ρ_i = √((‖I_t[i, :]‖ + ε)/(1 + ε))
    g_t = (∂ℓ_t/∂h_{t-1} · s̃_{t-1}) θ̃_{t-1} + ∂ℓ_t/∂w at fixed h_{t-1}

UORO has one ρ for all hidden entries; here every entry has its own, from the norm of its row of the
immediate influence. The norms are read from the drive Jacobians, ‖I[i, :]‖² = Σ_l ‖D_l[i, :]‖²‖v_l‖²
(a weight that is used twice counts twice), the signed sum is one product with the transpose.

Cost per step: one forward pass, one tangent, two cotangents and a few coloured tangents for D, O(p);
memory n + p. Unbiased with frozen parameters. Any cell; where a weight acts on all hidden entries
(a stack), the norms take n cotangents.

Reference: Ollivier, Tallec & Charpiat (2015), Training recurrent networks online without
backtracking, arXiv:1507.07680, section 1.2.
"""

import jax
import jax.numpy as jnp

from online_grads.analysis import analyse
from online_grads.arguments import not_negative
from online_grads.estimators.past_facing.balance import balanced, ratio
from online_grads.estimators.past_facing.base import Influence, past_facing, zeroed
from online_grads.estimators.past_facing.signs import random_signs
from online_grads.estimators.past_facing.uoro import UoroInfluence, outer
from online_grads.linearize import Weights
from online_grads.numerics import widened
from online_grads.sparse import SparseJacobian
from online_grads.types import Estimator, Model


def no_backtrack(
    model: Model, *, epsilon: float = 1e-7, direct: bool = True, allow_unused: bool = False
) -> Estimator:
    """An unbiased gradient from a rank-one influence with one sign per hidden entry.

        s̃_t = ν₀ ρ₀ J_t s̃_{t-1} + Σ_i ν_i ρ_i e_i          θ̃_t = ν₀ θ̃_{t-1}/ρ₀ + Σ_i ν_i I_t[i, :]/ρ_i

    Args:
        model: the model.
        epsilon: ε in the norm ratios, may be a tracer; with 0 a ratio of vanishing norms is 1.
        direct: exact direct part (default), or the papers' form that reads the moved influence.
        allow_unused: accept parameters that nothing uses.

    Returns:
        An `Estimator`, unbiased while the parameters are frozen. A segment is scanned step by step.

    Raises:
        ValueError: if epsilon is negative, or the model does not fit together.

    >>> import jax, jax.numpy as jnp
    >>> from online_grads import cells, from_cell, losses, readouts
    >>> cell, readout = cells.gru(2, 4), readouts.linear(4, 1)
    >>> model = from_cell(cell, readout, losses.squared_error, example=(jnp.zeros(2), jnp.zeros(1)))
    >>> estimator = no_backtrack(model)
    >>> state = estimator.init(*model.init(jax.random.key(0)), key=jax.random.key(1))
    >>> state.influence.s.shape
    (4,)

    Reference: Ollivier, Tallec & Charpiat (2015), arXiv:1507.07680, section 1.2.
    """
    not_negative("epsilon", epsilon)
    found = analyse(model, allow_unused=allow_unused)
    structure, n = Weights(found, dense=False), found.flat.size
    jacobian = SparseJacobian(structure, structure.patterns)

    def init(h, key):
        trained = structure.weights[: structure.trained]
        return UoroInfluence(jnp.zeros_like(h), [jnp.zeros(w.shape, w.dtype) for w in trained])

    def row_norms(segment):
        """‖I[i, :]‖ for every hidden entry i, [n]."""
        entries = jacobian(segment.weights, *segment.first)
        squares = widened(jnp.zeros(n, found.flat.dtype))
        for number, drive in enumerate(structure.trained_drives):
            rows, columns = structure.patterns.drives[number].nonzero()
            delta = jnp.square(entries.drive(number, rows, columns).astype(squares.dtype))
            vector = structure.gather(drive, entries.presynaptic).astype(squares.dtype)
            delta *= jnp.sum(jnp.square(vector), axis=1)[columns // drive.post]
            squares = squares.at[rows].add(delta)
        return jnp.sqrt(squares)

    def propagate(influence, segment, signs):
        norms = row_norms(segment)
        rho = ratio(norms, jnp.ones_like(norms), epsilon).astype(signs.dtype)
        s, theta = balanced(segment.push(influence.s), influence.theta, epsilon)
        immediate, _ = segment.pull_end(signs[1:] / rho)
        return UoroInfluence(
            signs[0] * s + signs[1:] * rho,
            [signs[0].astype(old.dtype) * old + new for old, new in zip(theta, immediate, strict=True)],
        )

    noise = lambda key: random_signs(key, [jax.ShapeDtypeStruct((n + 1,), found.flat.dtype)])[0]
    influence = Influence(init, propagate, outer, noise=noise, forget=zeroed)
    return past_facing(found, structure, influence, block=1, direct=direct)
