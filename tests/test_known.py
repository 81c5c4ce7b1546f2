"""Equations of known arrays: NumPy gives what JAX gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from online_grads import jaxprs, known

X = jnp.arange(6, dtype=jnp.int32).reshape(2, 3)
LARGE = jnp.full((2, 3), 2**30 + 1, jnp.int32)
HALF = jnp.array([[0.5, -0.0, 2.0], [0.0, 1.0, -3.0]], jnp.bfloat16)
CASES = {
    "add": lambda: LARGE + LARGE,  # wraps around
    "broadcast_in_dim": lambda: lax.broadcast_in_dim(X, (3, 2, 4, 3), (1, 3)),
    "concatenate": lambda: lax.concatenate([X, X], 1),
    "convert_element_type": lambda: (X > 2).astype(jnp.bfloat16),
    "eq": lambda: lax.eq(X, jnp.int32(3)),
    "ge": lambda: lax.ge(HALF, jnp.zeros_like(HALF)),
    "iota": lambda: lax.broadcasted_iota(jnp.float32, (2, 3, 2), 1),
    "lt": lambda: lax.lt(HALF, jnp.ones_like(HALF)),
    "reshape": lambda: lax.reshape(X, (3, 2), (1, 0)),
    "rev": lambda: lax.rev(X, (1,)),
    "select_n": lambda: lax.select_n(X > 2, HALF, -HALF),
    "slice": lambda: lax.slice(X, (0, 1), (2, 3), (1, 2)),
    "split": lambda: lax.split(X, (1, 2), 1),
    "squeeze": lambda: lax.squeeze(X[:, :1], (1,)),
    "stack": lambda: jnp.stack([X, X], axis=1),
    "sub": lambda: X - LARGE,
    "transpose": lambda: X.T,
}


def refuse(equation, values):
    raise AssertionError(f"{equation.primitive.name} is not computed in NumPy")


@pytest.mark.parametrize("name", CASES)
def test_numpy_is_jax_to_the_last_bit(name):
    closed = jaxprs.trace(lambda: jax.tree.leaves(CASES[name]()))
    env = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    found = []
    for equation in closed.jaxpr.eqns:
        expected = jaxprs.bind(equation, values := [jaxprs.read(env, atom) for atom in equation.invars])
        env.update(zip(equation.outvars, expected, strict=True))
        if equation.primitive.name == name:
            found = known.compute(equation, [np.asarray(value) for value in values], refuse)
            assert [f.dtype for f in found] == [e.dtype for e in expected]
            assert [f.tobytes() for f in found] == [np.asarray(e).tobytes() for e in expected]
    assert found or name == "stack"  # which older versions write as a concatenation


def test_every_operation_is_here():
    assert set(CASES) == set(known._IN_NUMPY)


def test_what_rounds_is_left_to_jax():
    """Negative control: an operation of floats, and one that is not listed."""
    closed = jaxprs.trace(lambda half: [half + half, jnp.tanh(half)], HALF)
    for equation in closed.jaxpr.eqns:
        with pytest.raises(AssertionError, match="not computed in NumPy"):
            known.compute(equation, [np.asarray(HALF)] * len(equation.invars), refuse)
