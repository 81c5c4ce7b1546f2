"""Truncated backpropagation through time, and full backpropagation on one long segment.

    g = ∂/∂θ (1/k) Σ_{t in segment} ℓ_t,  with credit cut `history` steps before the segment

    c_t = ∂ℓ_t/∂h_t + c_{t+1} J_{t+1}            within the segment
    c_u = c_{u+1} J_{u+1}                        over the history: stored h_{u-1}, x_u, current θ
    g   = Σ c_t ∂h_t/∂θ + Σ ∂ℓ_t/∂θ

`history=0` cuts at the segment's start; one segment over the whole stream is BPTT.
`history=T-1` with segments of one step is sliding truncation at T steps.

Cost: one forward and one backward pass of a step per step and per step of history; memory
O(n) per stored step. Exact within the window, biased beyond it. Any differentiable cell.

Reference: Williams & Peng (1990), An efficient gradient-based algorithm for on-line training of
recurrent network trajectories, BPTT(h; h').
"""

from typing import NamedTuple

import jax.numpy as jnp

from online_grads.analysis import Analysis, analyse
from online_grads.arguments import boolean, positive_int
from online_grads.estimators.future_facing import stored
from online_grads.estimators.future_facing.stored import Past
from online_grads.linearize import Leaves
from online_grads.types import Array, Estimator, Model, PyTree


class TbpttState(NamedTuple):
    """The carry of `tbptt`."""

    hidden: PyTree  # h_t
    past: Past  # the last `history` steps


def tbptt(model: Model, *, history: int = 0, remat: bool = False, allow_unused: bool = False) -> Estimator:
    """Backpropagation through a segment and `history` steps before it.

    Args:
        model: the model.
        history: earlier steps through which credit still flows, at the stored states.
        remat: take the segment's steps anew on the way back, in place of storing what they computed:
            on long segments a fraction of the memory for one more forward pass.
        allow_unused: accept parameters that nothing uses.

    Returns:
        An `Estimator`; exact when the segment and its history reach back to the first step.

    Raises:
        TypeError: if remat is not True or False.
        ValueError: if history is negative, or the model does not fit together.

    >>> import jax, jax.numpy as jnp
    >>> from online_grads import cells, from_cell, gradient, losses, readouts
    >>> cell, readout = cells.gru(2, 4), readouts.linear(4, 1)
    >>> model = from_cell(cell, readout, losses.squared_error, example=(jnp.zeros(2), jnp.zeros(1)))
    >>> params, hidden = model.init(jax.random.key(0))
    >>> stream = jnp.ones((6, 2)), jnp.ones((6, 1))
    >>> cut, whole = (
    ...     gradient(tbptt(model), params, hidden, *stream, key=jax.random.key(1), window=window)
    ...     for window in (1, 6)
    ... )
    >>> bool(jnp.allclose(cut["readout"]["W"], whole["readout"]["W"], atol=1e-6))
    True
    >>> jax.tree.all(jax.tree.map(lambda a, b: jnp.allclose(a, b), cut, whole))
    False

    Reference: Williams & Peng (1990).
    """
    positive_int("history", history, least=0)
    boolean("remat", remat)
    found = analyse(model, allow_unused=allow_unused)
    leaves = Leaves(found, forward=False)

    def init(params, hidden, *, key):
        found.check_start(params, hidden, key)
        return TbpttState(hidden, stored.blank(found, history))

    def update(state, params, xs, ys):
        steps = stored.Steps(found, leaves, state.hidden, params, xs, ys, remat=remat)
        grads = truncated(found, steps, state.past, history)
        past = stored.remembered(found, state.past, steps.pairs, steps.resets)
        return TbpttState(steps.hidden, past), steps.estimate(grads)

    return Estimator(init, update)


def truncated(found: Analysis, steps: stored.Steps, past: Past, history: Array | int) -> list[Array]:
    """The transition's gradient of the summed loss, through the segment and `history` steps at most."""
    grads, credit = steps.segment.pull(steps.seen.credit)
    if length := stored.capacity(past):
        # credit does not cross a reset, and what lies before it may not even be finite
        count = jnp.where(steps.resets[0], 0, jnp.minimum(history, past.filled))
        grads, _ = stored.back_through(found, steps.theta, past.pairs, length - 1, count, (grads, credit))
    return grads
