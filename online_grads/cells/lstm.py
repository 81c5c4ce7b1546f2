"""The LSTM with a forget gate.

    [i, f, g, o] = W [h_{t-1}; x_t] + b
    c_t = σ(f)∘c_{t-1} + σ(i)∘tanh(g)          h_t = σ(o)∘tanh(c_t)

Reference: Hochreiter & Schmidhuber 1997; the forget gate: Gers, Schmidhuber & Cummins 2000.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from online_grads.arguments import finite, float_dtype, positive_int
from online_grads.cells.initial import inward, orthogonal
from online_grads.cells.types import Cell
from online_grads.types import Array


class LstmHidden(NamedTuple):
    """An LSTM's hidden state: 2n entries."""

    h: Array  # [n] what the readout and the gates see
    c: Array  # [n] the memory cells


def lstm(inputs: int, hidden: int, *, forget_bias: float = 1.0, dtype=None) -> Cell:
    """The LSTM with a forget gate.

        [i, f, g, o] = W [h_{t-1}; x_t] + b
        c_t = σ(f)∘c_{t-1} + σ(i)∘tanh(g)          h_t = σ(o)∘tanh(c_t)

    Parameters `{"W": [4n, n+m], "bias": [4n]}`: one product, so that all gates share one presynaptic
    vector. Columns of W that meet h are orthogonal per gate, those that meet x are N(0, 1/m). The
    hidden state is `LstmHidden(h, c)`, 0 at first.

    Args:
        inputs: m, the size of x.
        hidden: n, the number of memory cells.
        forget_bias: where the bias of f starts; the other biases start at 0.
        dtype: of parameters and hidden state, by default JAX's float.

    Returns:
        A `Cell` whose output is h.

    Raises:
        TypeError, ValueError: a size is not a positive integer, the forget bias is not a finite
            number, the dtype is not a floating one.

    >>> import jax
    >>> params, hidden = (cell := lstm(3, 8)).init(jax.random.key(0))
    >>> params["W"].shape, hidden.c.shape, cell.output(hidden).shape
    ((32, 11), (8,), (8,))
    """
    inputs, hidden, dtype = positive_int("inputs", inputs), positive_int("hidden", hidden), float_dtype(dtype)
    finite("forget_bias", forget_bias)

    def init(key):
        key_h, key_x = jax.random.split(key)
        columns = [orthogonal(key_h, 4, hidden, dtype), inward(key_x, 4 * hidden, inputs, dtype)]
        bias = jnp.zeros(4 * hidden, dtype).at[hidden : 2 * hidden].set(jnp.asarray(forget_bias, dtype))
        zero = jnp.zeros(hidden, dtype)
        return {"W": jnp.concatenate(columns, axis=1), "bias": bias}, LstmHidden(zero, zero)

    def step(params, state, x):
        drive = params["W"] @ jnp.concatenate([state.h, x]) + params["bias"]
        i, f, g, o = jnp.split(drive, 4)
        c = jax.nn.sigmoid(f) * state.c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return LstmHidden(jax.nn.sigmoid(o) * jnp.tanh(c), c)

    return Cell(init, step, lambda state: state.h, inputs, hidden)
