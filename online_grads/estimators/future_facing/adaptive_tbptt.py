"""Adaptive truncation: as far back as a given relative bias asks for.

    φ_j = E‖q_t J_t … J_{t-j+1} ∂h_{t-j}/∂θ‖       what a loss says about the use of θ j steps before
    φ_j ≈ φ_L β^{j−L}  beyond the last lag seen, L   β from least squares of log φ_j on j in (L/2, L];
                                                    nothing, if φ has vanished before
    E(K) = Σ_{j>K} φ_j                              bounds the bias of keeping the lags 0 … K
    δ(K) = E(K) / (E‖g_K‖ − E(K))                   bounds the relative bias, g_K the truncated gradient

The truncation is the least K with δ(K) < `tolerance`, at most `longest`. Every so many updates one loss is
carried back through all stored steps, and running means of φ_j and ‖g_j‖ move towards what it shows.

Cost per step: that of `tbptt` with K steps of history, and `longest` VJPs once in `every` updates; memory
`longest` pairs (h_{u-1}, x_u), moved by k slots per segment. Truncated. The bound is on the bias of single
losses beside the size of their gradients: it holds for the mean gradient as far as gradients decay
geometrically in the end, and noise among them does not hide a mean that comes from far back. Any
differentiable cell.

Reference: Aicher, Foti & Fox (2019), Adaptively truncating backpropagation through time to control gradient
bias, arXiv:1905.07473, section 4. They bound ‖∂h/∂θ‖ by a constant; here φ is measured in θ itself.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from online_grads.analysis import analyse
from online_grads.arguments import above, positive_int
from online_grads.estimators.future_facing import stored
from online_grads.estimators.future_facing.stored import Past
from online_grads.estimators.future_facing.tbptt import truncated
from online_grads.linearize import Leaves
from online_grads.numerics import norm, wide
from online_grads.types import Array, Estimator, Model, PyTree

NEGLIGIBLE = 1e-20  # of the largest φ: what lies below is rounding, or no dependence at all


class Decay(NamedTuple):
    """What is learned about lags; it survives resets."""

    phi: Array  # [longest + 1]  φ_j
    size: Array  # [longest + 1]  ‖g_j‖, of the gradient with the lags 0 … j
    probes: Array  # [longest + 1] int32, how many saw this lag
    age: Array  # [] int32, updates since the last probe
    truncation: Array  # [] int32, K of the next segment


class AdaptiveTbpttState(NamedTuple):
    """The carry of `adaptive_tbptt`."""

    hidden: PyTree  # h_t
    past: Past  # the last `longest` + 1 steps
    learned: Decay


def adaptive_tbptt(
    model: Model,
    *,
    tolerance: float = 0.1,
    longest: int = 100,
    every: int = 10,
    rate: float = 0.1,
    axis_name: str | None = None,
    allow_unused: bool = False,
) -> Estimator:
    """Backpropagation through a segment and as many steps before it as a relative bias asks for.

        K = min {K: E(K) / (‖g_K‖ − E(K)) < tolerance}          E(K) = Σ_{j>K} φ_j

    Args:
        model: the model.
        tolerance: δ > 0, the relative bias to stay below; may be a tracer.
        longest: the most steps of history, and the memory.
        every: updates from probe to probe.
        rate: in (0, 1], with which the running means follow the probes; may be a tracer.
        axis_name: the axis under which streams are mapped (`batched`'s): what the probes show is averaged
            over it, so that all streams are truncated alike.
        allow_unused: accept parameters that nothing uses.

    Returns:
        An `Estimator`; `info["truncation"]` is K, the steps before the segment through which its credit
        flowed (`tbptt`'s history), and `info["relative_bias"]` the bound δ(K) now.

    Raises:
        ValueError: if tolerance is not above 0, rate outside (0, 1], longest or every below 1, or the model
            does not fit together.

    >>> import jax, jax.numpy as jnp
    >>> from online_grads import cells, from_cell, losses, readouts
    >>> cell, readout = cells.gru(2, 4), readouts.linear(4, 1)
    >>> model = from_cell(cell, readout, losses.squared_error, example=(jnp.zeros(2), jnp.zeros(1)))
    >>> params, hidden = model.init(jax.random.key(0))
    >>> estimator = adaptive_tbptt(model, tolerance=0.1, longest=20)
    >>> state = estimator.init(params, hidden, key=jax.random.key(1))
    >>> state, estimate = estimator.update(state, params, jnp.ones((6, 2)), jnp.ones((6, 1)))
    >>> int(estimate.info["truncation"])  # everything, as long as nothing is known
    20

    Reference: Aicher, Foti & Fox (2019), arXiv:1905.07473.
    """
    above("tolerance", tolerance, 0)
    above("rate", rate, 0, 1)
    positive_int("longest", longest)
    positive_int("every", every)
    found = analyse(model, allow_unused=allow_unused)
    leaves = Leaves(found, forward=False)
    dtype = wide(found.flat.dtype)

    def init(params, hidden, *, key):
        found.check_start(params, hidden, key)
        zeros, counts = jnp.zeros(longest + 1, dtype), jnp.zeros(longest + 1, jnp.int32)
        # due at once, and no truncation before anything is known
        start = Decay(zeros, zeros, counts, jnp.int32(every - 1), jnp.int32(longest))
        return AdaptiveTbpttState(hidden, stored.blank(found, longest + 1), start)

    def update(state, params, xs, ys):
        learned = state.learned
        steps = stored.Steps(found, leaves, state.hidden, params, xs, ys)
        grads = truncated(found, steps, state.past, learned.truncation)
        past = stored.remembered(found, state.past, steps.pairs, steps.resets)
        due = learned.age + 1 == every
        lags = jnp.where(due, past.filled, 0)
        phi, size = probed(steps.theta, past.pairs, lags, steps.seen.credit[-1])
        learned = followed(learned, phi, size, lags)
        bound = relative_bias(learned.phi, learned.size, learned.probes > 0)
        info = {"truncation": learned.truncation, "relative_bias": bound[learned.truncation]}
        age = jnp.where(due, 0, learned.age + 1)
        learned = learned._replace(age=age, truncation=shortest(bound))
        return AdaptiveTbpttState(steps.hidden, past, learned), steps.estimate(grads, info)

    def probed(theta, pairs, lags, credit):
        """(φ [longest + 1], ‖g‖ [longest + 1]) of the segment's last loss, at the first `lags` lags."""

        def reached(lag, carry, more):
            total, phi, size = carry
            total = jax.tree.map(jnp.add, total, more)
            put = lambda values, tree: values.at[lag].set(norm(tree).astype(dtype))
            return total, put(phi, more), put(size, total)

        zeros = jnp.zeros(longest + 1, dtype)
        carry = (jax.tree.map(jnp.zeros_like, theta), zeros, zeros), credit
        return stored.back_through(found, theta, pairs, longest, lags, carry, reached=reached)[0][1:]

    def followed(learned, phi, size, lags):
        """The running means, moved where a lag was seen."""
        seen = jnp.arange(longest + 1, dtype=jnp.int32) < lags
        seen &= jnp.all(jnp.isfinite(phi) & jnp.isfinite(size))  # one bad loss teaches nothing
        phi, size, weight = jnp.where(seen, phi, 0), jnp.where(seen, size, 0), seen.astype(dtype)
        if axis_name is not None:
            streams = jnp.maximum(jax.lax.psum(weight, axis_name), 1)
            phi, size = (jax.lax.psum(values, axis_name) / streams for values in (phi, size))
            weight = jax.lax.pmax(weight, axis_name)
        probes = learned.probes + weight.astype(jnp.int32)
        share = weight * jnp.maximum(jnp.asarray(rate, dtype), 1 / jnp.maximum(probes, 1).astype(dtype))
        move = lambda old, new: jnp.where(weight > 0, old + share * (new - old), old)
        return learned._replace(phi=move(learned.phi, phi), size=move(learned.size, size), probes=probes)

    def shortest(bound):
        enough = bound < jnp.asarray(tolerance, dtype)
        return jnp.where(jnp.any(enough), jnp.argmax(enough), longest).astype(jnp.int32)

    return Estimator(init, update)


def relative_bias(phi: Array, size: Array, seen: Array) -> Array:
    """δ(K) for K = 0 … T from φ_0 … φ_T and E‖g_0‖ … E‖g_T‖; infinite where nothing is guaranteed.

    `seen` says which lags are known; the others lie beyond.

    >>> import jax.numpy as jnp
    >>> decay = 0.5 ** jnp.arange(6.0)
    >>> bound = relative_bias(decay, jnp.cumsum(decay), jnp.arange(6) < 6)
    >>> [round(float(b), 3) for b in bound[:4]]  # 2^{-K-1} / (1 − 2^{-K})
    [inf, 0.5, 0.167, 0.071]
    """
    lags = jnp.arange(phi.shape[0], dtype=phi.dtype)
    counts = seen & (phi > NEGLIGIBLE * jnp.max(phi))
    last = jnp.max(jnp.where(counts, lags, 0))
    vanished = last < jnp.max(jnp.where(seen, lags, 0))
    used = counts & (lags > last // 2)
    log = jnp.where(used, jnp.log(jnp.where(used, phi, 1)), 0)
    mean = lambda values: jnp.sum(jnp.where(used, values, 0)) / jnp.maximum(jnp.sum(used, dtype=phi.dtype), 1)
    centred = jnp.where(used, lags - mean(lags), 0)
    spread = jnp.sum(jnp.square(centred))
    # from fewer than two lags nothing can be told
    beta = jnp.where(spread > 0, jnp.exp(jnp.sum(centred * log) / jnp.where(spread > 0, spread, 1)), jnp.inf)
    inside = jnp.where(beta < 1, beta, 0)
    decayed = jnp.sum(jnp.where(lags == last, phi, 0)) * inside ** jnp.maximum(lags + 1 - last, 1)
    tail = jnp.where(vanished, 0, jnp.where(beta < 1, decayed / (1 - inside), jnp.inf))
    # summed from the far end, where the terms are small
    beyond = jnp.cumsum(phi[::-1])[::-1] - phi + tail
    guaranteed = size - beyond
    return jnp.where(seen & (guaranteed > 0), beyond / jnp.where(guaranteed > 0, guaranteed, 1), jnp.inf)
