import jax
import jax.numpy as jnp
import pytest

from online_grads import cells, fbptt, gradient, tbptt
from tests.models import MODELS, of_cell, problem, problem_of, relative_error

STEPS = 8


def run(estimator, given, window=1):
    go = lambda *args: gradient(estimator, *args, key=jax.random.key(1), window=window)
    return jax.jit(go)(*given.args)


@pytest.mark.parametrize("name", MODELS)
def test_a_horizon_over_the_whole_stream_is_backpropagation(name):
    given = problem(name, STEPS)
    assert relative_error(run(fbptt(given.model, horizon=STEPS), given), given.exact) <= 1e-10


def test_a_horizon_one_step_short_of_it_is_not():
    given = problem("gru", STEPS)
    assert relative_error(run(fbptt(given.model, horizon=STEPS - 1), given), given.exact) > 1e-6


@pytest.mark.parametrize("name", ["gru", "normalised"])
def test_horizon_one_is_truncation_at_every_step(name):
    given = problem(name, STEPS)
    expected = run(tbptt(given.model), given)
    assert relative_error(run(fbptt(given.model, horizon=1), given), expected) <= 1e-10
    assert relative_error(run(fbptt(given.model, horizon=2), given), expected) > 1e-3


@pytest.mark.parametrize("horizon", [2, 3, 5])
def test_frozen_it_is_sliding_truncation(horizon):
    """The same pairs of a use and a loss, summed the other way round."""
    given = problem("stacked", STEPS)
    expected = run(tbptt(given.model, history=horizon - 1), given)
    assert relative_error(run(fbptt(given.model, horizon=horizon), given), expected) <= 1e-10
    assert relative_error(run(fbptt(given.model, horizon=horizon + 1), given), expected) > 1e-4


@pytest.mark.parametrize("window", [2, 4, 8])
def test_segments_change_nothing(window):
    given = problem("columns", STEPS)
    estimator = fbptt(given.model, horizon=3)
    assert relative_error(run(estimator, given, window), run(estimator, given)) <= 1e-10


def test_nothing_is_emitted_for_uses_that_are_not_there_yet():
    given = problem("gru", STEPS)
    model, params, hidden, xs, ys, _ = given
    estimator = fbptt(model, horizon=4)
    state = estimator.init(params, hidden, key=jax.random.key(1))
    for step in range(4):
        state, estimate = estimator.update(state, params, xs[step : step + 1], ys[step : step + 1])
        emitted = [bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(estimate.grads["cell"])]
        assert any(emitted) == (step == 3)
        assert jnp.any(estimate.grads["readout"]["W"] != 0)


def test_blank_slots_are_not_differentiated():
    """At h = 0, x = 0, what the slots hold before they are filled, this transition has no derivative."""
    base = of_cell(cells.vanilla_rnn(3, 4))

    def transition(params, h, x):
        h = base.transition(params, h, x)
        return h / jnp.sqrt(jnp.sum(jnp.square(h)))

    given = problem_of(base._replace(transition=transition), STEPS)
    assert relative_error(run(fbptt(given.model, horizon=STEPS), given, 4), given.exact) <= 1e-10


def test_a_horizon_below_one_is_refused():
    with pytest.raises(ValueError, match="horizon must be at least 1, got 0"):
        fbptt(MODELS["gru"](), horizon=0)
    with pytest.raises(TypeError, match=r"horizon must be an integer, got 2\.5"):
        fbptt(MODELS["gru"](), horizon=2.5)
