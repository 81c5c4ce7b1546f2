"""The model that a bench is about, and the stream that it reads: 8 inputs and 4 outputs in float32."""

import jax
import jax.numpy as jnp

from online_grads.cells import CELLS
from online_grads.losses import squared_error
from online_grads.model import from_cell
from online_grads.readouts import linear
from online_grads.types import Array, Model

INPUTS, OUTPUTS, DTYPE = 8, 4, jnp.dtype(jnp.float32)


def model_of(cell: str, n: int) -> Model:
    """The model that is timed: a cell of n units, a linear readout, squared error.

    >>> jax.eval_shape(model_of("gru", 16).init, jax.random.key(0))[1].shape
    (16,)
    """
    made = CELLS[cell](INPUTS, n, dtype=DTYPE)
    readout = linear(made.size, OUTPUTS, dtype=DTYPE)
    x, y = (jax.ShapeDtypeStruct((size,), DTYPE) for size in (INPUTS, OUTPUTS))
    return from_cell(made, readout, squared_error, example=(x, y))


def random_stream(lead: tuple[int, ...]) -> tuple[Array, Array]:
    """Random xs [*lead, inputs] and ys [*lead, outputs]."""
    keys = jax.random.split(jax.random.key(2))
    draw = lambda key, size: jax.random.normal(key, (*lead, size), DTYPE)
    return draw(keys[0], INPUTS), draw(keys[1], OUTPUTS)
