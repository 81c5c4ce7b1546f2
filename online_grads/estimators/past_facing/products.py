"""The singular value decomposition of a sum of few products, Σ_l u_l ⊗ v_l.

Written out in array operations, because LAPACK's batched routines can wait for one another for ever
on XLA's CPU thread pool (two of them at once on two cores), and tiny ones are slow on accelerators.
"""

import jax
import jax.numpy as jnp

from online_grads.types import Array

SWEEPS = 6  # converged for the handful of products that are summed; an unconverged sum is still exact


def singular_products(u: Array, v: Array) -> tuple[Array, Array, Array]:
    """Σ_l u_l ⊗ v_l as Σ_i σ_i a_i ⊗ b_i with orthonormal a and b, or zero where σ_i is.

    Args:
        u: [m, rows].
        v: [m, columns].

    Returns:
        a [m, rows], σ [m] descending, b [m, columns].

    >>> u, v = jnp.array([[3.0, 0.0], [0.0, 1.0]]), jnp.array([[0.0, 1.0], [2.0, 0.0]])
    >>> singular_products(u, v)[1].tolist()
    [3.0, 2.0]
    """
    r_u, q_u = _orthonormal(u)
    r_v, q_v = _orthonormal(v)
    columns, turned = _orthogonal_columns(r_u.T @ r_v)
    sigma = jnp.linalg.norm(columns, axis=0)
    order = jnp.argsort(-sigma)
    sigma, columns, turned = sigma[order], columns[:, order], turned[:, order]
    a = (columns / jnp.where(sigma > 0, sigma, 1)[None]).T @ q_u
    return a, sigma, turned.T @ q_v


def _orthonormal(vectors: Array) -> tuple[Array, Array]:
    """(R, Q) with vectors = R Q, rows of Q orthonormal or zero; Gram-Schmidt, each row twice."""
    m, tiny = len(vectors), 4 * len(vectors) * jnp.finfo(vectors.dtype).eps

    def add_row(q, at):
        row, vector = at
        along = q @ vector
        left = vector - along @ q
        again = q @ left
        left = left - again @ q
        length = jnp.linalg.norm(left)
        # what is left of a dependent vector is rounding
        length = jnp.where(length > tiny * jnp.linalg.norm(vector), length, 0)
        unit = jnp.where(length > 0, left / jnp.where(length > 0, length, 1), 0)
        own = (jnp.arange(m) == row).astype(vectors.dtype)
        return jax.lax.dynamic_update_index_in_dim(q, unit, row, 0), along + again + own * length

    q, r = jax.lax.scan(add_row, jnp.zeros_like(vectors), (jnp.arange(m), vectors))
    return r, q


def _orthogonal_columns(matrix: Array) -> tuple[Array, Array]:
    """(C V, V) for a square C, V orthogonal such that the columns of C V are; one-sided Jacobi.

    Columns meet in the rounds of a round-robin tournament: the first and the last, the second and the last
    but one, and so on; then all but the first move on by one place, until they are where they began.
    """
    m = len(matrix)
    even = m + m % 2  # who meets the column of zeros has a rest
    half = even // 2

    def rotate(_, carry):
        x, y = carry[:, :half], carry[:, half:][:, ::-1]
        # of C alone: the rows below it are V, which turns along
        alpha, beta, gamma = (jnp.sum(p[:m] * q[:m], axis=0) for p, q in ((x, x), (y, y), (x, y)))
        zeta = (beta - alpha) / jnp.where(gamma == 0, 1, 2 * gamma)
        t = jnp.where(zeta < 0, -1, 1) / (jnp.abs(zeta) + jnp.sqrt(1 + zeta * zeta))
        t = jnp.where(gamma == 0, 0, t).astype(matrix.dtype)
        c = 1 / jnp.sqrt(1 + t * t)[None]
        s = c * t[None]
        x, y = c * x - s * y, (s * x + c * y)[:, ::-1]
        return jnp.concatenate([x[:, :1], y[:, -1:], x[:, 1:], y[:, :-1]], axis=1)

    start = jnp.concatenate([matrix, jnp.eye(m, dtype=matrix.dtype)])
    start = jnp.pad(start, ((0, 0), (0, even - m)))
    end = jax.lax.fori_loop(0, (SWEEPS if m > 2 else 1) * (even - 1), rotate, start)
    return end[:m, :m], end[m:, :m]
