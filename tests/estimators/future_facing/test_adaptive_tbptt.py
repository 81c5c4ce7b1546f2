import jax
import jax.numpy as jnp
import numpy as np
import pytest

from online_grads import Model, adaptive_tbptt, batched, gradient, tbptt
from online_grads.estimators.future_facing.adaptive_tbptt import relative_bias
from tests.models import MODELS, problem, relative_error

STEPS = 300


def leaky(decay):
    """h = β h + w x: what a loss says about w decays by β per step, exactly."""
    return Model(
        init=lambda key: ({"w": jnp.ones(())}, jnp.zeros(())),
        transition=lambda params, h, x: decay * h + params["w"] * x,
        loss=lambda params, h, y: (h, h),
        example=(jnp.zeros(()), jnp.zeros(())),
    )


def settled(decay, **options):
    """The last estimate on a long stream of ones, and what it should be with the whole past."""
    model = leaky(decay)
    estimator = adaptive_tbptt(model, **options)
    params, hidden = jax.jit(model.init)(None)
    state = jax.jit(estimator.init)(params, hidden, key=jax.random.key(0))
    stream = jnp.ones((STEPS, 1)), jnp.zeros((STEPS, 1))
    go = lambda state, xy: estimator.update(state, params, *xy)
    _, estimates = jax.jit(lambda state: jax.lax.scan(go, state, stream))(state)
    return jax.tree.map(lambda leaf: leaf[-1], estimates), 1 / (1 - decay)


@pytest.mark.parametrize("decay", [0.5, 0.8, 0.9])
@pytest.mark.parametrize("tolerance", [0.3, 0.05])
def test_it_picks_the_length_that_the_formula_gives(decay, tolerance):
    """δ(K) = β^{K+1} / (1 − 2 β^{K+1}); the bias itself, relative to the whole, is β^{K+1}."""
    estimate, exact = settled(decay, tolerance=tolerance, longest=60)
    expected = int(np.ceil(np.log(tolerance / (1 + 2 * tolerance)) / np.log(decay))) - 1
    assert estimate.info["truncation"] == expected
    bias = 1 - estimate.grads["w"] / exact
    np.testing.assert_allclose(bias, decay ** (expected + 1), rtol=1e-8)
    assert bias < tolerance
    assert bias < estimate.info["relative_bias"] < tolerance
    # one step less would not do: the formula asks for no more than it needs
    assert decay**expected / (1 - 2 * decay**expected) >= tolerance


def test_what_lies_beyond_the_memory_is_extrapolated():
    """With β = 0.9 thirty steps are not enough for 1 %: all of them are kept, and the bound says so."""
    estimate, exact = settled(0.9, tolerance=0.01, longest=30)
    assert estimate.info["truncation"] == 30
    bias = 1 - estimate.grads["w"] / exact
    assert 0.01 < bias < estimate.info["relative_bias"]


def test_growing_gradients_are_never_cut():
    growing = 1.1 ** jnp.arange(20.0)
    assert jnp.all(jnp.isinf(relative_bias(growing, jnp.cumsum(growing), growing > 0)))


def test_lags_that_no_probe_saw_are_extrapolated():
    """The first ten lags of β^j say as much about all K below as all thirty do."""
    phi = 0.8 ** jnp.arange(30.0)
    seen = jnp.arange(30) < 10
    full = relative_bias(phi, jnp.cumsum(phi), phi > 0)
    part = relative_bias(jnp.where(seen, phi, 0), jnp.where(seen, jnp.cumsum(phi), 0), seen)
    np.testing.assert_allclose(part[:10], full[:10], rtol=1e-10)
    assert jnp.all(jnp.isinf(part[10:]))
    assert jnp.all(jnp.isinf(relative_bias(phi, phi, jnp.arange(30) < 1)))


@pytest.mark.parametrize("decay", [0.3, 0.0])
def test_what_has_vanished_is_cut(decay):
    """0.3^j is nothing after forty of two hundred lags, and without recurrence all is lag 0."""
    estimate, _ = settled(decay, tolerance=0.1, longest=200)
    assert estimate.info["truncation"] == (0 if decay == 0 else 2)


def test_a_slow_part_beneath_a_fast_one_is_not_overlooked():
    """φ_j = ½^j + 0.01 · 0.99^j, seen up to 60: the far half decides, and the bound holds."""
    lags = jnp.arange(2000.0)
    phi = 0.5**lags + 0.01 * 0.99**lags
    bound = relative_bias(phi[:60], jnp.cumsum(phi)[:60], lags[:60] >= 0)
    true = (jnp.sum(phi) - jnp.cumsum(phi)[:60]) / jnp.sum(phi)
    assert jnp.all(bound >= 0.99 * true)


def test_one_bad_loss_teaches_nothing():
    model = leaky(0.5)._replace(loss=lambda params, h, y: (h**2, h))
    estimator = adaptive_tbptt(model, tolerance=0.1, longest=20, every=1)
    params, hidden = jax.jit(model.init)(None)
    state = jax.jit(estimator.init)(params, hidden, key=jax.random.key(0))
    state, _ = jax.jit(estimator.update)(state, params, jnp.ones(30), jnp.zeros(30))
    before = state.learned
    sick = state._replace(hidden=jnp.asarray(jnp.nan))
    after = jax.jit(estimator.update)(sick, params, jnp.ones(1), jnp.zeros(1))[0].learned
    np.testing.assert_array_equal(after.phi, before.phi)
    assert after.truncation == before.truncation


def test_the_bound_falls_with_the_length_and_the_longest_is_exact():
    phi = 0.7 ** jnp.arange(30.0)
    bound = relative_bias(phi, jnp.cumsum(phi), phi > 0)
    finite = bound[jnp.isfinite(bound)]
    assert len(finite) > 25
    assert jnp.all(finite[1:] < finite[:-1])
    given = problem("gru", 8)
    whole = gradient(adaptive_tbptt(given.model, longest=8), *given.args, key=jax.random.key(0), window=8)
    assert relative_error(whole, given.exact) <= 1e-10


def test_it_is_truncation_at_what_it_chose():
    given = problem("vanilla", 8)
    model, params, hidden, xs, ys, _ = given
    estimator = adaptive_tbptt(model, longest=6, every=100)
    for length in (0, 3):
        state = jax.jit(estimator.init)(params, hidden, key=jax.random.key(0))
        learned = state.learned._replace(truncation=jnp.int32(length), age=jnp.int32(0))
        state, total = state._replace(learned=learned), jax.tree.map(jnp.zeros_like, params)
        for step in range(8):
            state, estimate = jax.jit(estimator.update)(
                state, params, xs[step : step + 1], ys[step : step + 1]
            )
            state = state._replace(learned=state.learned._replace(truncation=jnp.int32(length)))
            total = jax.tree.map(lambda t, g: t + g / 8, total, estimate.grads)
        fixed = gradient(tbptt(model, history=length), *given.args, key=jax.random.key(0))
        assert relative_error(total, fixed) <= 1e-10


def test_streams_are_truncated_alike():
    """One of them decays slowly, one fast: together they settle between."""
    model = Model(
        init=lambda key: ({"w": jnp.ones(())}, jnp.zeros(())),
        transition=lambda params, h, x: x * h + params["w"],
        loss=lambda params, h, y: (h, h),
        example=(jnp.zeros(()), jnp.zeros(())),
    )
    params, hidden = jax.jit(model.init)(None)
    decays = jnp.asarray([0.3, 0.8])
    stream = jnp.broadcast_to(decays, (STEPS, 1, 2)), jnp.zeros((STEPS, 1, 2))
    for axis_name in ("streams", None):
        estimator = batched(adaptive_tbptt(model, tolerance=0.1, longest=40, axis_name=axis_name), 2)
        state = jax.jit(estimator.init)(params, hidden, key=jax.random.key(0))
        go = lambda state, xy, e=estimator: (e.update(state, params, *xy)[0], None)
        learned = jax.jit(lambda state, go=go: jax.lax.scan(go, state, stream)[0])(state).streams.learned
        same = bool(jnp.all(learned.phi[0] == learned.phi[1]))
        assert same == (learned.truncation[0] == learned.truncation[1]) == (axis_name is not None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 0.0}, r"tolerance must be above 0, got 0\.0"),
        ({"rate": 1.5}, r"rate must be above 0 and at most 1, got 1\.5"),
        ({"longest": 0}, "longest must be at least 1"),
        ({"every": 0}, "every must be at least 1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        adaptive_tbptt(MODELS["gru"](), **options)
