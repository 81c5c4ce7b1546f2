"""The linear recurrent unit: complex decays, apart from one another, and a linear output.

    h_t = λ∘h_{t-1} + γ∘(B x_t)          y_t = Re(C h_t) + D x_t          λ = exp(−exp(ν) + i exp(θ))

h is complex, held as (re, im). A weight of the recurrence acts on one h_i alone, and the next step
does not read y, so that exact RTRL costs O(p).

Reference: Orvieto et al. (2023), arXiv:2303.06349; its RTRL: Zucchet et al. (2023), Online learning of
long-range dependencies, arXiv:2305.15947.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from online_grads.arguments import float_dtype, positive_int
from online_grads.cells.initial import inward
from online_grads.cells.ring import decays, normaliser, ring
from online_grads.cells.types import Cell
from online_grads.types import Array


class LruHidden(NamedTuple):
    """The state of linear recurrent units, h = re + i im, and what they output."""

    re: Array  # [n]
    im: Array  # [n]
    y: Array  # [o] not read by the next step


def lru(
    inputs: int,
    hidden: int,
    *,
    outputs: int | None = None,
    r_min: float = 0.0,
    r_max: float = 1.0,
    max_phase: float = math.tau,
    dtype=None,
) -> Cell:
    """Linear recurrent units.

        h_t = λ∘h_{t-1} + γ∘(B x_t)          y_t = Re(C h_t) + D x_t          λ = exp(−exp(ν) + i exp(θ))

    Parameters `{"nu_log": [n], "theta_log": [n], "gamma_log": [n], "B_re": [n, m], "B_im": [n, m],
    "C_re": [o, n], "C_im": [o, n], "D": [o, m]}`: ν, θ and log γ as in the paper, so that γ stays
    positive. λ is drawn on a ring, γ starts at √(1 − |λ|²); the entries of B are N(0, 1/2m) for each
    part, of C N(0, 1/n), of D N(0, 1/m). The hidden state is `LruHidden(re, im, y)`, 0 at first.

    Args:
        inputs: m, the size of x.
        hidden: n, the number of complex units.
        outputs: o, the size of y, by default n.
        r_min, r_max: the bounds of |λ| at first, 0 ≤ r_min ≤ r_max ≤ 1 with r_max above 0. Close to 1
            for a long memory: a unit forgets in 1/(1 − |λ|) steps.
        max_phase: the largest phase of λ at first, in (0, 2π].
        dtype: of parameters and hidden state, by default JAX's float.

    Returns:
        A `Cell` whose output is y.

    Raises:
        TypeError, ValueError: a size is not a positive integer, a bound is not a number in its range,
            the dtype is not a floating one.

    >>> import jax
    >>> params, hidden = (cell := lru(3, 8, outputs=2, r_min=0.9)).init(jax.random.key(0))
    >>> params["B_re"].shape, hidden.im.shape, cell.output(hidden).shape
    ((8, 3), (8,), (2,))

    Reference: Orvieto et al. (2023), arXiv:2303.06349, section 3; Zucchet et al. (2023), arXiv:2305.15947.
    """
    inputs, hidden, dtype = positive_int("inputs", inputs), positive_int("hidden", hidden), float_dtype(dtype)
    outputs = hidden if outputs is None else positive_int("outputs", outputs)
    draw = ring(r_min, r_max, max_phase)

    def init(key):
        key_ring, *keys = jax.random.split(key, 6)
        params = draw(key_ring, hidden, dtype)
        params["gamma_log"] = jnp.log(normaliser(params["nu_log"]))
        for name, key_B, key_C in zip(("re", "im"), keys[:2], keys[2:4], strict=True):
            params["B_" + name] = inward(key_B, hidden, inputs, dtype) / math.sqrt(2)
            params["C_" + name] = inward(key_C, outputs, hidden, dtype)
        params["D"] = inward(keys[4], outputs, inputs, dtype)
        zero = jnp.zeros(hidden, dtype)
        return params, LruHidden(zero, zero, jnp.zeros(outputs, dtype))

    def step(params, state, x):
        decay_re, decay_im = decays(params["nu_log"], params["theta_log"])
        gamma = jnp.exp(params["gamma_log"])
        re = decay_re * state.re - decay_im * state.im + gamma * (params["B_re"] @ x)
        im = decay_re * state.im + decay_im * state.re + gamma * (params["B_im"] @ x)
        # a plain sum of products, so that the three matrices share one drive
        y = params["C_re"] @ re + params["C_im"] @ -im + params["D"] @ x
        return LruHidden(re, im, y)

    return Cell(init, step, lambda state: state.y, inputs, outputs)
