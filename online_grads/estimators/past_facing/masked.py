"""Influences kept at few entries: one kernel for every method with a fixed mask.

For the drive i of a site only the hidden entries R_i = (r_1 … r_K) keep an influence:

    E[a, j, i] ≈ dh_{r_a}/dw[j, i]

    E'[a, j, i] = Σ_c J[r_a, r_c] E[c, j, i] + D[r_a, i] v[j]          g[j, i] = Σ_a (∂ℓ/∂h_{r_a}) E[a, j, i]

State Σ_i pre · |R_i|, time K times that. Drives that keep fewer than K entries are padded.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from online_grads.estimators.past_facing.base import Influence
from online_grads.linearize import Weights
from online_grads.patterns import Patterns
from online_grads.sparse import SparseJacobian
from online_grads.structure import Site

# A direct use that takes more products per step would make a cheap method expensive without a word.
DENSE_LIMIT = 2**24
# Up to this K every kept entry is an array like the weight, updated in one fused loop over the
# weights; above it they are stacked per drive and moved by a batched matrix product.
FEW = 4


class Kept(NamedTuple):
    """The hidden entries that one site keeps, [K, batch·post]; a drive with fewer is padded."""

    site: Site
    number: int  # of the site
    rows: np.ndarray  # r_a
    valid: np.ndarray  # bool, False where padded
    reached: np.ndarray  # bool, those that the drive reaches within the step
    blocks: np.ndarray  # [K, K, batch·post] where J[r_a, r_c] is found, the last place holding a zero

    @property
    def few(self) -> bool:
        """Which of the two layouts the influence has."""
        return self.rows.shape[0] <= FEW


def masked_influence(structure: Weights, patterns: Patterns, reaches: list) -> Influence:
    """The `Influence` that keeps, per trained site, the entries of `reaches` [n, batch·post].

    Raises:
        ValueError: if a direct use of a weight takes more than `DENSE_LIMIT` products per step.
    """
    for site, reach in zip(structure.trained_sites, reaches, strict=True):
        count = int(np.diff(reach.tocsc().indptr).max(initial=0))
        products = count**2 * site.post
        if site.direct and products > DENSE_LIMIT:
            raise ValueError(
                f"{structure.names[site.weight]} acts other than by a product of a matrix with a vector, and "
                f"each of its {site.post} entries keeps {count} hidden entries: {products} products a step, "
                f"over the limit of {DENSE_LIMIT}; use rtrl or uoro"
            )
    kept, rows, columns = _layout(structure, patterns, reaches)
    jacobian = SparseJacobian(structure, patterns, rows, columns)

    def init():
        return [_zeros(k, structure.weights[k.site.weight]) for k in kept]

    def propagate(influence, segment, noise):
        h, rest, x = jax.tree.map(lambda leaf: leaf[0], (*segment.before, segment.xs))
        entries, drive, presynaptic = jacobian(segment.weights, h, rest, x)
        entries = jnp.append(entries, jnp.zeros(1, entries.dtype))
        moved = []
        for k, old in zip(kept, influence, strict=True):
            dtype = structure.weights[k.site.weight].dtype
            every = np.arange(k.rows.shape[1])
            reached = jnp.where(k.reached, drive(k.number, k.rows, every), 0)
            vector = jnp.ones((1, 1)) if k.site.direct else presynaptic[k.number]
            blocks, reached, vector = (a.astype(dtype) for a in (entries[k.blocks], reached, vector))
            moved.append((_move_few if k.few else _move_many)(structure, k, old, blocks, reached, vector))
        return moved

    def contract(influence, credit):
        grads = []
        for k, e in zip(kept, influence, strict=True):
            local = jnp.where(k.valid, credit[k.rows], 0).astype(structure.weights[k.site.weight].dtype)
            if k.few:
                local = _materialised([structure.along(k.site, row, post=True) for row in local])
                grads.append(sum(one * entry for one, entry in zip(local, e, strict=True)))
            else:
                matrix = jnp.einsum("ai,iap->ip", local, e).reshape(k.site.batch, k.site.post, k.site.pre)
                grads.append(structure.along(k.site, jnp.swapaxes(matrix, 1, 2), pre=True, post=True))
        return structure.collect(grads)

    forget = lambda influence: jax.tree.map(jnp.zeros_like, influence)
    return Influence(init, propagate, contract, forget=forget)


def units(held: sparse.csr_matrix) -> sparse.csr_matrix:
    """Which hidden entries belong to one unit, a component of J₀'s pattern: [n, n]."""
    _, label = sparse.csgraph.connected_components(held, directed=False)
    member = sparse.csr_matrix((np.ones(label.size, bool), (np.arange(label.size), label)))
    return sparse.csr_matrix(member @ member.T)


def _zeros(k: Kept, weight):
    count = k.rows.shape[0]
    if k.few:
        return [jnp.zeros(weight.shape, weight.dtype) for _ in range(count)]
    return jnp.zeros((k.rows.shape[1], count, k.site.pre), weight.dtype)


def _move_few(structure, k: Kept, old, blocks, reached, vector):
    """E per kept entry, in the weight's own shape."""
    along = lambda row: structure.along(k.site, row, post=True)
    blocks = _materialised([[along(block) for block in row] for row in blocks])
    reached = _materialised([along(row) for row in reached])
    vector = structure.along(k.site, vector, pre=True)
    return [
        sum((block * e for block, e in zip(row, old, strict=True)), d * vector)
        for row, d in zip(blocks, reached, strict=True)
    ]


def _move_many(structure, k: Kept, old, blocks, reached, vector):
    """E stacked per drive, [batch·post, K, pre]."""
    vector = jnp.repeat(vector, k.site.post, axis=0)
    return jnp.einsum("aci,icp->iap", blocks, old) + jnp.einsum("ai,ip->iap", reached, vector)


def _materialised(arrays):
    """Plain arrays for the loop over weights to read; XLA would recompute them for every weight."""
    return jax.lax.optimization_barrier(arrays)


def _layout(structure, patterns, reaches):
    """The kept entries of every trained site, and the positions of J that move them."""
    numbers = [i for i, site in enumerate(structure.sites) if site.weight < structure.trained]
    n = patterns.jacobian.shape[0]
    kept, asked = [], []
    for number, reach in zip(numbers, reaches, strict=True):
        columns = reach.tocsc()
        counts = np.diff(columns.indptr)
        size = max(int(counts.max(initial=0)), 1)
        rows = np.zeros((size, columns.shape[1]), np.int64)
        valid = np.arange(size)[:, None] < counts
        rows.T[valid.T] = columns.indices
        every = np.broadcast_to(np.arange(columns.shape[1]), rows.shape)
        reached = valid & _contains(patterns.sites[number], rows, every)
        pairs = np.broadcast_arrays(rows[:, None], rows[None])
        moving = valid[:, None] & valid[None] & _contains(patterns.jacobian, *pairs)
        asked.append(np.where(moving, pairs[0] * n + pairs[1], -1))
        kept.append(Kept(structure.sites[number], number, rows, valid, reached, asked[-1]))
    positions = np.unique(np.concatenate([a.ravel() for a in asked]))
    positions = positions[positions >= 0]
    find = lambda a: np.where(a < 0, positions.size, np.searchsorted(positions, a))
    return [k._replace(blocks=find(k.blocks)) for k in kept], positions // n, positions % n


def _contains(pattern, rows, columns):
    """Which positions (rows, columns) are in the pattern."""
    flat = np.asarray(sparse.csr_matrix(pattern)[rows.ravel(), columns.ravel()]).ravel()
    return flat.reshape(rows.shape).astype(bool)
