"""The programs that an estimator's time is measured against: what it cannot do without, and nothing else.

Each is one step of a scan whose results all feed its carry, so that the compiler can neither drop a part nor
compute it once for all steps. A row of the registry names its bound.
"""

import inspect
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from online_grads.analysis import analyse
from online_grads.estimators.perturbation.es import es
from online_grads.flat import flatten
from online_grads.types import Array, Model, PyTree

# of the gradient descent, which only keeps the gradients alive: small, as some estimates are mostly noise
RATE = 1e-7
PARTICLES: int = inspect.signature(es).parameters["particles"].default


class Program(NamedTuple):
    """A loop to be timed; the last entry of the carry is a scalar that is finite if all went well."""

    init: Callable[[PyTree, PyTree], tuple]  # (params, hidden) -> carry
    step: Callable[[tuple, Array, Array], tuple]  # (carry, x, y) -> carry


def influence_product(model: Model, state: PyTree) -> Program:
    """M ← J M with all of the influence as one matrix [n, p'], for RTRL.

    Args:
        model: the model.
        state: the estimator's state or its shapes; every leaf of its influence is [n, ...].

    Returns:
        A `Program` of 2 n² p' floating-point operations per step. J is a reflection: M keeps its size.
    """
    return _product(model, jax.tree.leaves(state.influence))


def factor_product(model: Model, state: PyTree) -> Program:
    """B ← J B with all the matrices that J multiplies as one, for the Kronecker methods.

    Args:
        model: the model.
        state: the estimator's state or its shapes; its influence is a `FactoredInfluence`.

    Returns:
        A `Program` of 2 n² c operations per step, c the columns of all B [..., n, c_l] and of what is
        carried exactly.
    """
    factors = [each.B for each in state.influence.products]
    return _product(model, factors + state.influence.direct)


def stream(model: Model, state: PyTree) -> Program:
    """e ← c e with as many bytes as influence and parameters have: each is read once and written once.

    A step that learns cannot do without either.

    Args:
        model: not used.
        state: the estimator's state or its shapes.

    Returns:
        A `Program` on one float32 array.
    """

    def init(params, hidden):
        count = -(-sum(_bytes(leaf) for leaf in jax.tree.leaves((state.influence, params))) // 4)
        return jnp.ones(count, jnp.float32), jnp.ones((), jnp.float32)

    return Program(init, lambda carry, x, y: (carry[0] * carry[1], carry[1]))


def jvp_and_vjp(model: Model, state: PyTree) -> Program:
    """One tangent and one cotangent of the transition with respect to θ and h, for rank-one methods.

        s ← ½ (J s + (∂h_t/∂θ) θ̃ + ν J)          θ̃ ← ν ∂h_t/∂θ          ν signs [n], the same at every step

    The forward pass is shared. ½ keeps s bounded.

    Args:
        model: the model.
        state: not used.

    Returns:
        A `Program`.
    """
    found = analyse(model)

    def init(params, hidden):
        theta, (h, rest) = found.theta(params), found.flat.split(hidden)
        signs = jnp.cos(jnp.pi * jnp.arange(h.size, dtype=h.dtype))
        return theta, h, rest, signs, jax.tree.map(jnp.zeros_like, theta), jnp.zeros_like(h), jnp.sum(h)

    def step(carry, x, y):
        theta, h, rest, signs, tangent, s, _ = carry
        move = lambda theta, h: found.transition(theta, h, rest, x)
        moved, pushed, rest = jax.jvp(move, (theta, h), (tangent, s), has_aux=True)
        _, pull, _ = jax.vjp(move, theta, h, has_aux=True)
        grads, back = pull(signs)
        s = (pushed + back) / 2
        return theta, moved, rest, signs, grads, s, s[0]

    return Program(init, step)


def forward_and_backward(model: Model, state: PyTree) -> Program:
    """The gradient of one step's loss with respect to θ, and a step down it.

    Args:
        model: the model.
        state: not used.

    Returns:
        A `Program`.
    """
    flat = analyse(model).flat

    def init(params, hidden):
        h, rest = flat.split(hidden)
        return params, h, rest, jnp.sum(h)

    def step(carry, x, y):
        params, h, rest, _ = carry

        def loss(params):
            hidden = model.transition(params, flat.join(h, rest), x)
            return model.loss(params, hidden, y)[0], flat.split(hidden)

        (value, (h, rest)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        params = jax.tree.map(lambda p, g: p - RATE * g, params, grads)
        return params, h, rest, value

    return Program(init, step)


def forward_passes(model: Model, state: PyTree) -> Program:
    """As many particles as the perturbation estimators have, each with parameters of its own.

    Args:
        model: the model.
        state: not used.

    Returns:
        A `Program`: transition and loss of all particles in one vmapped call.
    """

    def init(params, hidden):
        scales = jnp.linspace(0.9, 1.1, PARTICLES, dtype=jnp.float32)
        many = jax.tree.map(lambda leaf: jnp.tensordot(scales.astype(leaf.dtype), leaf, 0), params)
        members = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (PARTICLES, *leaf.shape)), hidden)
        return many, members, jnp.zeros((), jnp.float32)

    def step(carry, x, y):
        params, members, total = carry
        members = jax.vmap(model.transition, (0, 0, None))(params, members, x)
        losses, _ = jax.vmap(model.loss, (0, 0, None))(params, members, y)
        return params, members, total + jnp.sum(losses).astype(total.dtype)

    return Program(init, step)


# name -> (model, the estimator's state or its shapes) -> Program; the names are those of the registry
BOUNDS: dict[str, Callable[[Model, PyTree], Program]] = {
    "J·M": influence_product,
    "J·B": factor_product,
    "stream": stream,
    "JVP + VJP": jvp_and_vjp,
    "forward + backward": forward_and_backward,
    "forward passes": forward_passes,
}


def bound_of(name: str, state: PyTree) -> str:
    """The bound that holds for a state: of J·M nothing is left where the influence is compressed.

    >>> from online_grads.bench_model import model_of
    >>> from online_grads.estimators.past_facing.rtrl import rtrl
    >>> for cell in ("gru", "low_pass"):
    ...     start = (model := model_of(cell, 16)).init(jax.random.key(0))
    ...     print(bound_of("J·M", rtrl(model).init(*start, key=jax.random.key(1))))
    J·M
    stream
    """
    compressed = name == "J·M" and any(isinstance(each, list) for each in state.influence)
    return "stream" if compressed else name


def _product(model: Model, matrices: list) -> Program:
    """A ← J A with the matrices side by side, J [n, n]."""
    n = flatten(jax.eval_shape(model.init, jax.random.key(0))[1]).size
    columns = sum(math.prod(leaf.shape) for leaf in matrices) // n

    def init(params, hidden):
        across = jnp.cos(jnp.arange(n, dtype=jnp.float32))
        along = jnp.cos(jnp.arange(columns, dtype=jnp.float32))
        reflection = jnp.eye(n, dtype=jnp.float32) - 2 * jnp.outer(across, across) / (across @ across)
        return reflection, jnp.outer(across, along), along[0]

    def step(carry, x, y):
        transfer, matrix, _ = carry
        matrix = transfer @ matrix
        return transfer, matrix, matrix[0, 0]

    return Program(init, step)


def _bytes(leaf) -> int:
    return math.prod(leaf.shape) * leaf.dtype.itemsize
