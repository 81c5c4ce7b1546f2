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

import jax
import jax.numpy as jnp

from online_grads.analysis import analyse
from online_grads.arguments import positive_int
from online_grads.types import Array, Estimate, Estimator, Model, PyTree


class TbpttState(NamedTuple):
    """The carry of `tbptt`."""

    hidden: PyTree  # h_t
    past: PyTree  # (h_{u-1}, x_u) of the last `history` steps, [history, ...], oldest first
    filled: Array  # [] int32, how many of them have been seen


def tbptt(model: Model, *, history: int = 0, allow_unused: bool = False) -> Estimator:
    """Backpropagation through a segment and `history` steps before it.

    Args:
        model: the model.
        history: earlier steps through which credit still flows, at the stored states.
        allow_unused: accept parameters that nothing uses.

    Returns:
        An `Estimator`; exact when the segment and its history reach back to the first step.

    Raises:
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
    found = analyse(model, allow_unused=allow_unused)
    reset_of = model.reset

    def init(params, hidden, *, key):
        found.check_start(params, hidden, key)
        return TbpttState(hidden, jax.tree.map(blank, (found.hidden, found.x)), jnp.zeros((), jnp.int32))

    def blank(shape):
        if jax.dtypes.issubdtype(shape.dtype, jax.dtypes.prng_key):
            return jnp.broadcast_to(
                jax.random.key(0, impl=jax.random.key_impl(shape)), (history, *shape.shape)
            )
        return jnp.zeros((history, *shape.shape), shape.dtype)

    def update(state, params, xs, ys):
        k = found.check_segment(xs, ys)
        theta, readout = found.theta(params), found.readout(params)
        h, rest = found.flat.split(state.hidden)

        def segment(theta, readout, h):
            def body(carry, x):
                moved = found.transition(theta, *carry, x)
                return moved, (carry, moved)

            end, (before, after) = jax.lax.scan(body, (h, rest), xs, k)
            losses, outputs = jax.vmap(found.loss, in_axes=(None, 0, 0, 0))(readout, *after, ys)
            return jnp.mean(losses), (end, before, outputs)

        loss, pull, (end, before, outputs) = jax.vjp(segment, theta, readout, h, has_aux=True)
        grads, readout_grads, credit = pull(jnp.ones_like(loss))
        past, filled = state.past, state.filled
        if history:
            resets = jnp.zeros(k, bool) if reset_of is None else jax.vmap(reset_of)(xs)
            # what lies before a reset gives no credit, and its numbers are not to be read
            filled = jnp.where(resets[0], 0, filled)
            here = (state.hidden, jax.tree.map(lambda leaf: leaf[0], xs))
            grads = further_back(params, kept(past, filled, here), filled, credit, grads)
            new = (jax.vmap(found.flat.join)(*before), xs)
            past = jax.tree.map(lambda *parts: jnp.concatenate(parts)[-history:], past, new)
            since = k - jnp.max(jnp.where(resets, jnp.arange(k, dtype=jnp.int32), 0))
            filled = jnp.minimum(jnp.where(jnp.any(resets), since, filled + k), history).astype(jnp.int32)
            past = kept(
                past, filled, jax.tree.map(lambda leaf: leaf[0], jax.tree.map(blank, (found.hidden, found.x)))
            )
        estimate = Estimate(found.gradient(grads, readout_grads), loss, outputs, {})
        return TbpttState(found.flat.join(*end), past, filled), estimate

    def kept(past, filled, other):
        """The stored pairs, the unfilled slots replaced by `other`."""
        known = slots(filled)
        choose = lambda stored, one: jnp.where(known.reshape(-1, *[1] * jnp.ndim(one)), stored, one[None])
        return jax.tree.map(choose, past, other)

    def slots(filled):
        return jnp.arange(history, dtype=jnp.int32) >= history - filled

    def further_back(params, past, filled, credit, grads):
        """Adds what credit reaches at the stored steps, newest first; unfilled slots add nothing."""
        theta = found.theta(params)

        def body(carry, stored):
            credit, grads = carry
            (hidden, x), known = stored
            h, rest = found.flat.split(hidden)
            _, pull = jax.vjp(lambda theta, h: found.transition(theta, h, rest, x)[0], theta, h)
            more, credit = pull(jnp.where(known, credit, jnp.zeros_like(credit)))
            return (credit, jax.tree.map(jnp.add, grads, more)), None

        return jax.lax.scan(body, (credit, grads), (past, slots(filled)), reverse=True)[0][1]

    return Estimator(init, update)
