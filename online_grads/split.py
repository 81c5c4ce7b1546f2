"""A transition's equations, split where the parameters end: the raw material of `Structure`.

Variables and equations of a jaxpr; nothing here is ever evaluated.
"""

import math
from collections import Counter
from typing import Any, NamedTuple

import jax.numpy as jnp

from online_grads import jaxprs

# Beside dot_general the primitives that sum over entries, or may hide such a sum in their body.
_MIXING = {"conv_general_dilated", "scan", "while", "cond"}
# Entries pass through in their order (a reshape with `dimensions` permutes them), and none is repeated where
# the size stays the same.
_RESHAPING = {"reshape", "squeeze", "expand_dims", "broadcast_in_dim"}


class Product(NamedTuple):
    """A dot_general of a weight with a vector."""

    equation: Any
    weight: Any  # variable
    side: int  # of the weight among the operands
    vector_axes: tuple  # transposes the vector to (batch, contracted, free) axes
    matrix_axes: tuple  # the weight's batch, contracted and free axes


class Split:
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

    def sums(self) -> list[list[int]]:
        """The numbers of the sites (products, then direct uses) that are only added up, sum by sum.

        A term that nothing but one addition reads is moved by a perturbation of any other term.
        """
        variables = [p.equation.outvars[0] for p in self.products] + self.direct
        members = {variable: [number] for number, variable in enumerate(variables)}
        sides = {id(p.equation): p.side for p in self.products}
        operands = lambda eq: [a for i, a in enumerate(eq.invars) if i != sides.get(id(eq))]
        uses = Counter(
            a
            for atoms in (*map(operands, self.after), self.outputs)
            for a in atoms
            if not jaxprs.is_literal(a)
        )
        for equation in self.after:
            # of a difference the first term alone: the other one counts negatively
            terms = {"add": 2, "add_any": 2, "sub": 1}.get(equation.primitive.name, 0)
            if equation.primitive.name in _RESHAPING and equation.params.get("dimensions") is None:
                terms = 1
            joined = []
            for a in equation.invars[:terms]:
                same = a.aval.size == equation.outvars[0].aval.size
                if not jaxprs.is_literal(a) and a in members and uses[a] == 1 and same:
                    joined += members.pop(a)
            if joined:
                members[equation.outvars[0]] = joined
        return [sorted(numbers) for numbers in members.values()]

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


def _synapse(equation, candidates) -> Product | None:
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
            return Product(equation, weight, side, vector_axes, matrix_axes)
    return None


def _free(operand, contracted, batch):
    return tuple(axis for axis in range(operand.aval.ndim) if axis not in (*contracted, *batch))


def smaller_as_parameters(split: Split, dense: bool) -> set:
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
