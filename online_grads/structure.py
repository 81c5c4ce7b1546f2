"""What a plain JAX transition tells about how its parameters enter.

The transition's equations are split once, at construction, from shapes alone:

    w = g(θ)                       weight equations: they depend on parameters only
    z_l = v_l · w_l                synapses: an effective matrix meets a presynaptic vector
    h' = f(w, h, x, z)             everything else; a weight read here is a direct use

A **site** is a place where a weight acts, a synapse or a direct use. A perturbation ε_l of a site
is added to its drive z_l [post], or to the weight itself at a direct use (whose presynaptic factor
is 1), so that for every site, with D_l = ∂h'/∂ε_l,

    ∂h'/∂w_l[j, i] = D_l[:, i] v_l[j]

The perturbation *flows*: later drives of the same step react. With the drives *held* at given
values, what is left of ∂h'/∂h is J₀, and J = J₀ + Σ_l D_l w_lᵀ V_l with V_l = ∂v_l/∂h (drives held).

Gradients are formed for the effective weights and pulled back to θ by the VJP of g. Where θ has
fewer entries than the weights made of it, θ itself is the weight.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from online_grads import jaxprs
from online_grads.types import Array

# Beside dot_general the primitives that sum over entries, or may hide such a sum in their body.
_MIXING = {"conv_general_dilated", "scan", "while", "cond"}


class Site(NamedTuple):
    """A place where a weight acts, read as w [batch, pre, post]; a direct use has one row, v = 1."""

    weight: int  # index into Structure.weights
    axes: tuple  # the weight's batch, contracted and free axes
    batch: int
    pre: int
    post: int
    direct: bool
    dtype: Any  # of the drive


class Structure:
    """The split of one transition.

    Attributes:
        weights: shape and dtype of every effective weight. The first `trained` depend on
            parameters; the rest are constants that meet a vector, or carry no derivative.
        trained: how many weights are trained.
        names: for every trained weight, the names of the parameter leaves that it is made of.
        sites: where the weights act, synapses first, in the order in which they are computed.
        tangled: the names of trained weights that meet h in a product that is no synapse.
    """

    def __init__(
        self,
        transition: Callable,
        names: Sequence[str],
        params,
        h,
        rest,
        x,
        *,
        dense: bool,
        called: str = "the transition",
    ):
        """Split `transition(parameter leaves, h [n], rest, x) -> (h' [n], rest')`.

        Args:
            transition: the function, pure.
            names: a name for every parameter leaf.
            params: shapes of the parameter leaves.
            h, rest, x: shapes of the hidden vector, of the other hidden leaves, and of the input.
            dense: True where an influence has n entries per weight entry. θ then replaces the
                weights made of it wherever it is smaller, otherwise only where no synapse is lost.
            called: what an error calls the function.

        Raises:
            ValueError: if the transition cannot be differentiated in forward and reverse mode.
        """
        leaves, treedef = jax.tree.flatten((list(params), h, rest, x))

        def on_leaves(*leaves):
            h, rest = transition(*jax.tree.unflatten(treedef, leaves))
            return [h, *rest]

        closed = jaxprs.trace(on_leaves, *leaves)
        variables = closed.jaxpr.invars[: len(params)]
        whole = _smaller_as_parameters(_Split(closed, variables, ()), dense)
        self._split = split = _Split(closed, variables, whole)
        self._products = {id(p.equation): i for i, p in enumerate(split.products)}
        self.weights = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in split.weights]
        self.trained = split.trained
        name_of = dict(zip(variables, names, strict=True))
        made_of = [split.made_of[v] for v in split.weights[: self.trained]]
        self.names = [", ".join(name_of[v] for v in variables if v in made) for made in made_of]
        index = {v: i for i, v in enumerate(split.weights)}
        self.tangled = [self.names[index[v]] for v in split.tangled(h=closed.jaxpr.invars[len(params)])]
        self.sites = [p.site(index[p.weight]) for p in split.products]
        self.sites += [_direct_site(index[v], v.aval) for v in split.direct]
        require_differentiable(
            lambda at, given: self.step(given[0], at[0], *given[1:], perturb=at[1])[0],
            (h, self.trained_zeros()),
            (self.weights, rest, x),
            called,
        )

    def effective(self, params: Sequence[Array]) -> list[Array]:
        """The weights w = g(θ), trained and constant ones."""
        env = self._constants()
        env.update(zip(self._split.params, params, strict=True))
        _run(self._split.before, env)
        return [env[v] for v in self._split.weights]

    def pullback(self, params: Sequence[Array], grads: Sequence[Array]) -> list[Array]:
        """∂/∂θ from the trained weights' ∂/∂w, by the VJP of g."""
        trained = lambda leaves: self.effective(leaves)[: self.trained]
        return jax.vjp(trained, list(params))[1](list(grads))[0]

    def matrix(self, site: Site, weights: Sequence[Array]) -> Array:
        """The site's weight as [batch, pre, post]."""
        transposed = jnp.transpose(weights[site.weight], sum(site.axes, ()))
        return transposed.reshape(site.batch, site.pre, site.post)

    def along(self, site: Site, array: Array, *, pre: bool = False, post: bool = False) -> Array:
        """[batch, pre] or [batch, post] or [batch, pre, post] such that it broadcasts with the weight."""
        shape, keep = self.weights[site.weight].shape, (True, pre, post)
        sizes = [
            shape[axis] if kept else 1 for axes, kept in zip(site.axes, keep, strict=True) for axis in axes
        ]
        order = sum(site.axes, ())
        return jnp.transpose(array.reshape(sizes), [order.index(axis) for axis in range(len(order))])

    def collect(self, grads: Sequence[Array]) -> list[Array]:
        """Per trained weight the sum over its sites of gradients in the weight's own shape."""
        total: list = [None] * self.trained
        for site, grad in zip(self.trained_sites, grads, strict=True):
            total[site.weight] = grad if total[site.weight] is None else total[site.weight] + grad
        return total

    @property
    def trained_numbers(self) -> list[int]:
        """The numbers among `sites` of those of trained weights."""
        return [number for number, site in enumerate(self.sites) if site.weight < self.trained]

    @property
    def trained_sites(self) -> list[Site]:
        """The sites of trained weights."""
        return [self.sites[number] for number in self.trained_numbers]

    def trained_zeros(self) -> list[Array | None]:
        """A zero perturbation [batch, post] for every site of a trained weight, None for the others."""
        return [
            jnp.zeros((site.batch, site.post), site.dtype) if site.weight < self.trained else None
            for site in self.sites
        ]

    def step(self, weights, h, rest, x, *, perturb=None, hold=None, drive=None):
        """One transition from effective weights.

        Args:
            weights: as `effective` returns them.
            h, rest, x: hidden vector [n], other hidden leaves, input.
            perturb: per site an ε [batch, post] that is added to its drive, or None.
            hold: per synapse a drive [batch, post] that replaces the computed one.
            drive: (number of the synapse, v [batch, pre], z [batch, post]) -> the z that is used.

        Returns:
            (h' [n], rest', per synapse v [batch, pre], per synapse z [batch, post]).
        """
        split = self._split
        env = self._constants()
        _run(split.constant, env)
        env.update(zip(split.weights, weights, strict=True))
        env.update(zip(split.inputs, jax.tree.leaves((h, rest, x)), strict=True))
        synaptic = dict(zip(split.weights, weights, strict=True))
        for site, epsilon in zip(self.sites, perturb or (), strict=perturb is not None):
            if site.direct and epsilon is not None:
                env[split.weights[site.weight]] += epsilon.reshape(self.weights[site.weight].shape)
        presynaptic, drives = [], []
        for equation in split.after:
            operands = [jaxprs.read(env, atom) for atom in equation.invars]
            number = self._products.get(id(equation))
            if number is None:
                env.update(zip(equation.outvars, jaxprs.bind(equation, operands), strict=True))
                continue
            product, site = split.products[number], self.sites[number]
            vector = jnp.transpose(operands[1 - product.side], product.vector_axes)
            presynaptic.append(vector.reshape(site.batch, site.pre))
            if hold is not None:
                value = hold[number]
            else:
                # a direct use of the same weight is a site of its own: the product reads it unperturbed
                operands[product.side] = synaptic[product.weight]
                value = jaxprs.bind(equation, operands)[0].reshape(site.batch, site.post)
                if perturb is not None and perturb[number] is not None:
                    value = value + perturb[number]
            if drive is not None:
                value = drive(number, presynaptic[-1], value)
            drives.append(value)
            (variable,) = equation.outvars
            env[variable] = value.reshape(variable.aval.shape)
        outputs = [jaxprs.read(env, atom) for atom in split.outputs]
        return outputs[0], outputs[1:], presynaptic, drives

    def _constants(self):
        closed = self._split.closed
        return dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))


def require_differentiable(
    step: Callable, at, given, called: str = "the transition", *, forward: bool = True
) -> None:
    """Refuse a `step(at, given)` -> array that JAX cannot differentiate in `at`, backwards and `forward`.

    Raises:
        ValueError: with what JAX says.
    """

    def both(at, given):
        one = lambda at: step(at, given)
        if forward:
            # under vmap, because only batching and running show that a rule has no forward mode
            jax.vmap(lambda tangent: jax.jvp(one, (at,), (tangent,)))(
                jax.tree.map(lambda leaf: leaf[None], at)
            )
        moved, pull = jax.vjp(one, at)
        return pull(moved)

    try:
        jax.eval_shape(both, at, given)
    except (TypeError, ValueError, NotImplementedError) as error:
        modes = (
            "forward and in reverse mode; where it uses a custom_vjp, define a custom_jvp instead"
            if forward
            else "reverse mode; es, pes and es_single differentiate nothing"
        )
        raise ValueError(f"{called} must be differentiable in {modes}. JAX says: {error}") from error


class _Product(NamedTuple):
    """A dot_general of a weight with a vector."""

    equation: Any
    weight: Any  # variable
    side: int  # of the weight among the operands
    vector_axes: tuple  # transposes the vector to (batch, contracted, free) axes
    matrix_axes: tuple  # the weight's batch, contracted and free axes

    def site(self, weight: int) -> Site:
        shape, dtype = self.weight.aval.shape, self.equation.outvars[0].aval.dtype
        batch, pre, post = (math.prod(shape[axis] for axis in axes) for axes in self.matrix_axes)
        return Site(weight, self.matrix_axes, batch, pre, post, direct=False, dtype=dtype)


class _Split:
    """The equations that make the weights, and those after them; leaves in `whole` are weights."""

    def __init__(self, closed, params, whole):
        self.closed, self.params = closed, params
        self.inputs, self.outputs = closed.jaxpr.invars[len(params) :], closed.jaxpr.outvars
        constants, known = set(closed.jaxpr.constvars), set(params)
        self.made_of = {v: frozenset([v]) for v in params}
        self.constant, self.before, self.after = [], [], []
        for equation in jaxprs.live_equations(closed):
            operands = [a for a in equation.invars if not jaxprs.is_literal(a)]
            if constants.issuperset(operands):
                self.constant.append(equation)
                self.before.append(equation)
                constants.update(equation.outvars)
            elif all(a in constants or (a in known and a not in whole) for a in operands):
                self.before.append(equation)
                known.update(equation.outvars)
                sources = frozenset().union(*(self.made_of.get(a, ()) for a in operands))
                self.made_of.update(dict.fromkeys(equation.outvars, sources))
            else:
                self.after.append(equation)

        self.products, used = [], {}  # dicts serve as ordered sets
        for equation in self.after:
            product = _synapse(equation, known) or _synapse(equation, constants)
            if product is not None:
                self.products.append(product)
            others = [a for i, a in enumerate(equation.invars) if product is None or i != product.side]
            used |= {a: None for a in others if not jaxprs.is_literal(a) and a in known}
        used |= {a: None for a in self.outputs if not jaxprs.is_literal(a) and a in known}
        self.direct = [v for v in used if jnp.issubdtype(v.aval.dtype, jnp.inexact)]
        synaptic = {p.weight: None for p in self.products}
        trained = [v for v in synaptic | dict.fromkeys(self.direct) if v in known]
        self.trained = len(trained)
        self.weights = list(dict.fromkeys([*trained, *synaptic, *used]))

    def tangled(self, h) -> list:
        """The trained weights that an equation mixes with what h reaches, without being a synapse."""
        made_of = {weight: {weight} for weight in self.weights[: self.trained]}
        reached, found = {h}, set()
        synapses = {id(product.equation) for product in self.products}
        for equation in self.after:
            operands = [a for a in equation.invars if not jaxprs.is_literal(a)]
            weights = set().union(*(made_of.get(a, ()) for a in operands if a not in reached))
            if reached.isdisjoint(operands):
                made_of.update(dict.fromkeys(equation.outvars, weights))
                continue
            reached.update(equation.outvars)
            if _mixes(equation) and id(equation) not in synapses:
                found |= weights
        return [weight for weight in self.weights if weight in found]


def _mixes(equation) -> bool:
    if equation.primitive.name == "dot_general":
        contracted, _ = equation.params["dimension_numbers"]
        return bool(contracted[0])  # an elementwise product mixes nothing
    return equation.primitive.name in _MIXING


def _direct_site(weight: int, aval) -> Site:
    axes = ((), (), tuple(range(aval.ndim)))
    return Site(weight, axes, 1, 1, math.prod(aval.shape), direct=True, dtype=aval.dtype)


def _synapse(equation, candidates) -> _Product | None:
    """The product of a matrix among `candidates` with a vector that this equation is, if it is one."""
    if equation.primitive.name != "dot_general":
        return None
    left, right = equation.invars
    if left is right:
        return None
    contracted, batch = equation.params["dimension_numbers"]
    if not contracted[0]:
        return None  # an elementwise product
    for side, (weight, vector) in enumerate([(left, right), (right, left)]):
        if (
            jaxprs.is_literal(weight)
            or weight not in candidates
            or not jnp.issubdtype(weight.aval.dtype, jnp.floating)
        ):
            continue
        free = _free(vector, contracted[1 - side], batch[1 - side])
        if all(vector.aval.shape[axis] == 1 for axis in free):
            matrix_axes = (
                tuple(batch[side]),
                tuple(contracted[side]),
                _free(weight, contracted[side], batch[side]),
            )
            vector_axes = (*batch[1 - side], *contracted[1 - side], *free)
            return _Product(equation, weight, side, vector_axes, matrix_axes)
    return None


def _free(operand, contracted, batch):
    return tuple(axis for axis in range(operand.aval.ndim) if axis not in (*contracted, *batch))


def _smaller_as_parameters(split: _Split, dense: bool) -> set:
    """The parameter leaves to take whole: complex, or fewer entries than the weights made of them."""
    entries = lambda variables: sum(math.prod(v.aval.shape) for v in variables)
    trained = split.weights[: split.trained]
    synaptic = {p.weight for p in split.products}
    whole, pending = set(), list(trained)
    while pending:
        # a component: weights that share parameter leaves, directly or through other weights
        weights, leaves = [], split.made_of[pending[0]]
        while joined := [v for v in pending if split.made_of[v] & leaves]:
            weights += joined
            pending = [v for v in pending if v not in joined]
            leaves = leaves.union(*(split.made_of[v] for v in joined))
        is_complex = any(jnp.issubdtype(v.aval.dtype, jnp.complexfloating) for v in weights)
        smaller = entries(leaves) < entries(weights) and (dense or synaptic.isdisjoint(weights))
        if is_complex or smaller:
            whole |= leaves
    return whole


def _run(equations, env):
    for equation in equations:
        values = [jaxprs.read(env, atom) for atom in equation.invars]
        env.update(zip(equation.outvars, jaxprs.bind(equation, values), strict=True))
