import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from online_grads import Estimate, Estimator, gradient, learner, memory, rtrl, scan, tbptt
from tests import models


def setup(steps=12):
    model = models.gru()
    params, hidden = model.init(jax.random.key(0))
    return model, params, hidden, *models.stream(model, steps)


def test_one_update_is_one_step_of_the_optimizer():
    model, params, hidden, xs, ys = setup(4)
    online = learner(tbptt(model), optax.sgd(0.1))
    state = online.init(params, hidden, key=jax.random.key(1))
    state, metrics = online.update(state, xs, ys)
    exact = models.exact_gradient(model, params, hidden, xs, ys)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, params, exact)
    assert models.relative_error(state.params, expected) < 1e-12
    np.testing.assert_allclose(metrics.grad_norm, optax.tree.norm(exact), rtol=1e-12)
    assert state.step == 1
    assert metrics.finite


def test_scan_is_the_loop_over_segments():
    model, params, hidden, xs, ys = setup()
    online = learner(rtrl(model), optax.sgd(0.1))
    start = state = online.init(params, hidden, key=jax.random.key(1))
    losses = []
    for first in range(0, 12, 4):
        state, metrics = online.update(state, xs[first : first + 4], ys[first : first + 4])
        losses.append(metrics.loss)
    end, metrics = scan(online, start, xs, ys, window=4)
    np.testing.assert_allclose(metrics.loss, jnp.stack(losses), rtol=1e-12)
    assert models.relative_error(end.params, state.params) < 1e-12
    assert int(end.step) == 3


def test_scan_maps_over_learning_rates_and_seeds():
    model, params, hidden, xs, ys = setup()

    def final(rate, key):
        online = learner(rtrl(model), optax.sgd(rate))
        state = online.init(params, hidden, key=key)
        return scan(online, state, xs, ys, window=4)[1].loss[-1]

    rates, keys = jnp.array([0.0, 0.1]), jax.random.split(jax.random.key(1), 3)
    result = jax.jit(jax.vmap(jax.vmap(final, (None, 0)), (0, None)))(rates, keys)
    assert result.shape == (2, 3)
    assert not np.allclose(result[0], result[1])


def test_a_window_must_divide_the_stream():
    model, params, hidden, xs, ys = setup()
    online = learner(tbptt(model), optax.sgd(0.1))
    state = online.init(params, hidden, key=jax.random.key(1))
    with pytest.raises(ValueError, match="a window of 5 steps does not divide the stream's 12 steps"):
        scan(online, state, xs, ys, window=5)
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        gradient(tbptt(model), params, hidden, xs, ys, key=jax.random.key(1), window=0)
    with pytest.raises(ValueError, match="the stream has no steps, and so no gradient"):
        gradient(tbptt(model), params, hidden, xs[:0], ys[:0], key=jax.random.key(1))
    with pytest.raises(ValueError, match=r"xs and ys differ in their number of steps: \[8, 12\]"):
        scan(online, state, xs, ys[:8])


def test_gradient_adds_what_is_owed_at_the_end():
    """An estimator that holds back one segment's gradient, and hands it over when flushed."""
    model, params, hidden, xs, ys = setup()
    inner = tbptt(model)

    def init(params, hidden, *, key):
        return inner.init(params, hidden, key=key), jax.tree.map(jnp.zeros_like, params)

    def update(state, params, xs, ys):
        carried, estimate = inner.update(state[0], params, xs, ys)
        held = jax.tree.map(lambda g: g * len(ys), estimate.grads)
        late = jax.tree.map(lambda g: g / len(ys), state[1])
        return (carried, held), Estimate(late, estimate.loss, estimate.outputs, {})

    flush = lambda state, params: (state, state[1])
    prompt, delayed = (
        gradient(e, params, hidden, xs, ys, key=jax.random.key(1), window=3)
        for e in (inner, Estimator(init, update, flush))
    )
    assert models.relative_error(delayed, prompt) < 1e-12
    forgotten = gradient(Estimator(init, update), params, hidden, xs, ys, key=jax.random.key(1), window=3)
    assert models.relative_error(forgotten, prompt) > 1e-3


def test_memory_counts_every_leaf_and_allocates_nothing():
    model, params, hidden, *_ = setup()
    state = tbptt(model, history=5).init(params, hidden, key=jax.random.key(1))
    assert memory(tbptt(model, history=5), params, hidden) == sum(x.nbytes for x in jax.tree.leaves(state))
    huge = models.of_cell(models.cells.gru(models.INPUTS, 2048))
    shapes = jax.eval_shape(huge.init, jax.random.key(0))
    assert memory(rtrl(huge), *shapes) > 2**37


def test_a_diverged_update_is_reported():
    model, params, hidden, xs, ys = setup()
    for rate, finite in ((0.1, True), (float("inf"), False)):
        online = learner(tbptt(model), optax.sgd(rate))
        state = online.init(params, hidden, key=jax.random.key(1))
        _, metrics = scan(online, state, xs, ys, window=6)
        assert jnp.all(metrics.finite == finite)
