"""Influences stored in fewer bits, and segments whose forward pass is not stored."""

import chex
import jax
import jax.numpy as jnp
import pytest

from online_grads import ESTIMATORS, Model, gradient, memory, snap, tbptt, uoro
from tests.models import MODELS, problem, relative_error

STORED = ["rtrl", "snap", "eprop", "rflo"]


@pytest.mark.parametrize("name", STORED)
@pytest.mark.parametrize("window", [1, 4])
def test_bfloat16_halves_the_state_and_costs_little_accuracy(name, window):
    """Against float32; with float64 there is no difference to what the weights have anyway."""
    model, params, hidden, xs, ys, _ = problem("gru", 32)
    params, hidden, xs, ys = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (params, hidden, xs, ys))
    model = model._replace(example=(xs[0], ys[0]), init=lambda key: (params, hidden))
    made = lambda dtype: ESTIMATORS[name].constructor(model, influence_dtype=dtype)
    run = lambda estimator: jax.jit(
        lambda key: gradient(estimator, params, hidden, xs, ys, key=key, window=window)
    )(jax.random.key(0))
    full, half, own = map(run, map(made, (jnp.float32, jnp.bfloat16, None)))
    assert 1e-5 < relative_error(half, full) < 2e-2
    assert relative_error(own, full) < 1e-6
    chex.assert_trees_all_equal_dtypes(half, full)
    carried = jax.eval_shape(lambda: made(jnp.bfloat16).init(params, hidden, key=jax.random.key(0)))
    assert {leaf.dtype for leaf in jax.tree.leaves(carried.influence)} == {jnp.dtype(jnp.bfloat16)}
    assert memory(made(jnp.bfloat16), params, hidden) < 0.6 * memory(made(None), params, hidden)


@pytest.mark.parametrize("name", STORED)
def test_large_credit_does_not_overflow_a_narrow_influence(name):
    model, params, hidden, xs, ys, _ = problem("vanilla", 4)
    estimator = ESTIMATORS[name].constructor(model, influence_dtype=jnp.float16)
    grads = gradient(estimator, params, hidden, xs, ys + 1e5, key=jax.random.key(0))
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(grads))


def test_slow_decays_are_lost_in_bfloat16():
    """What the docstrings warn of: 0.998 a step is nothing to eight bits, and something to eleven."""

    def slow(dtype):
        model = Model(
            lambda key: (jnp.ones(4, jnp.float32), jnp.zeros(4, jnp.float32)),
            lambda w, h, x: jnp.float32(0.998) * h + w * x,
            lambda w, h, y: (jnp.sum(h - y), ()),
            (jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32)),
        )
        stream = jnp.zeros(1000, jnp.float32).at[0].set(1), jnp.zeros(1000, jnp.float32)
        start = model.init(None)
        return gradient(snap(model, influence_dtype=dtype), *start, *stream, key=jax.random.key(0))

    exact, eleven, eight = map(slow, (None, jnp.float16, jnp.bfloat16))
    assert relative_error(eleven, exact) < 0.05
    assert relative_error(eight, exact) > 0.5


@pytest.mark.parametrize("name", STORED)
def test_an_influence_of_integers_is_refused(name):
    with pytest.raises(TypeError, match="influence_dtype must be a real floating dtype, got int32"):
        ESTIMATORS[name].constructor(MODELS["gru"](), influence_dtype=jnp.int32)


@pytest.mark.parametrize("constructor", [tbptt, uoro])
def test_rematerialised_segments_give_the_same_from_less_memory(constructor):
    model, params, hidden, xs, ys, _ = problem("lstm", 256)
    results, used = [], []
    for remat in (False, True):
        estimator = constructor(model, remat=remat)
        state = estimator.init(params, hidden, key=jax.random.key(0))
        compiled = jax.jit(estimator.update).lower(state, params, xs, ys).compile()
        results.append(compiled(state, params, xs, ys)[1].grads)
        used.append(compiled.memory_analysis().temp_size_in_bytes)
    assert relative_error(results[1], results[0]) <= 1e-12
    assert used[1] < 0.6 * used[0]
    with pytest.raises(TypeError, match="remat must be True or False, got 'no'"):
        constructor(model, remat="no")
