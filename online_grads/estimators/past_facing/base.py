"""The builder of past-facing estimators: what all of them share.

A past-facing estimator carries the influence M_t ≈ dh_t/dw of the weights on the present state.
Everything but the tensor structure of M is the same for all of them, and is here: the stepping,
the credit, the readout's exact gradient, resets, noise, and the mean over the segment. An
algorithm says, in an `Influence`, what its M looks like (`init`), how it moves over a block of
steps (`propagate`), and how a credit vector reads a gradient off it (`contract`).

Within a block of b steps from h_0 to h_b, with L the block's summed loss,

    direct       g = (∂L/∂h_0) M_0 + ∂L/∂w at fixed h_0,     then  M_b = Φ M_0 + ∂h_b/∂w
    not direct   M_t = J_t M_{t-1} + ∂h_t/∂w,                then  g = (∂ℓ_t/∂h_t) M_t      (b = 1)

The first form has an exact direct part: for an exact M both are the same number, for an unbiased
one its variance is far lower, and a block of b steps costs what backpropagation through it costs.

To add an estimator, write one file with an `Influence` and a constructor that calls `past_facing`,
and one row in the registry. This is RTRL for every model, without knowledge of its structure:

    def rtrl_of_leaves(model):
        found = analyse(model)                          # checks the model, lays it flat
        leaves, n = Leaves(found), found.flat.size      # gradients for parameters as they are

        def init(h, key):                               # M_0
            return [jnp.zeros((n, *w.shape), w.dtype) for w in leaves.weights]

        def propagate(influence, segment, noise):       # M_b from M_0
            transfer = jax.vmap(segment.push, out_axes=1)(jnp.eye(n))           # Φ
            immediate, _ = jax.vmap(segment.pull_end)(jnp.eye(n))               # ∂h_b/∂w
            return [jnp.tensordot(transfer, m, 1) + i for m, i in zip(influence, immediate)]

        def contract(influence, credit):                # credit · M
            return [jnp.tensordot(credit, m, 1) for m in influence]

        influence = Influence(init, propagate, contract, forget=zeroed)
        return past_facing(found, leaves, influence, block=None)

* A `Segment` gives `push` (JVP), `pull` and `pull_end` (VJP), `jacobians` (Φ and the factors of the
  immediate influence), the states and inputs of the block; only what is asked for is computed.
* `Weights(found, dense=False)` in place of `Leaves(found)` forms gradients for the effective
  weights, with their sites; `Patterns` and `SparseJacobian` then say and compute what reaches what.
  The Kronecker methods share `factored.py`, the methods with a mask `masked.py`.
* A stochastic method draws in `noise` only, so that a reset draws what a fresh stream would; it
  says in `forget` what does not hang on Φ. What it learns goes into a field called `learned`.
* The laws of tests/test_conformance.py hold for the row from then on.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from online_grads.analysis import Analysis
from online_grads.arguments import boolean
from online_grads.estimators.feedback import Feedback, credit_through, symmetric
from online_grads.linearize import Coordinates, Segment
from online_grads.numerics import like, widened
from online_grads.types import Array, Estimate, Estimator, PyTree


class Influence(NamedTuple):
    """What one past-facing algorithm says. Noise is what `noise` draws, None without it."""

    init: Callable  # (h_0 [n], key) -> influence
    propagate: Callable  # (influence, Segment, noise) -> influence
    contract: Callable  # (influence, credit [n]) -> gradients like the trained weights
    noise: Callable | None = None  # key -> noise of one block
    forget: Callable = lambda influence, noise: influence  # at a reset; learned parts stay
    info: Callable = lambda influence: {}  # influence -> Estimate.info
    exact: bool = False  # M is, so that both forms are one number: a single step then saves a copy of M


class PastFacingState(NamedTuple):
    """The carry of every past-facing estimator."""

    hidden: PyTree  # h_t
    influence: PyTree  # the algorithm's M_t
    key: Array  # [] typed key of the noise to come


def past_facing(
    found: Analysis,
    coordinates: Coordinates,
    influence: Influence,
    *,
    block: int | None,
    direct: bool = True,
    feedback: Feedback = symmetric,
    remat: bool = False,
) -> Estimator:
    """The estimator of an `Influence`.

    Args:
        found: the analysed model.
        coordinates: what gradients are formed for, `Leaves` or `Weights`.
        influence: the algorithm.
        block: steps that are composed into one, None for the whole segment. A longer segment is
            scanned in blocks, and a shorter last one.
        direct: which of the two forms above emits the gradient; False needs blocks of one step.
        feedback: how the loss's error reaches the hidden state; anything but `symmetric` needs
            direct=False, where every step's credit meets the influence.
        remat: take the steps of a block anew on the way back, in place of storing what they computed.

    Returns:
        An `Estimator` whose state is a `PastFacingState`.

    Raises:
        TypeError: if remat is not True or False.
        ValueError: if the hidden state has no differentiable entry, or the feedback finds no
            readout matrix.
    """
    boolean("remat", remat)
    if found.flat.size == 0:
        raise ValueError("the hidden state has no floating-point entry: no influence to carry")
    if not direct and block != 1:
        raise ValueError(f"direct=False reads the influence at every step: block must be 1, got {block}")
    reset_of = found.model.reset
    credit_of = credit_through(feedback, found)
    if direct and credit_of is not None:
        raise ValueError("direct=True is exact inside a block: it takes no feedback but symmetric")

    def init(params, hidden, *, key):
        found.check_start(params, hidden, key)
        key, key_start = jax.random.split(key)
        return PastFacingState(hidden, influence.init(found.flat.split(hidden)[0], key_start), key)

    def forget(carried, noise, when):
        fresh = influence.forget(carried, noise)
        return jax.tree.map(lambda new, old: jnp.where(when, new, old), fresh, carried)

    def update(state, params, xs, ys):
        k = found.check_segment(xs, ys)
        theta, readout = found.theta(params), found.readout(params)
        weights = coordinates.effective(theta)

        key, draw = state.key, None
        if influence.noise is not None:
            # one draw is all that a single block without resets asks for: counting would cost a hash
            several = reset_of is not None or (block is not None and k > block)
            key, draw = _draws(influence.noise, state.key, several=several)

        def advance(carry, segment_xs, segment_ys):
            """One block: the next carry, the loss and gradients of its steps, its outputs."""
            (h, rest), carried, (episode, blocks) = carry
            resets = None if reset_of is None else jax.vmap(reset_of)(segment_xs)
            if resets is not None:
                # after the segment's first reset the noise is that of a segment that begins with one
                begins = jnp.any(resets)
                episode, blocks = episode + begins.astype(jnp.int32), jnp.where(begins, 0, blocks)
            noise = None if draw is None else draw(episode, blocks)
            if resets is not None:
                carried = forget(carried, noise, resets[0])
            length = jax.tree.leaves((segment_xs, segment_ys))[0].shape[0]
            segment = Segment(coordinates, weights, h, rest, segment_xs, length, remat=remat)
            seen = segment.observe(found, readout, segment_ys, credit_of)
            early = direct and not (influence.exact and length == 1)
            if early:
                grads, credit = segment.pull(seen.credit)
                grads = jax.tree.map(jnp.add, grads, influence.contract(carried, credit))
            if resets is not None and resets.shape[0] > 1:
                carried = forget(carried, noise, jnp.any(resets[1:]))
            carried = influence.propagate(carried, segment, noise)
            if not early:
                grads = influence.contract(carried, seen.credit[0])
            sums = widened((seen.loss, grads, seen.readout))
            return (segment.end, carried, (episode, blocks + 1)), sums, seen.outputs

        counts = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
        carry = (found.flat.split(state.hidden), state.influence, counts)
        carry, (loss, grads, readout_grads), outputs = _in_blocks(advance, carry, xs, ys, k, block or k)
        mean = lambda tree, dtypes: like(jax.tree.map(lambda leaf: leaf / k, tree), dtypes)
        grads = coordinates.pullback(theta, mean(grads, weights[: coordinates.trained]))
        grads = found.gradient(grads, mean(readout_grads, readout))
        (h, rest), carried, _ = carry
        state = PastFacingState(found.flat.join(h, rest), carried, key)
        return state, Estimate(grads, loss / k, outputs, influence.info(carried))

    return Estimator(init, update)


def _draws(noise: Callable, key: Array, *, several: bool):
    """The next segment's key, and (episode, blocks) -> the noise of a block of this one."""
    key, key_segment = jax.random.split(key)
    if not several:
        return key, lambda *counts: noise(key_segment)
    # different for all counts whose product is below 2^30: multiples of the golden ratio lie far apart
    number = lambda episode, blocks: (
        blocks.astype(jnp.uint32) + jnp.uint32(0x9E3779B9) * episode.astype(jnp.uint32)
    )
    return key, lambda *counts: noise(jax.random.fold_in(key_segment, number(*counts)))


def zeroed(influence: PyTree, noise=None) -> PyTree:
    """The usual `forget`: all of the influence is past."""
    return jax.tree.map(jnp.zeros_like, influence)


def _in_blocks(advance, carry, xs, ys, k: int, block: int):
    """Run `advance` over k steps in blocks; sums what is summed, joins the outputs [k, ...]."""
    block = min(block, k)
    count, left = divmod(k, block)
    stream, whole = (xs, ys), count * block
    if count == 1:
        carry, sums, outputs = advance(carry, *jax.tree.map(lambda leaf: leaf[:whole], stream))
    else:
        blocks = jax.tree.map(lambda leaf: leaf[:whole].reshape(count, block, *leaf.shape[1:]), stream)
        one = jax.tree.map(lambda leaf: leaf[0], blocks)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(advance, carry, *one)[1])

        def body(carry_and_sums, block):
            carry, sums = carry_and_sums
            carry, more, outputs = advance(carry, *block)
            return (carry, jax.tree.map(jnp.add, sums, more)), outputs

        (carry, sums), outputs = jax.lax.scan(body, (carry, zeros), blocks)
        outputs = jax.tree.map(lambda leaf: leaf.reshape(whole, *leaf.shape[2:]), outputs)
    if left:
        carry, more, last = advance(carry, *jax.tree.map(lambda leaf: leaf[whole:], stream))
        sums = jax.tree.map(jnp.add, sums, more)
        outputs = jax.tree.map(lambda *parts: jnp.concatenate(parts), outputs, last)
    return carry, sums, outputs
