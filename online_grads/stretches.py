"""Gradients of a stretch of a stream at frozen parameters: an estimator's, and the exact one.

One network on one *stretch* of a stream is a case. An estimator first lives through `warmup` steps, in which
the hidden state and what it learns of its own settle. Then its memory of the past is cut by a reset that
leaves the hidden state as it is, and it estimates the gradient of

    L = (1/T) Σ_t ℓ_t          over the T steps of the stretch,

no further back than its first step: the gradient that `jax.grad` of the stretch has too. With many draws of
an estimator's noise for each case this gives its bias and its variance. With the last loss only, and the cut
put later and later, it tells how far back credit reaches.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from online_grads.arguments import positive_int
from online_grads.flat import flatten
from online_grads.learner import gradient_sum, segments
from online_grads.types import Array, Estimator, Model, PyTree


class Gradients(NamedTuple):
    """Gradients of one case as vectors, leaves of the parameters in tree order."""

    whole: Array  # [..., p] of the stretch's mean loss
    by_lag: Array  # [lags, ..., p] of the last loss: the part that is due to the use of θ lag steps before


class Observed(NamedTuple):
    """The hidden state of an observed model."""

    hidden: PyTree  # the model's own
    counted: Array  # [] bool: does this step's loss count?


def observed(model: Model) -> Model:
    """The model with inputs (x, cut, hidden, counted).

        h_t = transition(θ, cut_t ? hidden_t : h_{t-1}, x_t)          counted_t ? ℓ_t : 0

    With hidden_t = h_{t-1} a cut changes no state; it is a reset, so that estimators forget there.

    >>> import online_grads as og
    >>> cell, readout = og.cells.gru(3, 8), og.readouts.linear(8, 2)
    >>> example = (jnp.zeros(3), jnp.zeros(2))
    >>> model = og.from_cell(cell, readout, og.losses.squared_error, example=example)
    >>> [leaf.shape for leaf in observed(model).example[0]]
    [(3,), (), (8,), ()]
    """

    def init(key):
        params, hidden = model.init(key)
        return params, Observed(hidden, jnp.array(False))

    def transition(params, state, x):
        x, cut, begin, counted = x
        h = jax.tree.map(lambda b, h: jnp.where(cut, b, h), begin, state.hidden)
        return Observed(model.transition(params, h, x), counted)

    def loss(params, state, y):
        # whether a loss counts is part of the state, as a critic may take all of y for features
        value, outputs = model.loss(params, state.hidden, y)
        return jnp.where(state.counted, value, jnp.zeros_like(value)), outputs

    hidden = jax.eval_shape(model.init, jax.random.key(0))[1]
    x, y = model.example
    flag = jax.ShapeDtypeStruct((), jnp.bool_)
    reset = lambda x: x[1] if model.reset is None else x[1] | model.reset(x[0])
    return Model(init, transition, loss, ((x, flag, hidden, flag), y), reset)


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
        `Gradients` with whole [keys, p] and by_lag [lags, keys, p]. A critic (dni) counts the losses that it
        expects beyond the stretch, too, and its by_lag means nothing: it does not tell one loss from another.

    Raises:
        ValueError: the stream is not longer than the warm-up, has fewer steps than lags after it, the
            window does not divide these steps, or the estimator is not one of `observed(model)`.

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

    def start(step, key):
        """The estimator's state before a step."""
        h = jax.tree.map(lambda leaf: leaf[step], before)
        return estimator.init(params, Observed(h, jnp.array(False)), key=key)

    def begun(key):
        """The estimator's state before the stretch."""
        if estimator.flush is not None or warmup < window:
            return start(warmup, key)
        begin = warmup % window
        state = start(begin, key)
        never, always = (jnp.full(warmup - begin, value) for value in (False, True))
        x, h_tm1, y = part((xs, before, ys), begin, warmup)
        parts = segments((x, never, h_tm1, always), y, window)
        state, _ = jax.lax.scan(
            lambda state, xy: (estimator.update(state, params, *xy)[0], None), state, parts
        )
        return state

    try:
        jax.eval_shape(start, warmup, keys[0])
    except ValueError as error:
        raise ValueError(f"is the estimator one of observed(model)? {error}") from None
    states = jax.vmap(begun)(keys)
    x, h_tm1, y = part((xs, before, ys), warmup, None)

    def at(cut, counted):
        data = (x, jnp.arange(steps) == cut, h_tm1, counted), y
        drawn = lambda state: gradient_sum(estimator, state, params, *data, window=window)[0]
        return jax.vmap(lambda state: layout.split(drawn(state))[0])(states)

    return _gradients(at, steps, lags)


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

    def at(cut, counted):
        def loss(params):
            def step(h, xy):
                h = wrapped.transition(params, h, xy[0])
                return h, wrapped.loss(params, h, xy[1])[0]

            first = Observed(jax.tree.map(lambda leaf: leaf[0], h_tm1), jnp.array(False))
            data = (x, jnp.arange(steps) == cut, h_tm1, counted), y
            return jnp.sum(jax.lax.scan(step, first, data)[1])

        return layout.split(jax.grad(loss)(params))[0]

    return _gradients(at, steps, lags)


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


def _gradients(at: Callable, steps: int, lags: int) -> Gradients:
    """From `at`: (cut, counted [steps]) -> the gradient of the sum of counted losses back to step `cut`."""
    last = jnp.arange(steps) == steps - 1
    cuts = jnp.array([0, *range(steps - 1, steps - 1 - lags, -1)])
    counted = jnp.stack([jnp.ones(steps, bool), *[last] * lags])
    found = jax.lax.map(lambda each: at(*each), (cuts, counted))
    # credit that reaches back to a lag, less what reaches back one step less, with the same noise
    return Gradients(found[0] / steps, jnp.diff(found[1:], axis=0, prepend=jnp.zeros_like(found[:1])))
