"""Building a `Model` from a cell, a readout and a loss, and giving it resets."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from online_grads.types import Model, PyTree


def from_cell(cell, readout, loss: Callable, *, example: tuple) -> Model:
    """A model whose loss is read off a cell's output.

        h_t = cell.step(θ, h_{t-1}, x_t)      ŷ_t = readout(θ_o, cell.output(h_t))      ℓ_t = loss(ŷ_t, y_t)

    The parameters are `{"cell": θ, "readout": θ_o}`; the loss's outputs are the predictions ŷ_t.

    Args:
        cell: a `Cell`, as `online_grads.cells` makes them.
        readout: an (init, apply) pair, as `online_grads.readouts` makes them.
        loss: (prediction, y) -> scalar, as in `online_grads.losses`.
        example: (x, y) of one step, arrays or `jax.ShapeDtypeStruct`.

    Returns:
        A `Model`.

    >>> import jax, jax.numpy as jnp
    >>> from online_grads import cells, losses, readouts
    >>> cell, readout = cells.gru(3, 8), readouts.linear(8, 2)
    >>> model = from_cell(cell, readout, losses.squared_error, example=(jnp.zeros(3), jnp.zeros(2)))
    >>> params, hidden = model.init(jax.random.key(0))
    >>> hidden.shape
    (8,)
    """

    def init(key):
        key_cell, key_readout = jax.random.split(key)
        params, hidden = cell.init(key_cell)
        return {"cell": params, "readout": readout.init(key_readout)}, hidden

    def transition(params, hidden, x):
        return cell.step(params["cell"], hidden, x)

    def loss_of_hidden(params, hidden, y):
        prediction = readout.apply(params["readout"], cell.output(hidden))
        return loss(prediction, y), prediction

    return Model(init, transition, loss_of_hidden, example)


def with_resets(model: Model, hidden: PyTree | Callable) -> Model:
    """Let a stream begin anew: inputs become (x, reset), and a reset replaces h_{t-1}.

        h_t = transition(θ, reset_t ? h₀(θ) : h_{t-1}, x_t)

    The replacement happens inside the transition, so ∂h_t/∂h_{t-1} is zero at a reset and every
    exact estimator forgets by itself; a learned h₀ gets its gradient like any other parameter.

    Args:
        model: the model without resets.
        hidden: h₀, a pytree like the hidden state, or a function params -> h₀ (a learned initial
            state).

    Returns:
        A `Model` that takes (x, reset) with reset a boolean scalar.

    >>> import jax.numpy as jnp
    >>> from online_grads import Model
    >>> counter = Model(
    ...     init=lambda key: (jnp.ones(()), jnp.zeros(())),
    ...     transition=lambda step, h, x: h + step * x,
    ...     loss=lambda step, h, y: ((h - y) ** 2, h),
    ...     example=(jnp.zeros(()), jnp.zeros(())),
    ... )
    >>> episodic = with_resets(counter, jnp.zeros(()))
    >>> float(episodic.transition(jnp.ones(()), jnp.array(5.0), (jnp.array(2.0), True)))
    2.0
    """
    start = hidden if callable(hidden) else lambda params: hidden

    def init(key):
        params, like = model.init(key)
        return params, fresh(params, like)

    def fresh(params, like):
        begin = start(params)
        expected, got = jax.tree.structure(like), jax.tree.structure(begin)
        if expected != got:
            raise ValueError(f"hidden at a reset has structure {got}, the model's hidden state {expected}")
        return jax.tree.map(lambda b, h: jnp.broadcast_to(jnp.asarray(b, h.dtype), h.shape), begin, like)

    def transition(params, hidden, x):
        x, reset = x
        begin = fresh(params, hidden)
        return model.transition(params, jax.tree.map(lambda b, h: jnp.where(reset, b, h), begin, hidden), x)

    x, y = model.example
    example = ((x, jax.ShapeDtypeStruct((), jnp.bool_)), y)
    reset = lambda x: x[1] if model.reset is None else x[1] | model.reset(x[0])
    return Model(init, transition, model.loss, example, reset)
