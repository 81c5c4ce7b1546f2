"""Whether what a step returns can be read off the state that it leaves behind.

    h_t, out_t = step(θ, h_{t-1}, x_t)          out_t = read(θ, h_t) ?

The equations of the step tell. The new hidden leaves take the place of whatever was computed for them; if
what is left reads neither h_{t-1} nor x_t, it is `read`.
"""

from collections.abc import Callable

import jax

from online_grads import jaxprs
from online_grads.types import PyTree


def read_off(step: Callable, params: PyTree, hidden: PyTree, x: PyTree) -> Callable | None:
    """The function (θ, h_t) -> out_t of a `step(θ, h, x)` -> (h_t, out_t); None if there is none.

    Args:
        step: the function, pure.
        params, hidden, x: their shapes.

    >>> import jax.numpy as jnp
    >>> def step(w, h, x):
    ...     h = jnp.tanh(h + x)
    ...     return h, w * h
    >>> read = read_off(step, jnp.ones(()), jnp.zeros(2), jnp.zeros(2))
    >>> read(3.0, jnp.ones(2)).tolist()
    [3.0, 3.0]
    >>> read_off(lambda w, h, x: (h + x, w * x), jnp.ones(()), jnp.zeros(2), jnp.zeros(2)) is None
    True
    """
    closed, treedef = _traced(step, params, hidden, x)
    inputs, outputs, size = closed.jaxpr.invars, closed.jaxpr.outvars, len(jax.tree.leaves(hidden))
    moved, out = outputs[:size], outputs[size:]
    known = {v: number for number, v in enumerate(moved) if not jaxprs.is_literal(v)}
    if any(jaxprs.live_inputs(closed, out, known)[len(jax.tree.leaves(params)) :]):
        return None

    def read(params, hidden):
        leaves = jax.tree.leaves(hidden)
        env = {v: leaves[number] for v, number in known.items()}
        env.update(zip(inputs, jax.tree.leaves(params), strict=False))
        return jax.tree.unflatten(treedef, jaxprs.values_of(closed, out, env))

    return read


def unchanged(function: Callable, params: PyTree, state: PyTree, *others: PyTree) -> list[bool]:
    """Per leaf of state, whether function(params, state, ...) -> (state, anything) returns it as it came."""
    closed, _ = _traced(function, params, state, *others)
    first = len(jax.tree.leaves(params))
    pairs = zip(closed.jaxpr.invars[first:], closed.jaxpr.outvars, strict=False)
    return [came is left for (came, left), _ in zip(pairs, jax.tree.leaves(state), strict=False)]


def _traced(function, *args):
    """The equations of a function on leaves, and the structure of the second thing that it returns."""
    leaves, treedef = jax.tree.flatten(args)
    structure = []

    def flat(*leaves):
        first, second = function(*jax.tree.unflatten(treedef, leaves))
        structure.append(jax.tree.structure(second))
        return [*jax.tree.leaves(first), *jax.tree.leaves(second)]

    return jaxprs.trace(flat, *leaves), structure[-1]
