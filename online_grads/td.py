"""Temporal-difference prediction: learn to say the discounted sum of a signal that is still to come.

    G_t = Σ_{j≥0} γ^j c_{t+1+j}          v_t = readout(θ_o, output(h_t)) ≈ G_t
    h'  = transition(θ, h_t, x_{t+1})          ℓ_t = ½ (c_{t+1} + γ v(h') − v_t)²,  c + γ v(h') held fixed

The target takes one more forward step inside the loss and nothing is differentiated through it: the
gradient is that of TD(0), -δ_t dv_t/dθ, through the whole past that the estimator sees.

Reference: Sutton (1988), Learning to predict by the methods of temporal differences, Machine Learning 3.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from online_grads.analysis import shapes_of
from online_grads.arguments import probability
from online_grads.losses import squared_error
from online_grads.model import from_cell
from online_grads.types import Array, Model, PyTree


class TdTarget(NamedTuple):
    """The y of a step t: what its prediction is learned from, and what it should be."""

    cumulant: Array  # [] c_{t+1}
    x: PyTree  # like x: x_{t+1}
    value: Array  # [] G_t, for a score only: learning does not read it


def td_model(cell, readout, *, discount: float, example: tuple) -> Model:
    """A model that learns to predict a discounted sum by semi-gradient TD(0).

        δ_t = c_{t+1} + γ v(h') − v(h_t)          ℓ_t = ½ δ_t²          ∂ℓ_t/∂θ = −δ_t dv(h_t)/dθ

    The parameters are `{"cell": θ, "readout": θ_o}`; the loss's outputs are the predictions v(h_t) [].
    A step costs two forward steps. The stream is endless: a step before a reset would look ahead across
    it. The perturbation family takes no derivative that could be held fixed: it follows the gradient of
    ½ δ² through the target too.

    Args:
        cell: a `Cell`, as `online_grads.cells` makes them.
        readout: an (init, apply) pair with one output, as `online_grads.readouts` makes them.
        discount: γ in [0, 1). May be a tracer.
        example: (x, y) of one step, arrays or `jax.ShapeDtypeStruct`, y a `TdTarget`.

    Returns:
        A `Model`.

    Raises:
        TypeError: y is not a `TdTarget`, or the discount not a number.
        ValueError: the discount is outside [0, 1); the cumulant is not a scalar; y's x is unlike x; the
            readout does not have one output.

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
    probability("discount", discount)
    _check(cell, readout, example)
    base = from_cell(cell, readout, squared_error, example=example)

    still = jax.lax.stop_gradient

    def loss(params, hidden, y):
        frozen = still(params)
        ahead = base.transition(frozen, still(hidden), y.x)
        following = readout.apply(frozen["readout"], cell.output(ahead))
        target = y.cumulant + jnp.asarray(discount, following.dtype) * following
        error, prediction = base.loss(params, hidden, still(target))
        return error, prediction[0]

    return base._replace(loss=loss)


def _check(cell, readout, example):
    x, y = jax.eval_shape(lambda example: example, example)
    if not isinstance(y, TdTarget):
        raise TypeError(f"the y of example must be a TdTarget, got {type(y).__name__}")
    if y.cumulant.shape != ():
        raise ValueError(f"the cumulant must be a scalar, got shape {y.cumulant.shape}")
    kinds = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    if kinds(x) != kinds(y.x):
        raise ValueError(f"the x of y must be like x: expected {x}, got {y.x}")

    def predict(key):
        _, hidden = cell.init(key)
        return readout.apply(readout.init(key), cell.output(hidden))

    prediction = shapes_of("the readout does not fit the cell", predict, jax.random.key(0))
    if prediction.shape != (1,):
        raise ValueError(f"the readout must have one output, got shape {prediction.shape}")
