"""ES-Single, or NRES: one perturbation for a whole episode.

    ε_i ~ N(0, σ²), drawn when an episode begins          states h_i^± persist, under θ ± ε_i
    g = 1/(2σ²N) Σ_i ε_i (L_i⁺ − L_i⁻)          L the segment's mean loss

PES with the perturbation kept: unbiased at frozen θ for the gradient of the smoothed loss E L(θ + ε), and its
variance does not grow along the episode. On a quadratic L it is unbiased for ∂L/∂θ itself, and N pairs have
the total variance (p + 1)/N ‖∂L/∂θ‖², p the entries of θ. Without resets the one perturbation is never drawn
anew: what is learned moves along N directions only. Episodes that begin in one segment share theirs.

Cost per step: 2N forward passes and, per episode, N p normal numbers; memory N (2n + p). Nothing is
differentiated: any transition, any loss. σ must be well above the rounding of θ.

Reference: Vicol (2023), Low-variance gradient estimation in unrolled computation graphs with ES-Single,
arXiv:2304.11153; Li et al. (2023), Variance-reduced gradient estimation via noise-reuse in online evolution
strategies, arXiv:2304.12180 (NRES).
"""

from online_grads.estimators.perturbation.antithetic import persistent
from online_grads.types import Estimator, Model


def es_single(
    model: Model, *, sigma: float = 0.1, particles: int = 32, allow_unused: bool = False
) -> Estimator:
    """Evolution strategies with one perturbation per particle pair and episode; also called `nres`.

        g = 1/(2σ²N) Σ_i ε_i (L_i⁺ − L_i⁻)

    Args:
        model: the model; it need not be differentiable. `with_resets` says where an episode ends and new
            perturbations are drawn.
        sigma: σ > 0, may be a tracer.
        particles: 2N, an even number.
        allow_unused: accept parameters that nothing uses.

    Returns:
        An `Estimator`; loss and outputs are means over the particles (an output that is no floating number
        is the first one's).

    Raises:
        TypeError: sigma is no number, particles no integer.
        ValueError: if sigma is not above 0, particles odd or below 2, or the model does not fit together.

    >>> import jax, jax.numpy as jnp
    >>> from online_grads import cells, from_cell, losses, readouts
    >>> cell, readout = cells.gru(2, 4), readouts.linear(4, 1)
    >>> model = from_cell(cell, readout, losses.squared_error, example=(jnp.zeros(2), jnp.zeros(1)))
    >>> params, hidden = model.init(jax.random.key(0))
    >>> state = es_single(model, particles=6).init(params, hidden, key=jax.random.key(1))
    >>> state.members.shape, state.hidden.shape
    ((6, 4), (4,))

    Reference: Vicol (2023), arXiv:2304.11153; Li et al. (2023), arXiv:2304.12180.
    """
    return persistent(model, sigma=sigma, particles=particles, resample=None, allow_unused=allow_unused)


nres = es_single
