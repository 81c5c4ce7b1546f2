"""What `es`, `pes` and `es_single` share; tests/estimators/test_unbiased.py shows the last two unbiased."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from online_grads import Model, batched, es, es_single, gradient, hidden_of, nres, pes
from tests.models import MODELS, fixed_start, problem, problem_of, quadratic, relative_error, stream
from tests.unbiased import flat, samples, variance

FAMILY = {"es": es, "pes": pes, "es_single": es_single}
EVERY = pytest.mark.parametrize("make", FAMILY.values(), ids=FAMILY)
# the particles of pes and es_single persist
PERSISTENT = pytest.mark.parametrize("make", [pes, es_single], ids=["pes", "es_single"])


def run(estimator, given, window):
    return gradient(estimator, *given.args, key=jax.random.key(1), window=window)


@EVERY
def test_one_segment_is_the_antithetic_sum(make):
    """By hand, from the perturbations that were drawn: all three agree on a first segment."""
    given = problem("gru", 5)
    model, params, hidden, xs, ys, _ = given
    sigma, drawn = 0.2, []
    normal = jax.random.normal

    def recorded(key, shape, dtype):
        drawn.append(normal(key, shape, dtype))
        return drawn[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.random, "normal", recorded)
        estimator = make(model, sigma=sigma, particles=6)
        state = estimator.init(params, hidden, key=jax.random.key(1))
        _, estimate = estimator.update(state, params, xs, ys)
    theta, unravel = jax.flatten_util.ravel_pytree(params)

    def summed(theta):
        def body(h, xy):
            h = model.transition(unravel(theta), h, xy[0])
            return h, model.loss(unravel(theta), h, xy[1])[0]

        return jnp.sum(jax.lax.scan(body, hidden, (xs, ys))[1])

    epsilon = sigma * drawn[-1]
    assert epsilon.shape == (3, theta.size)
    plus, minus = (jax.vmap(summed)(theta[None] + sign * epsilon) for sign in (1, -1))
    expected = (plus - minus) @ epsilon / (2 * sigma**2 * 3 * 5)
    np.testing.assert_allclose(flat(estimate.grads), expected, rtol=1e-9)
    np.testing.assert_allclose(estimate.loss, jnp.mean(plus + minus) / 10, rtol=1e-10)


def test_the_resampling_period_unites_the_family():
    """Never resampled, `pes` is `es_single`; resampled at every segment it is another."""
    given = problem_of(quadratic(), 8)
    single = run(es_single(given.model, particles=4), given, 2)
    for resample, same in ((4, True), (2, False)):
        state = pes(given.model, particles=4, resample=resample).init(*given.args[:2], key=jax.random.key(1))
        one = es_single(given.model, particles=4).init(*given.args[:2], key=jax.random.key(1))
        # pes draws with its first segment, es_single when it begins
        state = state._replace(epsilon=one.epsilon, age=jnp.ones((), jnp.int32))
        total = jax.tree.map(jnp.zeros_like, given.params)
        for start in range(0, 8, 2):
            part = slice(start, start + 2)
            state, estimate = pes(given.model, particles=4, resample=resample + same).update(
                state, given.params, given.xs[part], given.ys[part]
            )
            total = jax.tree.map(lambda t, g: t + g / 4, total, estimate.grads)
        assert (relative_error(total, single) <= 1e-10) == same
    assert nres is es_single


def test_the_variance_of_es_single_is_that_of_the_formula():
    """(p + 1)/N ‖∂L/∂θ‖² on a quadratic loss."""
    given = problem_of(quadratic(), 8)
    square = float(jnp.sum(jnp.square(8 * flat(given.exact))))
    p = flat(given.params).size
    for pairs in (1, 4):
        drawn, _ = samples(lambda model, n=pairs: es_single(model, particles=2 * n), given, 2, 20_000)
        np.testing.assert_allclose(variance(drawn), (p + 1) / pairs * square, rtol=0.05)


@pytest.mark.parametrize(("make", "grows"), [(pes, True), (es_single, False)])
def test_the_noise_of_pes_grows_with_the_episode(make, grows):
    given = problem_of(quadratic(), 64)
    estimator = make(given.model, particles=2)
    xs, ys = (jnp.tile(leaf[:4], (16, 1)).reshape(16, 4, -1) for leaf in (given.xs, given.ys))

    def grads(key):
        state = estimator.init(*given.args[:2], key=key)
        go = lambda state, xy: estimator.update(state, given.params, *xy)
        return jax.lax.scan(go, state, (xs, ys))[1].grads["drive"]

    drawn = jax.jit(jax.vmap(grads))(jax.random.split(jax.random.key(0), 2000))
    spread = jnp.var(drawn, axis=0).sum(axis=-1)
    assert (spread[-1] > 3 * spread[3]) == grows


@EVERY
def test_nothing_is_differentiated(make):
    """Integer states, argmax, a key in the state, outputs that are no numbers to average."""

    def init(key):
        return {"w": jnp.ones(3)}, {"count": jnp.zeros((), jnp.int32), "key": key}

    def transition(params, hidden, x):
        key, now = jax.random.split(hidden["key"])
        noise = jax.random.normal(now, (3,))
        return {
            "count": hidden["count"] + jnp.argmax(params["w"] * x + 0.1 * noise).astype(jnp.int32),
            "key": key,
        }

    def loss(params, hidden, y):
        right = hidden["count"] % 3 == y
        return 1.0 - right.astype(float), {"right": right, "count": hidden["count"], "w": params["w"]}

    model = Model(init, transition, loss, (jnp.zeros(3), jnp.zeros((), jnp.int32)))
    params, hidden = model.init(jax.random.key(0))
    estimator = make(model, sigma=1.0, particles=64)
    state = estimator.init(params, hidden, key=jax.random.key(1))
    xs, ys = jax.random.normal(jax.random.key(2), (6, 3)), jnp.zeros(6, jnp.int32)
    state, estimate = jax.jit(estimator.update)(state, params, xs, ys)
    assert estimate.outputs["right"].dtype == bool
    assert estimate.outputs["count"].shape == (6,)
    assert jnp.any(estimate.grads["w"] != 0)
    assert 0 < estimate.loss < 1
    assert hidden_of(state)["count"].dtype == jnp.int32
    many = batched(estimator, 2)
    state = many.init(params, hidden, key=jax.random.key(1))
    many.update(state, params, *(jnp.stack([leaf, leaf], axis=1) for leaf in (xs, ys)))


@PERSISTENT
def test_loss_outputs_and_state_are_means_over_the_particles(make):
    given = problem("vanilla", 4)
    model, params, hidden, xs, ys, _ = given
    estimator = make(model, sigma=0.3, particles=4)
    state = estimator.init(params, hidden, key=jax.random.key(1))
    state, estimate = estimator.update(state, params, xs, ys)
    np.testing.assert_allclose(hidden_of(state), jnp.mean(state.members, axis=0))
    assert not np.allclose(state.members[0], state.members[2])  # θ + ε and θ − ε
    assert estimate.outputs.shape == (4, 2)


def test_es_goes_on_from_the_state_of_its_own_parameters():
    given = problem("vanilla", 4)
    model, params, hidden, xs, ys, _ = given
    estimator = es(model, sigma=10.0, particles=4)
    state = estimator.init(params, hidden, key=jax.random.key(1))
    state, _ = estimator.update(state, params, xs, ys)
    for x in xs:
        hidden = model.transition(params, hidden, x)
    np.testing.assert_allclose(state.hidden, hidden, rtol=1e-12)


@PERSISTENT
def test_half_precision_parameters_are_unbiased(make):
    """ε and ξ are float32: bfloat16's own normal numbers have a mean."""
    half = jnp.bfloat16
    model = Model(
        init=lambda key: (jnp.zeros(4000, half), jnp.zeros((), jnp.float32)),
        transition=lambda w, h, x: jnp.sum(w.astype(jnp.float32)),
        loss=lambda w, h, y: (h, h),
        example=(jnp.zeros(0), jnp.zeros(0)),
    )
    params, hidden = model.init(None)
    estimator = make(model, sigma=0.1, particles=2)
    state = estimator.init(params, hidden, key=jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves((state.epsilon, state.earlier))} == {
        jnp.dtype(jnp.float32)
    }
    keys = jax.random.split(jax.random.key(1), 2000)
    one = lambda key: (
        estimator.update(
            estimator.init(params, hidden, key=key), params, jnp.zeros((1, 0)), jnp.zeros((1, 0))
        )[1].grads
    )
    grads = jax.jit(jax.vmap(one))(keys)
    assert grads.dtype == half
    mean = jnp.mean(grads.astype(jnp.float32))
    # the mean over the entries has the variance 2, that over all keys a deviation of 0.03
    assert abs(float(mean) - 1) < 0.15


def test_only_what_is_needed_is_drawn():
    """es_single draws at a reset, pes in its period, and the draws in between are not in the state."""
    model = fixed_start(MODELS["vanilla"]())
    params, hidden = model.init(jax.random.key(0))
    (xs, resets), ys = stream(model, 8)
    for estimator, changes in (
        (es_single(model, particles=2), [False, False, True, False]),
        (pes(model, particles=2, resample=2), [True, False, True, False]),
    ):
        state = estimator.init(params, hidden, key=jax.random.key(0))
        at = resets.at[5].set(True)
        changed = []
        for start in range(0, 8, 2):
            part = slice(start, start + 2)
            moved, _ = estimator.update(state, params, (xs[part], at[part]), ys[part])
            changed.append(not np.allclose(flat(moved.epsilon), flat(state.epsilon)))
            state = moved
        assert changed == changes


def test_sigma_may_be_a_tracer():
    given = problem_of(quadratic(), 4)
    one = lambda sigma: run(es_single(given.model, sigma=sigma, particles=4), given, 2)
    together = jax.jit(jax.vmap(one))(jnp.asarray([0.1, 0.5]))
    for i, sigma in enumerate((0.1, 0.5)):
        assert relative_error(jax.tree.map(lambda leaf, i=i: leaf[i], together), one(sigma)) <= 1e-10
    inside = jax.jit(lambda: run(pes(given.model, sigma=jnp.asarray(0.1), particles=4), given, 2))
    assert jnp.all(jnp.isfinite(flat(inside())))


@EVERY
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"particles": 3}, ValueError, "expected an even number, got 3"),
        ({"particles": 0}, ValueError, "particles must be at least 2, got 0"),
        ({"particles": 2.0}, TypeError, r"particles must be an integer, got 2\.0"),
        ({"sigma": 0.0}, ValueError, r"sigma must be above 0, got 0\.0"),
        ({"sigma": -1}, ValueError, "sigma must be above 0, got -1"),
        ({"sigma": float("nan")}, ValueError, "sigma must be finite, got nan"),
        ({"sigma": "x"}, TypeError, "sigma must be a number, got 'x'"),
        ({"sigma": jnp.asarray(1j)}, TypeError, "sigma must be a number"),
    ],
)
def test_bad_options_are_refused(make, options, error, message):
    with pytest.raises(error, match=message):
        make(MODELS["gru"](), **options)


def test_a_period_below_one_is_refused():
    with pytest.raises(ValueError, match="resample must be at least 1, got 0"):
        pes(MODELS["gru"](), resample=0)
