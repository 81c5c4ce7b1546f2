"""Columns: scalar states that add up, each with features of its own, sparsely linked to one another.

    f_i = relu(W²_i relu(W¹_i x_t + b¹_i) + b²_i)
    h_i(t) = h_i(t-1) + tanh(w_iᵀ (m_i ∘ [f_1 … f_d; h(t-1)]) + b_i)

m_i is a random mask that is never trained: a column always reads its own features, and everything
else with a small probability. Without links, Jacobian and influence are block-diagonal, and exact
RTRL costs O(p). With `local=True` the gradient does not pass from one column to another, whatever
the links: RTRL of that cell is the Master-User algorithm, which is exact without links.

Reference: Javed, White & Sutton (2021), Scalable online recurrent learning using columnar neural
networks, arXiv:2103.05787.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from online_grads.arguments import boolean, float_dtype, not_negative, positive_int
from online_grads.cells.types import Cell


def columnar_rnn(
    inputs: int,
    hidden: int,
    *,
    width: int = 5,
    density: float = 0.0,
    local: bool = False,
    wiring: int = 0,
    dtype=None,
) -> Cell:
    """Columns of a few features and one state each, sparsely linked to one another.

        f_i = relu(W²_i relu(W¹_i x_t + b¹_i) + b²_i)
        h_i(t) = h_i(t-1) + tanh(w_iᵀ (m_i ∘ [f_1 … f_d; h(t-1)]) + b_i)

    Parameters `{"fc1": {"W": [d, w, m], "bias": [d, w]}, "fc2": {"W": [d, w, w], "bias": [d, w]},
    "own": [d, w], "bias": [d]}`; with a density above 0 also `"self": [d]`, which meets a column's
    own state, and `"links": [d, d·w + d]`, which meets the others' features and states. Where there
    is no link a weight has no effect, and its gradient is 0. All are drawn U(−1/√k, 1/√k) with the
    fan-in k: m, w, and d·w + d for w_i and b_i whether linked or not. The hidden state is h [d], 0
    at first.

    Args:
        inputs: m, the size of x.
        hidden: d, the number of columns.
        width: w, the number of a column's features.
        density: how many links a column has on average, per own feature: each of the w (d − 1) + d
            possible ones exists with probability min(1, density · w / (w (d − 1) + d)). Without
            any, at 0, there are O(d) parameters.
        local: the gradient stays inside a column: what comes from others counts as an input.
        wiring: the seed of the mask; it is the same for all parameters that `init` draws.
        dtype: of parameters and hidden state, by default JAX's float.

    Returns:
        A `Cell`.

    Raises:
        TypeError, ValueError: a size is not a positive integer, the density is negative, the wiring
            is not an integer of at least 0, `local` is not a bool, the dtype is not a floating one.

    >>> import jax
    >>> params, h = (cell := columnar_rnn(3, 8, width=4)).init(jax.random.key(0))
    >>> cell.step(params, h, jnp.ones_like(h, shape=3)).shape
    (8,)
    >>> sorted(params), sorted(columnar_rnn(3, 8, density=0.1).init(jax.random.key(0))[0])
    (['bias', 'fc1', 'fc2', 'own'], ['bias', 'fc1', 'fc2', 'links', 'own', 'self'])

    Reference: Javed, White & Sutton (2021), arXiv:2103.05787.
    """
    inputs, hidden, dtype = positive_int("inputs", inputs), positive_int("hidden", hidden), float_dtype(dtype)
    width, wiring = positive_int("width", width), positive_int("wiring", wiring, least=0)
    not_negative("density", density)
    boolean("local", local)
    linked, everything = density > 0, hidden * width + hidden
    itself, others = (mask.astype(dtype) for mask in _links(hidden, width, density, wiring))

    def init(key):
        keys = iter(jax.random.split(key, 8))

        def uniform(fan_in, *shape):
            bound = 1 / math.sqrt(fan_in)
            return jax.random.uniform(next(keys), (hidden, *shape), dtype, -bound, bound)

        params = {
            "fc1": {"W": uniform(inputs, width, inputs), "bias": uniform(inputs, width)},
            "fc2": {"W": uniform(width, width, width), "bias": uniform(width, width)},
            "own": uniform(everything, width),
            "bias": uniform(everything),
        }
        if linked:
            params |= {"self": uniform(everything), "links": uniform(everything, everything)}
        return params, jnp.zeros(hidden, dtype)

    def step(params, h, x):
        below = jax.nn.relu(params["fc1"]["W"] @ x + params["fc1"]["bias"])
        f = jax.nn.relu(jnp.einsum("dij,dj->di", params["fc2"]["W"], below) + params["fc2"]["bias"])
        drive = jnp.einsum("dj,dj->d", params["own"], f) + params["bias"]
        if linked:
            seen = jnp.concatenate([f.ravel(), h])
            seen = jax.lax.stop_gradient(seen) if local else seen
            drive = drive + (params["self"] * itself) * h + (params["links"] * others) @ seen
        return h + jnp.tanh(drive)

    return Cell(init, step, lambda h: h, inputs, hidden)


def _links(columns: int, width: int, density: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which links there are: to a column's own state [d], to others' features and states [d, d·w + d]."""
    probability = density * width / (width * (columns - 1) + columns)
    drawn = np.random.default_rng(seed).random((columns, columns * width + columns)) < probability
    owner = np.concatenate([np.repeat(np.arange(columns), width), np.arange(columns)])
    foreign = owner != np.arange(columns)[:, None]
    return np.diagonal(drawn[:, columns * width :]), drawn & foreign
