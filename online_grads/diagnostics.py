"""How good an estimator's gradient is, beside the exact one, at frozen parameters.

One network on one *stretch* of a stream is a case. An estimator first lives through `warmup` steps, in which
the hidden state and what it learns of its own settle. Then its memory of the past is cut by a reset that
leaves the hidden state as it is, and it estimates the gradient of

    L = Σ_t w_t ℓ_t / Σ_t w_t          over the steps of the stretch,

no further back than its first step: the gradient that `jax.grad` of the stretch has too. With many draws of
an estimator's noise for each case this gives its bias and its variance. With w on the last loss only, and the
cut put later and later, it tells how far back credit reaches.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from online_grads.arguments import positive_int
from online_grads.flat import flatten
from online_grads.learner import gradient_sum, segments
from online_grads.types import Array, Estimator, Model, PyTree

LEAST = 1e-10  # products of gradients below it count neither as agreement of signs nor as the opposite


class Gradients(NamedTuple):
    """Gradients of one case as vectors, leaves of the parameters in tree order."""

    whole: Array  # [..., p] of the stretch's mean loss
    by_lag: Array  # [lags, ..., p] of the last loss: the part that is due to the use of θ lag steps before


class Quality(NamedTuple):
    """What draws tell about an estimator, over all cases; every field [groups] of parameters.

    With a case's draws g, their mean ḡ and the exact gradient e, and sums over cases:
    """

    alignment: np.ndarray  # mean of ⟨g, e⟩ / (|g| |e|), 0 where g = 0; cases with e = 0 do not count
    alignment_se: np.ndarray  # its standard error over these cases, nan for one
    bias: np.ndarray  # √(Σ (|ḡ − e|² − v/keys) / Σ |e|²), v = the draws' variance; 0 if that is negative
    noise: np.ndarray  # √(Σ v/keys / Σ |e|²): a bias below it is not told from 0
    variance: np.ndarray  # Σ v / Σ |e|²
    signal_to_noise: np.ndarray  # Σ (|ḡ|² − v/keys) / Σ v; inf without noise
    signs: np.ndarray  # share of the entries with |g e| > 1e-10 whose signs are the same


def observed(model: Model) -> Model:
    """The model with inputs (x, cut, hidden) and targets (y, weight).

        h_t = transition(θ, cut_t ? hidden_t : h_{t-1}, x_t)          w_t ℓ_t

    With hidden_t = h_{t-1} a cut changes no state; it is a reset, so that estimators forget there.

    >>> import online_grads as og
    >>> cell, readout = og.cells.gru(3, 8), og.readouts.linear(8, 2)
    >>> example = (jnp.zeros(3), jnp.zeros(2))
    >>> model = og.from_cell(cell, readout, og.losses.squared_error, example=example)
    >>> [leaf.shape for leaf in observed(model).example[0]]
    [(3,), (), (8,)]
    """

    def transition(params, hidden, x):
        x, cut, begin = x
        return model.transition(params, jax.tree.map(lambda b, h: jnp.where(cut, b, h), begin, hidden), x)

    def loss(params, hidden, y):
        y, weight = y
        value, outputs = model.loss(params, hidden, y)
        return weight.astype(value.dtype) * value, outputs

    params, hidden = jax.eval_shape(model.init, jax.random.key(0))
    x, y = model.example
    weight = jax.ShapeDtypeStruct((), flatten(params).dtype)
    reset = lambda x: x[1] if model.reset is None else x[1] | model.reset(x[0])
    example = ((x, jax.ShapeDtypeStruct((), jnp.bool_), hidden), (y, weight))
    return Model(model.init, transition, loss, example, reset)


def estimates(
    model: Model,
    estimator: Estimator,
    params: PyTree,
    hidden: PyTree,
    xs: PyTree,
    ys: PyTree,
    *,
    keys: Array,
    warmup: int = 0,
    window: int = 1,
    lags: int = 0,
) -> Gradients:
    """An estimator's gradients of one stretch.

    Pure: jit it, vmap it over networks and stretches.

    Args:
        model: the model.
        estimator: an estimator of `observed(model)`.
        params, hidden: θ, and the state before the first step.
        xs, ys: the stream, [warmup + steps, ...] with steps a multiple of the window.
        keys: typed keys [keys], one for each draw of the estimator's noise.
        warmup: steps before the stretch; whole windows of them count, the last ones. An estimator with a
            `flush` begins with the stretch, as its gradients would still owe to the warm-up.
        window: k, steps per segment.
        lags: how many lags to take apart, at most the steps. The readout's part is in lag 0.

    Returns:
        `Gradients` with whole [keys, p] and by_lag [lags, keys, p].

    Raises:
        ValueError: the stream is not longer than the warm-up, has fewer steps than lags after it, or the
            window does not divide these steps.

    >>> import online_grads as og
    >>> cell, readout = og.cells.gru(3, 4), og.readouts.linear(4, 2)
    >>> example = (jnp.zeros(3), jnp.zeros(2))
    >>> model = og.from_cell(cell, readout, og.losses.squared_error, example=example)
    >>> case = (*model.init(jax.random.key(0)), jnp.ones((30, 3)), jnp.ones((30, 2)))
    >>> found = estimates(model, og.rtrl(observed(model)), *case, keys=jax.random.split(jax.random.key(1), 1))
    >>> bool(jnp.allclose(found.whole[0], exact(model, *case).whole, atol=1e-6))
    True
    """
    warmup, steps = _lengths(ys, warmup, lags)
    before = _trajectory(model, params, hidden, xs)
    layout = flatten(params)
    part = lambda tree, begin, end: jax.tree.map(lambda leaf: leaf[begin:end], tree)
    first = lambda tree, at: jax.tree.map(lambda leaf: leaf[at], tree)

    def begun(key):
        """The estimator's state before the stretch."""
        if estimator.flush is not None or warmup < window:
            return estimator.init(params, first(before, warmup), key=key)
        begin = warmup % window
        state = estimator.init(params, first(before, begin), key=key)
        never, one = jnp.zeros(warmup - begin, bool), jnp.ones(warmup - begin, layout.dtype)
        x, h_tm1, y = part((xs, before, ys), begin, warmup)
        parts = segments((x, never, h_tm1), (y, one), window)
        return jax.lax.scan(lambda state, xy: (estimator.update(state, params, *xy)[0], None), state, parts)[
            0
        ]

    states = jax.vmap(begun)(keys)
    x, h_tm1, y = part((xs, before, ys), warmup, None)

    def at(cut, weights):
        data = (x, jnp.arange(steps) == cut, h_tm1), (y, weights)
        total = jax.vmap(lambda state: gradient_sum(estimator, state, params, *data, window=window)[0])(
            states
        )
        return jax.vmap(lambda tree: layout.split(tree)[0])(total)

    return _gradients(at, steps, lags, layout.dtype)


def exact(
    model: Model,
    params: PyTree,
    hidden: PyTree,
    xs: PyTree,
    ys: PyTree,
    *,
    warmup: int = 0,
    lags: int = 0,
) -> Gradients:
    """The exact gradients of one stretch, by `jax.grad`; arguments as in `estimates`.

    Returns:
        `Gradients` with whole [p] and by_lag [lags, p].
    """
    warmup, steps = _lengths(ys, warmup, lags)
    before = _trajectory(model, params, hidden, xs)
    x, h_tm1, y = jax.tree.map(lambda leaf: leaf[warmup:], (xs, before, ys))
    layout, wrapped = flatten(params), observed(model)

    def at(cut, weights):
        def loss(params):
            def step(h, xy):
                h = wrapped.transition(params, h, xy[0])
                return h, wrapped.loss(params, h, xy[1])[0]

            data = (x, jnp.arange(steps) == cut, h_tm1), (y, weights)
            return jnp.sum(jax.lax.scan(step, jax.tree.map(lambda leaf: leaf[0], h_tm1), data)[1])

        return layout.split(jax.grad(loss)(params))[0]

    return _gradients(at, steps, lags, layout.dtype)


def _lengths(ys: PyTree, warmup: int, lags: int) -> tuple[int, int]:
    """The steps of the warm-up and of the stretch."""
    warmup, least = positive_int("warmup", warmup, least=0), max(positive_int("lags", lags, least=0), 1)
    steps = jax.tree.leaves(ys)[0].shape[0] - warmup
    if steps < least:
        raise ValueError(f"after {warmup} steps of warm-up {least} or more are needed, got {steps}")
    return warmup, steps


def _trajectory(model: Model, params: PyTree, hidden: PyTree, xs: PyTree) -> PyTree:
    """h_{t-1} for every step."""
    return jax.lax.scan(lambda h, x: (model.transition(params, h, x), h), hidden, xs)[1]


def _gradients(at: Callable, steps: int, lags: int, dtype) -> Gradients:
    """From `at`: (cut, weights [steps]) -> the gradient of the weighted sum of losses back to step `cut`."""
    last = jnp.zeros(steps, dtype).at[-1].set(1)
    cuts = jnp.array([0, *range(steps - 1, steps - 1 - lags, -1)])
    weights = jnp.stack([jnp.full(steps, 1 / steps, dtype), *[last] * lags])
    found = jax.lax.map(lambda each: at(*each), (cuts, weights))
    # credit that reaches back to a lag, less what reaches back one step less, with the same noise
    return Gradients(found[0], jnp.diff(found[1:], axis=0, prepend=jnp.zeros_like(found[:1])))


def quality(draws: np.ndarray, exact: np.ndarray, groups: Sequence = (slice(None),)) -> Quality:
    """What an estimator's draws are worth, for groups of parameters.

    Args:
        draws: [cases, keys, p]; one key is enough where nothing is random.
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
    cosine = np.mean(product.sum(-1) / np.where(found == 0, 1, found), axis=1)[due > 0] / due[due > 0]
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
    """What a step along an estimate is expected to take off the mean loss of the stretches; each []."""

    first: Array  # η ⟨∇L, g⟩, averaged over estimates g
    second: Array  # η ⟨∇L, g⟩ − ½ η² gᵀ ∇²L g, averaged
    best: Array  # the second for the best η ≥ 0: ⟨∇L, g⟩² / (2 gᵀ ∇²L g), of averages; inf without curvature


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
        hidden: the states before the stretches, every leaf [stretches, ...].
        xs, ys: the stretches, [stretches, steps, ...].
        draws: estimates g [count, p], as in `Gradients`.
        rate: η.

    Returns:
        A `Decrease`.
    """
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
    best = jnp.where(bend > 0, jnp.maximum(first, 0) ** 2 / (2 * bend), jnp.inf)
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
