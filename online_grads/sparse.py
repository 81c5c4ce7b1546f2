"""The Jacobians of one step at the entries that a pattern keeps, from a few JVPs.

Columns that share no reachable row share a JVP (a colour), so that an LSTM's 4n drives need four.
An entry of J = J₀ + Σ_l D_l w_lᵀ V_l is then a sum of few gathered products, without the n JVPs
that a dense Jacobian takes.
"""

import math
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from online_grads.patterns import Patterns, colour
from online_grads.structure import Structure, materialised
from online_grads.types import Array


class SparseJacobian:
    """Entries of J, J₀ and D_l, read at one step after another; J and J₀ at fixed positions."""

    def __init__(self, structure: Structure, patterns: Patterns, rows=(), columns=(), reached=None):
        """Prepare the entries (rows, columns) of J and J₀, all of them within J's pattern or zero.

        D is read at the entries `reached` of h', [n] bool, all by default; nothing else of it is computed.
        """
        self.structure, self.patterns = structure, patterns
        self.rows, self.columns = np.asarray(rows, np.int64), np.asarray(columns, np.int64)
        self.reached = np.ones(patterns.held.shape[0], bool) if reached is None else reached
        edges = np.flatnonzero(np.diff([False, *self.reached, False]))
        self._spans = list(zip(edges[::2], edges[1::2], strict=True))
        self.places = np.cumsum(self.reached) - 1  # of an entry among those that are reached

    def __call__(self, weights, h, rest, x) -> "Entries":
        """The entries at one step."""
        return Entries(self, weights, h, rest, x)

    def read(self, h):
        """What D is read at, of h' or of a tangent [n]; slices, so that the rest is never computed."""
        return h if self.reached.all() else jnp.concatenate([h[:0], *(h[a:b] for a, b in self._spans)])

    @cached_property
    def flowing_colours(self) -> "_Columns | None":
        """The colours of all drives, None where a VJP per entry that is read is fewer."""
        n = self.patterns.held.shape[0]
        reach = sparse.hstack([sparse.csr_matrix((n, 0), dtype=bool), *self.patterns.drives], format="csr")
        reach = reach[self.reached]
        # a row needs as many colours as it has entries: beyond one per row, VJPs give all of D
        return _Columns(reach) if np.diff(reach.indptr).max(initial=0) <= reach.shape[0] else None

    @cached_property
    def held_colours(self) -> "_Columns":
        """The colours of h: h' and all presynaptic vectors below one another, with the drives held."""
        return _Columns(sparse.vstack([self.patterns.held, *self.patterns.presynaptic], format="csc"))

    @cached_property
    def own(self) -> np.ndarray:
        """Which positions are in J₀'s pattern."""
        found = self.patterns.held[self.rows, self.columns] if self.rows.size else np.zeros(0)
        return np.asarray(found, bool).ravel()

    @cached_property
    def terms(self) -> "list | None":
        """Per synapse the products D w V that each position sums, None where n JVPs are fewer."""
        total, n = 0, self.patterns.held.shape[0]
        for reach, vectors in zip(self.patterns.sites, self.patterns.presynaptic, strict=False):
            posts = np.diff(reach.tocsr().indptr)[self.rows]
            pres = np.diff(vectors.tocsc().indptr)[self.columns]
            total += int(posts @ pres)
        return self._tables() if total <= n * n else None

    def _tables(self):
        """Tables of the products, padded to [terms, positions]."""
        patterns = self.patterns
        plans, offset = [], patterns.held.shape[0]
        synapses = self.structure.synapses
        for number, site in enumerate(synapses):
            reach = patterns.sites[number].tocsr()
            vectors = patterns.presynaptic[number].tocsc()
            nonzero = patterns.weights[number]
            shape = self.structure.weights[site.weight].shape
            # where in the weight as it lies an entry [batch, pre, post] is
            places = np.arange(math.prod(shape)).reshape(shape).transpose(sum(site.axes, ()))
            places = places.reshape(site.batch, site.pre, site.post)
            found = [[] for _ in self.rows]
            for position, (row, column) in enumerate(zip(self.rows, self.columns, strict=True)):
                posts = reach.indices[reach.indptr[row] : reach.indptr[row + 1]]
                pres = vectors.indices[vectors.indptr[column] : vectors.indptr[column + 1]]
                for pre in pres:
                    for post in posts:
                        (b, j), (c, i) = divmod(pre, site.pre), divmod(post, site.post)
                        if b == c and nonzero[b, j, i]:
                            found[position].append((row, post, places[b, j, i], offset + pre, column))
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


class Entries:
    """What one step's Jacobians hold: D at once, J₀ and J where they are asked for."""

    def __init__(self, jacobian: SparseJacobian, weights, h, rest, x):
        self._jacobian, self._structure = jacobian, jacobian.structure
        self._weights, self._at = weights, (h, rest, x)
        zeros = self._structure.zeros(self._structure.drives)
        self._starts = np.cumsum([0, *(z.size for z in zeros)])

        def flowing(perturb):
            h_t, _, presynaptic, drives = self._structure.step(weights, h, rest, x, perturb=perturb)
            return jacobian.read(h_t), (presynaptic, drives)

        if self._jacobian.flowing_colours is None:
            h_t, pull, (self.presynaptic, self._drives) = jax.vjp(flowing, zeros, has_aux=True)
            (pieces,) = jax.vmap(pull)(jnp.eye(h_t.size, dtype=h_t.dtype))
            self._reach = jnp.concatenate([p.reshape(h_t.size, -1).astype(h_t.dtype) for p in pieces], axis=1)
        else:
            _, push, (self.presynaptic, self._drives) = jax.linearize(flowing, zeros, has_aux=True)

            def seeded(tangent):
                pieces = [tangent[a : a + z.size] for a, z in zip(self._starts[:-1], zeros, strict=True)]
                return push([p.reshape(z.shape).astype(z.dtype) for p, z in zip(pieces, zeros, strict=True)])

            seeds = jnp.asarray(self._jacobian.flowing_colours.seeds, h.dtype)
            self._reach = materialised(jax.vmap(seeded)(seeds))

    def drive(self, number: int, rows, columns) -> Array:
        """D at positions of any shape, for the drive of this number."""
        columns, rows = columns + self._starts[number], self._jacobian.places[rows]
        if self._jacobian.flowing_colours is None:
            return self._reach[rows, columns]
        return self._reach[self._jacobian.flowing_colours.colours[columns], rows]

    @cached_property
    def _below(self):
        """Per colour of h what moves, drives held: h' and all presynaptic vectors."""
        h, rest, x = self._at

        def held(h):
            h_t, _, vectors, _ = self._structure.step(self._weights, h, rest, x, hold=self._drives)
            return jnp.concatenate([h_t, *(v.ravel().astype(h.dtype) for v in vectors)])

        _, push = jax.linearize(held, h)
        return materialised(jax.vmap(push)(jnp.asarray(self._jacobian.held_colours.seeds, h.dtype)))

    def below(self, rows, columns) -> Array:
        """J₀ and, below it, every synapse's V at positions of any shape within their patterns."""
        return self._below[self._jacobian.held_colours.colours[columns], rows]

    def held(self) -> Array:
        """J₀ at the positions."""
        plan = self._jacobian
        return jnp.where(plan.own, self.below(plan.rows, plan.columns), 0)

    def jacobian(self) -> Array:
        """J at the positions."""
        plan, structure = self._jacobian, self._structure
        h, rest, x = self._at
        if plan.terms is None:
            step = lambda h: structure.step(self._weights, h, rest, x)[0]
            return jax.jacfwd(step)(h)[plan.rows, plan.columns]
        values = self.held()
        for number, terms in enumerate(plan.terms):
            if terms is None:
                continue
            (d_rows, d_columns), w_entries, (v_rows, v_columns), valid = terms
            # read on its own, while the forward pass runs: entries that lie far apart are slow to come
            entries = materialised(self._weights[structure.sites[number].weight].ravel()[w_entries])
            products = (
                self.drive(structure.drive_of[number], d_rows, d_columns)
                * entries.astype(h.dtype)
                * self.below(v_rows, v_columns)
            )
            # term by term: a reduction over so few is a slow loop of its own
            for term in jnp.where(valid, products, 0):
                values += term
        return values


class _Columns:
    """The colours of a pattern's columns, and a tangent [columns] of ones for every colour."""

    def __init__(self, pattern):
        self.colours = colour(pattern)
        self.seeds = self.colours == np.arange(self.colours.max(initial=0) + 1)[:, None]
