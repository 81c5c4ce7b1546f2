"""ARTBP: truncation at random, with weights that make it unbiased.

    X_t = 1 cuts between t and t+1, with probability c(a), a = steps since the last cut
    δ_t = q_t + [X_t = 0] δ_{t+1} J_{t+1} / (1 − c)          g = Σ δ_t ∂h_t/∂θ          q_t = ∂ℓ_t/∂h_t

Credit is carried back when a cut comes, through the steps since the one before: the transition's part of
the gradient is that late, and zero until then. `flush` gives what the steps since the last cut are owed.

    constant       c = cut                                          lengths have a geometric tail
    polynomial     c(a) = cut (α−1) / (α−2 + cut a)                 P(length ≥ m) ~ m^{1−α}

Both have the mean length 1/cut. Where J does not contract, the weights Π 1/(1−c) need the heavier tail.

Cost per step: one forward pass and, on average, one VJP; memory `longest` pairs (h_{u-1}, x_u) and
credits [n]. A cut is forced where the steps since the last one fill that memory: the only bias. Any
differentiable cell. (Under vmap all streams wait for the one that carries back the most steps.)

Reference: Tallec & Ollivier (2017), Unbiasing truncated backpropagation through time, arXiv:1705.08209,
equations 6 to 9.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from online_grads.analysis import analyse
from online_grads.arguments import above, positive_int, probability
from online_grads.estimators.future_facing import past as stored
from online_grads.linearize import Leaves, Segment
from online_grads.types import Array, Estimate, Estimator, Model, PyTree


class Pending(NamedTuple):
    """The steps since the last cut, from slot 0 on."""

    pairs: PyTree  # (h_{u-1}, x_u), [longest, ...]
    credit: Array  # [longest, n]  q_u = ∂ℓ_u/∂h_u
    age: Array  # [] int32, how many there are


class ArtbpState(NamedTuple):
    """The carry of `artbp`."""

    hidden: PyTree  # h_t
    pending: Pending
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
        longest: steps after which a cut is forced; the memory. With a constant `cut` one step in
            (1 − cut)^-longest is forced, about; the polynomial schedule needs far more room.
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
    dtype = found.flat.dtype

    def chance(age):
        """c, `age` steps after a cut."""
        rate = jnp.asarray(cut, dtype)
        if alpha is None:
            return rate
        a = jnp.asarray(alpha, dtype)
        return rate * (a - 1) / (a - 2 + rate * age.astype(dtype))

    def init(params, hidden, *, key):
        found.check_start(params, hidden, key)
        pairs = stored.blank(found, longest).pairs
        credit = jnp.zeros((longest, found.flat.size), dtype)
        return ArtbpState(hidden, Pending(pairs, credit, jnp.zeros((), jnp.int32)), key)

    def update(state, params, xs, ys):
        k = found.check_segment(xs, ys)
        theta, readout = found.theta(params), found.readout(params)
        segment = Segment(leaves, theta, *found.flat.split(state.hidden), xs, k)
        seen = segment.observe(found, readout, ys)
        resets = found.resets(xs, k)
        key, key_segment = jax.random.split(state.key)
        draws = jax.vmap(lambda key: jax.random.uniform(key, dtype=dtype))(numbered(key_segment, resets))

        def body(carry, step):
            pending, grads = carry
            pair, credit, reset, draw = step
            wanted = (draw < chance(pending.age)) & (pending.age > 0)
            # past a reset there is no credit to lose
            full = (pending.age == longest) & ~wanted & ~reset
            now = wanted | full | reset
            grads = settled(theta, pending, jnp.where(now, pending.age, 0), grads)
            age = jnp.where(now, 0, pending.age)
            put = lambda leaf, one: leaf.at[age].set(one)
            pending = Pending(
                jax.tree.map(put, pending.pairs, pair),
                put(pending.credit, credit),
                (age + 1).astype(jnp.int32),
            )
            return (pending, grads), (wanted | full, full)

        pairs = stored.pairs_of(found, segment, resets)
        carry = state.pending, jax.tree.map(jnp.zeros_like, theta)
        (pending, grads), marks = jax.lax.scan(body, carry, (pairs, seen.credit, resets, draws))
        mean = lambda tree: jax.tree.map(lambda leaf: leaf / k, tree)
        cuts, forced = (jnp.sum(mark, dtype=jnp.int32) for mark in marks)
        info = {"cuts": cuts, "forced_cuts": forced}
        grads = found.gradient(mean(grads), mean(seen.readout))
        state = ArtbpState(found.flat.join(*segment.end), tidied(pending), key)
        return state, Estimate(grads, seen.loss / k, seen.outputs, info)

    def settled(theta, pending, count, grads):
        """Adds what the first `count` pending steps are owed."""

        def arriving(slot, credit):
            through = jnp.where(slot == count - 1, 0, credit / (1 - chance(slot + 1)))
            return pending.credit[slot] + through

        carry = grads, jnp.zeros(found.flat.size, dtype)
        return stored.back_through(found, theta, pending.pairs, count - 1, count, carry, arriving)[0]

    def tidied(pending):
        """Zeros where nothing is pending, so that the carry is a function of what is."""
        known = jnp.arange(longest, dtype=jnp.int32) < pending.age
        nothing = stored.blank(found, longest).pairs, jnp.zeros_like(pending.credit)
        return Pending(*stored.chosen(known, tuple(pending[:2]), nothing), pending.age)

    def flush(state, params):
        theta = found.theta(params)
        pending = state.pending
        grads = settled(theta, pending, pending.age, jax.tree.map(jnp.zeros_like, theta))
        grads = found.gradient(grads, jax.tree.map(jnp.zeros_like, found.readout(params)))
        return state._replace(pending=tidied(pending._replace(age=jnp.zeros_like(pending.age)))), grads

    return Estimator(init, update, flush)


def numbered(key: Array, resets: Array) -> Array:
    """[k] keys: after a segment's first reset those of a segment that begins with one."""
    position = jnp.arange(resets.shape[0], dtype=jnp.int32)
    begun = jax.lax.cummax(jnp.where(resets, position, -1))
    episode = jnp.cumsum(resets, dtype=jnp.int32)
    place = position - jnp.maximum(begun, 0)
    return jax.vmap(lambda e, p: jax.random.fold_in(jax.random.fold_in(key, e), p))(episode, place)
