"""ES: evolution strategies on truncated segments.

    ε_i ~ N(0, σ²) for every segment; all particles start it from the state h of θ itself
    g = 1/(2σ²N) Σ_i ε_i (L_i⁺ − L_i⁻)          L the segment's mean loss

The plain estimate, with the bias of truncation: what θ did to h before the segment is not seen. For
comparison with `pes` and `es_single`.

Cost per step: 2N + 1 forward passes and, per segment, N p normal numbers; memory n between segments.
Nothing is differentiated: any transition, any loss.

Reference: Metz et al. (2019), Understanding and correcting pathologies in the training of learned
optimizers, arXiv:1810.10180; Vicol et al. (2021), arXiv:2112.13835, algorithm 1.
"""

from typing import NamedTuple

import jax

from online_grads.analysis import analyse
from online_grads.arguments import above
from online_grads.estimators.perturbation import antithetic
from online_grads.types import Array, Estimate, Estimator, Model, PyTree


class EsState(NamedTuple):
    """The carry of `es`."""

    hidden: PyTree  # h_t under θ itself
    key: Array  # [] typed key of the perturbations to come


def es(model: Model, *, sigma: float = 0.1, particles: int = 32, allow_unused: bool = False) -> Estimator:
    """Evolution strategies within a segment.

        g = 1/(2σ²N) Σ_i ε_i (L_i⁺ − L_i⁻)

    Args:
        model: the model; it need not be differentiable.
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
    >>> estimator = es(model, sigma=0.01, particles=8)
    >>> state = estimator.init(params, hidden, key=jax.random.key(1))
    >>> state, estimate = estimator.update(state, params, jnp.ones((6, 2)), jnp.ones((6, 1)))
    >>> estimate.outputs.shape
    (6, 1)

    Reference: Metz et al. (2019), arXiv:1810.10180.
    """
    above("sigma", sigma, 0)
    pairs = antithetic.pairs_of(particles)
    found = analyse(model, allow_unused=allow_unused)

    def init(params, hidden, *, key):
        found.check_start(params, hidden, key)
        return EsState(hidden, key)

    def update(state, params, xs, ys):
        k = found.check_segment(xs, ys)
        key, key_epsilon = jax.random.split(state.key)
        epsilon = antithetic.drawn(key_epsilon, found, pairs, sigma)
        members = antithetic.copies(state.hidden, 2 * pairs)
        _, seen = antithetic.run(found, params, (epsilon, None), members, xs, ys, k, None)
        grads = antithetic.contracted([epsilon], seen, sigma, k, params)
        move = lambda h, x: (model.transition(params, h, x), None)
        hidden, _ = jax.lax.scan(move, state.hidden, xs, k)
        return EsState(hidden, key), Estimate(grads, seen.loss, seen.outputs, {})

    return Estimator(init, update)
