"""The developer's page, an estimator of one's own in forty lines, and what the builder adds and refuses."""

import textwrap

import jax
import jax.numpy as jnp
import pytest

from online_grads import (
    ESTIMATORS,
    Influence,
    Model,
    feedback,
    gradient,
    hidden_of,
    kf_rtrl,
    past_facing,
    rtrl,
    tbptt,
    uoro,
    with_resets,
)
from online_grads.analysis import analyse
from online_grads.estimators.past_facing import base
from online_grads.linearize import Leaves, Weights
from tests.models import MODELS, exact_gradient, joint, problem, problem_of, relative_error, stream


def example():
    """The constructor that the builder's docstring shows, run as it stands there."""
    code = base.__doc__[base.__doc__.index("    def rtrl_of_leaves") :].split("\n\n*")[0]
    names = {**vars(base), "analyse": analyse, "Leaves": Leaves}
    exec(textwrap.dedent(code), names)
    assert len(code.splitlines()) < 40
    return names["rtrl_of_leaves"]


@pytest.mark.parametrize("window", [1, 4, 8])
@pytest.mark.parametrize("name", ["vanilla", "lstm", "stacked"])
def test_the_example_of_forty_lines_is_exact(name, window):
    given = problem(name, 8)
    run = jax.jit(lambda *args: gradient(example()(given.model), *args, key=jax.random.key(1), window=window))
    assert relative_error(run(*given.args), given.exact) <= 1e-10


def immediate(model):
    """Credit for the present step alone."""
    found = analyse(model)
    coordinates = Weights(found, dense=False)
    influence = Influence(
        init=lambda h, key: (),
        propagate=lambda influence, segment, noise: (),
        contract=lambda influence, credit: [
            jnp.zeros(w.shape, w.dtype) for w in coordinates.weights[: coordinates.trained]
        ],
    )
    return past_facing(found, coordinates, influence, block=1)


def test_an_estimator_without_influence_is_truncated():
    given = problem("gru", 8)
    got = gradient(immediate(given.model), *given.args, key=jax.random.key(1))
    assert relative_error(got["readout"], given.exact["readout"]) <= 1e-10
    assert relative_error(got["cell"], given.exact["cell"]) > 1e-3


def test_a_toy_estimator_has_resets_noise_and_info():
    """What the builder adds: noise that a reset draws anew, `forget`, `info`."""
    model = with_resets(MODELS["vanilla"](), jnp.full(4, 0.2))
    found = analyse(model)
    leaves = Leaves(found)
    influence = Influence(
        init=lambda h, key: jnp.sum(h),
        propagate=lambda influence, segment, noise: influence + noise,
        contract=lambda influence, credit: [jnp.zeros(w.shape, w.dtype) for w in leaves.weights],
        noise=lambda key: jax.random.normal(key, ()),
        forget=lambda influence, noise: 100 + noise,
        info=lambda influence: {"sum": influence},
    )
    estimator = past_facing(found, leaves, influence, block=1)
    params, hidden = model.init(jax.random.key(0))
    state = estimator.init(params, hidden, key=jax.random.key(1))
    assert float(state.influence) == pytest.approx(float(hidden.sum()))
    (xs, resets), ys = stream(model, 3)
    calm, estimate = estimator.update(state, params, (xs, resets), ys)
    assert estimate.info["sum"] == calm.influence < 50
    begun, _ = estimator.update(state, params, (xs, resets.at[2].set(True)), ys)
    fresh, _ = estimator.update(state, params, (xs[:1], resets[:1].at[0].set(True)), ys[:1])
    assert float(begun.influence) == pytest.approx(float(fresh.influence))
    assert float(begun.influence) > 50
    assert jnp.allclose(hidden_of(begun), model.transition(params, hidden, (xs[2], True)))


def test_what_the_builder_refuses():
    found = analyse(MODELS["gru"]())
    influence = Influence(lambda h, key: (), lambda *args: (), lambda *args: [])
    with pytest.raises(ValueError, match="block must be 1, got 4"):
        past_facing(found, Leaves(found), influence, block=4, direct=False)
    random = feedback.random(jax.random.key(0))
    with pytest.raises(ValueError, match="takes no feedback but symmetric"):
        past_facing(found, Leaves(found), influence, block=1, feedback=random)


def test_a_model_without_inputs():
    """xs without any array: the length of a segment is that of ys."""
    inner = MODELS["gru"]()
    still = lambda params, h, x: inner.transition(params, h, jnp.ones(3))
    model = inner._replace(transition=still, example=(None, inner.example[1]))
    params, hidden = model.init(jax.random.key(0))
    ys = stream(inner, 8)[1]
    exact = exact_gradient(inner._replace(transition=still), params, hidden, jnp.zeros((8, 3)), ys)
    for constructor in (rtrl, tbptt):
        got = gradient(constructor(model), params, hidden, None, ys, key=jax.random.key(1), window=8)
        assert relative_error(got, exact) <= 1e-10
    noisy = gradient(uoro(model), params, hidden, None, ys, key=jax.random.key(1), window=2)
    assert relative_error(noisy["readout"], exact["readout"]) <= 1e-10


# a perturbation estimator has no exact part
@pytest.mark.parametrize("name", [name for name, row in ESTIMATORS.items() if row.family != "perturbation"])
def test_a_reservoir_learns_its_readout(name):
    """A transition without parameters: the readout's gradient is exact for every method."""

    def init(key):
        return {"out": jax.random.normal(key, (2, 4))}, jnp.ones(4)

    transition = lambda params, h, x: 0.5 * h + jnp.tanh(jnp.roll(h, 1) + jnp.sum(x))
    loss = lambda params, h, y: (jnp.sum((params["out"] @ h - y) ** 2), ())
    given = problem_of(Model(init, transition, loss, MODELS["gru"]().example), 6)
    got = gradient(ESTIMATORS[name].constructor(given.model), *given.args, key=jax.random.key(1))
    assert relative_error(got, given.exact) <= 1e-10


def test_episodes_of_one_segment_have_noise_of_their_own():
    """Four equal episodes: their mean has as little variance in one segment as in four."""
    model = with_resets(joint(), jnp.full(4, 0.2))
    params, hidden = model.init(jax.random.key(0))
    (xs, _), ys = stream(model, 4)
    four = lambda leaf: jnp.tile(leaf, (4, 1))
    resets = jnp.arange(16) % 4 == 0
    estimator = kf_rtrl(model)

    def total_variance(window):
        def one(key):
            got = gradient(estimator, params, hidden, (four(xs), resets), four(ys), key=key, window=window)
            return got["W"].ravel()

        drawn = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), 4000))
        return float(jnp.var(drawn, axis=0).sum())

    together, apart = total_variance(16), total_variance(4)
    assert together == pytest.approx(apart, rel=0.15)
    # with one noise for all episodes it would be four times as much
    assert together != pytest.approx(4 * apart, rel=0.5)
