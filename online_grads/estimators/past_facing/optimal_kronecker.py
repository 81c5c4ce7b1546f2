"""Optimal Kronecker sum: per drive r products, reduced from r+1 with the least variance possible.

    M_t ≈ Σ_{l=1…r} u_l ⊗ B_l,   E[Σ u_l ⊗ B_l] = M_t          u_l [pre], B_l [n, post]

Every step has r + 1 products, (u_l, J_t B_l) and (v_t, D_t). As a sum of orthogonal ones it is
Σ_i σ_i a_i ⊗ b_i, σ₁ ≥ σ₂ ≥ … ≥ σ_{r+1}; of these r are made:

    K   the fewest with (r − K) σ_{K+1} ≤ s = Σ_{i>K} σ_i        these K are kept as they are
    z_i = √(1 − (r − K) σ_i/s),  i > K;   Z an orthonormal basis of z^⊥;   signs ε_i ~ {±1}
    Φ   = blockdiag(√σ_1 … √σ_K,  √(s/(r − K)) diag(ε) Z)        [r+1, r],  E[Φ Φᵀ] = diag(σ)
    u'_l = Σ_i Φ_il a_i,    B'_l = Σ_i Φ_il b_i
    g_t = Σ_l u_l (∂ℓ_t/∂h_{t-1} B_l) + ∂ℓ_t/∂w at fixed h_{t-1}

Cost per step: r products J B, O(r n² post), and the orthogonal sum, O(r² n post); memory
r (n·post + pre). Unbiased with frozen parameters, and exact where r ≥ pre. Weights that are
added to no product (gains, decays) are carried exactly. Any cell.

Reference: Benzing, Gauy, Mujika, Martinsson & Steger (2019), Optimal Kronecker-sum approximation of
real time recurrent learning, arXiv:1902.03993, Algorithms 1 and 2.
"""

from typing import NamedTuple

import jax.numpy as jnp

from online_grads.arguments import positive_int
from online_grads.estimators.past_facing.factored import DriveRule, factored
from online_grads.estimators.past_facing.products import singular_products
from online_grads.numerics import widened
from online_grads.types import Array, Estimator, Model


class KroneckerSum(NamedTuple):
    """One drive's influence, Σ_l u_l ⊗ B_l."""

    u: Array  # [r, pre]
    B: Array  # [r, n, post]


def optimal_kronecker(
    model: Model, *, rank: int = 1, direct: bool = True, allow_unused: bool = False
) -> Estimator:
    """An unbiased gradient from r Kronecker products per drive, the best that r products allow.

        M_t ≈ Σ_{l=1…r} u_l ⊗ B_l,   from (u_l, J_t B_l) and (v_t, D_t) with the least variance

    Args:
        model: the model.
        rank: r, at least 1; from the size of a drive's presynaptic vector, [h; x; 1], on it is exact, to
            the last bits from one more. No drive carries more products than that.
        direct: exact direct part (default), or the papers' form that reads the moved influence.
        allow_unused: accept parameters that nothing uses.

    Returns:
        An `Estimator`, unbiased while the parameters are frozen. A segment is scanned step by step.

    Raises:
        ValueError: if rank is below 1, a weight that is added to no product is too large to be carried
            exactly, or the model does not fit together.

    >>> import jax, jax.numpy as jnp
    >>> from online_grads import cells, from_cell, gradient, losses, readouts, rtrl
    >>> cell, readout = cells.vanilla_rnn(2, 4), readouts.linear(4, 1)
    >>> model = from_cell(cell, readout, losses.squared_error, example=(jnp.zeros(2), jnp.zeros(1)))
    >>> xs, ys = jax.random.normal(jax.random.key(2), (12, 2)), jnp.ones((12, 1))
    >>> given = *model.init(jax.random.key(0)), xs, ys
    >>> exact = gradient(rtrl(model), *given, key=jax.random.key(1))
    >>> for rank in (4, 7):
    ...     got = gradient(optimal_kronecker(model, rank=rank), *given, key=jax.random.key(1))
    ...     close = map(lambda a, b: jnp.allclose(a, b, atol=1e-4), *map(jax.tree.leaves, (got, exact)))
    ...     print(rank, all(close))
    4 False
    7 True

    Reference: Benzing et al. (2019), arXiv:1902.03993, Algorithms 1 and 2.
    """
    rank = positive_int("rank", rank)
    kept = lambda pre: min(rank, pre + 1)
    return factored(
        model,
        DriveRule(
            lambda n, post, pre, dtype: KroneckerSum(
                jnp.zeros((kept(pre), pre), dtype), jnp.zeros((kept(pre), n, post), dtype)
            ),
            move,
            lambda factors, credit: factors.u.T @ jnp.tensordot(credit, factors.B, ((0,), (1,))),
            signs=lambda n, post, pre: (kept(pre) + 1,),
        ),
        direct=direct,
        allow_unused=allow_unused,
    )


def move(factors: KroneckerSum, transfer: Array, delta: Array, presynaptic: Array, signs: Array):
    """One step with signs ε [r+1]."""
    pushed = jnp.einsum("mn,rnp->rmp", transfer, factors.B)
    u = jnp.concatenate([factors.u, presynaptic[None]])
    B = jnp.concatenate([pushed, delta[None]])
    u, flat = fewer_products(u, B.reshape(len(B), -1), signs)
    return KroneckerSum(u, flat.reshape(factors.B.shape))


def fewer_products(u: Array, v: Array, signs: Array) -> tuple[Array, Array]:
    """From r+1 products u_l ⊗ v_l to r, unbiased and with the least variance.

    Args:
        u: [r+1, a].
        v: [r+1, b].
        signs: [r+1], ±1.

    Returns:
        The new factors, [r, a] and [r, b].
    """
    # what is rounding and what a small product, half precision cannot tell
    a, sigma, b = singular_products(widened(u), widened(v))
    phi = _mixing(sigma, signs.astype(sigma.dtype))
    return (phi.T @ a).astype(u.dtype), (phi.T @ b).astype(v.dtype)


def _mixing(sigma: Array, signs: Array) -> Array:
    """Φ [r+1, r] with E[Φ Φᵀ] = diag(σ), σ descending."""
    r, every = sigma.size - 1, jnp.arange(sigma.size)
    left = (r - every).astype(sigma.dtype)  # products to mix into, if K = every
    tails = jnp.cumsum(sigma[::-1])[::-1]
    # K = r − 1 always fulfils the condition, so that at least two products are mixed
    K = jnp.argmax((left * sigma <= tails).at[r - 1].set(True))
    tail, mixed = tails[K], every >= K
    share = left[K] * sigma / jnp.where(tail > 0, tail, 1)
    z = jnp.where(mixed, jnp.sqrt(jnp.clip(1 - share, 0, None)), 0)
    # the Householder reflection that takes e_K to z; its other columns are a basis of z^⊥
    u = jnp.where(tail > 0, z, 0) - (every == K).astype(sigma.dtype)
    reflection = jnp.eye(r + 1, dtype=sigma.dtype) - 2 * jnp.outer(u, u) / (u @ u)
    columns = jnp.where(every >= K, every + 1, every)[:r]
    scale = jnp.where(mixed, jnp.sqrt(tail / left[K]) * signs, jnp.sqrt(sigma))
    return scale[:, None] * reflection[:, columns]
