import jax
import jax.numpy as jnp
import numpy as np
import pytest

from online_grads import Model, artbp, batched, gradient, tbptt
from online_grads.estimators.future_facing import artbp as artbp_file
from tests.models import MODELS, problem, relative_error

STEPS = 8


def run(estimator, given, window=1, seed=1):
    go = lambda *args: gradient(estimator, *args, key=jax.random.key(seed), window=window)
    return jax.jit(go)(*given.args)


@pytest.mark.parametrize("name", ["stacked", "normalised", "columns"])
@pytest.mark.parametrize("window", [1, 4])
def test_without_cuts_it_is_backpropagation(name, window):
    given = problem(name, STEPS)
    assert relative_error(run(artbp(given.model, cut=0.0), given, window), given.exact) <= 1e-10
    assert relative_error(run(artbp(given.model, cut=0.0, longest=7), given, window), given.exact) > 1e-6


def test_forced_cuts_are_windows_of_truncation():
    given = problem("gru", STEPS)
    forced = run(artbp(given.model, cut=0.0, longest=4), given)
    assert relative_error(forced, run(tbptt(given.model), given, 4)) <= 1e-10


def by_hand(given, cuts, chance):
    """Σ δ_t ∂h_t/∂θ for given cuts, the weights in a loss that passes them with stop_gradient."""
    model, params, hidden, xs, ys, _ = given

    def through(h, weight):
        """The identity, whose cotangent is multiplied."""
        return h * weight + jax.lax.stop_gradient(h * (1 - weight))

    def mean_loss(params):
        h, age, total = hidden, 0, 0.0
        for t in range(STEPS):
            if t:
                weight = 0.0 if t in cuts else 1 / (1 - chance(age))
                h, age = through(h, weight), 0 if t in cuts else age
            h, age = model.transition(params, h, xs[t]), age + 1
            total += model.loss(params, h, ys[t])[0]
        return total / STEPS

    return jax.grad(mean_loss)(params)


@pytest.mark.parametrize(
    ("options", "chance"),
    [
        ({"cut": 0.3}, lambda age: 0.3),
        ({"cut": 0.3, "alpha": 4.0}, lambda age: 0.9 / (2 + 0.3 * age)),
    ],
)
@pytest.mark.parametrize("window", [1, 4])
def test_credit_is_weighted_where_no_cut_comes(options, chance, window, monkeypatch):
    given = problem("vanilla", STEPS)
    draws = np.array([0.9, 0.9, 0.9, 0.0, 0.9, 0.9, 0.9, 0.9])
    estimator = artbp(given.model, **options)
    state = jax.jit(estimator.init)(*given.args[:2], key=jax.random.key(0))
    total = jax.tree.map(np.zeros_like, given.params)

    @jax.jit
    def update(state, draws, xs, ys):
        monkeypatch.setattr(artbp_file, "drawn", lambda *args: draws)
        return estimator.update(state, given.params, xs, ys)

    for start in range(0, STEPS, window):
        part = slice(start, start + window)
        state, estimate = update(state, *(rows[part] for rows in (draws, given.xs, given.ys)))
        total = jax.tree.map(lambda t, g: t + window * np.asarray(g), total, estimate.grads)
    _, owed = jax.jit(estimator.flush)(state, given.params)
    got = jax.tree.map(lambda t, o: (t + o) / STEPS, total, owed)
    assert relative_error(got, by_hand(given, {3}, chance)) <= 1e-10
    assert relative_error(got, by_hand(given, {4}, chance)) > 1e-3


@pytest.mark.parametrize("alpha", [None, 4.0])
def test_the_mean_length_is_one_over_the_cut(alpha):
    model = MODELS["vanilla"]()
    params, hidden = jax.jit(model.init)(jax.random.key(0))
    estimator = artbp(model, cut=0.2, alpha=alpha, longest=200)
    xs, ys = jnp.zeros((20_000, 3)), jnp.zeros((20_000, 2))
    state = jax.jit(estimator.init)(params, hidden, key=jax.random.key(1))
    _, estimate = jax.jit(estimator.update)(state, params, xs, ys)
    assert estimate.info["forced_cuts"] == 0
    np.testing.assert_allclose(20_000 / estimate.info["cuts"], 5.0, rtol=0.06)


def test_half_precision_does_not_change_the_chance_of_a_cut():
    """bfloat16 counts uniform numbers in steps of 1/128: a cut in 100 would come in 63."""
    model = Model(
        init=lambda key: (jnp.ones((), jnp.bfloat16), jnp.zeros((), jnp.bfloat16)),
        transition=lambda w, h, x: w * x,
        loss=lambda w, h, y: (h, ()),
        example=(jax.ShapeDtypeStruct((), jnp.bfloat16), jnp.zeros(0)),
    )
    estimator = artbp(model, cut=0.01, longest=2000)
    state = jax.jit(estimator.init)(*model.init(None), key=jax.random.key(1))
    xs, ys = jnp.ones(20_000, jnp.bfloat16), jnp.zeros((20_000, 0))
    _, estimate = jax.jit(estimator.update)(state, model.init(None)[0], xs, ys)
    # 200 expected, give or take 14
    assert 144 < estimate.info["cuts"] < 256


def test_cuts_may_be_tracers_and_differ_between_streams():
    given = problem("vanilla", STEPS)
    run_with = lambda cut, alpha: run(artbp(given.model, cut=cut, alpha=alpha), given)
    together = jax.vmap(run_with)(jnp.asarray([0.1, 0.5]), jnp.asarray([3.0, 5.0]))
    for i, (cut, alpha) in enumerate([(0.1, 3.0), (0.5, 5.0)]):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], together)
        assert relative_error(one, run_with(cut, alpha)) <= 1e-10
    many = batched(artbp(given.model, cut=0.5), 3)
    streams = [jnp.repeat(leaf[:, None], 3, axis=1) for leaf in given.args[2:]]
    state = jax.jit(many.init)(*given.args[:2], key=jax.random.key(0))
    _, estimate = jax.jit(many.update)(state, given.params, *streams)
    assert len({*map(int, estimate.info["cuts"])}) > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"longest": 0}, "longest must be at least 1, got 0"),
        ({"cut": 1.0}, r"cut must be in \[0, 1\), got 1\.0"),
        ({"cut": -0.1}, r"cut must be in \[0, 1\), got -0\.1"),
        ({"alpha": 2.0}, r"alpha must be above 2, got 2\.0"),
        ({"alpha": float("inf")}, "alpha must be finite, got inf"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        artbp(MODELS["vanilla"](), **options)
