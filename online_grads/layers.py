"""The layers of a transition: which hidden leaves feed back on one another, and which only feed others.

A leaf b of the hidden state depends on a leaf a through the step before, b_t on a_{t-1}, or within the
step, b_t on a_t. A **layer** is a set of leaves in which each depends on each, in any number of such
links: an LSTM's (h, c), every cell of a stack. A leaf that nothing leads back to is a layer of its own.

    h⁽ˡ⁾_t = f_l(θ, h⁽ˡ⁾_{t-1}, x_t, h_{t-1}, h_t)          the leaves of all other layers are inputs

The equations of the transition are taken as they are. Wherever one reads the new value of a leaf of
another layer, a given value takes its place. So a layer must read the leaf itself, not what the leaf
was made from.

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
        ValueError: if a layer with parameters has a part in later losses and none in that of its own
            step, so that a credit of the same step never reaches it.
    """
    cut = _Cut(found)
    links = _links(found, cut)
    credited, layers = links.read, []
    for members in reversed(links.layers):
        others = ~np.isin(np.arange(credited.size), members)
        entries = np.flatnonzero(np.isin(links.places, members))
        chosen = np.flatnonzero(credited[links.places[entries]])
        leaves = tuple(links.numbers[member] for member in members)
        flat = flatten([jax.tree.leaves(found.hidden)[number] for number in leaves])
        model = _model(found, cut, leaves, flat, chosen)
        trained = analyse(model, allow_unused=True).moving
        if trained and not chosen.size and (links.read @ links.reach[:, members]).any():
            _refuse(found, trained, leaves)
        now = links.now[members]
        pull = _pull(found, model, leaves, flat) if now[:, others].any() else None
        recurrent = bool(links.before[np.ix_(members, members)].any())
        layers.append(Layer(model, leaves, entries, chosen, trained, recurrent, pull))
        # what moves one leaf of this layer moves others of it within the step
        through = credited[members] @ _closure(now[:, members])
        credited = credited | (through @ now & others)
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

    def step(self, leaves: tuple[int, ...], params, hidden, x, after) -> list[Array]:
        """These leaves of h_t from h_{t-1}, x_t, and all other leaves of h_t as they are in `after`."""
        jaxpr, after = self._closed.jaxpr, jax.tree.leaves(after)
        env = {v: after[number] for v, number in self._owner.items() if number not in leaves}
        env.update(zip(jaxpr.constvars, self._closed.consts, strict=True))
        env.update(zip(jaxpr.invars, jax.tree.leaves((params, hidden, x)), strict=True))
        outputs = [jaxpr.outvars[number] for number in leaves]
        for equation in self._needed(outputs, set(env)):
            values = [jaxprs.read(env, atom) for atom in equation.invars]
            for variable, value in zip(equation.outvars, jaxprs.bind(equation, values), strict=True):
                env.setdefault(variable, value)
        return [jnp.asarray(jaxprs.read(env, atom), atom.aval.dtype) for atom in outputs]

    def _needed(self, outputs, known) -> list:
        """The equations that these outputs depend on, in order, if some variables are known."""
        unknown = lambda atoms: {a for a in atoms if not jaxprs.is_literal(a)} - known
        live, kept = unknown(outputs), []
        for equation in reversed(self._closed.jaxpr.eqns):
            if not live.isdisjoint(equation.outvars):
                kept.append(equation)
                live |= unknown(equation.invars)
        return kept[::-1]


class _Links(NamedTuple):
    """Which of the L floating hidden leaves depend on which."""

    numbers: list[int]  # [L] theirs among all hidden leaves
    places: np.ndarray  # [n] whose of the L each entry of the flat hidden vector is
    layers: list[list[int]]  # the members of every layer, from the bottom to the top
    before: np.ndarray  # [to, from] bool: b_t on a_{t-1}
    now: np.ndarray  # [to, from] bool: b_t on a_t
    reach: np.ndarray  # [to, from] bool: in any number of both
    read: np.ndarray  # [from] bool: ℓ_t on a_t


def _links(found: Analysis, cut: _Cut) -> _Links:
    shapes, treedef = jax.tree.flatten(found.hidden)
    sizes = [flatten([leaf]).size for leaf in shapes]
    numbers = [i for i, leaf in enumerate(shapes) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    count = len(numbers)
    places = np.repeat(np.arange(count), [sizes[number] for number in numbers])
    h, rest = jax.eval_shape(found.flat.split, found.hidden)

    # one number moves all of a leaf: the patterns have a column per leaf, not per entry
    def moved(shift, h, after, rest, rest_after, params, x):
        hidden = found.flat.join(h + shift[places], rest)
        after = found.flat.join(after + shift[count + places], rest_after)
        leaves = jax.tree.leaves(after)
        for number in numbers:
            (leaves[number],) = cut.step((number,), params, hidden, x, after)
        return found.flat.split(jax.tree.unflatten(treedef, leaves))[0]

    def loss(shift, h, rest, params, y):
        return found.model.loss(params, found.flat.join(h + shift[places], rest), y)[0][None]

    shift = lambda size: jax.ShapeDtypeStruct((size,), found.flat.dtype)
    pattern = dependence(moved, shift(2 * count), given=(h, h, rest, rest, found.params, found.x))
    entry = np.arange(places.size)
    sums = sparse.csr_matrix((np.ones(places.size), (places, entry)), (count, places.size))
    before, now = np.hsplit((sums @ pattern).toarray() > 0, 2)
    (read,) = dependence(loss, shift(count), given=(h, rest, found.params, found.y)).toarray()
    reach = _closure(before | now)
    layers = {tuple(np.flatnonzero(both).tolist()) for both in reach & reach.T}
    # more leaves lead to a layer than to any of those that lead to it
    order = sorted(layers, key=lambda members: (reach[members[0]].sum(), members))
    return _Links(numbers, places, [list(members) for members in order], before, now, reach, read)


def _closure(links: np.ndarray) -> np.ndarray:
    """The links in any number, none included."""
    return np.linalg.matrix_power(links | np.eye(len(links), dtype=bool), max(len(links), 1))


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


def _refuse(found: Analysis, trained: list[int], leaves: tuple[int, ...]) -> None:
    path, _ = jax.tree.leaves_with_path(found.hidden)[leaves[0]]
    moved = f"hidden{jax.tree_util.keystr(path)}"
    raise ValueError(
        f"ostl would lose the credit of {found.names[trained[0]]}: it moves {moved}, "
        "which no loss reads within its own step, only later (a layer that reads another's state of the step "
        "before, or what a hidden leaf was made from in place of the leaf); use rtrl or snap"
    )
