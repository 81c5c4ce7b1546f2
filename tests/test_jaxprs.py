"""The view of a traced function that the rest of the library has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from online_grads import jaxprs
from tests.strange import spike

H = jnp.array([0.5, -1.0, 2.0])


def names(closed):
    return [equation.primitive.name for equation in closed.jaxpr.eqns]


def evaluate(closed, *args):
    """The results, one equation after the other."""
    variables, values = (*closed.jaxpr.constvars, *closed.jaxpr.invars), (*closed.consts, *args)
    env = dict(zip(variables, values, strict=True))
    jaxprs.run(closed.jaxpr.eqns, env)
    return [jaxprs.read(env, atom) for atom in closed.jaxpr.outvars]


FUNCTIONS = {
    "nested calls": lambda h: jax.jit(lambda h: jax.checkpoint(lambda h: jax.jit(jnp.sin)(h) * 2)(h) + H)(h),
    "one operand twice": lambda h: h * h,
    "several results": lambda h: jnp.concatenate(jnp.split(h * 2, [1])),
    "unused results": lambda h: lax.top_k(h, 2)[0] + jnp.linalg.qr(jnp.diag(h))[1][0, :2],
    "literals": lambda h: jnp.where(h > 0, 1.0, h - 3),
    "constants": lambda h: jnp.eye(3)[jnp.array([2, 0, 1])] @ h,
    "control flow": lambda h: lax.cond(
        h[0] > 0, jnp.sin, jnp.cos, lax.scan(lambda c, a: (c + a, c), h, h)[1][0]
    ),
    "custom rule": lambda h: spike(h) + jax.nn.relu(h),
    "the input": lambda h: h,
    "a constant": lambda h: jnp.zeros(2),
    "keys": lambda h: h + jax.random.normal(jax.random.split(jax.random.key(0))[0], (3,)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_survive(name):
    closed = jaxprs.trace(FUNCTIONS[name], H)
    assert not {"jit", "pjit", "checkpoint", "remat", "remat2", "closed_call"} & set(names(closed))
    got, expected = jax.jit(lambda h: (evaluate(closed, h)[0], FUNCTIONS[name](h)))(H)
    np.testing.assert_allclose(got, expected, rtol=1e-14)


def test_from_shapes_within_jit_and_vmap():
    """A closed-over tracer becomes a constant of the trace."""

    def inner(scale):
        closed = jaxprs.trace(lambda h: jax.jit(lambda h: scale * h)(h), jax.ShapeDtypeStruct((3,), float))
        return evaluate(closed, H)[0]

    np.testing.assert_array_equal(jax.jit(inner)(2.0), 2 * H)
    np.testing.assert_array_equal(jax.vmap(inner)(jnp.array([1.0, 2.0])), [H, 2 * H])


def test_bodies_and_custom_rules_stay_whole():
    kept = names(jaxprs.trace(FUNCTIONS["control flow"], H))
    assert "scan" in kept
    assert "cond" in kept
    closed = jaxprs.trace(spike, H)
    assert names(closed) == ["custom_jvp_call"]
    surrogate = jax.grad(lambda h: jnp.sum(evaluate(closed, h)[0]))(H)
    np.testing.assert_allclose(surrogate, [1.5, 1.0, 0.0])


def test_what_is_live():
    def function(a, b, c, d):
        unused = jnp.sin(a) + b
        return [c, jnp.cos(a) + lax.stop_gradient(unused.shape[0] * 1.0)]

    closed = jaxprs.trace(function, H, H, H, H)
    assert jaxprs.live_inputs(closed) == [True, False, True, False]
    live = [equation.primitive.name for equation in jaxprs.live_equations(closed)]
    assert "cos" in live
    assert "sin" not in live


def test_a_known_variable_is_not_computed():
    def function(a, b):
        middle = jnp.sin(a) * b
        return [middle, middle + b]

    closed = jaxprs.trace(function, H, H)
    middle, end = closed.jaxpr.outvars
    assert jaxprs.live_inputs(closed, [end], {middle}) == [False, True]
    assert [equation.primitive.name for equation in jaxprs.live_equations(closed, [end], {middle})] == ["add"]
    given = {middle: 3 * H, closed.jaxpr.invars[1]: H}
    np.testing.assert_array_equal(jaxprs.values_of(closed, [end, middle], given), [4 * H, 3 * H])
    # all that is asked for depends on a where nothing is known
    assert jaxprs.live_inputs(closed, [end]) == [True, True]


def test_one_of_an_equations_results_may_be_known():
    closed = jaxprs.trace(lambda a, b: lax.sort((a, b), num_keys=1), H, H)
    first, second = closed.jaxpr.outvars
    given = {first: 3 * H} | dict(zip(closed.jaxpr.invars, (H, 2 * H), strict=True))
    order = np.argsort(H)
    np.testing.assert_array_equal(jaxprs.values_of(closed, [first, second], given), [3 * H, 2 * H[order]])


def test_operands_and_parameters_replaced():
    """Also where the operand was written into the equation."""
    (pad,) = jaxprs.trace(lambda h: lax.pad(h, 0.0, ((1, 0, 0),)), H).jaxpr.eqns
    assert jaxprs.is_literal(pad.invars[1])
    np.testing.assert_array_equal(jaxprs.bind_with(pad, [jnp.arange(3), jnp.array(7)])[0], [7, 0, 1, 2])
    moved = jaxprs.bind_with(pad, [H, jnp.array(0.0)], padding_config=((0, 1, 0),))
    np.testing.assert_array_equal(moved[0], [*H, 0])


def test_mutable_references_are_refused():
    new_ref = getattr(jax, "new_ref", None)
    if new_ref is None:
        pytest.skip("this JAX has no jax.new_ref")

    def accumulate(h):
        total = new_ref(jnp.zeros(3))
        total[...] = h
        return total[...]

    with pytest.raises(ValueError, match=r"mutable references .* cannot be followed"):
        jaxprs.trace(accumulate, H)
