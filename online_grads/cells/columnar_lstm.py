"""Columns that are LSTMs of one unit each, sparsely linked to one another if asked for.

    [i, f, g, o] = W x_t + u∘[h; h; h; h]_{t-1} + (m∘V) h_{t-1} + b
    c_t = σ(f)∘c_{t-1} + σ(i)∘tanh(g)          h_t = σ(o)∘tanh(c_t)

m is a random mask of links to other columns that is never trained. Without links a weight acts on
the (h_i, c_i) of its own column alone, and exact RTRL costs O(p). With `local=True` the gradient does
not pass from one column to another, whatever the links: RTRL of that cell is the Master-User
algorithm, which is exact without links.

Reference: Javed, White & Sutton (2021), arXiv:2103.05787; Javed, Shah, Sutton & White (2023), Scalable
real-time recurrent learning using columnar-constructive networks, JMLR 24.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from online_grads.arguments import boolean, finite, float_dtype, fraction, positive_int
from online_grads.cells.lstm import LstmHidden
from online_grads.cells.types import Cell


def columnar_lstm(
    inputs: int,
    hidden: int,
    *,
    density: float = 0.0,
    local: bool = False,
    wiring: int = 0,
    forget_bias: float = 1.0,
    dtype=None,
) -> Cell:
    """LSTMs of one unit each, sparsely linked to one another if asked for.

        [i, f, g, o] = W x_t + u∘[h; h; h; h]_{t-1} + (m∘V) h_{t-1} + b
        c_t = σ(f)∘c_{t-1} + σ(i)∘tanh(g)          h_t = σ(o)∘tanh(c_t)

    Parameters `{"W": [4d, m], "self": [4d], "bias": [4d]}`, where `self` is u, the weights of a
    column's own state; with a density above 0 also `"links": [4d, d]`, V, whose weights have no effect
    and a gradient of 0 where there is no link. The weights are drawn U(−1/√k, 1/√k) with k = m + 1 +
    density · (d − 1), what a gate reads on average. The hidden state is `LstmHidden(h, c)`, 0 at first.

    Args:
        inputs: m, the size of x.
        hidden: d, the number of columns.
        density: the probability in [0, 1] that a column reads the state of another one, with all its
            gates. Without any, at 0, there are O(d) parameters.
        local: the gradient stays inside a column: what comes from others counts as an input.
        wiring: the seed of the mask; it is the same for all parameters that `init` draws.
        forget_bias: where the bias of f starts; the other biases start at 0.
        dtype: of parameters and hidden state, by default JAX's float.

    Returns:
        A `Cell` whose output is h.

    Raises:
        TypeError, ValueError: a size is not a positive integer, the density is not in [0, 1], the
            wiring is not an integer of at least 0, `local` is not a bool, the forget bias is not a
            finite number, the dtype is not a floating one.

    >>> import jax
    >>> params, hidden = (cell := columnar_lstm(3, 8)).init(jax.random.key(0))
    >>> params["W"].shape, params["self"].shape, cell.output(hidden).shape
    ((32, 3), (32,), (8,))
    >>> columnar_lstm(3, 8, density=0.1).init(jax.random.key(0))[0]["links"].shape
    (32, 8)

    Reference: Javed, White & Sutton (2021), arXiv:2103.05787; Javed et al. (2023), JMLR 24.
    """
    inputs, hidden, dtype = positive_int("inputs", inputs), positive_int("hidden", hidden), float_dtype(dtype)
    wiring = positive_int("wiring", wiring, least=0)
    fraction("density", density)
    boolean("local", local)
    finite("forget_bias", forget_bias)
    linked, bound = density > 0, 1 / math.sqrt(inputs + 1 + density * (hidden - 1))
    mask = np.tile(_links(hidden, density, wiring), (4, 1)).astype(dtype)

    def init(key):
        keys = iter(jax.random.split(key, 3))
        uniform = lambda *shape: jax.random.uniform(next(keys), (4 * hidden, *shape), dtype, -bound, bound)
        bias = jnp.zeros(4 * hidden, dtype).at[hidden : 2 * hidden].set(jnp.asarray(forget_bias, dtype))
        params = {"W": uniform(inputs), "self": uniform(), "bias": bias}
        if linked:
            params["links"] = uniform(hidden)
        zero = jnp.zeros(hidden, dtype)
        return params, LstmHidden(zero, zero)

    def step(params, state, x):
        drive = params["W"] @ x + params["self"] * jnp.concatenate([state.h] * 4) + params["bias"]
        if linked:
            seen = jax.lax.stop_gradient(state.h) if local else state.h
            drive = drive + (params["links"] * mask) @ seen
        i, f, g, o = jnp.split(drive, 4)
        c = jax.nn.sigmoid(f) * state.c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return LstmHidden(jax.nn.sigmoid(o) * jnp.tanh(c), c)

    return Cell(init, step, lambda state: state.h, inputs, hidden)


def _links(columns: int, density: float, seed: int) -> np.ndarray:
    """Which columns read which others, [d, d]; none reads itself."""
    drawn = np.random.default_rng(seed).random((columns, columns)) < density
    return drawn & ~np.eye(columns, dtype=bool)
