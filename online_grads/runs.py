"""The Jacobians of one step from diagonals, where a cell has few of them.

In a layer of units the drive Jacobian D_l is a few diagonals (one per gate and state of the unit), and so
are J₀ and V_l = ∂v_l/∂h. Then

    J = J₀ + Σ_l D_l w_lᵀ V_l

is a weighted sum of a few blocks of the weights, n² products instead of the n VJPs of n² each that a dense
Jacobian takes.
"""

from functools import cached_property
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy import sparse

from online_grads.patterns import Patterns
from online_grads.sparse import Entries, SparseJacobian
from online_grads.structure import Structure
from online_grads.types import Array

# More blocks than this are no longer cheaper than VJPs; every one is part of the program.
MOST = 24


class Run(NamedTuple):
    """A piece of a diagonal: the entries (row + i, column + i), i < length."""

    row: int
    column: int
    length: int

    @property
    def rows(self):
        """All of its rows."""
        return self.row + np.arange(self.length)

    @property
    def columns(self):
        """All of its columns."""
        return self.column + np.arange(self.length)


def runs(pattern) -> list[Run]:
    """The pieces of diagonals that make up a pattern.

    >>> runs(np.array([[1, 0, 1], [0, 1, 0]]))
    [Run(row=0, column=0, length=2), Run(row=0, column=2, length=1)]
    """
    rows, columns = sparse.coo_array(pattern).coords
    order = np.lexsort((rows, columns - rows))
    rows, columns = rows[order], columns[order]
    breaks = np.flatnonzero((np.diff(rows) != 1) | (np.diff(columns) != 1)) + 1
    starts = np.concatenate([[0], breaks])[: rows.size]
    lengths = np.diff([*starts, rows.size])
    return [Run(int(rows[s]), int(columns[s]), int(n)) for s, n in zip(starts, lengths, strict=True)]


class RunJacobian:
    """J and the D of all drives at one step, from runs."""

    def __init__(self, structure: Structure, patterns: Patterns):
        """Find the runs of all patterns."""
        self._structure = structure
        self._jacobian = SparseJacobian(structure, patterns)
        self._size = patterns.held.shape[0]
        self._drives = [runs(pattern) for pattern in patterns.drives]
        self._held = runs(patterns.held)
        self._vectors = [runs(pattern) for pattern in patterns.presynaptic]

    @cached_property
    def few(self) -> bool:
        """Whether the sum has few enough terms, of synapses that are no batches."""
        synapses = self._structure.synapses
        drives = [self._drives[number] for number in self._structure.drive_of[: len(synapses)]]
        blocks = sum(len(d) * len(v) for d, v in zip(drives, self._vectors, strict=True))
        terms = blocks + len(self._held) + sum(map(len, self._drives))
        return terms <= MOST and all(site.batch == 1 for site in synapses)

    def __call__(self, weights, h, rest, x) -> tuple[Array, list[Array], list[Array]]:
        """J [n, n], per trained drive D [n, batch, post], and per synapse v [batch, pre]."""
        entries = self._jacobian(weights, h, rest, x)
        reaches = []
        for number, drive in enumerate(self._structure.trained_drives):
            shape = (self._size, drive.batch * drive.post)
            values = [entries.drive(number, run.rows, run.columns) for run in self._drives[number]]
            reach = _sum_of_diagonals(self._drives[number], values, shape, h.dtype)
            reaches.append(reach.reshape(self._size, drive.batch, drive.post))
        return self._whole(entries, weights, h.dtype), reaches, entries.presynaptic

    def _whole(self, entries: Entries, weights, dtype) -> Array:
        """J₀ + Σ_l D_l w_lᵀ V_l."""
        structure, shape, offset = self._structure, (self._size, self._size), self._size
        held = [entries.below(run.rows, run.columns) for run in self._held]
        total = _sum_of_diagonals(self._held, held, shape, dtype)
        for number, (site, vectors) in enumerate(zip(structure.synapses, self._vectors, strict=True)):
            matrix = structure.matrix(site, weights)[0].T.astype(dtype)
            drive = structure.drive_of[number]
            for d in self._drives[drive]:
                reach = entries.drive(drive, d.rows, d.columns)[:, None]
                for v in vectors:
                    block = matrix[d.column : d.column + d.length, v.row : v.row + v.length]
                    below = entries.below(offset + v.rows, v.columns)[None]
                    total += _placed(reach * block * below, d.row, v.column, shape)
            offset += site.pre
        return total


def _sum_of_diagonals(places: list[Run], values: list[Array], shape, dtype) -> Array:
    total = jnp.zeros(shape, dtype)
    for run, diagonal in zip(places, values, strict=True):
        block = jnp.where(np.eye(run.length, dtype=bool), diagonal[:, None], 0)
        total += _placed(block, run.row, run.column, shape)
    return total


def _placed(block: Array, row: int, column: int, shape) -> Array:
    """The block within zeros of a shape."""
    rows, columns = block.shape
    return jnp.pad(block, ((row, shape[0] - row - rows), (column, shape[1] - column - columns)))
