import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from online_grads import FpttState, fptt, fptt_restart, learner, scan, tbptt
from tests.models import problem

STEPS, ALPHA, BETA, RHO, RATE = 30, 0.3, 0.4, 0.2, 0.1


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_it_follows_the_papers_recursion(momentum):
    """The authors' loop in NumPy, on quadratics of random curvature and target."""
    draws = np.random.default_rng(0)
    curvature, target = draws.uniform(0.5, 2, (STEPS, 3)), draws.normal(size=(STEPS, 3))
    optimizer = fptt(optax.sgd(RATE, momentum=momentum), alpha=ALPHA, beta=BETA, rho=RHO)
    params = {"w": jnp.ones(3)}
    state = optimizer.init(params)
    w, mean, lam, velocity = np.ones(3), np.ones(3), np.zeros(3), np.zeros(3)
    for a, t in zip(curvature, target, strict=True):
        grads = {"w": jnp.asarray(a) * (params["w"] - jnp.asarray(t))}
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        velocity = (momentum or 0) * velocity + a * (w - t) + (RHO - 1) * lam + ALPHA * (w - mean)
        w = w - RATE * velocity
        lam = lam - ALPHA * (w - mean)
        mean = (1 - BETA) * mean + BETA * w - BETA / ALPHA * lam
        np.testing.assert_allclose(params["w"], w, rtol=1e-12)
        np.testing.assert_allclose(state.average["w"], mean, rtol=1e-12)
        np.testing.assert_allclose(state.multiplier["w"], lam, rtol=1e-10, atol=1e-14)


def test_where_it_settles_the_mean_gradient_is_zero():
    """Two quadratics in turn, the end of a long run; at its beginning the mean is not zero."""
    targets, curvature = jnp.asarray([[1.0], [-2.0]]), jnp.asarray([1.0, 3.0])
    optimizer = fptt(optax.sgd(0.1), alpha=0.5)

    def body(carry, i):
        w, state = carry
        grads = curvature[i % 2] * (w - targets[i % 2])
        updates, state = optimizer.update(grads, state, w)
        return (optax.apply_updates(w, updates), state), grads

    start = jnp.zeros(1)
    (w, state), grads = jax.lax.scan(body, (start, optimizer.init(start)), jnp.arange(4000))
    assert abs(jnp.mean(grads[-1000:])) < 1e-10 < 1e-3 < abs(jnp.mean(grads[:10]))
    assert abs(state.average[0] - w[0]) < 0.1


def test_with_truncation_it_learns_and_may_be_donated():
    given = problem("gru", 8)
    online = learner(tbptt(given.model), fptt(optax.sgd(0.1), alpha=0.5))
    start = online.init(*given.args[:2], key=jax.random.key(0))
    assert isinstance(start.optimizer, FpttState)
    state = start
    go = jax.jit(lambda state: scan(online, state, given.xs, given.ys, window=2), donate_argnums=0)
    first = None
    for _ in range(20):
        state, metrics = go(state)
        first = float(jnp.mean(metrics.loss)) if first is None else first
    assert float(jnp.mean(metrics.loss)) < 0.9 * first


def test_restarting_goes_on_from_the_average():
    optimizer = fptt(optax.sgd(0.1), alpha=0.5)
    params = jnp.ones(2)
    state, moved = optimizer.init(params), params
    for grads in ([1.0, -1.0], [0.5, 0.2]):
        updates, state = optimizer.update(jnp.asarray(grads), state, moved)
        moved = optax.apply_updates(moved, updates)
    params, restarted = fptt_restart(state)
    np.testing.assert_array_equal(params, state.average)
    assert not np.allclose(params, moved)
    np.testing.assert_array_equal(restarted.multiplier, jnp.zeros(2))
    assert np.any(np.asarray(state.multiplier) != 0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"alpha": 0.0}, ValueError, "alpha must be above 0"),
        ({"alpha": 0.5, "beta": 0.0}, ValueError, "beta must be above 0 and at most 1"),
        ({"alpha": 0.5, "beta": 2.0}, ValueError, "beta must be above 0 and at most 1"),
        ({"alpha": 0.5, "rho": -1.0}, ValueError, "rho must be at least 0"),
        ({"alpha": None}, TypeError, "alpha must be a number"),
    ],
)
def test_bad_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        fptt(optax.sgd(0.1), **options)


def test_it_needs_an_optimizer_and_the_parameters():
    with pytest.raises(TypeError, match="optimizer must be an optax GradientTransformation, got 3"):
        fptt(3, alpha=0.5)
    optimizer = fptt(optax.sgd(0.1), alpha=0.5)
    with pytest.raises(ValueError, match="fptt needs the parameters"):
        optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)))
