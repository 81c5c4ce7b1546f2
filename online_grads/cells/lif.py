"""The leaky integrate-and-fire neuron.

    v_t = α v_{t-1} + W_rec z_{t-1} + W_in x_t − v_th z_{t-1}          z_t = H((v_t − v_th)/v_th)

with a surrogate for the derivative of H. α = exp(−dt/τ_m).

Reference: Bellec et al. (2020), Nat. Commun. 11:3625, eqs. 6-8.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from online_grads.arguments import float_dtype, number_in, positive_int, probability
from online_grads.cells.filtered import filtered
from online_grads.cells.spiking import current, fire, synapses
from online_grads.cells.types import Cell
from online_grads.types import Array


class LifHidden(NamedTuple):
    """The state of leaky integrate-and-fire neurons."""

    v: Array  # [n] membrane potential
    z: Array  # [n] spikes, 0 or 1
    silent: Array  # [n] int32, steps of silence that are left


def lif(
    inputs: int,
    hidden: int,
    *,
    decay: float = 0.95,
    threshold: float = 1.0,
    dampening: float = 0.3,
    refractory: int = 0,
    readout_decay: float = 0.0,
    dtype=None,
) -> Cell:
    """Leaky integrate-and-fire neurons.

        v_t = α v_{t-1} + W_rec z_{t-1} + W_in x_t − v_th z_{t-1}      z_t = H((v_t − v_th)/v_th)
        dz/dv := (γ/v_th) max(0, 1 − |v − v_th|/v_th)

    Parameters `{"W_rec": [n, n], "W_in": [n, m]}`, drawn N(0, 1/n) and N(0, 1/m); the diagonal of
    W_rec has no effect. The hidden state is `LifHidden(v, z, silent)`, 0 at first. The reset is not
    differentiated, and a silent neuron has no derivative.

    Args:
        inputs: m, the size of x.
        hidden: n, the number of neurons.
        decay: α = exp(−dt/τ_m), in (0, 1).
        threshold: v_th, above 0.
        dampening: γ, above 0.
        refractory: a neuron spikes at most once in so many steps; 0 and 1 let it spike at every step.
        readout_decay: κ, in [0, 1): above 0 the output is the spikes filtered, z̄_t = κ z̄_{t-1} + z_t, and
            the hidden state `FilteredHidden`; see `filtered`.
        dtype: of parameters and hidden state, by default JAX's float.

    Returns:
        A `Cell` whose output is z, or z̄.

    Raises:
        TypeError, ValueError: a size is not a positive integer, a number is out of its range, the
            dtype is not a floating one.

    >>> import jax
    >>> params, hidden = (cell := lif(3, 8, refractory=2)).init(jax.random.key(0))
    >>> cell.output(cell.step(params, hidden, 9 * jnp.ones(3))).shape
    (8,)

    Reference: Bellec et al. (2020), Nat. Commun. 11:3625, eqs. 6-8.
    """
    inputs, hidden, dtype = positive_int("inputs", inputs), positive_int("hidden", hidden), float_dtype(dtype)
    refractory = positive_int("refractory", refractory, least=0)
    number_in(0, 1, decay=decay)
    number_in(0, math.inf, threshold=threshold, dampening=dampening)
    probability("readout_decay", readout_decay)

    def init(key):
        zero = jnp.zeros(hidden, dtype)
        return synapses(key, inputs, hidden, dtype), LifHidden(zero, zero, jnp.zeros(hidden, jnp.int32))

    def step(params, state, x):
        reset = threshold * jax.lax.stop_gradient(state.z)
        v = decay * state.v + current(params, state.z, x) - reset
        z, silent = fire((v - threshold) / threshold, state.silent, refractory, dampening)
        return LifHidden(v, z, silent)

    cell = Cell(init, step, lambda state: state.z, inputs, hidden)
    return filtered(cell, readout_decay) if readout_decay else cell
