"""Gradients of a stretch at frozen parameters, beside those that jax.grad gives."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from online_grads import (
    Estimate,
    Estimator,
    Model,
    cells,
    dni,
    fbptt,
    from_cell,
    kernl,
    losses,
    readouts,
    rflo,
    rtrl,
    tbptt,
    uoro,
)
from online_grads.diagnostics import through_state
from online_grads.flat import flatten
from online_grads.stretches import Observed, estimates, exact, observed
from tests import models

WARMUP, STEPS = 5, 6
ONE = jax.random.split(jax.random.key(1), 1)


def episodic(resets):
    """An LSTM with resets to a learned state."""
    return models.learned_start(models.lstm()), resets


MODELS = {
    "resets": lambda: episodic([2, WARMUP, WARMUP + 3]),
    "resets inside": lambda: episodic([2, WARMUP + 3]),
}


@functools.cache
def case(name):
    """The model, and params, hidden, xs, ys."""
    model, resets = MODELS[name]() if name in MODELS else (models.MODELS[name](), [])
    params, hidden = jax.jit(model.init)(jax.random.key(0))
    xs, ys = models.stream(model, WARMUP + STEPS)
    if resets:
        xs = xs[0], jnp.asarray(np.isin(np.arange(WARMUP + STEPS), resets))
    return model, (params, hidden, xs, ys)


@functools.cache
def whole_stretch(name):
    """The gradient of the stretch's mean loss, the state that the warm-up ends with a constant."""
    model, given = case(name)
    return jax.jit(functools.partial(_whole_stretch, model))(*given)


def _whole_stretch(model, params, hidden, xs, ys):
    part = lambda tree, begin, end: jax.tree.map(lambda leaf: leaf[begin:end], tree)
    settled, _ = jax.lax.scan(
        lambda h, x: (model.transition(params, h, x), None), hidden, part(xs, 0, WARMUP)
    )
    found = models.exact_gradient(model, params, settled, part(xs, WARMUP, None), part(ys, WARMUP, None))
    return flatten(params).split(found)[0]


def close(got, expected, tolerance):
    return models.relative_error(got, expected) < tolerance


@pytest.mark.parametrize("name", ["normalised", "resets"])
def test_the_exact_gradient_is_that_of_the_stretch(name):
    model, given = case(name)
    found = jax.jit(lambda *given: exact(model, *given, warmup=WARMUP))(*given)
    assert close(found.whole, whole_stretch(name), 1e-12)
    assert found.by_lag.shape == (0, flatten(given[0]).size)


@pytest.mark.parametrize("name", ["columns", "resets inside"])
@pytest.mark.parametrize(
    ("make", "window"),
    [
        (rtrl, 1),
        (lambda model: tbptt(model, history=STEPS), 3),
        (lambda model: fbptt(model, horizon=WARMUP + STEPS), 1),
    ],
    ids=["rtrl", "tbptt", "fbptt"],
)
def test_exact_estimators_give_the_gradient_of_the_stretch_whatever_came_before(name, make, window):
    """What they remember of the warm-up, and owe to it, does not count."""
    model, given = case(name)
    estimator = make(observed(model))
    found = jax.jit(
        lambda *given: estimates(model, estimator, *given, keys=ONE, warmup=WARMUP, window=window)
    )(*given)
    assert found.whole.shape == (1, flatten(given[0]).size)
    assert close(found.whole[0], whole_stretch(name), 1e-10)


@pytest.mark.parametrize("make", [rflo, tbptt])
def test_estimators_that_leave_credit_out_differ(make):
    model, given = case("vanilla")
    estimator = make(observed(model))
    found = jax.jit(lambda *given: estimates(model, estimator, *given, keys=ONE, warmup=WARMUP))(*given)
    assert not close(found.whole[0], whole_stretch("vanilla"), 1e-2)


def test_the_warm_up_is_whole_windows_the_last_ones():
    """An estimator that only counts: the x and the cuts that it has seen, and the state it began with."""
    model = Model(
        init=lambda key: ({"w": jnp.zeros(3)}, jnp.zeros(())),
        transition=lambda params, h, x: h + x,
        loss=lambda params, h, y: (h * y, None),
        example=(jnp.zeros(()), jnp.zeros(())),
    )

    def init(params, hidden, *, key):
        return jnp.stack([hidden.hidden, *jnp.zeros((2, 1)).ravel()])

    def update(state, params, xs, ys):
        x, cut, *_ = xs
        state = state + jnp.stack([jnp.zeros(()), x.sum(), cut.sum().astype(float)])
        # the stretch is one segment, and the mean over its steps
        return state, Estimate({"w": state}, jnp.zeros(()), None, {})

    given = (*model.init(jax.random.key(0)), 2.0 ** jnp.arange(11.0), jnp.ones(11))
    seen = lambda estimator, warmup, window, steps: (
        estimates(
            model,
            estimator,
            *given[:2],
            *(leaf[: warmup + steps] for leaf in given[2:]),
            keys=ONE,
            warmup=warmup,
            window=window,
        )
        .whole[0]
        .tolist()
    )
    counting = Estimator(init, update)
    # 5 steps of warm-up are 2 windows, from the state after step 0; then one segment of the stretch
    assert seen(counting, 5, 2, 2) == [1, 2**7 - 2, 1]
    assert seen(counting, 1, 2, 2) == [1, 2**3 - 2, 1]
    assert seen(counting, 0, 2, 2) == [0, 3, 1]
    # one that owes at the end begins with the stretch
    owing = Estimator(init, update, lambda state, params: (state, {"w": jnp.zeros(3)}))
    assert seen(owing, 5, 2, 2) == [2**5 - 1, 2**7 - 2**5, 1]


def test_what_does_not_fit_is_refused():
    model, given = case("vanilla")
    for options, message in [
        ({"warmup": WARMUP + STEPS}, "after 11 steps of warm-up 1 or more are needed, got 0"),
        ({"warmup": WARMUP, "lags": 7}, "after 5 steps of warm-up 7 or more are needed, got 6"),
        ({"warmup": -1}, "warmup must be at least 0, got -1"),
    ]:
        with pytest.raises(ValueError, match=message):
            exact(model, *given, **options)
        with pytest.raises(ValueError, match=message):
            estimates(model, rtrl(observed(model)), *given, keys=ONE, **options)
    with pytest.raises(ValueError, match="a window of 4 steps does not divide the stream's 6 steps"):
        estimates(model, rtrl(observed(model)), *given, keys=ONE, warmup=WARMUP, window=4)


def test_a_cut_changes_no_loss():
    model, (params, hidden, xs, ys) = case("lstm")
    wrapped = observed(model)
    estimator = rtrl(wrapped)
    _, before = jax.lax.scan(lambda h, x: (model.transition(params, h, x), h), hidden, xs)
    always = jnp.ones(WARMUP + STEPS, bool)

    @jax.jit
    def run(cut, begin):
        state = estimator.init(params, Observed(hidden, always[0]), key=ONE[0])
        return estimator.update(state, params, (xs, cut, begin, always), ys)[1]

    never, once = jnp.zeros(WARMUP + STEPS, bool), jnp.arange(WARMUP + STEPS) == 4
    uncut, cut = run(never, before), run(once, before)
    np.testing.assert_allclose(cut.outputs, uncut.outputs, rtol=1e-12)
    assert models.relative_error(cut.grads, uncut.grads) > 1e-3
    elsewhere = run(once, jax.tree.map(jnp.zeros_like, before))
    assert not np.allclose(elsewhere.outputs, uncut.outputs, rtol=1e-3)


def test_a_cut_is_a_reset_beside_those_of_the_model():
    plain = observed(models.gru())
    episodic = observed(models.fixed_start(models.gru()))
    x, h = jnp.ones(models.INPUTS), jnp.ones(models.HIDDEN)
    for cut in (True, False):
        assert bool(plain.reset((x, jnp.array(cut), h, True))) == cut
        for own in (True, False):
            assert bool(episodic.reset(((x, jnp.array(own)), jnp.array(cut), h, True))) == (cut or own)


def test_lags_add_up_to_the_gradient_of_the_last_loss():
    model, given = case("resets inside")
    found = jax.jit(lambda *given: exact(model, *given, warmup=WARMUP, lags=STEPS))(*given)

    def last(params):
        h = given[1]
        for t in range(WARMUP + STEPS):
            h = jax.lax.stop_gradient(h) if t == WARMUP else h
            h = model.transition(
                params if t >= WARMUP else given[0], h, jax.tree.map(lambda leaf, t=t: leaf[t], given[2])
            )
        return model.loss(params, h, jax.tree.map(lambda leaf: leaf[-1], given[3]))[0]

    expected = flatten(given[0]).split(jax.jit(jax.grad(last))(given[0]))[0]
    np.testing.assert_allclose(found.by_lag.sum(axis=0), expected, rtol=1e-12, atol=1e-14)
    # the reset is the last that credit reaches: lags 0, 1, 2
    by_lag = np.asarray(found.by_lag)
    assert (np.abs(by_lag[:3]).max(axis=1) > 1e-6).all()
    assert not by_lag[3:].any()


def test_rtrl_recovers_every_lag_and_a_truncation_those_within():
    model, given = case("vanilla")
    wrapped, settings = observed(model), {"warmup": WARMUP, "lags": STEPS}
    # the last: a segment of two, and the one step before it
    estimators = (rtrl(wrapped), 1), (tbptt(wrapped, history=2), 1), (tbptt(wrapped, history=1), 2)

    @jax.jit
    def by_lag(*given):
        each = [estimates(model, e, *given, keys=ONE, window=window, **settings) for e, window in estimators]
        return exact(model, *given, **settings).by_lag, [found.by_lag[:, 0] for found in each]

    due, (found, *truncated) = jax.device_get(by_lag(*given))
    assert np.linalg.norm(due, axis=1).min() > 1e-6
    np.testing.assert_allclose(found, due, atol=1e-12)
    for found in truncated:
        np.testing.assert_allclose(found[:3], due[:3], atol=1e-12)
        assert not found[3:].any()


def test_by_lag_uoro_is_unbiased_and_kernl_is_not():
    cell = models.cells.vanilla_rnn(models.INPUTS, 2)
    model = models.of_cell(cell)
    given = (*jax.jit(model.init)(jax.random.key(0)), *models.stream(model, 6))
    truth = jax.jit(lambda *given: exact(model, *given, warmup=2, lags=3))(*given)
    keys = jax.random.split(jax.random.key(1), 4000)

    def worst(estimator):
        found = jax.jit(lambda: estimates(model, estimator, *given, keys=keys, warmup=2, lags=3))()
        assert found.by_lag.shape == (3, 4000, flatten(given[0]).size)
        drawn = np.concatenate([found.whole[None], found.by_lag])
        due = np.concatenate([truth.whole[None], truth.by_lag])
        bias, spread = drawn.mean(axis=1) - due, drawn.std(axis=1) / math.sqrt(4000)
        return np.max(np.abs(bias) / np.maximum(spread, 1e-12))

    assert worst(uoro(observed(model))) < 4.5
    assert worst(kernl(observed(model), sigma=0.1)) > 10


def test_keys_are_draws_of_the_noise_alone():
    model, given = case("vanilla")
    keys = jax.random.split(jax.random.key(1), 3)
    estimator = uoro(observed(model))
    drawn = jax.jit(lambda keys: estimates(model, estimator, *given, keys=keys, warmup=WARMUP, lags=1))
    noisy, alone = drawn(keys), drawn(keys[1:2])
    np.testing.assert_allclose(noisy.whole[1], alone.whole[0], rtol=1e-12)
    np.testing.assert_allclose(noisy.by_lag[:, 1], alone.by_lag[:, 0], rtol=1e-12)
    assert not np.allclose(noisy.whole[0], noisy.whole[1], rtol=1e-3)


def test_a_critic_counts_losses_at_their_own_scale():
    """On a periodic stream a synthesiser over all the phases becomes exact, before and after the cut."""
    period, warmup, steps = 3, 3000, 30
    cell, readout = cells.vanilla_rnn(period, 4), readouts.linear(4, 1)
    example = jnp.zeros(period), jnp.zeros(1)
    model = from_cell(cell, readout, losses.squared_error, example=example)
    params, hidden = jax.jit(model.init)(jax.random.key(0))
    phase = np.arange(warmup + steps) % period
    xs, ys = jnp.asarray(np.eye(period)[phase]), jnp.asarray(phase[:, None] / period - 0.5)
    estimator = dni(observed(model), inner_optimizer=optax.sgd(0.3), copy_every=1)
    due = jax.jit(lambda *given: exact(model, *given, warmup=warmup).whole)(params, hidden, xs, ys)
    through = through_state(model)  # the readout's part is exact for every estimator

    @functools.partial(jax.jit, static_argnums=0)
    def share(taught):
        """How much of what is due is found after so many steps of warm-up."""
        part = slice(warmup - taught, None)
        settled = jax.lax.scan(lambda h, x: (model.transition(params, h, x), None), hidden, xs[: part.start])[
            0
        ]
        found = estimates(model, estimator, params, settled, xs[part], ys[part], keys=ONE, warmup=taught)
        return found.whole[0, through] @ due[through] / (due[through] @ due[through])

    # the last steps' credit beyond the stretch is all that differs
    assert abs(share(warmup) - 1) < 0.1
    assert abs(share(0) - 1) > 0.1
