"""The patterns of a transition's Jacobians: which hidden entries each drive and each entry of h can reach.

Found by `dependence`, so that none is smaller than the truth, and coloured, so that a sparse Jacobian takes
one JVP per colour.
"""

from collections.abc import Callable
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from online_grads.dependence import dependence, may_be_nonzero
from online_grads.structure import Structure


def colour(pattern: sparse.csr_matrix) -> np.ndarray:
    """Colours [columns] such that two columns of one colour share no row.

    One JVP per colour then gives every column (a tangent of ones on the columns of the colour).
    """
    columns = sparse.csc_matrix(pattern)
    taken: list[np.ndarray] = []
    colours = np.zeros(columns.shape[1], int)
    for column in range(columns.shape[1]):
        rows = columns.indices[columns.indptr[column] : columns.indptr[column + 1]]
        number = next((c for c, rows_taken in enumerate(taken) if not rows_taken[rows].any()), len(taken))
        if number == len(taken):
            taken.append(np.zeros(columns.shape[0], bool))
        taken[number][rows] = True
        colours[column] = number
    return colours


class Patterns:
    """The patterns of a transition's Jacobians, each found when first asked for."""

    def __init__(self, structure: Structure, params, h, rest, x):
        """Args: the structure, and the shapes that it was built from."""
        self._structure, self._params, self._h = structure, params, h
        self._given = (structure.weights, rest, x)
        drives = [jax.ShapeDtypeStruct((s.batch, s.post), s.dtype) for s in structure.synapses]
        self._given_held = (*self._given, drives)

    @cached_property
    def drives(self) -> list[sparse.csr_matrix]:
        """Per drive the entries of h' that it can reach, D: [n, batch·post]."""
        return self._reached(lambda h, drives: h)

    @property
    def sites(self) -> list[sparse.csr_matrix]:
        """Per site the entries of h' that its drive can reach, D_l: [n, batch·post]."""
        return [self.drives[number] for number in self._structure.drive_of]

    @cached_property
    def between(self) -> list[sparse.csr_matrix]:
        """Per drive the synapses of the same step that it reaches, all of them below one another."""
        return self._reached(
            lambda h, drives: jnp.concatenate([h[:0], *(z.ravel().astype(h.dtype) for z in drives)])
        )

    @cached_property
    def trained_entries(self) -> list[np.ndarray]:
        """Per trained weight the entries that some parameter moves, in the weight's shape."""

        def moved(params, tangent):
            trained = lambda params: self._structure.effective(params)[: self._structure.trained]
            return jax.jvp(trained, (params,), (tangent,))[1]

        return may_be_nonzero(moved, list(self._params), list(self._params))

    @cached_property
    def held(self) -> sparse.csr_matrix:
        """The entries of h' that h reaches while the drives are held, J₀: [n, n]."""
        return dependence(lambda h, *given: self._hold(h, *given)[0], self._h, given=self._given_held)

    @cached_property
    def entrywise(self) -> sparse.csr_matrix:
        """J₀ with products of h and an input, or h itself, held like drives: [n, n]; see `units`."""
        step = lambda h, *given: self._hold(h, *given)[0]
        return dependence(step, self._h, given=self._given_held, products=False)

    @cached_property
    def presynaptic(self) -> list[sparse.csr_matrix]:
        """Per synapse the entries of v that h reaches while the drives are held, V_l: [batch·pre, n]."""
        vectors = lambda h, *given: jnp.concatenate(
            [v.ravel().astype(h.dtype) for v in self._hold(h, *given)[2]] or [h[:0]]
        )
        pattern = dependence(vectors, self._h, given=self._given_held)
        synapses = self._structure.synapses
        ends = np.cumsum([site.batch * site.pre for site in synapses])
        return [pattern[end - site.batch * site.pre : end] for end, site in zip(ends, synapses, strict=True)]

    @cached_property
    def weights(self) -> list[np.ndarray]:
        """Per site w [batch, pre, post]: the entries that are not provably zero."""
        structure = self._structure
        matrices = lambda params: [
            structure.matrix(site, structure.effective(params)) for site in structure.sites
        ]
        return may_be_nonzero(matrices, self._params)

    @cached_property
    def jacobian(self) -> sparse.csr_matrix:
        """The entries of h' that h reaches, J = J₀ + Σ_l D_l w_lᵀ V_l: [n, n]."""
        total = self.held
        # direct uses come after the synapses and have no presynaptic vector
        for reach, nonzero, vector in zip(self.sites, self.weights, self.presynaptic, strict=False):
            # w as one block-diagonal matrix [batch·pre, batch·post]
            blocks = sparse.block_diag([sparse.csr_matrix(w) for w in nonzero], format="csr", dtype=bool)
            total = total + reach @ blocks.T @ vector
        return sparse.csr_matrix(total)

    @cached_property
    def carried(self) -> np.ndarray:
        """Which entries of h the next step reads, [n] bool; the others are outputs of their step alone.

        The columns of J that are not empty, found without J, which may be large.
        """
        read = np.diff(self.held.tocsc().indptr) > 0
        for reach, nonzero, vector in zip(self.sites, self.weights, self.presynaptic, strict=False):
            posts = (np.diff(reach.tocsc().indptr) > 0).reshape(nonzero.shape[0], -1)
            pres = [w[:, p].any(axis=1) for w, p in zip(nonzero, posts, strict=True)]
            read |= vector.T @ np.concatenate(pres)
        return read

    def follow(self, entries: np.ndarray) -> np.ndarray:
        """The entries of h' that some of these entries of h reach, both [n] bool, without making J."""
        found = self.held @ entries
        for reach, nonzero, vector in zip(self.sites, self.weights, self.presynaptic, strict=False):
            pres = (vector @ entries).reshape(nonzero.shape[0], -1)
            posts = [w[p].any(axis=0) for w, p in zip(nonzero, pres, strict=True)]
            found |= reach @ np.concatenate(posts)
        return found

    def _reached(self, result: Callable) -> list[sparse.csr_matrix]:
        """Per drive the pattern of `result(h', drives)` with respect to its perturbation."""
        structure = self._structure
        splits = np.cumsum([drive.batch * drive.post for drive in structure.drives])
        if not structure.drives:
            return []

        def reached(flat, weights, rest, x, h):
            pieces = jnp.split(flat, splits[:-1])
            perturb = [
                piece.reshape(drive.batch, drive.post).astype(drive.dtype)
                for piece, drive in zip(pieces, structure.drives, strict=True)
            ]
            h_t, _, _, drives = structure.step(weights, h, rest, x, perturb=perturb)
            return result(h_t, drives)

        vector = jax.ShapeDtypeStruct((int(splits[-1]),), self._h.dtype)
        pattern = dependence(reached, vector, given=(*self._given, self._h)).tocsc()
        return [
            pattern[:, end - drive.batch * drive.post : end]
            for end, drive in zip(splits, structure.drives, strict=True)
        ]

    def _hold(self, h, weights, rest, x, drives):
        return self._structure.step(weights, h, rest, x, hold=drives)
