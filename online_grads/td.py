"""Temporal-difference prediction: learn to say the discounted sum of a signal that is still to come.

    G_t = Σ_{j≥0} γ^j c_{t+1+j}          v_t = readout(θ_o, output(h_t)) ≈ G_t
    δ_t = c_{t+1} + γ_{t+1} v(h') − v_t          h' = transition(θ, h_t, x_{t+1})

The target c + γ v(h') takes one more forward step inside the loss and nothing is differentiated through it.
∂v_t/∂θ goes through the whole past that an estimator sees. Two ways to learn from it:

    `td_model`       ℓ_t = ½ ρ_t δ_t²          TD(0): by `learner`, any estimator, segment and optimizer
    `value_model`    ℓ_t = v_t                 TD(λ): by `td_learner`, which has the traces e_t

    e_t = ρ_t (γ_t λ e_{t-1} + ∂v_t/∂θ)          θ ← θ + α δ_t e_t

A stream may have episodes, and a general value function its own γ_{t+1} and policy ratio ρ_t at every step:
y then tells them, see `TdTarget`. A termination and a truncation are two things:

    the episode terminates after step t: γ_{t+1} = 0, and nothing of the future counts
    it is cut off there: γ_{t+1} > 0, y.x is the observation that would have come, and v bootstraps from it

Either way the next step of the stream begins anew, and says so twice, as two things begin: its x has the
reset of `with_resets(value_model(...), h₀)`, for the hidden state, and its y begins = True, for the trace.
The look-ahead takes y.x without a reset. `value_model` shows such a stream.

References: Sutton (1988), Learning to predict by the methods of temporal differences, Machine Learning 3;
Sutton et al. (2011), Horde, AAMAS; Maei (2011), Gradient temporal-difference learning algorithms (ρ in the
trace).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from online_grads.analysis import shapes_of
from online_grads.arguments import probability
from online_grads.model import from_cell
from online_grads.traces import TdOutputs, TraceState, eligibility_traces, td_learner
from online_grads.types import Array, Model, PyTree

__all__ = [
    "TdOutputs",
    "TdTarget",
    "TraceState",
    "eligibility_traces",
    "predicting",
    "td_learner",
    "td_model",
    "value_model",
]


class TdTarget(NamedTuple):
    """The y of a step t: what its prediction is learned from, and what it should be.

    `begins` restarts the trace, and only that: the hidden state restarts by the reset in the x of
    `with_resets`. A stream with episodes needs both, the same row twice.
    """

    cumulant: Array  # [] c_{t+1}
    x: PyTree  # like x: x_{t+1}, also where the stream goes on with another episode
    value: Array | None = None  # [] G_t, for a score only: learning does not read it
    discount: Array | None = None  # [] γ_{t+1}, 0 at a termination; None: the model's
    ratio: Array | None = None  # [] ρ_t, target policy over behaviour; None: 1
    begins: Array | None = None  # [] bool, step t is the first of an episode; None: no step is
    action: Array | None = None  # [] int, a_t, for control


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
    >>> example = (jnp.zeros(3), TdTarget(jnp.zeros(()), jnp.zeros(3)))
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

    To be learned by `td_learner`, whose eligibility traces make a step of TD(λ) of this gradient, one step at
    a time. A plain `learner` would descend v itself, and says nothing.

    The parameters are `{"cell": θ, "readout": θ_o}`; the loss's outputs are `TdOutputs`. A step costs two
    forward steps. In a stream with episodes the first step of one has the reset of `with_resets` in its x,
    for the hidden state, and `begins` in its y, for the trace: both are needed.

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

    Two episodes of two steps; the first terminates, the second is cut off, and v bootstraps from the
    observation that would have come:

    >>> import jax, jax.numpy as jnp, optax
    >>> from online_grads import cells, readouts, rtrl, scan, with_resets
    >>> seen = jnp.arange(18.0).reshape(2, 3, 3)  # three observations each, the last is only looked at
    >>> x, following = seen[:, :-1].reshape(4, 3), seen[:, 1:].reshape(4, 3)
    >>> begins, discounts = jnp.array([True, False] * 2), jnp.array([0.9, 0.0, 0.9, 0.9])
    >>> ys = TdTarget(jnp.ones(4), following, discount=discounts, begins=begins)
    >>> example = jax.tree.map(lambda rows: rows[0], (x, ys))
    >>> cell, readout = cells.gru(3, 8), readouts.linear(8, 1)
    >>> model = with_resets(value_model(cell, readout, discount=0.9, example=example), jnp.zeros(8))
    >>> online = td_learner(rtrl(model), optax.sgd(0.01), trace_decay=0.9)
    >>> state = online.init(*model.init(jax.random.key(0)), key=jax.random.key(1))
    >>> state, metrics = scan(online, state, (x, begins), ys)
    >>> metrics.outputs.error.shape
    (4, 1)

    Reference: Sutton (1988).
    """

    def value(prediction, target, step, y):
        return step.value, step._replace(error=target - step.value)

    return predicting(cell, readout, value, discount, example)


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
