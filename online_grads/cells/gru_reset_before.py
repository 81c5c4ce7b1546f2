"""The GRU whose reset gate acts before the recurrent product.

    [r, z] = σ(W_rz [h_{t-1}; x_t] + b_rz)
    ñ = tanh(W_x x_t + W_h (r∘h_{t-1}) + b)          h_t = (1-z)∘ñ + z∘h_{t-1}

The drive of ñ depends on the drive of r in the same step, so a perturbation of W_rz reaches h_t
through W_h: an estimator that holds all drives fixed would miss that credit.

Reference: Cho et al., arXiv:1406.1078v3, equations 5 to 8.
"""

import jax
import jax.numpy as jnp

from online_grads.arguments import float_dtype, positive_int
from online_grads.cells.initial import inward, orthogonal
from online_grads.cells.types import Cell


def gru_reset_before(inputs: int, hidden: int, *, dtype=None) -> Cell:
    """The GRU whose reset gate acts before the recurrent product.

        [r, z] = σ(W_rz [h_{t-1}; x_t] + b_rz)
        ñ = tanh(W_x x_t + W_h (r∘h_{t-1}) + b)          h_t = (1-z)∘ñ + z∘h_{t-1}

    Parameters `{"W_rz": [2n, n+m], "bias_rz": [2n], "W_x": [n, m], "W_h": [n, n], "bias": [n]}`.
    Columns that meet h are orthogonal per gate, those that meet x are N(0, 1/m), biases 0. The
    hidden state is h [n], 0 at first.

    Args:
        inputs: m, the size of x.
        hidden: n, the number of units.
        dtype: of parameters and hidden state, by default JAX's float.

    Returns:
        A `Cell`.

    Raises:
        TypeError, ValueError: a size is not a positive integer, the dtype is not a floating one.

    >>> import jax
    >>> params, h = (cell := gru_reset_before(3, 8)).init(jax.random.key(0))
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
            "W_x": inward(keys[2], hidden, inputs, dtype),
            "W_h": orthogonal(keys[3], 1, hidden, dtype),
            "bias": jnp.zeros(hidden, dtype),
        }
        return params, jnp.zeros(hidden, dtype)

    def step(params, h, x):
        rz = jax.nn.sigmoid(params["W_rz"] @ jnp.concatenate([h, x]) + params["bias_rz"])
        r, z = jnp.split(rz, 2)
        new = jnp.tanh(params["W_x"] @ x + params["W_h"] @ (r * h) + params["bias"])
        return (1 - z) * new + z * h

    return Cell(init, step, lambda h: h, inputs, hidden)
