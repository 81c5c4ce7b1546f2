"""The leaky vanilla RNN.

    z_t = W_rec a_{t-1} + W_in x_t + b          a_t = (1-α) a_{t-1} + α φ(z_t)

The leak α acts on the activation after φ. J_t = (1-α) I + α diag(φ'(z_t)) W_rec.

Reference: Marschall, Cho & Savin, arXiv:1907.02649.
"""

import numbers
from collections.abc import Callable

import jax
import jax.numpy as jnp

from online_grads.arguments import float_dtype, positive_int
from online_grads.cells.initial import inward, orthogonal
from online_grads.cells.types import Cell


def vanilla_rnn(
    inputs: int, hidden: int, *, leak: float = 1.0, activation: Callable = jnp.tanh, dtype=None
) -> Cell:
    """The leaky vanilla RNN.

        z_t = W_rec a_{t-1} + W_in x_t + b          a_t = (1-α) a_{t-1} + α φ(z_t)

    Parameters `{"W_rec": [n, n], "W_in": [n, m], "bias": [n]}`, drawn orthogonal, N(0, 1/m) and 0;
    the hidden state is a [n], 0 at first.

    Args:
        inputs: m, the size of x.
        hidden: n, the number of units.
        leak: α in (0, 1]; 1 is no memory but through W_rec.
        activation: φ, elementwise.
        dtype: of parameters and hidden state, by default JAX's float.

    Returns:
        A `Cell`.

    Raises:
        TypeError, ValueError: a size is not a positive integer, the leak is not a number in
            (0, 1], φ cannot be called, the dtype is not a floating one.

    >>> import jax
    >>> params, a = (cell := vanilla_rnn(3, 8, leak=0.5)).init(jax.random.key(0))
    >>> cell.step(params, a, jnp.ones_like(a, shape=3)).shape
    (8,)
    """
    inputs, hidden, dtype = positive_int("inputs", inputs), positive_int("hidden", hidden), float_dtype(dtype)
    if isinstance(leak, bool) or not isinstance(leak, numbers.Real):
        raise TypeError(f"leak must be a number, got {leak!r}")
    if not 0 < leak <= 1:
        raise ValueError(f"leak must be in (0, 1], got {leak}")
    if not callable(activation):
        raise TypeError(f"activation must be a function, got {activation!r}")
    alpha = float(leak)

    def init(key):
        key_rec, key_in = jax.random.split(key)
        params = {
            "W_rec": orthogonal(key_rec, 1, hidden, dtype),
            "W_in": inward(key_in, hidden, inputs, dtype),
            "bias": jnp.zeros(hidden, dtype),
        }
        return params, jnp.zeros(hidden, dtype)

    def step(params, a, x):
        drive = params["W_rec"] @ a + params["W_in"] @ x + params["bias"]
        # no "0 · a" without a leak: what is absent from the program need not be proved absent
        return activation(drive) if alpha == 1 else (1 - alpha) * a + alpha * activation(drive)

    return Cell(init, step, lambda a: a, inputs, hidden)
