"""What has no derivative in the modes that an estimator needs is refused where it is constructed."""

import contextlib

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from online_grads import rtrl
from tests.strange import strange


@jax.custom_vjp
def double(h):
    return 2 * h


double.defvjp(lambda h: (2 * h, None), lambda _, g: (2 * g,))

RULES = {
    "custom_vjp": (lambda p, h, x: double(p["W"] @ h), "a custom_vjp, define a custom_jvp instead"),
    "custom_vjp in a scan": (
        lambda p, h, x: lax.scan(lambda c, _: (double(p["W"] @ c), None), h, None, 2)[0],
        "a custom_vjp, define a custom_jvp instead",
    ),
    "while": (
        lambda p, h, x: lax.while_loop(lambda c: c[0] < 1, lambda c: p["W"] @ c + 1, h),
        "JAX says: Reverse-mode differentiation does not work for lax.while_loop",
    ),
    "no rule": (lambda p, h, x: (p["W"] @ h).at[jnp.array([0, 0])].mul(h[0]), "JAX says: scatter_mul"),
    "custom_vjp of parameters": (lambda p, h, x: double(p["W"]) @ h, None),
    "custom_vjp of the input": (lambda p, h, x: p["W"] @ h + double(x[0]), None),
}


@pytest.mark.parametrize("name", RULES)
def test_what_has_no_derivative_in_both_modes_is_refused(name):
    transition, words = RULES[name]
    model = strange("compared")._replace(transition=transition)
    expected = contextlib.nullcontext() if words is None else pytest.raises(ValueError, match=words)
    with expected:
        rtrl(model)
