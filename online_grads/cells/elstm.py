"""The eLSTM: an LSTM whose gates read their own cell alone.

    f = σ(F x_t + w^f∘c_{t-1} + b^f)          z = tanh(Z x_t + w^z∘c_{t-1} + b^z)
    c_t = f∘c_{t-1} + (1 − f)∘z               o = σ(W^o [c_t; x_t] + b^o)               h_t = o∘c_t

The output gate sees all cells of the same step, and the next step does not read h: a weight of the
recurrence acts on one c_i alone, so that exact RTRL costs O(p).

Reference: Irie, Gopalakrishnan & Schmidhuber (2023), Exploring the promise and limits of real-time
recurrent learning, arXiv:2305.19044.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from online_grads.arguments import float_dtype, positive_int
from online_grads.cells.initial import inward, orthogonal
from online_grads.cells.types import Cell
from online_grads.types import Array


class ElstmHidden(NamedTuple):
    """An eLSTM's memory cells, and what it outputs."""

    c: Array  # [n] the memory cells
    h: Array  # [n] not read by the next step


def elstm(inputs: int, hidden: int, *, dtype=None) -> Cell:
    """An LSTM whose gates read their own cell alone.

        f = σ(F x_t + w^f∘c_{t-1} + b^f)          z = tanh(Z x_t + w^z∘c_{t-1} + b^z)
        c_t = f∘c_{t-1} + (1 − f)∘z               o = σ(W^o [c_t; x_t] + b^o)               h_t = o∘c_t

    Parameters `{"W": [2n, m], "self": [2n], "bias": [2n], "W_o": [n, n+m], "bias_o": [n]}`: F above Z,
    w^f and w^z, their biases, and the output gate's. Columns of W_o that meet c are orthogonal, those
    that meet x, as W, are N(0, 1/m); `self` is N(0, 0.1²) and the biases are 0. The hidden state is
    `ElstmHidden(c, h)`, 0 at first.

    Args:
        inputs: m, the size of x.
        hidden: n, the number of memory cells.
        dtype: of parameters and hidden state, by default JAX's float.

    Returns:
        A `Cell` whose output is h.

    Raises:
        TypeError, ValueError: a size is not a positive integer, the dtype is not a floating one.

    >>> import jax
    >>> params, hidden = (cell := elstm(3, 8)).init(jax.random.key(0))
    >>> params["W"].shape, params["W_o"].shape, cell.output(hidden).shape
    ((16, 3), (8, 11), (8,))

    Reference: Irie, Gopalakrishnan & Schmidhuber (2023), arXiv:2305.19044.
    """
    inputs, hidden, dtype = positive_int("inputs", inputs), positive_int("hidden", hidden), float_dtype(dtype)

    def init(key):
        key_x, key_self, key_oc, key_ox = jax.random.split(key, 4)
        gate = [orthogonal(key_oc, 1, hidden, dtype), inward(key_ox, hidden, inputs, dtype)]
        params = {
            "W": inward(key_x, 2 * hidden, inputs, dtype),
            "self": 0.1 * jax.random.normal(key_self, (2 * hidden,), dtype),
            "bias": jnp.zeros(2 * hidden, dtype),
            "W_o": jnp.concatenate(gate, axis=1),
            "bias_o": jnp.zeros(hidden, dtype),
        }
        zero = jnp.zeros(hidden, dtype)
        return params, ElstmHidden(zero, zero)

    def step(params, state, x):
        drive = params["W"] @ x + params["self"] * jnp.concatenate([state.c] * 2) + params["bias"]
        forget, new = jnp.split(drive, 2)
        f = jax.nn.sigmoid(forget)
        c = f * state.c + (1 - f) * jnp.tanh(new)
        o = jax.nn.sigmoid(params["W_o"] @ jnp.concatenate([c, x]) + params["bias_o"])
        return ElstmHidden(c, o * c)

    return Cell(init, step, lambda state: state.h, inputs, hidden)
