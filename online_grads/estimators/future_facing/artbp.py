"""ARTBP: truncation at random, with weights that make it unbiased.

    X_t = 1 cuts between t and t+1, with probability c(a), a = steps since the last cut
    δ_t = q_t + [X_t = 0] δ_{t+1} J_{t+1} / (1 − c)          g = Σ δ_t ∂h_t/∂θ          q_t = ∂ℓ_t/∂h_t

Credit is carried back when a cut comes, through the steps since the one before: the transition's part of
the gradient is that late, and zero until then. `flush` gives what the steps since the last cut are owed.

    constant       c = cut                                          lengths have a geometric tail
    polynomial     c(a) = cut (α−1) / (α−2 + cut a)                 P(length ≥ m) ~ m^{1−α}

Both have the mean length 1/cut. Where J does not contract, the weights Π 1/(1−c) need the heavier tail.

Cost per step: one forward pass and, on average, one VJP (under vmap all streams wait for the one that
carries back the most steps); per segment the memory of `longest` pairs (h_{u-1}, x_u) and credits [n] is
moved by k slots. A cut is forced where the steps since the last one fill it: the only bias. Any
differentiable cell.

Reference: Tallec & Ollivier (2017), Unbiasing truncated backpropagation through time, arXiv:1705.08209,
equations 6 to 9.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from online_grads.analysis import analyse
from online_grads.arguments import above, positive_int, probability
from online_grads.estimators.future_facing import stored
from online_grads.estimators.future_facing.stored import Past
from online_grads.linearize import Leaves
from online_grads.numerics import wide
from online_grads.types import Array, Estimator, Model, PyTree


class ArtbpState(NamedTuple):
    """The carry of `artbp`."""

    hidden: PyTree  # h_t
    past: Past  # the last `longest` steps; `filled` of them came since the last cut
    credit: Array  # [longest, n]  q_u = ∂ℓ_u/∂h_u of these steps
    key: Array  # [] typed key of the cuts to come


def artbp(
    model: Model,
    *,
    longest: int = 100,
    cut: float = 0.1,
    alpha: float | None = None,
    allow_unused: bool = False,
) -> Estimator:
    """Truncated backpropagation that cuts at random and is unbiased.

        δ_t = q_t + [not cut] δ_{t+1} J_{t+1} / (1 − c)          g = Σ δ_t ∂h_t/∂θ

    Args:
        model: the model.
        longest: steps after which a cut is forced; the memory. With a constant `cut` one cut in
            (1 − cut)^-longest is forced; the polynomial schedule needs far more room.
        cut: one over the mean length between cuts, in [0, 1); the probability of a cut itself in the
            constant schedule. May be a tracer.
        alpha: above 2, the exponent of the polynomial schedule, P(length ≥ m) ~ m^(1−α); by default
            the schedule is constant. May be a tracer.
        allow_unused: accept parameters that nothing uses.

    Returns:
        An `Estimator`, late by the steps since the last cut, with a `flush`: k·grads summed plus flush
        is unbiased for the gradient of the summed loss while no cut is forced and θ is frozen.
        `info["cuts"]` counts a segment's cuts, `info["forced_cuts"]` those of them that the memory
        forced.

    Raises:
        ValueError: if longest is below 1, cut outside [0, 1), alpha not above 2, or the model does not
            fit together.

    >>> import jax, jax.numpy as jnp
    >>> from online_grads import cells, from_cell, losses, readouts
    >>> cell, readout = cells.gru(2, 4), readouts.linear(4, 1)
    >>> model = from_cell(cell, readout, losses.squared_error, example=(jnp.zeros(2), jnp.zeros(1)))
    >>> params, hidden = model.init(jax.random.key(0))
    >>> estimator = artbp(model, longest=4, cut=0.0)
    >>> state = estimator.init(params, hidden, key=jax.random.key(1))
    >>> state, estimate = estimator.update(state, params, jnp.ones((6, 2)), jnp.ones((6, 1)))
    >>> int(estimate.info["forced_cuts"])
    1

    Reference: Tallec & Ollivier (2017), arXiv:1705.08209.
    """
    positive_int("longest", longest)
    probability("cut", cut)
    if alpha is not None:
        above("alpha", alpha, 2)  # below, the mean length is infinite
    found = analyse(model, allow_unused=allow_unused)
    leaves = Leaves(found, forward=False)
    n, dtype = found.flat.size, found.flat.dtype
    exact = wide(dtype)  # half precision cannot tell probabilities apart

    def chance(age):
        """c, `age` steps after a cut."""
        rate = jnp.asarray(cut, exact)
        if alpha is None:
            return rate
        a = jnp.asarray(alpha, exact)
        return rate * (a - 1) / (a - 2 + rate * age.astype(exact))

    def init(params, hidden, *, key):
        found.check_start(params, hidden, key)
        return ArtbpState(hidden, stored.blank(found, longest), jnp.zeros((longest, n), dtype), key)

    def update(state, params, xs, ys):
        steps = stored.Steps(found, leaves, state.hidden, params, xs, ys)
        theta, k = steps.theta, steps.k
        key, key_segment = jax.random.split(state.key)
        # step j of the segment is in slot longest + j
        pairs = stored.appended(state.past, steps.pairs)
        credit = jnp.concatenate([state.credit, steps.seen.credit])

        def body(carry, step):
            age, grads = carry
            slot, draw, reset = step
            # at a reset credit ends by itself
            wanted = (draw < chance(age)) & (age > 0) & ~reset
            forced = (age == longest) & ~wanted & ~reset
            cut_here = wanted | forced | reset
            grads = settled(theta, pairs, credit, slot - 1, jnp.where(cut_here, age, 0), grads)
            return (jnp.where(cut_here, 0, age) + 1, grads), (wanted | forced, forced)

        slots = longest + jnp.arange(k, dtype=jnp.int32)
        draws = drawn(key_segment, steps.resets, exact)
        carry = state.past.filled, jax.tree.map(jnp.zeros_like, theta)
        (age, grads), marks = jax.lax.scan(body, carry, (slots, draws, steps.resets))
        cuts, forced = (jnp.sum(mark, dtype=jnp.int32) for mark in marks)
        estimate = steps.estimate(grads, {"cuts": cuts, "forced_cuts": forced})
        past = Past(jax.tree.map(lambda leaf: leaf[k:], pairs), age)
        return ArtbpState(steps.hidden, *tidied(past, credit[k:]), key), estimate

    def settled(theta, pairs, credit, newest, count, grads):
        """Adds what the `count` pending steps up to slot `newest` are owed."""

        def arriving(slot, later):
            age = slot + 1 - (newest + 1 - count)
            through = (later.astype(exact) / (1 - chance(age))).astype(dtype)
            return credit[slot] + jnp.where(slot == newest, 0, through)

        carry = grads, jnp.zeros(n, dtype)
        return stored.back_through(found, theta, pairs, newest, count, carry, arriving)[0]

    def tidied(past, credit):
        """Blank where nothing is pending, so that nothing of an episode survives its end."""
        if model.reset is None:
            return past, credit
        known = stored.known(past.filled, longest)
        pairs = stored.chosen(known, past.pairs, stored.blank(found, longest).pairs)
        return past._replace(pairs=pairs), stored.chosen(known, credit, jnp.zeros_like(credit))

    def flush(state, params):
        theta, past = found.theta(params), state.past
        grads, readout = jax.tree.map(jnp.zeros_like, (theta, found.readout(params)))
        grads = settled(theta, past.pairs, state.credit, longest - 1, past.filled, grads)
        state = state._replace(past=past._replace(filled=jnp.zeros_like(past.filled)))
        return state, found.gradient(grads, readout)

    return Estimator(init, update, flush)


def drawn(key: Array, resets: Array, dtype) -> Array:
    """[k] uniform numbers: after a segment's first reset those of a segment that begins with one."""
    position = jnp.arange(resets.shape[0], dtype=jnp.int32)
    begun = jax.lax.cummax(jnp.where(resets, position, 0))
    episode = jnp.cumsum(resets, dtype=jnp.int32)

    def draw(episode, position):
        key_step = jax.random.fold_in(jax.random.fold_in(key, episode), position)
        return jax.random.uniform(key_step, dtype=dtype)

    return jax.vmap(draw)(episode, position - begun)
