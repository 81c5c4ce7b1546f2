"""Cells that are learned one after another: columnar-constructive networks.

Of S stages with u outputs each, s = 0, 1, ... is in charge for a time; it alone learns its weights:

    h⁽ʳ⁾_t = step(θ⁽ʳ⁾, h⁽ʳ⁾_{t-1}, [x_t; f⁽⁰⁾_{t-1}; …; f⁽ʳ⁻¹⁾_{t-1}; 0; …; 0])          r = s, learned
    the same without a gradient          r < s, frozen: its features go on flowing
    its initial state, f⁽ʳ⁾ = 0          r > s, not there yet

Features are normalised online, after the step, and no gradient enters one stage from another:

    f = (z − μ) / max(σ, floor)          z = output(h)
    μ ← β μ + (1 − β) z          σ² ← β σ² + (1 − β) (z − μ)²

Every shape is final from the start: growth never recompiles. ∂h_t/∂h_{t-1} has one block per stage, so that
with stages of columns exact RTRL costs O(p).

A stage reads features one step late, as in the authors' code (khurramjaved96/Columnar-Constructive-Networks):
there, too, all columns move at once. Otherwise that code differs: later columns run from the start, with
random weights; the floor is one on σ²; what a column reads has statistics of its own, which it freezes.

Reference: Javed, Shah, Sutton & White (2023), Scalable real-time recurrent learning using
columnar-constructive networks, JMLR 24, arXiv:2302.05326.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from online_grads.arguments import above, positive_int, probability
from online_grads.cells.columnar_lstm import columnar_lstm
from online_grads.cells.types import Cell
from online_grads.types import Array, PyTree

MOST = 2**31 - 1  # steps are counted in int32


class ConstructiveHidden(NamedTuple):
    """The state of all stages, those that are not there yet included."""

    cells: PyTree  # like a cell's hidden state, with a first axis [S]
    mean: Array  # [S, u] μ
    variance: Array  # [S, u] σ²
    step: Array  # [] int32, steps so far, up to those at which the last stage begins
    stage: Array  # [] int32, which stage was in charge in the last step


def constructive(
    cell: Cell,
    *,
    inputs: int,
    stages: int,
    every: int | tuple[int, ...],
    decay: float = 0.9999,
    floor: float = 0.1,
) -> Cell:
    """A cell for every stage, learned one stage after another, each on the features of those before.

        h⁽ʳ⁾_t = step(θ⁽ʳ⁾, h⁽ʳ⁾_{t-1}, [x_t; f⁽⁰⁾_{t-1}; …; f⁽ʳ⁻¹⁾_{t-1}; 0; …; 0])
        f = (output(h) − μ) / max(σ, floor)

    Parameters are the cell's with a first axis [S]. The hidden state is `ConstructiveHidden`: μ is 0 at
    first, σ² 1, so that a new feature is small and comes in softly. The running statistics go on when a
    stage is frozen. Whatever differentiates gives frozen and future weights a gradient of exactly zero, but
    an optimizer with momentum goes on moving what it moved: see `online_grads.optimizers.lazy`. The
    perturbation family (`es`, `pes`, `es_single`, `nres`) knows of no frozen weight: it moves them all. A
    reset of the hidden state (`with_resets`) begins the growth anew: for streams without episodes.

    Args:
        cell: a stage, a `Cell` for inputs of size m + S u, where u is its size.
        inputs: m, the size of x.
        stages: S.
        every: for how many steps a stage is in charge; a number for each stage but the last, which has no
            end, or one number for all.
        decay: β in [0, 1), of the running mean and variance. The authors take 0.99999, for stages of millions
            of steps.
        floor: the least σ that a feature is divided by, above 0.

    Returns:
        A `Cell` whose output is f, of size S u; the features of future stages are 0.

    Raises:
        TypeError: the first argument is not a `Cell`, or an option not a number.
        ValueError: the cell's inputs are not m + S u; there are not S − 1 numbers in `every`, one is below
            1, or they add up to more than 2³¹ − 1; the decay or the floor is out of range.

    >>> import jax
    >>> from online_grads.cells import gru
    >>> cell = constructive(gru(3 + 4 * 2, 2), inputs=3, stages=4, every=1000)
    >>> params, hidden = cell.init(jax.random.key(0))
    >>> params["W_rz"].shape, cell.output(cell.step(params, hidden, jnp.ones(3))).shape
    ((4, 4, 13), (8,))

    Reference: Javed et al. (2023), arXiv:2302.05326.
    """
    if not isinstance(cell, Cell):
        raise TypeError(f"constructive needs a Cell, got {cell!r}")
    inputs, stages = positive_int("inputs", inputs), positive_int("stages", stages)
    size = stages * cell.size
    if cell.inputs != inputs + size:
        raise ValueError(
            f"a stage reads x and the features of all stages, {inputs} + {stages} · {cell.size} = "
            f"{inputs + size}, but the cell takes inputs of size {cell.inputs}"
        )
    begins = np.asarray(_begins(every, stages), np.int32)
    last = int(begins.max(initial=0))
    probability("decay", decay)
    above("floor", floor, 0)
    order = np.arange(stages, dtype=np.int32)
    # [S, S u] which features a stage reads
    earlier = np.repeat(np.tri(stages, k=-1, dtype=bool), cell.size, axis=1)
    still = jax.lax.stop_gradient

    def init(key):
        params, hidden = jax.vmap(cell.init)(jax.random.split(key, stages))
        outputs = jax.eval_shape(jax.vmap(cell.output), hidden)
        zeros, none = jnp.zeros(outputs.shape, outputs.dtype), jnp.zeros((), jnp.int32)
        return params, ConstructiveHidden(hidden, zeros, jnp.ones_like(zeros), none, none)

    def features(hidden):
        """f [S u] of the stages that are there, 0 of the others."""
        spread = jnp.sqrt(jnp.maximum(still(hidden.variance), floor**2))
        normal = (jax.vmap(cell.output)(hidden.cells) - still(hidden.mean)) / spread
        return jnp.where(order[:, None] <= hidden.stage, normal, 0).reshape(size)

    def moved(params, hidden, seen, number, stage):
        """One stage's next state; the weights stay plain operands of its products."""
        learned = lambda new, old: jnp.where(number == stage, new, still(jnp.where(number < stage, new, old)))
        return jax.tree.map(learned, cell.step(params, hidden, seen), hidden)

    def step(params, hidden, x):
        stage = jnp.sum(begins <= hidden.step, dtype=jnp.int32)
        known = jnp.where(earlier, still(features(hidden))[None], 0)
        seen = jnp.concatenate([jnp.broadcast_to(x, (stages, inputs)), known], axis=1)
        every_stage = jax.vmap(moved, (0, 0, 0, 0, None))
        cells = every_stage(params, hidden.cells, seen, order, stage)
        outputs, mean, variance = still((jax.vmap(cell.output)(cells), hidden.mean, hidden.variance))
        running = lambda old, new: jnp.where(order[:, None] <= stage, decay * old + (1 - decay) * new, old)
        mean = running(mean, outputs)
        variance = running(variance, (outputs - mean) ** 2)
        return ConstructiveHidden(cells, mean, variance, jnp.minimum(hidden.step + 1, last), stage)

    return Cell(init, step, features, inputs, size)


def constructive_columns(
    inputs: int,
    hidden: int,
    *,
    stages: int | None = None,
    every: int | tuple[int, ...] = 50_000,
    decay: float = 0.9999,
    floor: float = 0.1,
    forget_bias: float = 1.0,
    dtype=None,
) -> Cell:
    """`constructive` with stages of columns, LSTMs of one unit each: a columnar-constructive network.

    Parameters are those of `columnar_lstm` with a first axis [S]: `{"W": [S, 4u, m + d], "self": [S, 4u],
    "bias": [S, 4u]}`, where u = d / S.

    Args:
        inputs: m, the size of x.
        hidden: d, the number of columns in all.
        stages: S, by default d: one column at a time.
        every: for how many steps a stage is in charge, one number or S − 1.
        decay: β of the running mean and variance.
        floor: the least σ that a feature is divided by.
        forget_bias: where the bias of f starts.
        dtype: of parameters and hidden state, by default JAX's float.

    Returns:
        A `Cell` whose output is f, of size d.

    Raises:
        TypeError, ValueError: the stages do not divide d, or what `constructive` and `columnar_lstm`
            refuse.

    >>> import jax
    >>> cell = constructive_columns(3, 20, stages=5, every=1000)
    >>> cell.init(jax.random.key(0))[0]["W"].shape, cell.size
    ((5, 16, 23), 20)

    Reference: Javed et al. (2023), arXiv:2302.05326.
    """
    inputs, hidden = positive_int("inputs", inputs), positive_int("hidden", hidden)
    stages = hidden if stages is None else positive_int("stages", stages)
    if hidden % stages:
        raise ValueError(f"the stages must divide the {hidden} columns, got {stages}")
    column = columnar_lstm(inputs + hidden, hidden // stages, forget_bias=forget_bias, dtype=dtype)
    return constructive(column, inputs=inputs, stages=stages, every=every, decay=decay, floor=floor)


def _begins(every, stages: int) -> list[int]:
    """Before how many steps each stage but the first begins, [S − 1]."""
    if not isinstance(every, tuple | list):
        every = [every] * max(stages - 1, 1)
    elif len(every) != stages - 1:
        raise ValueError(
            f"every must be one number, or one for each of the {stages} stages but the last, got {every!r}"
        )
    lengths = [positive_int("every", length) for length in every][: stages - 1]
    if (total := sum(lengths)) > MOST:
        raise ValueError(f"the last stage must begin within {MOST} steps, got {total}")
    return list(itertools.accumulate(lengths))
