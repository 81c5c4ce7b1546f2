"""OSTL, online spatio-temporal learning: an influence per layer, and credit that comes down within a step.

A stack moves all its layers in one step. What a parameter did in the past reaches the loss along its own
layer, or through another one; the second kind is left out:

    M⁽ˡ⁾_t = J⁽ˡ⁾_t M⁽ˡ⁾_{t-1} + ∂h⁽ˡ⁾_t/∂θ            other layers held, at t and at t − 1
    q⁽ˡ⁾_t = ∂ℓ_t/∂h⁽ˡ⁾_t + Σ_{m ≠ l} q⁽ᵐ⁾_t ∂h⁽ᵐ⁾_t/∂h⁽ˡ⁾_t
    g_t = Σ_l q⁽ˡ⁾_t M⁽ˡ⁾_t + ∂ℓ_t/∂θ at fixed h

∂h⁽ᵐ⁾_t/∂h⁽ˡ⁾_t is taken at fixed h_{t-1} and through the layer m alone. What keeps M⁽ˡ⁾ is another estimator,
on the layer as a model of its own whose loss is q⁽ˡ⁾_t · h⁽ˡ⁾_t. So a method that is local, or cheap for one
layer only, serves a stack.

Cost per step: that of the estimator on each layer, and one backward pass through the step. With `rtrl`
Σ_l n_l² p_l in time and Σ_l n_l p_l in memory. Exact for one layer, and where only layers without memory
lie above the others, as a linear recurrence's output does; biased for a stack, even with `rtrl`.

Reference: Bohnstingl et al. (2020), Online spatio-temporal learning in deep neural networks,
arXiv:2007.12723; for stacks of diagonal recurrences: Zucchet et al. (2023), arXiv:2305.15947.
"""

import inspect
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from online_grads.analysis import analyse
from online_grads.arguments import unknown
from online_grads.estimators.future_facing.tbptt import tbptt
from online_grads.estimators.past_facing.rtrl import rtrl
from online_grads.layers import Given, Layer, layers_of
from online_grads.linearize import Leaves, Segment
from online_grads.numerics import like
from online_grads.types import Estimate, Estimator, Model, PyTree


class OstlState(NamedTuple):
    """The carry of `ostl`."""

    hidden: PyTree  # h_t
    layers: tuple  # the state of each trained layer's estimator, from the bottom to the top


def ostl(model: Model, *, within: str | Callable = rtrl, allow_unused: bool = False) -> Estimator:
    """Credit that goes back in time inside a layer, and from layer to layer within a step.

        g_t = Σ_l q⁽ˡ⁾_t M⁽ˡ⁾_t + ∂ℓ_t/∂θ          q⁽ˡ⁾_t the gradient of ℓ_t at fixed h_{t-1}

    A layer is a set of hidden leaves that feed back on one another, directly or through others; leaves
    that are integers or keys belong to none. A filter of a layer's output that has a memory is a layer
    too, and so is the output of an LRU or an eLSTM: in a stack of two LRUs they are the layers 1 and 3,
    with kept[0] and kept[2] for the recurrences. A layer must read another one's hidden leaf itself, as
    `cells.stack` does: what it reads of a lower layer's step before gets no credit.

    Args:
        model: the model.
        within: what estimates a layer's part, (model, allow_unused=True) -> `Estimator`, for instance
            `functools.partial(snap, order=2)`, or a name of the registry for its defaults. By name, what
            an estimator learns of its own (`kernl`, `dni`) is learned apart in each of `batched`'s
            streams; `functools.partial(kernl, axis_name="streams")` averages it.
        allow_unused: accept parameters that nothing uses.

    Returns:
        An `Estimator` whose state is an `OstlState`. `info` is that of the layers' estimators, a name
        followed by the layer's number among the trained ones, from the bottom.

    Raises:
        TypeError: if within is no constructor, or is not to be called so.
        ValueError: if within is no name of the registry, gives gradients late or refuses a layer; if a
            parameter of a layer would get no credit there although later losses owe it some; if a layer
            reads what a lower one's leaf was made from; if the hidden state has no differentiable entry,
            or the model does not fit together.

    >>> import jax, jax.numpy as jnp
    >>> from online_grads import cells, eprop, from_cell, losses, memory, readouts
    >>> cell, readout = cells.stack(cells.lstm(2, 8), cells.lstm(8, 8)), readouts.linear(8, 1)
    >>> model = from_cell(cell, readout, losses.squared_error, example=(jnp.zeros(2), jnp.zeros(1)))
    >>> given = jax.eval_shape(model.init, jax.random.key(0))
    >>> [memory(e, *given) for e in (rtrl(model), ostl(model), ostl(model, within=eprop))]
    [229640, 115216, 14864]

    Reference: Bohnstingl et al. (2020), arXiv:2007.12723.
    """
    found = analyse(model, allow_unused=allow_unused)
    if found.flat.size == 0:
        raise ValueError("the hidden state has no floating-point entry: there is no layer")
    whole = Leaves(found, forward=False)
    layers = layers_of(found)
    learning = [layer for layer in layers if layer.trained and layer.credited.size]
    estimators = [_estimator(layer, within) for layer in learning]

    def init(params, hidden, *, key):
        found.check_start(params, hidden, key)
        keys = jax.random.split(key, len(learning))
        states = [
            estimator.init(params, layer.hidden(hidden), key=key)
            for estimator, layer, key in zip(estimators, learning, keys, strict=True)
        ]
        return OstlState(hidden, tuple(states))

    def update(state, params, xs, ys):
        k = found.check_segment(xs, ys)
        theta, readout = found.theta(params), found.readout(params)
        segment = Segment(whole, theta, *found.flat.split(state.hidden), xs, k)
        seen = segment.observe(found, readout, ys)
        joined = jax.vmap(found.flat.join)
        given = Given(xs, joined(*segment.before), joined(segment.h, segment.rest))
        credits = seen.credit
        for layer in reversed(layers):
            if layer.pull is not None and layer.credited.size:
                own = credits[:, layer.entries]
                credits = credits + jax.vmap(layer.pull, in_axes=(None, 0, 0))(params, given, own)

        states, info = [], {}
        total = dict.fromkeys(found.moving)
        for number, (layer, estimator, carried) in enumerate(
            zip(learning, estimators, state.layers, strict=True)
        ):
            credit = credits[:, layer.entries[layer.credited]].astype(layer.model.example[1].dtype)
            carried = _placed(carried, layer.hidden(state.hidden))
            carried, estimate = estimator.update(carried, params, given, credit)
            states.append(carried)
            info |= {f"{name}[{number}]": value for name, value in estimate.info.items()}
            leaves = jax.tree.leaves(estimate.grads)
            for leaf in layer.trained:
                total[leaf] = leaves[leaf] if total[leaf] is None else total[leaf] + leaves[leaf]
        grads = [jnp.zeros_like(p) if g is None else g for p, g in zip(theta, total.values(), strict=True)]
        grads = found.gradient(grads, like([g / k for g in seen.readout], readout))
        state = OstlState(found.flat.join(*segment.end), tuple(states))
        return state, Estimate(grads, seen.loss / k, seen.outputs, info)

    return Estimator(init, update)


def _estimator(layer: Layer, within: str | Callable) -> Estimator:
    if not layer.recurrent:
        return tbptt(layer.model, allow_unused=True)  # without a past nothing is to be carried
    constructor = _constructor(within)
    try:
        inspect.signature(constructor).bind(layer.model, allow_unused=True)
    except TypeError as error:
        raise TypeError(f"within must serve as within(model, allow_unused=True): {error}") from error
    made = constructor(layer.model, allow_unused=True)
    if not isinstance(made, Estimator):
        raise TypeError(f"within must make an online_grads.Estimator, got {type(made).__name__}")
    if made.flush is not None:
        raise ValueError("within must give its gradients at once; this one owes some at the end of a stream")
    return made


def _constructor(within: str | Callable) -> Callable:
    if callable(within):
        return within
    from online_grads.estimators.registry import ESTIMATORS  # it lists this estimator too

    if not isinstance(within, str):
        got = "an Estimator" if isinstance(within, Estimator) else repr(within)
        raise TypeError(f"within must be a constructor such as rtrl, or a name, got {got}")
    if within not in ESTIMATORS:
        raise ValueError(unknown(f"estimator {within!r}", within, ESTIMATORS))
    return ESTIMATORS[within].constructor


def _placed(state: PyTree, hidden: list) -> PyTree:
    """An estimator's state at the hidden state of the stream: its own copy may be off by rounding."""
    return state._replace(hidden=hidden) if "hidden" in getattr(state, "_fields", ()) else state
