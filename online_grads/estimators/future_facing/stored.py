"""What credit needs to go back through earlier steps: the stored pairs (h_{u-1}, x_u).

    h_u = f(θ, h_{u-1}, x_u)          c_{u-1} = c_u J_u          g += c_u ∂h_u/∂θ

The steps are taken anew at the stored pairs with the present θ, so that nothing of size p is stored.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from online_grads.analysis import Analysis
from online_grads.linearize import Leaves, Segment
from online_grads.types import Array, Estimate, PyTree


class Past(NamedTuple):
    """The latest steps, at the end of the axis; the slots before them are blank."""

    pairs: PyTree  # (h_{u-1}, x_u), [T, ...], oldest first
    filled: Array  # [] int32, how many steps are known


def blank(found: Analysis, length: int) -> Past:
    """No step known yet."""
    zeros = lambda shape: jnp.zeros((length, *shape.shape), shape.dtype)
    return Past(jax.tree.map(zeros, (found.hidden, found.x)), jnp.zeros((), jnp.int32))


def capacity(past: Past) -> int:
    """T, the number of slots."""
    return jax.tree.leaves(past.pairs)[0].shape[0]


def known(filled: Array, length: int) -> Array:
    """[length] bool, which slots hold one of the `filled` latest steps."""
    return jnp.arange(length, dtype=jnp.int32) >= length - filled


def chosen(when: Array, these: PyTree, others: PyTree) -> PyTree:
    """`these` [T, ...] where `when` [T], `others` (of a shape that fits) elsewhere."""
    where = lambda one, other: jnp.where(when.reshape(-1, *[1] * (jnp.ndim(one) - 1)), one, other)
    return jax.tree.map(where, these, others)


class Steps:
    """The k steps of a segment, followed from a hidden state: what every future-facing estimator begins with.

    Attributes:
        k: how many.
        theta: the transition's leaves.
        segment: the steps, linearised.
        seen: their losses, `seen.credit` [k, n] being q_t = ∂ℓ_t/∂h_t.
        resets: [k] bool, which of them begin anew.
        pairs: (h_{t-1}, x_t), [k, ...]; blank states where a reset replaces them.
        hidden: h_t after the last.
    """

    def __init__(self, found: Analysis, leaves: Leaves, hidden, params, xs, ys, credit_of=None, remat=False):
        """`credit_of` as in `Segment.observe`, `remat` as in `Segment`."""
        self.k = found.check_segment(xs, ys)
        self.theta = found.theta(params)
        h, rest = found.flat.split(hidden)
        self.segment = Segment(leaves, self.theta, h, rest, xs, self.k, remat=remat)
        self.seen = self.segment.observe(found, found.readout(params), ys, credit_of)
        self.resets = found.resets(xs, self.k)
        before = jax.vmap(found.flat.join)(*self.segment.before)
        self.pairs = chosen(~self.resets, before, blank(found, 1).pairs[0]), xs
        self.hidden = found.flat.join(*self.segment.end)
        self._found = found

    def estimate(self, grads: list[Array], info: dict | None = None) -> Estimate:
        """From the transition's part of the gradient of the summed loss."""
        mean = lambda tree: jax.tree.map(lambda leaf: leaf / self.k, tree)
        gradient = self._found.gradient(mean(grads), mean(self.seen.readout))
        return Estimate(gradient, self.seen.loss / self.k, self.seen.outputs, info or {})


def appended(past: Past, pairs: PyTree) -> PyTree:
    """The stored pairs followed by [k, ...] new ones, [T + k, ...]."""
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), past.pairs, pairs)


def remembered(found: Analysis, past: Past, pairs: PyTree, resets: Array) -> Past:
    """The past after k more pairs; what lies before the last reset is forgotten."""
    k, length = resets.shape[0], capacity(past)
    since = k - jnp.max(jnp.where(resets, jnp.arange(k, dtype=jnp.int32), 0))
    filled = jnp.minimum(jnp.where(jnp.any(resets), since, past.filled + k), length).astype(jnp.int32)
    moved = Past(jax.tree.map(lambda leaf: leaf[k:], appended(past, pairs)), filled)
    return moved._replace(pairs=chosen(known(filled, length), moved.pairs, blank(found, length).pairs))


def back_through(
    found: Analysis,
    theta: list[Array],
    pairs: PyTree,
    newest: Array | int,
    count: Array | int,
    carry: tuple,
    arriving: Callable = lambda slot, credit: credit,
    reached: Callable = lambda lag, grads, more: jax.tree.map(jnp.add, grads, more),
):
    """Carry credit back through `count` stored steps from slot `newest` on.

    Args:
        found: the analysed model.
        theta: the transition's leaves.
        pairs: (h_{u-1}, x_u), [T, ...].
        newest: the slot of the latest step.
        count: how many steps, dynamic: what is not walked through is not read.
        carry: (grads, credit [n] for the state after the latest step).
        arriving: (slot, credit) -> credit with what the state after that step is owed besides.
        reached: (lag, grads, the step's own gradients) -> grads.

    Returns:
        (grads, credit [n] for the state before the earliest of these steps).
    """

    def body(lag, carry):
        grads, credit = carry
        slot = newest - lag
        hidden, x = jax.tree.map(lambda leaf: leaf[slot], pairs)
        h, rest = found.flat.split(hidden)
        _, pull = jax.vjp(lambda theta, h: found.transition(theta, h, rest, x)[0], theta, h)
        more, credit = pull(arriving(slot, credit))
        return reached(lag, grads, more), credit

    return jax.lax.fori_loop(0, count, body, carry)


def transitions(found: Analysis, theta: list[Array], pairs: PyTree, h: Array | None = None) -> Array:
    """h_u [k, n] of k steps from their pairs (h_{u-1}, x_u) [k, ...], or from other h_{u-1} [k, n]."""
    hidden, x = pairs
    own, rest = jax.vmap(found.flat.split)(hidden)
    move = lambda h, rest, x: found.transition(theta, h, rest, x)[0]
    return jax.vmap(move)(own if h is None else h, rest, x)


def immediate(found: Analysis, theta: list[Array], pairs: PyTree, credit: Array) -> list[Array]:
    """Σ_u credit_u ∂h_u/∂θ at fixed h_{u-1}, for k steps at once, credit [k, n]."""
    _, pull = jax.vjp(lambda theta: transitions(found, theta, pairs), theta)
    return pull(credit)[0]
