"""Temporal-difference prediction: learn to say the discounted sum of a signal that is still to come.

    G_t = Σ_{j≥0} γ^j c_{t+1+j}          v_t = readout(θ_o, output(h_t)) ≈ G_t
    δ_t = c_{t+1} + γ_{t+1} v(h') − v_t          h' = transition(θ, h_t, x_{t+1})

The target c + γ v(h') takes one more forward step inside the loss and nothing is differentiated through it.
∂v_t/∂θ goes through the whole past that an estimator sees. Two ways to learn from it:

    `td_model`       ℓ_t = ½ ρ_t δ_t²          TD(0): any estimator, segment and optimizer
    `value_model`    ℓ_t = v_t                 TD(λ): with `eligibility_traces` before the optimizer

    e_t = ρ_t (γ_t λ e_{t-1} + ∂v_t/∂θ)          θ ← θ + α δ_t e_t

A stream may have episodes, and a general value function its own γ_{t+1} and policy ratio ρ_t at every step:
y then tells them, see `TdTarget`. A termination and a truncation are two things:

    the episode terminates after step t: γ_{t+1} = 0, and nothing of the future counts
    it is cut off there: γ_{t+1} > 0, y.x is the observation that would have come, and v bootstraps from it

Either way the next step of the stream begins anew: its y has begins = True, its x the reset of
`with_resets(value_model(...), h₀)`. The look-ahead takes y.x without a reset.

References: Sutton (1988), Learning to predict by the methods of temporal differences, Machine Learning 3;
Sutton et al. (2011), Horde, AAMAS; Maei (2011), Gradient temporal-difference learning algorithms (ρ in the
trace).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from online_grads.analysis import shapes_of
from online_grads.arguments import fraction, probability
from online_grads.model import from_cell
from online_grads.numerics import like, widened
from online_grads.types import Array, Model, PyTree


class TdTarget(NamedTuple):
    """The y of a step t: what its prediction is learned from, and what it should be."""

    cumulant: Array  # [] c_{t+1}
    x: PyTree  # like x: x_{t+1}, also where the stream goes on with another episode
    value: Array  # [] G_t, for a score only: learning does not read it
    discount: Array | None = None  # [] γ_{t+1}, 0 at a termination; None: the model's
    ratio: Array | None = None  # [] ρ_t, target policy over behaviour; None: 1
    begins: Array | None = None  # [] bool, step t is the first of an episode; None: no step is
    action: Array | None = None  # [] int, a_t, for control


class TdOutputs(NamedTuple):
    """What the loss of `value_model` returns besides the value, for `eligibility_traces`."""

    value: Array  # [] v_t
    error: Array  # [] δ_t
    discount: Array  # [] γ_{t+1}
    ratio: Array  # [] ρ_t
    begins: Array  # [] bool


class TraceState(NamedTuple):
    """The carry of `eligibility_traces`."""

    traces: PyTree  # like params, of float32 or wider leaves: e_t
    discount: Array  # [] γ_{t+1}


def td_model(cell, readout, *, discount: float, example: tuple) -> Model:
    """A model that learns to predict a discounted sum by semi-gradient TD(0).

        δ_t = c_{t+1} + γ v(h') − v(h_t)          ℓ_t = ½ ρ_t δ_t²          ∂ℓ_t/∂θ = −ρ_t δ_t dv(h_t)/dθ

    The parameters are `{"cell": θ, "readout": θ_o}`; the loss's outputs are the predictions v(h_t) [].
    A step costs two forward steps. The perturbation family takes no derivative that could be held fixed: it
    follows the gradient of ½ δ² through the target too.

    Args:
        cell: a `Cell`, as `online_grads.cells` makes them.
        readout: an (init, apply) pair with one output, as `online_grads.readouts` makes them.
        discount: γ in [0, 1), for a y that tells none. May be a tracer.
        example: (x, y) of one step, arrays or `jax.ShapeDtypeStruct`, y a `TdTarget`.

    Returns:
        A `Model`.

    Raises:
        TypeError: y is not a `TdTarget`, or the discount not a number.
        ValueError: the discount is outside [0, 1); the cumulant or another number of y is not a scalar;
            y's x is unlike x; the readout does not have one output.

    >>> import jax, jax.numpy as jnp
    >>> from online_grads import cells, readouts, rtrl
    >>> example = (jnp.zeros(3), TdTarget(jnp.zeros(()), jnp.zeros(3), jnp.zeros(())))
    >>> model = td_model(cells.gru(3, 8), readouts.linear(8, 1), discount=0.9, example=example)
    >>> params, hidden = model.init(jax.random.key(0))
    >>> loss, prediction = model.loss(params, hidden, example[1])
    >>> loss.shape, prediction.shape
    ((), ())

    Reference: Sutton (1988).
    """

    def half_square(prediction, target, step, y):
        return step.ratio * (target - step.value) ** 2 / 2, step.value

    return predicting(cell, readout, half_square, discount, example)


def value_model(cell, readout, *, discount: float, example: tuple) -> Model:
    """A model whose loss is its prediction, so that an estimator's gradient is ∂v_t/∂θ: for TD(λ).

        ℓ_t = v_t = readout(θ_o, output(h_t))          δ_t = c_{t+1} + γ_{t+1} v(h') − v_t

    The parameters are `{"cell": θ, "readout": θ_o}`; the loss's outputs are `TdOutputs`. Nothing is to be
    minimised: `eligibility_traces` before the optimizer makes a step of TD(λ) of the gradient. That needs
    windows of one step and gradients in time: estimators that emit late (`fbptt`, `artbp`) meet another
    step's δ. A step costs two forward steps.

    Args:
        cell: a `Cell`, as `online_grads.cells` makes them.
        readout: an (init, apply) pair with one output, as `online_grads.readouts` makes them.
        discount: γ in [0, 1), for a y that tells none. May be a tracer.
        example: (x, y) of one step, arrays or `jax.ShapeDtypeStruct`, y a `TdTarget`.

    Returns:
        A `Model`.

    Raises:
        TypeError: y is not a `TdTarget`, or the discount not a number.
        ValueError: the discount is outside [0, 1); the cumulant or another number of y is not a scalar;
            y's x is unlike x; the readout does not have one output.

    >>> import jax, jax.numpy as jnp, optax
    >>> from online_grads import cells, learner, readouts, rtrl, scan
    >>> number, x = jnp.zeros(()), jnp.zeros(3)
    >>> model = value_model(
    ...     cells.gru(3, 8), readouts.linear(8, 1), discount=0.9, example=(x, TdTarget(number, x, number))
    ... )
    >>> online = learner(rtrl(model), optax.chain(eligibility_traces(0.9), optax.sgd(0.01)))
    >>> state = online.init(*model.init(jax.random.key(0)), key=jax.random.key(1))
    >>> rows = jnp.ones((5, 3))
    >>> state, metrics = scan(online, state, rows, TdTarget(jnp.ones(5), rows, jnp.zeros(5)))
    >>> metrics.outputs.error.shape
    (5, 1)

    Reference: Sutton (1988).
    """

    def value(prediction, target, step, y):
        return step.value, step._replace(error=target - step.value)

    return predicting(cell, readout, value, discount, example)


def eligibility_traces(trace_decay: float) -> optax.GradientTransformationExtraArgs:
    """TD(λ): gradients of predictions become gradients for any optimizer to descend.

        e_t = ρ_t (γ_t λ e_{t-1} + ∂v_t/∂θ)          emits −δ_t e_t

    `learner` hands over what the loss of `value_model` returned:
    `learner(rtrl(model), optax.chain(td.eligibility_traces(0.9), optax.sgd(α)))`. Decaying with γ_t, the
    step before's, the trace ends at a termination; a step that begins an episode forgets it in any case.
    With frozen parameters Σ_t δ_t e_t is that of the forward view, Σ_t ρ_t (G^λ_t − v_t) ∂v_t/∂θ, where

        G^λ_t = c_{t+1} + γ_{t+1} (v(h') + λ ρ_{t+1} (G^λ_{t+1} − v_{t+1}))

    and at the end of an episode λ = 0.

    Args:
        trace_decay: λ in [0, 1]. May be a tracer.

    Returns:
        An optax `GradientTransformationExtraArgs`. `optimizer.update(grads, state, params,
        outputs=estimate.outputs)` by hand; what wraps it must pass that on, as `optax.chain` does.

    Raises:
        TypeError: the decay is not a number. When traced: the outputs are not those of `value_model`.
        ValueError: the decay is outside [0, 1]. When traced: there are no outputs, or they are of more than
            one step or stream.

    >>> import jax.numpy as jnp
    >>> traces = eligibility_traces(0.5)
    >>> told = TdOutputs(*jnp.array([[0.0], [2.0], [0.8], [1.0]]), jnp.array([False]))
    >>> state = traces.init(jnp.zeros(()))
    >>> for _ in range(2):
    ...     emitted, state = traces.update(jnp.ones(()), state, outputs=told)
    >>> round(float(state.traces), 6), round(float(emitted), 6)
    (1.4, -2.8)

    Reference: Sutton (1988); Maei (2011).
    """
    fraction("trace_decay", trace_decay)

    def init(params):
        return TraceState(widened(jax.tree.map(jnp.zeros_like, params)), jnp.zeros(()))

    def update(updates, state, params=None, *, outputs=None, **others):
        del params, others
        step = _single(outputs)

        def moved(e, g):
            decay = jnp.asarray(trace_decay, e.dtype) * state.discount.astype(e.dtype)
            # not a product: what was before may not even be finite
            left = jnp.where(step.begins, 0, decay * e)
            return step.ratio.astype(e.dtype) * (left + g.astype(e.dtype))

        traces = jax.tree.map(moved, state.traces, updates)
        emitted = jax.tree.map(lambda e: -step.error.astype(e.dtype) * e, traces)
        return like(emitted, updates), TraceState(traces, step.discount.astype(state.discount.dtype))

    return optax.GradientTransformationExtraArgs(init, update)


def predicting(
    cell, readout, loss_of: Callable, discount, example, *, least: int = 1, most: float = 1
) -> Model:
    """The model of a loss that reads a value and its target.

    Args:
        cell: a `Cell`.
        readout: an (init, apply) pair with `least` to `most` outputs, the first of them v.
        loss_of: (prediction, the target of v_t, `TdOutputs` without its error, y) -> (loss, outputs).
        discount, example: as those of `value_model`.
        least, most: how many outputs the readout may have.

    Returns:
        A `Model` with the parameters of `from_cell`.

    Raises:
        TypeError, ValueError: as `value_model`.
    """
    probability("discount", discount)
    _check(cell, readout, example, least, most)
    base = from_cell(cell, readout, lambda prediction, y: prediction[0], example=example)
    still = jax.lax.stop_gradient

    def loss(params, hidden, y):
        value, prediction = base.loss(params, hidden, y)
        number = lambda given, default: jnp.asarray(default if given is None else given, value.dtype)
        begins = jnp.asarray(False if y.begins is None else y.begins)
        step = TdOutputs(value, value, number(y.discount, discount), number(y.ratio, 1), begins)
        frozen = still(params)
        following, _ = base.loss(frozen, base.transition(frozen, still(hidden), y.x), y)
        return loss_of(prediction, still(y.cumulant + step.discount * following), step, y)

    return base._replace(loss=loss)


def _single(outputs) -> TdOutputs:
    """The outputs of a segment of one step, without its axis."""
    if outputs is None:
        raise ValueError(
            "eligibility_traces needs what the loss of value_model returned: "
            "optimizer.update(grads, state, params, outputs=estimate.outputs), as learner does"
        )
    if not isinstance(outputs, TdOutputs):
        raise TypeError(
            f"eligibility_traces needs the TdOutputs of value_model, got {type(outputs).__name__}"
        )
    if (shape := jnp.shape(outputs.error)) != (1,):
        raise ValueError(
            f"eligibility_traces needs windows of one step and one stream, got TD errors of shape {shape}"
        )
    return TdOutputs(*(leaf[0] for leaf in outputs))


def _check(cell, readout, example, least, most):
    x, y = jax.eval_shape(lambda example: example, example)
    if not isinstance(y, TdTarget):
        raise TypeError(f"the y of example must be a TdTarget, got {type(y).__name__}")
    for name in ("cumulant", "discount", "ratio", "begins", "action"):
        leaf = getattr(y, name)
        if leaf is not None and leaf.shape != ():
            raise ValueError(f"the {name} must be a scalar, got shape {leaf.shape}")
    if y.begins is not None and y.begins.dtype != bool:
        raise TypeError(f"begins must be a bool, got {y.begins.dtype}")
    kinds = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    if kinds(x) != kinds(y.x):
        raise ValueError(f"the x of y must be like x: expected {x}, got {y.x}")

    def predict(key):
        _, hidden = cell.init(key)
        return readout.apply(readout.init(key), cell.output(hidden))

    prediction = shapes_of("the readout does not fit the cell", predict, jax.random.key(0))
    if len(prediction.shape) != 1 or not least <= prediction.shape[0] <= most:
        wanted = "one output" if most == 1 else f"at least {least} outputs"
        raise ValueError(f"the readout must have {wanted}, got shape {prediction.shape}")
