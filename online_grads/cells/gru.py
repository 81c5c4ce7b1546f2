"""The GRU whose reset gate acts after the recurrent product.

    [r, z] = σ(W_rz [h_{t-1}; x_t] + b_rz)
    ñ = tanh(W_in x_t + b_in + r∘(W_hn h_{t-1} + b_hn))          h_t = (1-z)∘ñ + z∘h_{t-1}

This is the form of cuDNN, PyTorch, flax and equinox. No drive depends on another drive of the same
step, which is what the cheap structured estimators want; see `gru_reset_before` for the other one.

Reference: Cho et al., arXiv:1406.1078v1.
"""

import jax
import jax.numpy as jnp

from online_grads.arguments import float_dtype, positive_int
from online_grads.cells.initial import inward, orthogonal
from online_grads.cells.types import Cell


def gru(inputs: int, hidden: int, *, dtype=None) -> Cell:
    """The GRU whose reset gate acts after the recurrent product.

        [r, z] = σ(W_rz [h_{t-1}; x_t] + b_rz)
        ñ = tanh(W_in x_t + b_in + r∘(W_hn h_{t-1} + b_hn))          h_t = (1-z)∘ñ + z∘h_{t-1}

    Parameters `{"W_rz": [2n, n+m], "bias_rz": [2n], "W_in": [n, m], "bias_in": [n], "W_hn": [n, n],
    "bias_hn": [n]}`. Columns that meet h are orthogonal per gate, those that meet x are N(0, 1/m),
    biases 0. The hidden state is h [n], 0 at first.

    Args:
        inputs: m, the size of x.
        hidden: n, the number of units.
        dtype: of parameters and hidden state, by default JAX's float.

    Returns:
        A `Cell`.

    Raises:
        TypeError, ValueError: a size is not a positive integer, the dtype is not a floating one.

    >>> import jax
    >>> params, h = (cell := gru(3, 8)).init(jax.random.key(0))
    >>> cell.step(params, h, jnp.ones_like(h, shape=3)).shape
    (8,)
    """
    inputs, hidden, dtype = positive_int("inputs", inputs), positive_int("hidden", hidden), float_dtype(dtype)

    def init(key):
        keys = jax.random.split(key, 4)
        rz = [orthogonal(keys[0], 2, hidden, dtype), inward(keys[1], 2 * hidden, inputs, dtype)]
        params = {
            "W_rz": jnp.concatenate(rz, axis=1),
            "bias_rz": jnp.zeros(2 * hidden, dtype),
            "W_in": inward(keys[2], hidden, inputs, dtype),
            "bias_in": jnp.zeros(hidden, dtype),
            "W_hn": orthogonal(keys[3], 1, hidden, dtype),
            "bias_hn": jnp.zeros(hidden, dtype),
        }
        return params, jnp.zeros(hidden, dtype)

    def step(params, h, x):
        rz = jax.nn.sigmoid(params["W_rz"] @ jnp.concatenate([h, x]) + params["bias_rz"])
        r, z = jnp.split(rz, 2)
        recurrent = params["W_hn"] @ h + params["bias_hn"]
        new = jnp.tanh(params["W_in"] @ x + params["bias_in"] + r * recurrent)
        return (1 - z) * new + z * h

    return Cell(init, step, lambda h: h, inputs, hidden)
