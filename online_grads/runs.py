"""The Jacobians of one step from diagonals, where a cell has few of them.

In a layer of units the drive Jacobian D_l is a few diagonals (one per gate and state of the unit), and so
are J₀ and V_l = ∂v_l/∂h. Then

    J = J₀ + Σ_l D_l w_lᵀ V_l

is a weighted sum of a few blocks of the weights, n² products instead of the n VJPs of n² each that a dense
Jacobian takes.
"""

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
        self.size = patterns.held.shape[0]
        self.drives = [runs(pattern) for pattern in patterns.drives]
        self.held = runs(patterns.held)
        self.vectors = [runs(pattern) for pattern in patterns.presynaptic]

    @property
    def few(self) -> bool:
        """Whether the sum has few enough terms, of synapses that are no batches."""
        structure = self._structure
        synapses = [site for site in structure.sites if not site.direct]
        drives = [self.drives[number] for number in structure.drive_of[: len(synapses)]]
        blocks = sum(len(d) * len(v) for d, v in zip(drives, self.vectors, strict=True))
        terms = blocks + len(self.held) + sum(map(len, self.drives))
        return terms <= MOST and all(site.batch == 1 for site in synapses)

    def __call__(self, weights, h, rest, x) -> tuple[Array, list[Array], list[Array]]:
        """J [n, n], per trained drive D [n, batch, post], and per synapse v [batch, pre]."""
        structure, n = self._structure, self.size
        entries = self._jacobian(weights, h, rest, x)
        total = sum((self._diagonal(entries.below(r.rows, r.columns), r, (n, n)) for r in self.held), jnp.zeros((n, n), h.dtype))
        offset = n
        for number, (site, vectors) in enumerate(zip(structure.sites, self.vectors, strict=False)):
            matrix = structure.matrix(site, weights)[0].T.astype(h.dtype)
            drive = structure.drive_of[number]
            for d in self.drives[drive]:
                reach = entries.drive(drive, d.rows, d.columns)[:, None]
                for v in vectors:
                    block = matrix[d.column : d.column + d.length, v.row : v.row + v.length]
                    block = reach * block * entries.below(offset + v.rows, v.columns)[None]
                    total += _placed(block, d.row, v.column, (n, n))
            offset += site.pre
        reaches = []
        for number, drive in enumerate(structure.trained_drives):
            shape = (n, drive.batch * drive.post)
            parts = [self._diagonal(entries.drive(number, r.rows, r.columns), r, shape) for r in self.drives[number]]
            reaches.append(sum(parts, jnp.zeros(shape, h.dtype)).reshape(n, drive.batch, drive.post))
        return total, reaches, entries.presynaptic

    @staticmethod
    def _diagonal(values, run: Run, shape) -> Array:
        own = jnp.eye(run.length, dtype=bool)
        return _placed(jnp.where(own, values[:, None], 0), run.row, run.column, shape)


def _placed(block: Array, row: int, column: int, shape) -> Array:
    """The block within zeros of a shape."""
    rows, columns = block.shape
    return jnp.pad(block, ((row, shape[0] - row - rows), (column, shape[1] - column - columns)))
