"""The stored steps, on hidden states of every kind; the estimators that share them reach all of the past."""

import functools
from functools import partial

import chex
import jax
import jax.numpy as jnp
import pytest

from online_grads import adaptive_tbptt, artbp, dni, fbptt, gradient, tbptt, with_resets
from tests.models import MODELS, exact_gradient, fixed_start, problem, problem_of, relative_error, stream
from tests.strange import strange

STEPS = 8
# each with room for the whole stream
WHOLE = {
    "tbptt": partial(tbptt, history=STEPS),
    "adaptive_tbptt": partial(adaptive_tbptt, longest=STEPS, tolerance=1e-12),
    "fbptt": partial(fbptt, horizon=STEPS),
    "artbp": partial(artbp, cut=0.0, longest=STEPS),
}
EVERY = pytest.mark.parametrize("make", WHOLE.values(), ids=WHOLE)


def run(make, given, window=1):
    go = lambda *args: gradient(make(given.model), *args, key=jax.random.key(1), window=window)
    return jax.jit(go)(*given.args)


@functools.cache
def stranger(name):
    return problem_of(strange(name), STEPS)


@EVERY
@pytest.mark.parametrize("name", ["random dropout", "complex state", "fast weights"])
def test_any_hidden_state_is_stored(make, name):
    given = stranger(name)
    assert relative_error(run(make, given, 2), given.exact) <= 1e-10


def test_keys_and_resets_together():
    """Dropout keys in the state, and an episode that begins in the middle of a segment."""
    model = strange("random dropout")
    given = problem_of(with_resets(model, model.init(None)[1]), STEPS)
    (xs, resets), ys = given.xs, given.ys
    xs = xs, resets.at[3].set(True)
    exact = exact_gradient(*given[:3], xs, ys)
    for make in WHOLE.values():
        got = run(make, given._replace(xs=xs), 2)
        assert relative_error(got, exact) <= 1e-10
        assert relative_error(got, given.exact) > 1e-3
    grads = run(partial(dni, jacobian="learned"), given._replace(xs=xs), 2)
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(grads))


@EVERY
def test_a_custom_vjp_serves(make):
    """Nothing is pushed forwards."""

    @jax.custom_vjp
    def squash(z):
        return jnp.tanh(z)

    squash.defvjp(lambda z: (jnp.tanh(z), jnp.tanh(z)), lambda y, c: (c * (1 - y**2),))
    plain = problem("vanilla", STEPS)
    base = plain.model

    def transition(params, h, x):
        cell = params["cell"]
        return 0.4 * h + 0.6 * squash(cell["W_rec"] @ h + cell["W_in"] @ x + cell["bias"])

    given = plain._replace(model=base._replace(transition=transition))
    assert relative_error(run(make, given), plain.exact) <= 1e-10


@EVERY
def test_a_transition_without_reverse_mode_is_refused_at_once(make):
    base = MODELS["vanilla"]()

    def transition(params, h, x):
        halve = lambda h: 0.5 * base.transition(params, h, x)
        return jax.lax.while_loop(lambda h: jnp.sum(h**2) > 1, halve, h)

    with pytest.raises(ValueError, match="must be differentiable in reverse mode; es, pes and es_single"):
        make(base._replace(transition=transition))


@EVERY
def test_half_precision_stays_half(make):
    model = MODELS["gru"]()
    half = lambda tree: jax.tree.map(lambda s: s.astype(jnp.bfloat16), tree)
    model = model._replace(init=lambda key: half(MODELS["gru"]().init(key)), example=half(model.example))
    estimator = make(fixed_start(model))
    params, hidden = jax.jit(model.init)(jax.random.key(0))
    state = jax.jit(estimator.init)(params, hidden, key=jax.random.key(1))
    xs, ys = stream(fixed_start(model), 4)
    moved, estimate = jax.jit(estimator.update)(state, params, xs, ys)
    chex.assert_trees_all_equal_dtypes(moved, state)
    assert {leaf.dtype for leaf in jax.tree.leaves(estimate.grads)} == {jnp.dtype(jnp.bfloat16)}
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(estimate.grads))
