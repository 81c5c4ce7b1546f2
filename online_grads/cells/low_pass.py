"""The low-pass RNN: every unit averages what it sees over a time of its own.

    h_t = α∘h_{t-1} + (1 − α)∘tanh(W x_t + b)          α = σ(a)

A weight acts on one h_i alone, so that exact RTRL costs O(p).

Reference: Mozer (1992), Induction of multiscale temporal structure, NIPS 4; Stepleton et al. (2018),
Low-pass recurrent neural networks, arXiv:1805.04955.
"""

import math

import jax
import jax.numpy as jnp

from online_grads.arguments import above, float_dtype, in_order, positive_int
from online_grads.cells.initial import inward
from online_grads.cells.types import Cell


def low_pass(inputs: int, hidden: int, *, shortest: float = 1.0, longest: float = 100.0, dtype=None) -> Cell:
    """Leaky units that do not read one another.

        h_t = α∘h_{t-1} + (1 − α)∘tanh(W x_t + b)          α = σ(a)

    Parameters `{"W": [n, m], "bias": [n], "decay": [n]}`, where `decay` is a, which is learned too. W
    is drawn N(0, 1/m), b starts at 0, and a such that α = exp(−1/τ) with log τ uniform. The hidden
    state is h [n], 0 at first.

    Args:
        inputs: m, the size of x.
        hidden: n, the number of units.
        shortest, longest: the bounds of the time constants τ at first, in steps, above 0.
        dtype: of parameters and hidden state, by default JAX's float.

    Returns:
        A `Cell`.

    Raises:
        TypeError, ValueError: a size is not a positive integer, the time constants are no numbers
            above 0 in their order, the dtype is not a floating one.

    >>> import jax
    >>> params, h = (cell := low_pass(3, 8, longest=1000.0)).init(jax.random.key(0))
    >>> bool((jnp.exp(-1) <= jax.nn.sigmoid(params["decay"])).all())
    True
    >>> cell.step(params, h, jnp.ones_like(h, shape=3)).shape
    (8,)

    Reference: Mozer (1992), NIPS 4; Stepleton et al. (2018), arXiv:1805.04955.
    """
    inputs, hidden, dtype = positive_int("inputs", inputs), positive_int("hidden", hidden), float_dtype(dtype)
    above("shortest", shortest, 0)
    above("longest", longest, 0)
    in_order(shortest=shortest, longest=longest)

    def init(key):
        key_W, key_times = jax.random.split(key)
        times = jax.random.uniform(key_times, (hidden,), dtype, math.log(shortest), math.log(longest))
        rates = jnp.exp(-times)
        params = {
            "W": inward(key_W, hidden, inputs, dtype),
            "bias": jnp.zeros(hidden, dtype),
            # log (α / (1 − α)) of α = exp(−rate)
            "decay": -rates - jnp.log(-jnp.expm1(-rates)),
        }
        return params, jnp.zeros(hidden, dtype)

    def step(params, h, x):
        alpha = jax.nn.sigmoid(params["decay"])
        return alpha * h + (1 - alpha) * jnp.tanh(params["W"] @ x + params["bias"])

    return Cell(init, step, lambda h: h, inputs, hidden)
