"""A representation that is learned through the learning of its readout."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from online_grads.arguments import an_optimizer
from online_grads.meta.checks import check_pair, check_parts, check_scalar, check_step, traced
from online_grads.meta.inner import LearnerHidden, begin, descend
from online_grads.types import Model, PyTree


class ReadoutHidden(NamedTuple):
    """What a cell with a readout that learns carries from step to step."""

    cell: PyTree  # h_t
    readout: PyTree  # v_t, that the steps before t taught
    optimizer: PyTree  # its optax state


def online_readout(
    cell, readout, loss: Callable, optimizer: optax.GradientTransformation, *, example: tuple
) -> Model:
    """A cell whose readout learns online inside the model: its gradient goes through those updates.

        v_t = optimizer(v_{t-1}, ∂ℓ_{t-1}/∂v_{t-1})          h_t = cell.step(θ, h_{t-1}, x_t)
        ŷ_t = readout(v_t, output(h_t))                      ℓ_t = loss(ŷ_t, y_t)

    The parameters are the cell's θ alone, the hidden state is a `ReadoutHidden`, and the loss's outputs
    are the predictions. The input of a step is (x_t, y_{t-1}), see `taught`. With a linear readout
    without a bias `snap` keeps a column and its own readout weights together: on independent columns it
    is the recursion of the reference, which drops what a column does to other columns' readout weights
    through the common error. `rtrl` is exact, and its influence is dense, O(n p): the error of all columns
    moves every readout weight. A bias acts on all readout weights entry by entry, through
    that error, and joins the columns into one unit: `snap` then costs what a dense `rtrl` does. A
    constant 1 among the cell's outputs serves as well, and keeps the columns apart.

    Args:
        cell: a `Cell`, as `online_grads.cells` makes them.
        readout: an (init, apply) pair, as `online_grads.readouts` makes them.
        loss: (prediction, y) -> scalar, as in `online_grads.losses`.
        optimizer: any optax `GradientTransformation`; the reference has `optax.sgd`.
        example: (x, y) of one step, arrays or `jax.ShapeDtypeStruct`.

    Returns:
        A `Model` that takes (x, previous y).

    Raises:
        TypeError: the cell, the readout or the optimizer is none, the example is no pair, or the loss
            returns no floating scalar.
        ValueError: they do not fit together.

    >>> import jax, jax.numpy as jnp, optax
    >>> from online_grads import cells, gradient, losses, readouts, snap
    >>> cell, readout = cells.columnar_rnn(3, 8), readouts.linear(8, 1, bias=False)
    >>> example = jnp.zeros(3), jnp.zeros(1)
    >>> model = online_readout(cell, readout, losses.squared_error, optax.sgd(0.01), example=example)
    >>> stream = taught(jnp.ones((5, 3)), jnp.ones((5, 1)))
    >>> slope = gradient(snap(model), *model.init(jax.random.key(0)), *stream, key=jax.random.key(1))
    >>> slope["bias"].shape
    (8,)

    Reference: Javed, White & Sutton (2021), arXiv:2103.05787.
    """
    an_optimizer("optimizer", optimizer)
    check_parts("cell", cell, "init", "step", "output")
    check_parts("readout", readout, "init", "apply")
    check_pair("example must be a pair (x, y) of one step", example)

    def init(key):
        key_cell, key_readout = jax.random.split(key)
        params, hidden = cell.init(key_cell)
        return params, ReadoutHidden(hidden, *begin(optimizer, readout.init(key_readout)))

    def evaluate(v, h, y):
        prediction = readout.apply(v, cell.output(h))
        return loss(prediction, y), prediction

    def transition(params, hidden, x):
        x, y_before = x
        h, v, state = hidden
        moved = descend(optimizer, lambda v: evaluate(v, h, y_before), LearnerHidden(v, state))
        return ReadoutHidden(cell.step(params, h, x), *moved)

    def loss_of_hidden(params, hidden, y):
        return evaluate(hidden.readout, hidden.cell, y)

    x, y = example
    params, hidden = traced("cell, readout or optimizer cannot begin", init, jax.random.key(0))
    traced("cell fails on x", cell.step, params, hidden.cell, x)
    read = traced("readout or loss fails on the cell's output", evaluate, hidden.readout, hidden.cell, y)
    check_scalar("what loss returns", read[0])
    check_step(transition, params, hidden, (x, y))
    return Model(init, transition, loss_of_hidden, ((x, y), y))


def taught(xs: PyTree, ys: PyTree) -> tuple[PyTree, PyTree]:
    """The stream of an `online_readout`: inputs with the target of the step before, 0 at first.

    Of the whole stream, not of a chunk: every call puts a target that nobody gave at its first step.
    Where the cell's first output is 0 it teaches a linear readout nothing under a squared error. Under a
    cross-entropy it is class 0, and a bias learns it.

    Args:
        xs, ys: inputs and targets of the whole stream, [T, ...].

    Returns:
        ((xs, previous ys), ys).

    >>> (_, before), ys = taught(jnp.zeros((3, 2)), jnp.array([1.0, 2.0, 3.0]))
    >>> before.tolist(), ys.tolist()
    ([0.0, 1.0, 2.0], [1.0, 2.0, 3.0])
    """
    before = jax.tree.map(lambda rows: jnp.concatenate([jnp.zeros_like(rows[:1]), rows[:-1]]), ys)
    return (xs, before), ys
