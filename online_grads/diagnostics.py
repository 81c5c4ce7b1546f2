"""How good an estimator's gradient is, beside the exact one, at frozen parameters.

`estimates` and `exact` give the gradients of a stretch of a stream; one network on one stretch is a case,
and an estimator's noise is drawn many times for each. From these draws come its alignment with the exact
gradient, its bias and variance, the decrease of the loss by a step along it, and how far back credit reaches.

Reference: Marschall et al. (2020), arXiv:1907.02649, section 4.2 (alignments).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from online_grads.analysis import analyse
from online_grads.flat import flatten
from online_grads.stretches import Gradients, estimates, exact, observed
from online_grads.types import Array, Model, PyTree

__all__ = [
    "Credit",
    "Decrease",
    "Gradients",
    "Quality",
    "alignments",
    "credit",
    "decrease",
    "estimates",
    "exact",
    "leaf_slices",
    "observed",
    "quality",
    "through_state",
]

LEAST = 1e-10  # products of gradients below it count neither as agreement of signs nor as the opposite


class Quality(NamedTuple):
    """What draws tell about an estimator, over all cases; every field [groups] of parameters.

    With a case's draws g, their mean ḡ and variance v = E |g − ḡ|², the exact gradient e, sums over cases:

    * alignment: mean of ⟨g, e⟩ / (|g| |e|), 0 where g = 0; cases with e = 0 do not count;
      alignment_se: its standard error over these cases, nan for one.
    * bias: √(Σ (|ḡ − e|² − v/keys) / Σ |e|²), 0 if that is negative;
      noise: √(Σ v/keys / Σ |e|²), what the bias would show of noise if it were not corrected.
    * variance: Σ v / Σ |e|².
    * signal_to_noise: Σ (|ḡ|² − v/keys) / Σ v, inf without noise.
    * signs: share of the entries with |g e| > 1e-10 whose signs are the same.
    """

    alignment: np.ndarray
    alignment_se: np.ndarray
    bias: np.ndarray
    noise: np.ndarray
    variance: np.ndarray
    signal_to_noise: np.ndarray
    signs: np.ndarray


def quality(draws: np.ndarray, exact: np.ndarray, groups: Sequence = (slice(None),)) -> Quality:
    """What an estimator's draws are worth, for groups of parameters.

    Args:
        draws: [cases, keys, p]; one key where nothing is random, and there only: it shows no variance.
        exact: [cases, p].
        groups: indices into the p parameters, such as the slices of `leaf_slices`; by default all.

    Returns:
        A `Quality`. A group whose exact gradient is zero gives nan where it divides by it.

    >>> exact = np.array([[3.0, 4.0]])
    >>> found = quality(np.array([[[3.0, 5.0], [3.0, 3.0]]]), exact)
    >>> float(found.bias[0]), float(found.variance[0]), float(found.signs[0])
    (0.0, 0.08, 1.0)
    """
    draws, exact = np.asarray(draws, np.float64), np.asarray(exact, np.float64)
    with np.errstate(all="ignore"):  # 0/0 is the answer where there is no gradient
        return Quality(*np.array([_quality(draws[..., group], exact[:, group]) for group in groups]).T)


def _quality(g: np.ndarray, e: np.ndarray) -> tuple[float, ...]:
    keys, mean = g.shape[1], g.mean(axis=1)
    square = np.sum(e**2)
    variance = np.sum((g - mean[:, None]) ** 2) / max(keys - 1, 1)
    product = g * e[:, None]
    found, due = np.linalg.norm(g, axis=-1), np.linalg.norm(e, axis=-1)
    some = due != 0  # nan, too: a network that has diverged shows
    cosine = np.mean(product.sum(-1) / np.where(found == 0, 1, found), axis=1)[some] / due[some]
    counted = np.abs(product) > LEAST
    return (
        cosine.sum() / cosine.size,
        cosine.std(ddof=1) / math.sqrt(cosine.size) if cosine.size > 1 else math.nan,
        np.sqrt(np.maximum(np.sum((mean - e) ** 2) - variance / keys, 0) / square),
        np.sqrt(variance / keys / square),
        variance / square,
        np.maximum(np.sum(mean**2) - variance / keys, 0) / variance,
        np.sum(counted & (product > 0)) / np.sum(counted),
    )


class Decrease(NamedTuple):
    """What a step against an estimate is expected to take off the mean loss of the stretches; each [].

    Averages over estimates g:

    * first: η ⟨∇L, g⟩.
    * second: η ⟨∇L, g⟩ − ½ η² gᵀ ∇²L g.
    * best: the second at the best η ≥ 0, ⟨∇L, g⟩² / (2 gᵀ ∇²L g) with averages above and below; inf where
      it leads downhill and the loss does not curve up.
    """

    first: Array
    second: Array
    best: Array


def decrease(
    model: Model, params: PyTree, hidden: PyTree, xs: PyTree, ys: PyTree, draws: Array, rate: Array | float
) -> Decrease:
    """The expected decrease of a loss by a step against an estimated gradient.

        L(θ − η g) ≈ L − η ⟨∇L, g⟩ + ½ η² gᵀ ∇²L g

    Pure. L is the mean loss of all stretches, g an estimate from any one of them. An estimate that points
    well may be too noisy to be followed far, or point into a direction of high curvature: the alignment
    alone does not tell.

    Args:
        model: the model.
        params: θ of one network.
        hidden: the states before the stretches, after any warm-up, every leaf [stretches, ...].
        xs, ys: the stretches, [stretches, steps, ...].
        draws: estimates g [count, p], as in `Gradients`.
        rate: η.

    Returns:
        A `Decrease`.

    Raises:
        ValueError: if there is no stretch, no step in them, or no estimate.
    """
    stretches, steps = jax.tree.leaves((xs, ys))[0].shape[:2]
    if not (stretches and steps and len(draws)):
        raise ValueError(
            "a decrease needs at least one of each, got "
            f"stretches: {stretches}, steps: {steps}, estimates: {len(draws)}"
        )
    layout = flatten(params)
    vector = lambda tree: layout.split(tree)[0]
    rest = layout.split(params)[1]

    def mean_loss(theta):
        params = layout.join(theta, rest)

        def stretch(h, xs, ys):
            def step(h, xy):
                h = model.transition(params, h, xy[0])
                return h, model.loss(params, h, xy[1])[0]

            return jnp.mean(jax.lax.scan(step, h, (xs, ys))[1])

        return jnp.mean(jax.vmap(stretch)(hidden, xs, ys))

    def along(g):
        grad, product = jax.jvp(jax.grad(mean_loss), (theta,), (g,))
        return g @ grad, g @ product

    theta = vector(params)
    slope, curvature = jax.lax.map(along, draws)
    first, bend = jnp.mean(slope), jnp.mean(curvature)
    endless = jnp.where(first > 0, jnp.inf, 0 * first)  # downhill for ever, or not at all
    best = jnp.where(bend > 0, jnp.maximum(first, 0) ** 2 / (2 * bend), endless + 0 * bend)
    return Decrease(rate * first, rate * first - rate**2 * bend / 2, best)


def leaf_slices(params: PyTree) -> dict[str, slice]:
    """Where the leaves of params lie in a gradient vector, by their names.

    >>> leaf_slices({"b": np.zeros(2), "W": np.zeros((2, 3))})
    {'W': slice(0, 6, None), 'b': slice(6, 8, None)}
    """
    found, begin = {}, 0
    for path, leaf in jax.tree.leaves_with_path(params):
        end = begin + flatten(leaf).size
        found[jax.tree_util.keystr(path, simple=True, separator=".")] = slice(begin, end)
        begin = end
    return found


def through_state(model: Model) -> np.ndarray:
    """Which entries of a gradient vector belong to parameters that the transition uses, as indices.

    The others are the readout's, whose gradient needs no memory of the past.

    >>> import online_grads as og
    >>> cell, readout = og.cells.vanilla_rnn(3, 2), og.readouts.linear(2, 1)
    >>> model = og.from_cell(cell, readout, og.losses.squared_error, example=(jnp.zeros(3), jnp.zeros(1)))
    >>> len(through_state(model)), leaf_slices(model.init(jax.random.key(0))[0])["readout.W"]
    (12, slice(12, 14, None))
    """
    found = analyse(model, allow_unused=True)
    slices = [*leaf_slices(found.params).values()]
    return np.concatenate([np.r_[slices[number]] for number in found.moving])


def alignments(draws: Sequence[np.ndarray]) -> np.ndarray:
    """The mean cosine of each estimate with each other one, all noise independent.

    Args:
        draws: [cases, keys, p] of each of E estimators, of one key where nothing is random; the exact
            gradient may be one of them. Cases in which the first is zero do not count; a draw of 0 counts
            as alignment 0.

    Returns:
        [E, E]; on the diagonal the alignment of two independent draws of the same estimator.

    >>> draws = np.array([[[1.0, 0.0], [0.0, 1.0]]])
    >>> alignments([np.array([[[1.0, 0.0]]]), draws]).tolist()
    [[1.0, 0.5], [0.5, 0.0]]
    """

    def direction(g):
        length = np.linalg.norm(g, axis=-1, keepdims=True)
        return np.mean(g / np.where(length > 0, length, 1), axis=1)

    counted = np.any(draws[0], axis=(1, 2))
    units = np.stack([direction(g) for g in draws])[:, counted]
    with np.errstate(all="ignore"):  # nan where no case has a gradient
        matrix = np.einsum("acp,bcp->ab", units, units) / np.float64(units.shape[1])
    for i, g in enumerate(draws):
        if (keys := g.shape[1]) > 1:  # |Σ u|² counts each draw that is not zero with itself, too
            alone = np.any(g, axis=-1)[counted].mean()
            matrix[i, i] = (keys * matrix[i, i] - alone) / (keys - 1)
    return matrix


class Credit(NamedTuple):
    """How much of the gradient due to each lag is recovered; every field [lags].

    * fraction: ⟨ĉ, c⟩ / |c|², sums over cases; error: its standard error over cases, nan for one.
    * weight: |c|, as a share of the largest.
    """

    fraction: np.ndarray
    error: np.ndarray
    weight: np.ndarray


def credit(found: np.ndarray, due: np.ndarray) -> Credit:
    """How far back an estimator's credit reaches.

    Args:
        found: [cases, lags, p], what it gives to each lag: the mean of `Gradients.by_lag` over its keys.
        due: [cases, lags, p], what the exact gradient gives.

    Returns:
        A `Credit`; nan where nothing is due.

    >>> due = np.array([[[2.0, 0.0], [1.0, 1.0]]])
    >>> credit(np.array([[[2.0, 5.0], [0.0, 1.0]]]), due).fraction.tolist()
    [1.0, 0.5]
    """
    product, square = np.sum(found * due, axis=-1), np.sum(due**2, axis=-1)  # [cases, lags]
    cases, total = len(due), square.sum(axis=0)
    with np.errstate(all="ignore"):
        fraction = product.sum(axis=0) / total
        spread = np.sum((product - fraction * square) ** 2, axis=0) * cases / np.float64(cases - 1)
        error = np.sqrt(spread) / total
    size = np.sqrt(total)
    return Credit(fraction, error, size / max(size.max(), np.finfo(float).tiny))
