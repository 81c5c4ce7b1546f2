"""F-BPTT: at every step the gradient of one earlier use of θ, with the credit of all that followed.

    c = Σ_{u=t-T+1..t} q_u J_u … J_{t-T+2}         credit of h_{t-T+1}, from the T latest losses
    g_t = c ∂h_{t-T+1}/∂θ  +  ∂ℓ_t/∂θ at fixed h_t          q_u = ∂ℓ_u/∂h_u

The first part is T−1 steps late: it is the gradient of the use of θ at step t-T+1, and losses later than
step t no longer count for it. `flush` gives what the last T−1 uses are owed.

Cost per step: one forward pass, T−1 VJPs in the hidden state and one in θ, no Jacobian; the k credits of
a segment go back together. Memory: T−1 pairs (h_{u-1}, x_u) and credits [n]. Truncated: with θ frozen, in
the long run it is sliding truncation at T steps. Any differentiable cell.

Reference: Marschall, Cho & Savin (2020), A unified framework of online learning algorithms for training
recurrent neural networks, arXiv:1907.02649, section 3.3 (future-facing BPTT).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from online_grads.analysis import analyse
from online_grads.arguments import positive_int
from online_grads.estimators.future_facing import stored
from online_grads.estimators.future_facing.stored import Past
from online_grads.linearize import Leaves
from online_grads.types import Array, Estimator, Model, PyTree


class FbpttState(NamedTuple):
    """The carry of `fbptt`."""

    hidden: PyTree  # h_t
    past: Past  # the last T−1 steps: uses of θ whose credit is still to come
    credit: Array  # [T−1, n]  q_u = ∂ℓ_u/∂h_u of these steps


def fbptt(model: Model, *, horizon: int = 10, allow_unused: bool = False) -> Estimator:
    """The gradient of the use of θ that lies `horizon − 1` steps back, with all credit since.

        g_t = (Σ_{u=t-T+1..t} q_u J_u … J_{t-T+2}) ∂h_{t-T+1}/∂θ

    Args:
        model: the model.
        horizon: T, how many losses give credit to a use of θ; at 1 it is `tbptt` step by step.
        allow_unused: accept parameters that nothing uses.

    Returns:
        An `Estimator`, T−1 steps late: its first T−1 gradients hold the readout's part alone, and `flush`
        gives the rest, k·grads summed plus flush being the gradient of the summed loss. Exact if no
        stream is longer than T.

    Raises:
        ValueError: if horizon is below 1, or the model does not fit together.

    >>> import jax, jax.numpy as jnp
    >>> from online_grads import cells, from_cell, gradient, losses, readouts, tbptt
    >>> cell, readout = cells.gru(2, 4), readouts.linear(4, 1)
    >>> model = from_cell(cell, readout, losses.squared_error, example=(jnp.zeros(2), jnp.zeros(1)))
    >>> given = *model.init(jax.random.key(0)), jnp.ones((6, 2)), jnp.ones((6, 1))
    >>> online = gradient(fbptt(model, horizon=6), *given, key=jax.random.key(1))
    >>> whole = gradient(tbptt(model), *given, key=jax.random.key(1), window=6)
    >>> jax.tree.all(jax.tree.map(lambda a, b: jnp.allclose(a, b, atol=1e-6), online, whole))
    True

    Reference: Marschall et al. (2020), arXiv:1907.02649.
    """
    late = positive_int("horizon", horizon) - 1
    found = analyse(model, allow_unused=allow_unused)
    leaves = Leaves(found, forward=False)

    def init(params, hidden, *, key):
        found.check_start(params, hidden, key)
        credit = jnp.zeros((late, found.flat.size), found.flat.dtype)
        return FbpttState(hidden, stored.blank(found, late), credit)

    def update(state, params, xs, ys):
        steps = stored.Steps(found, leaves, state.hidden, params, xs, ys)
        theta, k = steps.theta, steps.k
        pairs = stored.appended(state.past, steps.pairs)
        owed = jnp.concatenate([state.credit, steps.seen.credit])
        # the k uses that leave are slots 0 … k−1, each with the credit of the T−1 slots after it
        back = passed_back(theta, pairs, owed, k)
        # unrolled, for a step of a small network takes no longer than a turn of the loop
        credit = jax.lax.fori_loop(0, late, back, owed[late:], unroll=4)
        filled = state.past.filled + k
        known = stored.known(filled, late + k)[:k]
        # a blank slot may not even be differentiable: the first step stands in for it
        first = jax.tree.map(lambda leaf: leaf[None, late], pairs)
        leaving = stored.chosen(known, jax.tree.map(lambda leaf: leaf[:k], pairs), first)
        grads = stored.immediate(found, theta, leaving, jnp.where(known[:, None], credit, 0))
        past = Past(jax.tree.map(lambda leaf: leaf[k:], pairs), jnp.minimum(filled, late))
        return FbpttState(steps.hidden, past, owed[k:]), steps.estimate(grads)

    def passed_back(theta, pairs, owed, k):
        """One step back for k credits at once: from the states after slots j … j+k to those before."""

        def body(lag, credit):
            slots = lambda leaf, first: jax.lax.dynamic_slice_in_dim(leaf, first, k)
            first = late - lag
            at = jax.tree.map(lambda leaf: slots(leaf, first), pairs)
            h, _ = jax.vmap(found.flat.split)(at[0])
            _, pull = jax.vjp(lambda h: stored.transitions(found, theta, at, h), h)
            return slots(owed, first - 1) + pull(credit)[0]

        return body

    def flush(state, params):
        theta = found.theta(params)
        grads, readout = jax.tree.map(jnp.zeros_like, (theta, found.readout(params)))
        if late:
            arriving = lambda slot, credit: credit + state.credit[slot]
            carry = grads, jnp.zeros(found.flat.size, found.flat.dtype)
            grads, _ = stored.back_through(
                found, theta, state.past.pairs, late - 1, state.past.filled, carry, arriving
            )
        settled = state._replace(past=state.past._replace(filled=jnp.zeros_like(state.past.filled)))
        return settled, found.gradient(grads, readout)

    return Estimator(init, update, flush)
