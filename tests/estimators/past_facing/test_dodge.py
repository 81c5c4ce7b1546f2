import jax
import jax.numpy as jnp
import numpy as np
import pytest

from online_grads import Model, dodge, gradient
from tests.models import EXAMPLE, MODELS, fixed_start, problem, problem_of, relative_error, stream
from tests.unbiased import STEPS, samples, variance


def test_the_influence_is_the_derivative_along_the_direction():
    given = problem("lstm", STEPS)
    estimator = dodge(given.model, directions=2)
    state = estimator.init(given.params, given.hidden, key=jax.random.key(0))
    after, _ = jax.jit(estimator.update)(state, given.params, given.xs, given.ys)

    def end(params):
        step = lambda h, x: (given.model.transition(params, h, x), None)
        return jax.flatten_util.ravel_pytree(jax.lax.scan(step, given.hidden, given.xs)[0])[0]

    for number in range(2):
        cell = {name: u[number] for name, u in zip(("W", "bias"), state.influence.directions, strict=True)}
        tangent = {**jax.tree.map(jnp.zeros_like, given.params), "cell": cell}
        along = jax.jvp(end, (given.params,), (tangent,))[1]
        np.testing.assert_allclose(after.influence.s[number], along, rtol=1e-10)
    assert not jnp.allclose(after.influence.s[0], after.influence.s[1])


def test_a_single_parameter_is_exact():
    init = lambda key: ({"gain": jnp.asarray(0.7), "out": jnp.ones((2, 4))}, jnp.ones(4))
    transition = lambda params, h, x: jnp.tanh(params["gain"] * h + jnp.sum(x))
    loss = lambda params, h, y: (jnp.sum((params["out"] @ h - y) ** 2), ())
    given = problem_of(Model(init, transition, loss, EXAMPLE))
    for direct in (True, False):
        got = gradient(dodge(given.model, direct=direct), *given.args, key=jax.random.key(1))
        assert relative_error(got, given.exact) <= 1e-10


def test_variance_is_that_of_p_minus_1_others():
    """Of pure forward mode: (p − 1)/d times the squared norm of the recurrent gradient."""
    given = problem("vanilla", STEPS)
    recurrent = jax.flatten_util.ravel_pytree(given.exact["cell"])[0] * STEPS
    expected = (recurrent.size - 1) * float(recurrent @ recurrent)
    for directions in (1, 4):
        make = lambda model, d=directions: dodge(model, directions=d, direct=False)
        found = variance(samples(make, given, 1, 20_000)[0])
        assert found == pytest.approx(expected / directions, rel=0.05)


def test_a_reset_draws_new_directions_and_no_reset_keeps_them():
    model = fixed_start(MODELS["gru"]())
    params, hidden = model.init(jax.random.key(0))
    (xs, resets), ys = stream(model, 6)
    estimator = dodge(model)
    state = estimator.init(params, hidden, key=jax.random.key(1))
    kept, _ = estimator.update(state, params, (xs, resets), ys)
    drawn, _ = estimator.update(state, params, (xs, resets.at[4].set(True)), ys)
    same = lambda one, other: jax.tree.all(jax.tree.map(jnp.array_equal, one, other))
    directions = state.influence.directions
    assert same(kept.influence.directions, directions)
    assert not same(drawn.influence.directions, directions)


def test_bad_directions():
    with pytest.raises(ValueError, match="directions must be at least 1, got 0"):
        dodge(MODELS["gru"](), directions=0)
