"""Recurrent trace units: complex decays as real rotations, with the input scaled by what they forget.

    c¹_t = φ(g∘c¹_{t-1} − s∘c²_{t-1} + γ∘(W¹ x_t))          g + i s = λ = exp(−exp(ν) + i exp(θ))
    c²_t = φ(g∘c²_{t-1} + s∘c¹_{t-1} + γ∘(W² x_t))          γ = √(1 − |λ|²)

φ is the identity, and the output is tanh([c¹; c²]); or φ is tanh, and the output is [c¹; c²]. A weight
acts on one pair (c¹_i, c²_i) alone, so that exact RTRL costs O(p). By the chain rule ∂g/∂θ = −s e^θ and
∂s/∂θ = g e^θ; the authors' code leaves e^θ out.

Reference: Elelimy, White, Bowling & White (2024), Real-time recurrent learning using trace units in
reinforcement learning, arXiv:2409.01449.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from online_grads.arguments import boolean, float_dtype, positive_int
from online_grads.cells.initial import inward
from online_grads.cells.ring import decays, normaliser, ring
from online_grads.cells.types import Cell
from online_grads.types import Array


class RtuHidden(NamedTuple):
    """The state of recurrent trace units."""

    c1: Array  # [n]
    c2: Array  # [n]


def rtu(
    inputs: int,
    hidden: int,
    *,
    nonlinear: bool = False,
    r_min: float = 0.0,
    r_max: float = 1.0,
    max_phase: float = math.tau,
    dtype=None,
) -> Cell:
    """Recurrent trace units.

        c¹_t = φ(g∘c¹_{t-1} − s∘c²_{t-1} + γ∘(W¹ x_t))          g + i s = λ = exp(−exp(ν) + i exp(θ))
        c²_t = φ(g∘c²_{t-1} + s∘c¹_{t-1} + γ∘(W² x_t))          γ = √(1 − |λ|²)

    Parameters `{"nu_log": [n], "theta_log": [n], "W": [2n, m]}`: ν, θ and W¹ above W², in one product.
    λ is drawn on a ring, W is N(0, 1/m). The hidden state is `RtuHidden(c1, c2)`, 0 at first. Either
    the recurrence or the output is not linear: a linear readout never makes a linear model of it.

    Args:
        inputs: m, the size of x.
        hidden: n, the number of pairs.
        nonlinear: φ is tanh, inside the recurrence; otherwise it is the identity.
        r_min, r_max: the bounds of |λ| at first, 0 ≤ r_min ≤ r_max ≤ 1 with r_max above 0. Close to 1
            for a long memory: a unit forgets in 1/(1 − |λ|) steps.
        max_phase: the largest phase of λ at first, in (0, 2π].
        dtype: of parameters and hidden state, by default JAX's float.

    Returns:
        A `Cell` whose output is tanh([c¹; c²]), or [c¹; c²] if nonlinear, of size 2n.

    Raises:
        TypeError, ValueError: a size is not a positive integer, `nonlinear` is not a bool, a bound is
            not a number in its range, the dtype is not a floating one.

    >>> import jax
    >>> params, hidden = (cell := rtu(3, 8, nonlinear=True)).init(jax.random.key(0))
    >>> params["W"].shape, hidden.c2.shape, cell.output(hidden).shape
    ((16, 3), (8,), (16,))

    Reference: Elelimy et al. (2024), arXiv:2409.01449.
    """
    inputs, hidden, dtype = positive_int("inputs", inputs), positive_int("hidden", hidden), float_dtype(dtype)
    boolean("nonlinear", nonlinear)
    draw = ring(r_min, r_max, max_phase)

    def init(key):
        key_ring, key_W = jax.random.split(key)
        zero = jnp.zeros(hidden, dtype)
        params = draw(key_ring, hidden, dtype) | {"W": inward(key_W, 2 * hidden, inputs, dtype)}
        return params, RtuHidden(zero, zero)

    def step(params, state, x):
        g, s = decays(params["nu_log"], params["theta_log"])
        gamma = normaliser(params["nu_log"])
        first, second = jnp.split(params["W"] @ x, 2)
        c1 = g * state.c1 - s * state.c2 + gamma * first
        c2 = g * state.c2 + s * state.c1 + gamma * second
        return RtuHidden(jnp.tanh(c1), jnp.tanh(c2)) if nonlinear else RtuHidden(c1, c2)

    def output(state):
        both = jnp.concatenate(state)
        return both if nonlinear else jnp.tanh(both)

    return Cell(init, step, output, inputs, 2 * hidden)
