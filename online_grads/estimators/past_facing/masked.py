"""Influences kept at few entries: one kernel for every method with a fixed mask.

For the entry i of a drive only the hidden entries R_i = (r_1 … r_K) keep an influence:

    E[a, j, i] ≈ dh_{r_a}/dw[j, i]

    E'[a, j, i] = Σ_c A[r_a, r_c] E[c, j, i] + D[r_a, i] v[j]          g[j, i] = Σ_a q[r_a] E[a, j, i]

What A is, and what else may be added, is the method's: SnAp takes J, e-prop and RFLO J₀, KeRNL a
diagonal of learned decays. State Σ_i pre · |R_i|, time K times that. Drives that keep fewer than K
entries are padded; entries of a weight that no parameter moves (a mask's zeros) are left out.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from online_grads.arguments import float_dtype
from online_grads.estimators.past_facing.base import Influence, zeroed
from online_grads.linearize import Weights
from online_grads.numerics import like
from online_grads.sites import Drive, Site
from online_grads.sparse import Entries, SparseJacobian
from online_grads.types import Array

# A direct use that takes more products per step would make a cheap method expensive without a word.
DENSE_LIMIT = 2**24
# Up to this K every kept entry is an array like the weight, updated in one fused loop over the
# weights; above it they are stacked per drive and moved by a batched matrix product.
FEW = 4


class Kept(NamedTuple):
    """What one drive keeps, for each of its D = batch·post entries; what is fewer is padded."""

    number: int  # of the drive
    rows: np.ndarray  # [K, D] r_a
    valid: np.ndarray  # [K, D] bool, False where padded
    reached: np.ndarray  # [K, D] bool, those that the drive reaches within the step
    sites: tuple  # of the drive's sites, a `KeptSite` each

    def pairs(self, other: "Kept", pattern) -> np.ndarray:
        """[K, other's K, D] the flat positions (r_a, other's r_c) within a pattern [n, n], -1 elsewhere."""
        rows, columns = np.broadcast_arrays(self.rows[:, None], other.rows[None])
        inside = self.valid[:, None] & other.valid[None] & _contains(pattern, rows, columns)
        return np.where(inside, rows * pattern.shape[1] + columns, -1)

    def diagonal(self) -> np.ndarray:
        """[K, K, D] in a vector with an entry per hidden one the place of r_a, where both are r_a."""
        own = np.eye(len(self.rows), dtype=bool)[..., None] & self.valid
        return np.where(own, self.rows[None], -1)


class KeptSite(NamedTuple):
    """How the influence of one of the drive's sites is laid out."""

    site: Site
    number: int  # of the site
    pres: np.ndarray | None  # [D, P] the j whose w[j, i] a parameter moves, padded with pre; None: all
    few: bool  # the influence is one array like the weight per entry; otherwise it is one [D, K, P]


class Term(NamedTuple):
    """One sum Σ_c A[r_a, c] E[c] of a step."""

    values: Array  # entries of A, any number
    places: np.ndarray  # [K, K', D] where in values A[r_a, r_c] is, -1 where it is zero
    influence: list  # the E that A multiplies, per site of the drive


def keep(structure: Weights, reaches: list, *, limited: bool = True) -> list[Kept]:
    """What every trained drive keeps, from the hidden entries that it keeps, [n, batch·post].

    Raises:
        ValueError: if it is limited and a direct use of a weight takes more than `DENSE_LIMIT` products
            per step.
    """
    kept = []
    for number, (drive, reach) in enumerate(zip(structure.trained_drives, reaches, strict=True)):
        columns = reach.tocsc()
        counts = np.diff(columns.indptr)
        size = int(counts.max(initial=0))
        if limited:
            _require_sparse(structure, drive, size)
        rows = np.zeros((size, counts.size), np.int64)
        valid = np.arange(size)[:, None] < counts
        rows.T[valid.T] = columns.indices
        every = np.broadcast_to(np.arange(counts.size), rows.shape)
        reached = valid & _contains(structure.patterns.drives[number], rows, every)
        sites = []
        for member in structure.members(drive):
            pres = _trained_entries(structure, structure.sites[member])
            sites.append(KeptSite(structure.sites[member], member, pres, size <= FEW and pres is None))
        kept.append(Kept(number, rows, valid, reached, tuple(sites)))
    return kept


def _require_sparse(structure: Weights, drive: Drive, size: int) -> None:
    products = size**2 * drive.post
    if structure.is_constant(drive) and products > DENSE_LIMIT:
        raise ValueError(
            f"{structure.name(drive)} acts other than by a product of a matrix with a vector, and "
            f"each of its {drive.post} entries keeps {size} hidden entries: {products} products a step, "
            f"over the limit of {DENSE_LIMIT}; use rtrl, uoro, or ostl on a stack"
        )


def start(structure: Weights, kept: list[Kept], influence_dtype=None) -> list:
    """E = 0 for every site of every drive, stored in `influence_dtype` or in the weight's own."""
    weight = lambda each: structure.weights[each.site.weight]
    return [[_zeros(k, each, weight(each), influence_dtype) for each in k.sites] for k in kept]


def move(structure: Weights, kept: list[Kept], terms: list[list[Term]], entries: Entries) -> list:
    """E' of every drive from its terms and D ⊗ v."""
    moved = []
    for k, own in zip(kept, terms, strict=True):
        # all of them gathers, which XLA leaves out of the loops over weights that read them
        reached = jnp.where(k.reached, entries.drive(k.number, k.rows, np.arange(k.rows.shape[1])), 0)
        factors = reached, [_coefficients(term) for term in own]
        sites = []
        for at, each in enumerate(k.sites):
            dtype = structure.weights[each.site.weight].dtype
            reached, coefficients = jax.tree.map(lambda factor, d=dtype: factor.astype(d), factors)
            products = [
                (c, t.places, jax.tree.map(lambda e, d=dtype: e.astype(d), t.influence[at]))
                for c, t in zip(coefficients, own, strict=True)
            ]
            vector = jnp.ones((1, 1), dtype)
            if not each.site.direct:
                vector = entries.presynaptic[each.number].astype(dtype)
            move_one = _move_few if each.few else _move_many
            sites.append(like(move_one(structure, each, products, reached, vector), own[0].influence[at]))
        moved.append(sites)
    return moved


def contract(structure: Weights, kept: list[Kept], influence: list, credit: Array) -> list:
    """Σ_a q[r_a] E[a] per trained weight."""
    grads = {}
    for k, parts in zip(kept, influence, strict=True):
        local = jnp.where(k.valid, credit[k.rows], 0)
        for each, e in zip(k.sites, parts, strict=True):
            site, dtype = each.site, structure.weights[each.site.weight].dtype
            own, e = jax.tree.map(lambda array, d=dtype: array.astype(d), (local, e))
            if each.few:
                along = [structure.along(site, row, post=True) for row in own]
                products = [row * entry for row, entry in zip(along, e, strict=True)]
                grads[each.number] = sum(products, jnp.zeros(structure.weights[site.weight].shape, dtype))
                continue
            matrix = jnp.einsum("ai,iap->ip", own, e)
            if each.pres is not None:
                rows = np.arange(len(each.pres))[:, None]
                whole = jnp.zeros((len(each.pres), site.pre), matrix.dtype)
                matrix = whole.at[rows, each.pres].set(matrix, mode="drop")
            matrix = jnp.swapaxes(matrix.reshape(site.batch, site.post, site.pre), 1, 2)
            grads[each.number] = structure.along(site, matrix, pre=True, post=True)
    return structure.collect([grads[number] for number in structure.trained_numbers])


def masked_influence(
    structure: Weights, chain: list[list], *, held: bool, influence_dtype=None, limited: bool = True
) -> Influence:
    """The `Influence` on fixed masks, one tensor after another.

        S_0' = A S_0 + I          S_k' = A S_k + B S_{k-1} + I

    Args:
        structure: of the model.
        chain: per tensor the hidden entries that each trained drive keeps, [n, batch·post]; the last
            tensor gives the gradient.
        held: A = J₀ and B = J − J₀ if True, otherwise A = J and there is one tensor.
        influence_dtype: what the tensors are stored in, None for the weights' own.
        limited: refuse what costs much more than the method's name says.

    Raises:
        TypeError: if influence_dtype is not a floating one.
        ValueError: if it is limited and a direct use of a weight takes more than `DENSE_LIMIT` products
            per step.
    """
    patterns = structure.patterns
    stored = None if influence_dtype is None else float_dtype(influence_dtype, "influence_dtype")
    tensors = [keep(structure, reaches, limited=limited) for reaches in chain]
    alike = [_alike(kept) for kept in zip(*tensors, strict=True)]
    tensors = [[kept[number] for kept in alike] for number in range(len(chain))]
    inner = patterns.held if held else patterns.jacobian
    own = [[k.pairs(k, inner) for k in kept] for kept in tensors]
    across = [
        [k.pairs(below, patterns.jacobian) for k, below in zip(*pair, strict=True)]
        for pair in zip(tensors[1:], tensors[:-1], strict=True)
    ]
    found = [p.ravel() for places in own + across for p in places]
    positions = np.unique(np.concatenate([np.zeros(0, np.int64), *found]))
    positions = positions[positions >= 0]
    find = lambda places: [np.where(p < 0, -1, np.searchsorted(positions, p)) for p in places]
    own, across = [find(places) for places in own], [find(places) for places in across]
    n = patterns.held.shape[0]
    read = [np.zeros(0, np.int64), *(k.rows[k.valid] for kept in tensors for k in kept)]
    reached = np.isin(np.arange(n), np.concatenate(read))
    jacobian = SparseJacobian(structure, patterns, positions // n, positions % n, reached)
    most = max((k.rows.shape[0] for k in tensors[-1]), default=0)

    def propagate(influence, segment, noise):
        entries = jacobian(segment.weights, *segment.first)
        inside = entries.held() if held else entries.jacobian()
        outside = entries.jacobian() - inside if across else None
        terms = [
            [[Term(inside, place, e)] for place, e in zip(places, tensor, strict=True)]
            for places, tensor in zip(own, influence, strict=True)
        ]
        for number, places in enumerate(across):
            for drive, (place, e) in enumerate(zip(places, influence[number], strict=True)):
                terms[number + 1][drive].append(Term(outside, place, e))
        return [move(structure, kept, term, entries) for kept, term in zip(tensors, terms, strict=True)]

    return Influence(
        lambda h, key: [start(structure, kept, stored) for kept in tensors],
        propagate,
        lambda influence, credit: contract(structure, tensors[-1], influence[-1], credit),
        forget=zeroed,
        info=lambda influence: {"kept": jnp.asarray(most, jnp.int32)},
    )


def _trained_entries(structure: Weights, site: Site) -> np.ndarray | None:
    """Per drive the presynaptic entries whose weight a parameter moves; None where they are most."""
    moved = np.transpose(structure.patterns.trained_entries[site.weight], sum(site.axes, ()))
    moved = moved.reshape(site.batch, site.pre, site.post).swapaxes(1, 2).reshape(-1, site.pre)
    counts = moved.sum(axis=1)
    most = max(int(counts.max(initial=0)), 1)
    if site.direct or 2 * most > site.pre:
        return None
    pres = np.full((len(moved), most), site.pre, np.int64)
    pres[np.arange(most) < counts[:, None]] = moved.nonzero()[1]
    return pres


def _alike(kept: tuple[Kept, ...]) -> list[Kept]:
    """A drive's tensors in one layout: they read one another."""
    few = [all(each.few for each in alike) for alike in zip(*(k.sites for k in kept), strict=True)]
    alike = lambda k: tuple(each._replace(few=f) for each, f in zip(k.sites, few, strict=True))
    return [k._replace(sites=alike(k)) for k in kept]


def _zeros(k: Kept, each: KeptSite, weight, influence_dtype):
    count, drives = k.rows.shape
    dtype = weight.dtype if influence_dtype is None else influence_dtype
    if each.few:
        return [jnp.zeros(weight.shape, dtype) for _ in range(count)]
    return jnp.zeros((drives, count, each.site.pre if each.pres is None else each.pres.shape[1]), dtype)


def _move_few(structure, each: KeptSite, products, reached, vector):
    """E per kept entry, in the weight's own shape, from products of A[r_a, r_c] [K, K', D] and E."""
    along = lambda row: structure.along(each.site, row, post=True)
    vector = structure.along(each.site, vector, pre=True)
    moved = [along(row) * vector for row in reached]
    for coefficients, places, influence in products:
        for a, c in zip(*np.any(places >= 0, axis=2).nonzero(), strict=True):
            moved[a] = moved[a] + along(coefficients[a, c]) * influence[c]
    return moved


def _move_many(structure, each: KeptSite, products, reached, vector):
    """E stacked per entry of the drive, [D, K, P]."""
    vector = jnp.repeat(vector, each.site.post, axis=0)
    if each.pres is not None:
        vector = jnp.take_along_axis(vector, each.pres, axis=1, mode="clip")
    moved = jnp.einsum("ai,ip->iap", reached, vector)
    for coefficients, _, influence in products:
        moved += jnp.einsum("aci,icp->iap", coefficients, influence)
    return moved


def _coefficients(term: Term) -> Array:
    """A[r_a, r_c] for every entry of the drive, [K, K', D]."""
    return jnp.append(term.values, jnp.zeros(1, term.values.dtype))[term.places]


def _contains(pattern, rows, columns):
    """Which positions (rows, columns) are in the pattern."""
    if not rows.size:
        return np.zeros(rows.shape, bool)
    flat = np.asarray(sparse.csr_matrix(pattern)[rows.ravel(), columns.ravel()]).ravel()
    return flat.reshape(rows.shape).astype(bool)
