"""A cell whose output is filtered: what a leaky readout sees.

    z̄_t = κ z̄_{t-1} + z_t

A linear readout of z̄ is a leaky readout of z: y_t = W z̄_t + b obeys y_t = κ y_{t-1} + W z_t + (1 − κ) b.
The filter acts entry by entry, so that it stays inside a neuron and e-prop's gradient takes the
filtered eligibility trace.

Reference: Bellec et al. (2020), Nat. Commun. 11:3625.
"""

from typing import NamedTuple

import jax.numpy as jnp

from online_grads.arguments import number_in
from online_grads.cells.types import Cell
from online_grads.types import Array, PyTree


class FilteredHidden(NamedTuple):
    """A cell's hidden state and its filtered output."""

    cell: PyTree  # the cell's own hidden state
    trace: Array  # [n] z̄


def filtered(cell: Cell, decay: float) -> Cell:
    """The cell with a filtered output.

        z̄_t = κ z̄_{t-1} + z_t

    Parameters are the cell's. The hidden state is `FilteredHidden(cell, trace)`, the trace 0 at first.

    Args:
        cell: a `Cell` that outputs z.
        decay: κ = exp(−dt/τ_out), in (0, 1).

    Returns:
        A `Cell` whose output is z̄.

    Raises:
        TypeError, ValueError: the argument is not a `Cell`, the decay is not in (0, 1).

    >>> import jax
    >>> from online_grads.cells import vanilla_rnn
    >>> params, hidden = (cell := filtered(vanilla_rnn(3, 8), 0.9)).init(jax.random.key(0))
    >>> cell.output(cell.step(params, hidden, jnp.ones(3))).shape
    (8,)
    """
    if not isinstance(cell, Cell):
        raise TypeError(f"filtered needs a Cell, got {cell!r}")
    number_in(0, 1, decay=decay)

    def init(key):
        params, inner = cell.init(key)
        return params, FilteredHidden(inner, jnp.zeros_like(cell.output(inner)))

    def step(params, hidden, x):
        inner = cell.step(params, hidden.cell, x)
        return FilteredHidden(inner, decay * hidden.trace + cell.output(inner))

    return Cell(init, step, lambda hidden: hidden.trace, cell.inputs, cell.size)
