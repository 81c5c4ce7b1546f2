"""The Jacobians of one step at the entries that a pattern keeps, from a few JVPs.

Columns that share no reachable row share a JVP (a colour), so that an LSTM's 4n drives need four.
An entry of J = J₀ + Σ_l D_l w_lᵀ V_l is then a sum of few gathered products, without the n JVPs
that a dense Jacobian takes.
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from online_grads.patterns import Patterns, colour
from online_grads.structure import Structure


class SparseJacobian:
    """J[rows, columns] and D_l[rows, columns] of one step, for positions fixed at construction."""

    def __init__(self, structure: Structure, patterns: Patterns, rows: np.ndarray, columns: np.ndarray):
        """Prepare the entries (rows, columns) of J, all of them within J's pattern or zero."""
        self._structure, self._rows, self._columns = structure, rows, columns
        n = patterns.held.shape[0]
        reach = sparse.hstack([sparse.csr_matrix((n, 0), dtype=bool), *patterns.sites], format="csr")
        # a row needs as many colours as it has entries: beyond n of them, n VJPs give all of D
        self._flowing = _Columns(reach) if np.diff(reach.indptr).max(initial=0) <= n else None
        # h' and all presynaptic vectors below one another: what h reaches while the drives are held
        below = sparse.vstack([patterns.held, *patterns.presynaptic], format="csc")
        self._held = _Columns(below)
        terms = _count_terms(patterns, rows, columns)
        self._dense = terms > n * n
        self._terms = [] if self._dense else self._plan(patterns)
        self._own = np.asarray(patterns.held[rows, columns], bool).ravel() if rows.size else np.zeros(0, bool)

    def __call__(self, weights, h, rest, x):
        """At one step: J at its positions, a reader of D_l, the presynaptic vectors.

        Returns:
            J [len(rows)], `drive(site number, rows, columns)` -> D_l at these positions (any shape),
            and v [batch, pre] per synapse.
        """
        structure = self._structure
        ends = np.cumsum([site.batch * site.post for site in structure.sites])
        zeros = [jnp.zeros((site.batch, site.post), site.dtype) for site in structure.sites]

        def flowing(perturb):
            h_t, _, presynaptic, drives = structure.step(weights, h, rest, x, perturb=perturb)
            return h_t, (presynaptic, drives)

        def start(number):
            return ends[number] - structure.sites[number].batch * structure.sites[number].post

        if self._flowing is None:
            h_t, pull, (presynaptic, drives) = jax.vjp(flowing, zeros, has_aux=True)
            (pieces,) = jax.vmap(pull)(jnp.eye(h_t.size, dtype=h_t.dtype))
            rows_of = jnp.concatenate([p.reshape(h_t.size, -1).astype(h_t.dtype) for p in pieces], axis=1)
            drive = lambda number, rows, columns: rows_of[rows, columns + start(number)]
        else:
            _, push, (presynaptic, drives) = jax.linearize(flowing, zeros, has_aux=True)

            def seeded(tangent):
                pieces = [tangent[end - z.size : end] for end, z in zip(ends, zeros, strict=True)]
                return push([p.reshape(z.shape).astype(z.dtype) for p, z in zip(pieces, zeros, strict=True)])

            reach, colours = (
                jax.vmap(seeded)(jnp.asarray(self._flowing.seeds, h.dtype)),
                self._flowing.colours,
            )
            drive = lambda number, rows, columns: reach[colours[columns + start(number)], rows]

        if self._dense:
            step = lambda h: structure.step(weights, h, rest, x)[0]
            return jax.jacfwd(step)(h)[self._rows, self._columns], drive, presynaptic

        def held(h):
            h_t, _, vectors, _ = structure.step(weights, h, rest, x, hold=drives)
            return jnp.concatenate([h_t, *(v.ravel().astype(h.dtype) for v in vectors)])

        _, push_held = jax.linearize(held, h)
        below = jax.vmap(push_held)(jnp.asarray(self._held.seeds, h.dtype))
        values = jnp.where(self._own, below[self._held.colours[self._columns], self._rows], 0)
        for number, terms in enumerate(self._terms):
            if terms is None:
                continue
            (d_rows, d_columns), w_entries, (v_rows, v_columns), valid = terms
            products = (
                drive(number, d_rows, d_columns)
                * structure.matrix(structure.sites[number], weights).ravel()[w_entries].astype(h.dtype)
                * below[self._held.colours[v_columns], v_rows]
            )
            values += jnp.sum(jnp.where(valid, products, 0), axis=0)
        return values, drive, presynaptic

    def _plan(self, patterns):
        """Per synapse the products D w V that each position sums, padded to [terms, positions]."""
        plans, offset = [], patterns.held.shape[0]
        synapses = [site for site in self._structure.sites if not site.direct]
        for number, site in enumerate(synapses):
            reach = patterns.sites[number].tocsr()
            vectors = patterns.presynaptic[number].tocsc()
            nonzero = patterns.weights[number]
            found = [[] for _ in self._rows]
            for position, (row, column) in enumerate(zip(self._rows, self._columns, strict=True)):
                posts = reach.indices[reach.indptr[row] : reach.indptr[row + 1]]
                pres = vectors.indices[vectors.indptr[column] : vectors.indptr[column + 1]]
                for pre in pres:
                    for post in posts:
                        (b, j), (c, i) = divmod(pre, site.pre), divmod(post, site.post)
                        if b == c and nonzero[b, j, i]:
                            found[position].append((row, post, (pre * site.post) + i, offset + pre, column))
            offset += site.batch * site.pre
            most = max(map(len, found), default=0)
            if most == 0:
                plans.append(None)
                continue
            table = np.zeros((5, most, len(found)), np.int32)
            valid = np.zeros((most, len(found)), bool)
            for position, entries in enumerate(found):
                if entries:
                    table[:, : len(entries), position] = np.array(entries).T
                    valid[: len(entries), position] = True
            d_rows, d_columns, w_entries, v_rows, v_columns = table
            plans.append(((d_rows, d_columns), w_entries, (v_rows, v_columns), valid))
        return plans


class _Columns:
    """The colours of a pattern's columns, and a tangent [columns] of ones for every colour."""

    def __init__(self, pattern):
        self.colours = colour(pattern)
        self.seeds = self.colours == np.arange(self.colours.max(initial=0) + 1)[:, None]


def _count_terms(patterns: Patterns, rows, columns) -> int:
    total = 0
    for reach, vectors in zip(patterns.sites, patterns.presynaptic, strict=False):
        posts = np.diff(reach.tocsr().indptr)[rows]
        pres = np.diff(vectors.tocsc().indptr)[columns]
        total += int(posts @ pres)
    return total
