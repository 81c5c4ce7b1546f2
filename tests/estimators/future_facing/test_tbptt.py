import jax
import jax.numpy as jnp
import pytest

from online_grads import gradient, tbptt
from tests.models import MODELS, problem, relative_error

STEPS = 8


def run(estimator, given, window):
    go = lambda *args: gradient(estimator, *args, key=jax.random.key(1), window=window)
    return jax.jit(go)(*given.args)


def sliding(model, params, hidden, xs, ys, window, truncation):
    """Every loss backpropagated through at most `truncation` steps, written with stop_gradient."""

    def mean_loss(params):
        states, total = [hidden], 0.0
        for t in range(STEPS):
            states.append(model.transition(params, states[-1], xs[t]))
        for first in range(0, STEPS, window):
            start = max(0, first + window - truncation)
            h = jax.lax.stop_gradient(states[start])
            for t in range(start, first + window):
                h = model.transition(params, h, xs[t])
                if t >= first:
                    total += model.loss(params, h, ys[t])[0]
        return total / STEPS

    return jax.jit(jax.grad(mean_loss))(params)


@pytest.mark.parametrize(("window", "history"), [(1, 0), (4, 0), (1, 3), (2, 1), (2, 5), (4, 2)])
def test_truncation_is_where_the_definition_says(window, history):
    given = problem("gru", STEPS)
    got = run(tbptt(given.model, history=history), given, window)
    assert relative_error(got, sliding(*given[:5], window, window + history)) <= 1e-10
    assert relative_error(got, sliding(*given[:5], window, window + history + 1)) > 1e-6


@pytest.mark.parametrize(("window", "history"), [(STEPS, 0), (1, STEPS - 1), (2, STEPS)])
def test_a_window_that_reaches_back_to_the_start_is_exact(window, history):
    given = problem("normalised", STEPS)
    assert relative_error(run(tbptt(given.model, history=history), given, window), given.exact) <= 1e-10


def test_the_history_is_read_with_the_present_parameters():
    model, params, hidden, xs, ys, _ = problem("vanilla", STEPS)
    estimator = tbptt(model, history=3)
    state = estimator.init(params, hidden, key=jax.random.key(1))
    state, _ = estimator.update(state, params, xs[:3], ys[:3])
    changed = jax.tree.map(lambda p: p + 0.1, params)
    _, estimate = estimator.update(state, changed, xs[3:4], ys[3:4])
    _, stale = estimator.update(state, params, xs[3:4], ys[3:4])
    assert relative_error(estimate.grads, stale.grads) > 1e-3
    # the credit of the one new loss, pulled back by hand through the stored states
    states = [jax.tree.map(lambda leaf, t=t: leaf[t], state.past.pairs[0]) for t in range(3)] + [state.hidden]
    last, pull = jax.vjp(lambda p, h: model.transition(p, h, xs[3]), changed, states[3])
    expected, credit = jax.grad(lambda p, h: model.loss(p, h, ys[3])[0], (0, 1))(changed, last)
    for t in (3, 2, 1, 0):
        _, pull = jax.vjp(lambda p, h, t=t: model.transition(p, h, xs[t]), changed, states[t])
        grads, credit = pull(credit)
        expected = jax.tree.map(jnp.add, expected, grads)
    assert relative_error(estimate.grads, expected) <= 1e-10


def test_a_negative_history_is_refused():
    with pytest.raises(ValueError, match="history must be at least 0, got -1"):
        tbptt(MODELS["gru"](), history=-1)
