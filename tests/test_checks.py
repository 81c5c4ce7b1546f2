"""What is no learner, no state of it, or no data for it is refused in words, before anything is compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from online_grads import (
    StreamError,
    cells,
    from_cell,
    learner,
    losses,
    readouts,
    run,
    snap,
    stepper,
    uoro,
)
from online_grads.checkpoint import latest


def made(estimator, hidden=3, optimizer=None):
    """(the estimator, its learner, a state)."""
    cell, readout = cells.vanilla_rnn(2, hidden), readouts.linear(hidden, 1)
    model = from_cell(cell, readout, losses.squared_error, example=(jnp.zeros(2), jnp.zeros(1)))
    online = learner(estimator(model), optimizer or optax.sgd(0.1, momentum=0.9))
    params = model.init(jax.random.key(0))
    return estimator(model), online, online.init(*params, key=jax.random.key(1))


@pytest.fixture(scope="module")
def setting():
    return *made(snap), np.ones((4, 2)), np.ones((4, 1))


def test_other_objects(setting):
    estimator, online, state, xs, ys = setting
    with pytest.raises(TypeError, match=r"learner must be a Learner, as .* makes it, got LearnerState"):
        run(state, online, xs, ys)
    with pytest.raises(TypeError, match=r"learner must be a Learner, as .* makes it, got Estimator"):
        stepper(estimator)
    with pytest.raises(TypeError, match="donate must be True or False, got 1"):
        stepper(online, donate=1)
    for call in (
        lambda: run(online, state.params, xs, ys),
        lambda: stepper(online)(state.params, xs[0], ys[0]),
    ):
        with pytest.raises(TypeError, match=r"state must be a LearnerState, as .* gives it, got dict"):
            call()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (dict(estimator=uoro), r"state\.estimator\.influence.*: expected float64\[.*\], got nothing"),
        (dict(estimator=snap, hidden=5), r"params\['cell'\].*: expected float64\[.*\], got float64\["),
        (
            dict(estimator=snap, optimizer=optax.sgd(0.1)),
            r"state\.optimizer.*: expected float64\[.*\], got nothing",
        ),
    ],
)
def test_states_of_other_learners(setting, other, message):
    _, online, _, xs, ys = setting
    state = made(**other)[2]
    for call in (lambda: run(online, state, xs, ys), lambda: stepper(online)(state, xs[0], ys[0])):
        with pytest.raises(ValueError, match=f"not a state of this learner: {message}"):
            call()


def test_a_state_of_another_learner_when_all_is_compiled(setting):
    _, online, state, xs, ys = setting
    step = stepper(online)
    state, _ = step(state, xs[0], ys[0])
    step(state, xs[1], ys[1])
    with pytest.raises(ValueError, match=r"not a state of this learner: state\.estimator\.influence"):
        step(made(uoro)[2], xs[0], ys[0])


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            np.ones(3),
            r"x float64\[3\], y float64\[1\], .* 1 step, is refused: .*\[1, 2\], got float64\[1, 3\]$",
        ),
        (np.ones(2, int), r"x int64\[2\], .* is refused: .*; where floating-point .*, give float\(x\)"),
    ],
)
def test_a_first_observation_that_the_model_does_not_take(setting, tmp_path, x, message):
    _, online, state, _, ys = setting
    with pytest.raises(ValueError, match=message):
        stepper(online)(state, x, ys[0])
    with pytest.raises(StreamError, match=f"step 0 of the stream: {message}") as caught:
        run(online, state, iter([(x, ys[0])] * 3), checkpoints=tmp_path)
    assert (caught.value.step, caught.value.metrics, latest(tmp_path)) == (0, None, None)
    assert np.array_equal(caught.value.state.params["readout"]["W"], state.params["readout"]["W"])


def test_ys_that_were_left_out(setting):
    _, online, state, xs, ys = setting
    for given in (xs, (xs, ys), [(x, x) for x in xs]):
        with pytest.raises(
            ValueError, match=r"ys was left out: run\(learner, state, xs, ys\), .* iter; [xy]s"
        ):
            run(online, state, given)


def test_an_async_iterator(setting):
    _, online, state, _, _ = setting

    async def sensor():
        yield 0.0, 0.0

    for stream in (sensor, sensor()):
        with pytest.raises(TypeError, match="an async iterator is no iterator: take `stepper`"):
            run(online, state, stream)
