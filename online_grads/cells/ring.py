"""Complex decays inside the unit circle, as two real vectors that gradient descent cannot drive out of it.

    λ = exp(−exp(ν) + i exp(θ))          |λ| = exp(−exp(ν)) < 1

At first λ is uniform in area on the ring r_min ≤ |λ| ≤ r_max, with a phase uniform in [0, max_phase].

Reference: Orvieto et al. (2023), Resurrecting recurrent neural networks for long sequences,
arXiv:2303.06349, lemma 3.2.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from online_grads.arguments import above, in_order, not_negative
from online_grads.types import Array


def ring(r_min: float, r_max: float, max_phase: float) -> Callable:
    """A function (key, size, dtype) -> {"nu_log": ν [size], "theta_log": θ [size]} that draws on a ring.

    Raises:
        TypeError, ValueError: not 0 ≤ r_min ≤ r_max ≤ 1 with r_max above 0, or the phase is not in (0, 2π].

    >>> re, im = decays(**ring(0.9, 0.99, 0.1)(jax.random.key(0), 50, jnp.float32))
    >>> bool(((0.9 < jnp.hypot(re, im)) & (jnp.hypot(re, im) < 0.99) & (im > 0)).all())
    True
    """
    not_negative("r_min", r_min)
    above("r_max", r_max, 0, 1)
    in_order(r_min=r_min, r_max=r_max)
    above("max_phase", max_phase, 0, math.tau)

    def draw(key, size, dtype):
        key_radius, key_phase = jax.random.split(key)
        # the draws are rounded after the logarithms; |λ| of 0 or 1 and a phase of 0 would stay so forever
        wide = dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32
        least = float(jnp.finfo(wide).eps)
        squares = jax.random.uniform(key_radius, (size,), wide, float(r_min) ** 2, float(r_max) ** 2)
        phases = jax.random.uniform(key_phase, (size,), wide, maxval=float(max_phase))
        nu = -jnp.log(jnp.clip(squares, least, 1 - least)) / 2
        logs = {"nu_log": jnp.log(nu), "theta_log": jnp.log(jnp.maximum(phases, least))}
        return jax.tree.map(lambda log: log.astype(dtype), logs)

    return draw


def decays(nu_log: Array, theta_log: Array) -> tuple[Array, Array]:
    """(Re λ, Im λ)."""
    radius, phase = jnp.exp(-jnp.exp(nu_log)), jnp.exp(theta_log)
    return radius * jnp.cos(phase), radius * jnp.sin(phase)


def normaliser(nu_log: Array) -> Array:
    """√(1 − |λ|²): scaled by it, a white input leaves a state of the same variance for every |λ|."""
    return jnp.sqrt(-jnp.expm1(-2 * jnp.exp(nu_log)))
