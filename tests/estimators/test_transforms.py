import jax
import jax.numpy as jnp
import optax
import pytest

from online_grads import averaged, batched, hidden_of, learner, rtrl, tbptt, uoro
from tests import models

KEY = jax.random.key(1)


def setup():
    model = models.gru()
    params, hidden = model.init(jax.random.key(0))
    return model, params, hidden, models.stream(model, 6)


def test_averaging_a_deterministic_estimator_changes_nothing():
    model, params, hidden, (xs, ys) = setup()
    one, three = rtrl(model), averaged(rtrl(model), 3)
    _, single = jax.jit(one.update)(one.init(params, hidden, key=KEY), params, xs, ys)
    _, mean = jax.jit(three.update)(three.init(params, hidden, key=KEY), params, xs, ys)
    assert models.relative_error(mean.grads, single.grads) < 1e-12
    assert jnp.allclose(mean.outputs, single.outputs, atol=1e-12)


def test_copies_have_independent_noise():
    model, params, hidden, (xs, ys) = setup()
    estimator = averaged(uoro(model), 2)
    state, _ = jax.jit(estimator.update)(estimator.init(params, hidden, key=KEY), params, xs, ys)
    assert not jnp.array_equal(*state.copies.influence.s)


@pytest.mark.parametrize("wrap", [lambda e: batched(averaged(e, 2), 3), lambda e: averaged(batched(e, 3), 2)])
def test_transforms_compose_and_hidden_is_read_through_them(wrap):
    model, params, hidden, _ = setup()
    xs, ys = models.stream(model, 12)
    xs, ys = xs.reshape(4, 3, -1), ys.reshape(4, 3, -1)
    online = learner(wrap(uoro(model)), optax.sgd(0.1))
    state, metrics = jax.jit(online.update)(online.init(params, hidden, key=KEY), xs, ys)
    assert hidden_of(state).shape == (3, *hidden.shape)
    assert metrics.outputs.shape == (4, 3, models.OUTPUTS)
    for stream in range(3):
        expected = hidden
        for x in xs[:, stream]:
            expected = model.transition(params, expected, x)
        assert jnp.allclose(hidden_of(state)[stream], expected, atol=1e-12)


def test_bad_arguments():
    model, params, hidden, (xs, ys) = setup()
    with pytest.raises(ValueError, match="streams must be at least 1, got 0"):
        batched(tbptt(model), 0)
    with pytest.raises(ValueError, match="copies must be at least 1, got 0"):
        averaged(tbptt(model), 0)
    estimator = batched(tbptt(model), 2)
    state = estimator.init(params, hidden, key=KEY)
    with pytest.raises(ValueError, match=r"expected xs and ys \[k, 2, ...\], got shape \(6, 3\)"):
        estimator.update(state, params, xs, ys)
    with pytest.raises(TypeError, match="int is not the state of a learner or an estimator"):
        hidden_of(3)
