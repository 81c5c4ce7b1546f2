"""The layers of a transition: which hidden leaves feed back on one another, and which only feed others.

A leaf b of the hidden state depends on a leaf a through the step before, b_t on a_{t-1}, or within the
step, b_t on a_t. A **layer** is a set of leaves in which each depends on each, in any number of such
links: an LSTM's (h, c), every cell of a stack. A leaf that nothing leads back to is a layer of its own.

    h⁽ˡ⁾_t = f_l(θ, h⁽ˡ⁾_{t-1}, x_t, h_{t-1}, h_t)          the leaves of all other layers are inputs

The equations of the transition are taken as they are. Wherever one reads the new value of a leaf of
another layer, a given value takes its place. So a layer must read the leaf itself, not what the leaf
was made from, except by a change of shape or precision.

Reference: Bohnstingl et al. (2020), Online spatio-temporal learning in deep neural networks,
arXiv:2007.12723.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from online_grads import jaxprs
from online_grads.analysis import Analysis, analyse
from online_grads.dependence import dependence
from online_grads.flat import Flat, flatten
from online_grads.types import Array, Model, PyTree

# Equations that leave a leaf's entries what they are, and in order.
_FORMATS = {"convert_element_type", "reshape", "squeeze", "broadcast_in_dim"}


class Given(NamedTuple):
    """The input of a layer in one step."""

    x: PyTree
    before: PyTree  # h_{t-1}, of which the layer's own leaves are not read
    after: PyTree  # h_t, likewise


class Layer(NamedTuple):
    """One layer, as a model of its own."""

    model: Model  # hidden: the list of its leaves; x: a `Given`; loss: credit · h, y = credit [credited]
    leaves: tuple[int, ...]  # numbers of its hidden leaves
    entries: np.ndarray  # [n_l] its places in the flat hidden vector
    credited: np.ndarray  # those of them that the loss of the same step depends on, as numbers below n_l
    trained: list[int]  # numbers of the parameter leaves that move it
    recurrent: bool  # it depends on its own past
    pull: Callable | None  # (params, Given, credit [n_l]) -> what h_t gets of it [n]; None: it reads no layer

    def hidden(self, hidden: PyTree) -> list[Array]:
        """Its leaves of a hidden state."""
        every = jax.tree.leaves(hidden)
        return [every[number] for number in self.leaves]


def layers_of(found: Analysis) -> list[Layer]:
    """The layers of an analysed model, from the bottom to the top: none reads a later one.

    Raises:
        ValueError: if a parameter leaf that moves a layer has a part in later losses through it, and none
            of the entries that a credit of the same step reaches ever owes it anything; or if a layer is
            moved by the parameters and the past of another one, as one that reads what a leaf was made from.
    """
    cut, places = _Cut(found), _places(found)
    order = _order(found, cut, places)
    entries_of = {leaves: np.flatnonzero(np.isin(places, leaves)) for leaves in order}
    before, now, drives = _pattern(found, cut, order, np.arange(found.flat.size))
    credited = _read(found)
    later, layers = _ever(credited, before + now), []
    for leaves in reversed(order):
        entries = entries_of[leaves]
        flat = flatten([jax.tree.leaves(found.hidden)[number] for number in leaves])
        chosen = credited[entries]
        model = _model(found, cut, leaves, flat, np.flatnonzero(chosen))
        trained = analyse(model, allow_unused=True).moving
        own, below = before[entries][:, entries], now[entries]
        used = lambda read, entries=entries: drives[entries].T @ read
        lost = used(later[entries]) & ~used(_ever(chosen, own))
        if lost.any():
            _refuse(found, lost, leaves, "which no loss reads within its own step, only later")
        for others, theirs in entries_of.items():
            if others != leaves and chosen.any() and before[entries][:, theirs].nnz:
                shared = drives[entries].toarray().any(axis=0) & drives[theirs].toarray().any(axis=0)
                if shared.any():
                    _refuse(found, shared, others, f"and with its past also {_name(found, leaves)}")
        pull = _pull(found, model, leaves, flat) if below.nnz else None
        layers.append(Layer(model, leaves, entries, np.flatnonzero(chosen), trained, own.nnz > 0, pull))
        credited = credited | (below.T @ chosen)
    return layers[::-1]


class _Cut:
    """A transition in which given values take the place of hidden leaves of the same step."""

    def __init__(self, found: Analysis):
        shapes, treedef = jax.tree.flatten((found.params, found.hidden, found.x))

        def transition(*leaves):
            return jax.tree.leaves(found.model.transition(*jax.tree.unflatten(treedef, leaves)))

        self._closed = jaxprs.trace(transition, *shapes)
        jaxpr = self._closed.jaxpr
        given = {*jaxpr.invars, *jaxpr.constvars}
        self._owner: dict = {}
        for number, atom in enumerate(jaxpr.outvars):
            if not jaxprs.is_literal(atom) and atom not in given:
                # a second leaf with the same value is a copy of the first
                self._owner.setdefault(atom, number)
        # what a leaf differs from in shape or precision alone is the leaf too
        for equation in reversed(jaxpr.eqns):
            if equation.primitive.name in _FORMATS and equation.outvars[0] in self._owner:
                (operand,), (result,) = equation.invars, equation.outvars
                known = jaxprs.is_literal(operand) or operand in given
                if not known and _same_entries(operand.aval, result.aval):
                    self._owner.setdefault(operand, self._owner[result])

    def step(self, leaves: tuple[int, ...], params, hidden, x, after) -> list[Array]:
        """These leaves of h_t from h_{t-1}, x_t, and all other leaves of h_t as they are in `after`."""
        jaxpr, after = self._closed.jaxpr, jax.tree.leaves(after)
        env = {v: _like(v.aval, after[n]) for v, n in self._owner.items() if n not in leaves}
        env.update(zip(jaxpr.invars, jax.tree.leaves((params, hidden, x)), strict=True))
        outputs = [jaxpr.outvars[number] for number in leaves]
        values = jaxprs.values_of(self._closed, outputs, env)
        return [jnp.asarray(value, atom.aval.dtype) for value, atom in zip(values, outputs, strict=True)]


def _same_entries(one, other) -> bool:
    real = all(jnp.issubdtype(aval.dtype, jnp.floating) for aval in (one, other))
    return one.size == other.size and (real or one.dtype == other.dtype)


def _like(aval, value) -> Array:
    same = value.shape == aval.shape and value.dtype == aval.dtype
    return value if same else value.reshape(aval.shape).astype(aval.dtype)


def _places(found: Analysis) -> np.ndarray:
    """[n] the number of the hidden leaf that each entry of the flat hidden vector belongs to."""
    sizes = [flatten([leaf]).size for leaf in jax.tree.leaves(found.hidden)]
    return np.repeat(np.arange(len(sizes)), sizes)


def _order(found: Analysis, cut: _Cut, places: np.ndarray) -> list[tuple[int, ...]]:
    """The hidden leaves of every layer, from the bottom to the top."""
    leaves = np.unique(places).tolist()
    # one number moves all of a leaf: the pattern has a column per leaf, not per entry
    before, now, _ = _pattern(found, cut, [(leaf,) for leaf in leaves], places)
    entries = np.arange(places.size)
    sums = sparse.csr_matrix((np.ones(places.size), (places, entries)), (places.max() + 1, places.size))
    reach = _closure((sums @ (before + now)).toarray() > 0)
    layers = {tuple(np.flatnonzero(reach[leaf] & reach[:, leaf]).tolist()) for leaf in leaves}
    # more leaves lead to a layer than to any of those that lead to it
    return sorted(layers, key=lambda members: (reach[members[0]].sum(), members))


def _pattern(found: Analysis, cut: _Cut, groups: list, places: np.ndarray) -> list:
    """On what the entries [n] of groups of leaves depend: [n, c] on h_{t-1}, [n, c] on h_t of the other
    groups, [n, moving] on the parameter leaves. The columns c are sums over entries, `places` [n] of them.
    """
    treedef, columns = jax.tree.structure(found.hidden), places.max() + 1
    parts = [columns, 2 * columns]

    def moved(shift, h, rest, after, rest_after, params, x):
        before, now, weights = jnp.split(shift, parts)
        hidden = found.flat.join(h + before[places], rest)
        after = found.flat.join(after + now[places], rest_after)
        theta, structure = jax.tree.flatten(params)
        for number, weight in zip(found.moving, weights, strict=True):
            theta[number] += weight.astype(theta[number].dtype)
        leaves = jax.tree.leaves(after)
        for group in groups:
            own = cut.step(group, jax.tree.unflatten(structure, theta), hidden, x, after)
            for number, leaf in zip(group, own, strict=True):
                leaves[number] = leaf
        return found.flat.split(jax.tree.unflatten(treedef, leaves))[0]

    h, rest = jax.eval_shape(found.flat.split, found.hidden)
    shift = jax.ShapeDtypeStruct((2 * columns + len(found.moving),), found.flat.dtype)
    pattern = dependence(moved, shift, given=(h, rest, h, rest, found.params, found.x)).tocsc()
    return [
        sparse.csr_matrix(pattern[:, part], dtype=bool) for part in map(slice, [0, *parts], [*parts, None])
    ]


def _read(found: Analysis) -> np.ndarray:
    """[n] bool: the entries of h_t that ℓ_t depends on."""

    def loss(h, rest, params, y):
        return found.model.loss(params, found.flat.join(h, rest), y)[0][None]

    h, rest = jax.eval_shape(found.flat.split, found.hidden)
    (read,) = dependence(loss, h, given=(rest, found.params, found.y)).toarray()
    return read > 0


def _ever(read: np.ndarray, links: sparse.csr_matrix) -> np.ndarray:
    """The entries read, and all that lead to them over any number of links [to, from]."""
    while (further := read | (links.T @ read)).sum() > read.sum():
        read = further
    return read


def _closure(links: np.ndarray) -> np.ndarray:
    """The links in any number, none included."""
    return np.linalg.matrix_power(links | np.eye(len(links), dtype=bool), len(links))


def _model(found: Analysis, cut: _Cut, leaves: tuple[int, ...], flat: Flat, credited: np.ndarray) -> Model:
    treedef = jax.tree.structure(found.hidden)

    def init(key):
        params, hidden = found.model.init(key)
        every = jax.tree.leaves(hidden)
        return params, [every[number] for number in leaves]

    def transition(params, own, given):
        hidden = jax.tree.leaves(given.before)
        for number, leaf in zip(leaves, own, strict=True):
            hidden[number] = leaf
        return cut.step(leaves, params, jax.tree.unflatten(treedef, hidden), given.x, given.after)

    def loss(params, own, credit):
        return credit @ flat.split(own)[0][credited], ()

    example = Given(found.x, found.hidden, found.hidden), jax.ShapeDtypeStruct(credited.shape, flat.dtype)
    whole = found.model.reset
    return Model(init, transition, loss, example, None if whole is None else lambda given: whole(given.x))


def _pull(found: Analysis, model: Model, leaves: tuple[int, ...], flat: Flat) -> Callable:
    def pull(params, given, credit):
        every = jax.tree.leaves(given.before)
        own = [every[number] for number in leaves]
        h, rest = found.flat.split(given.after)

        def moved(h):
            cut = given._replace(after=found.flat.join(h, rest))
            return flat.split(model.transition(params, own, cut))[0]

        return jax.vjp(moved, h)[1](credit.astype(flat.dtype))[0]

    return pull


def _name(found: Analysis, leaves: tuple[int, ...]) -> str:
    path, _ = jax.tree.leaves_with_path(found.hidden)[leaves[0]]
    return f"hidden{jax.tree_util.keystr(path)}"


def _refuse(found: Analysis, lost: np.ndarray, leaves: tuple[int, ...], why: str) -> None:
    weight = found.names[found.moving[np.flatnonzero(lost)[0]]]
    raise ValueError(
        f"ostl would lose the credit of {weight}: it moves {_name(found, leaves)}, {why} (a layer that reads "
        "another's state of the step before, or what a hidden leaf was made from in place of the leaf; an "
        "entry that only such a one reads); use rtrl or snap"
    )
