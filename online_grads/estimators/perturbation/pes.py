"""PES: persistent evolution strategies, with a new perturbation for every segment.

    ε^(τ)_i ~ N(0, σ²)          states h_i^± persist, under θ ± ε^(τ)_i in segment τ
    ξ_i = Σ_{τ ≤ now} ε^(τ)_i since the episode began
    g = 1/(2σ²N) Σ_i ξ_i (L_i⁺ − L_i⁻)          L the segment's mean loss

ξ is what the states have seen of the perturbations, so that nothing is truncated: at frozen θ the estimate is
unbiased for the gradient of the smoothed loss E L(θ + ε^(1), θ + ε^(2), …), in which every segment has an
ε of its own; for ∂L/∂θ itself where L is quadratic in the θ of all segments together. ξ is a random walk:
the variance grows with the episode.

Cost per step: 2N forward passes; per segment N p normal numbers, which on a CPU cost as much as some 50
steps of the particles: use segments of hundreds of steps. Memory N (2n + p), and N p more where `resample`
is not 1. Nothing is differentiated: any transition, any loss. σ must be well above the rounding of θ.

Reference: Vicol, Metz & Sohl-Dickstein (2021), Unbiased gradient estimation in unrolled computation graphs
with persistent evolution strategies, arXiv:2112.13835, algorithm 2.
"""

from online_grads.arguments import positive_int
from online_grads.estimators.perturbation.antithetic import persistent
from online_grads.types import Estimator, Model


def pes(
    model: Model,
    *,
    sigma: float = 0.1,
    particles: int = 32,
    resample: int = 1,
    allow_unused: bool = False,
) -> Estimator:
    """Evolution strategies whose particles persist and remember their perturbations.

        g = 1/(2σ²N) Σ_i ξ_i (L_i⁺ − L_i⁻)          ξ_i = Σ_τ ε^(τ)_i

    Args:
        model: the model; it need not be differentiable.
        sigma: σ > 0, may be a tracer.
        particles: 2N, an even number.
        resample: segments from one perturbation to the next. 1 is PES; from the episode's length on it is
            `es_single`.
        allow_unused: accept parameters that nothing uses.

    Returns:
        An `Estimator`; loss and outputs are means over the particles (an output that is no floating number
        is the first one's). A reset begins ξ anew.

    Raises:
        TypeError: sigma is no number, particles or resample no integer.
        ValueError: if sigma is not above 0, particles odd or below 2, resample below 1, or the model does
            not fit together.

    >>> import jax, jax.numpy as jnp
    >>> from online_grads import Model
    >>> steps = Model(  # rounded: its derivative is zero everywhere
    ...     init=lambda key: (jnp.float32(0.3), jnp.zeros((), jnp.int32)),
    ...     transition=lambda theta, h, x: h + jnp.round(10 * theta).astype(jnp.int32),
    ...     loss=lambda theta, h, y: (h.astype(jnp.float32), h),
    ...     example=(jnp.zeros(0), jnp.zeros(0)),
    ... )
    >>> estimator = pes(steps, particles=20_000)
    >>> params, hidden = steps.init(jax.random.key(0))
    >>> state = estimator.init(params, hidden, key=jax.random.key(0))
    >>> state, estimate = estimator.update(state, params, jnp.zeros((1, 0)), jnp.zeros((1, 0)))
    >>> bool(jnp.abs(estimate.grads - 10) < 0.5)
    True

    Reference: Vicol, Metz & Sohl-Dickstein (2021), arXiv:2112.13835.
    """
    positive_int("resample", resample)
    return persistent(model, sigma=sigma, particles=particles, resample=resample, allow_unused=allow_unused)
