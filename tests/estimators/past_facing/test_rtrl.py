import jax
import jax.numpy as jnp
import numpy as np
import pytest

from online_grads import gradient, rtrl, snap, tbptt
from tests.models import MODELS, exact_gradient, learned_start, relative_error, stream

LENGTH = 14


def setup(model, seed=0):
    params, hidden = model.init(jax.random.key(seed))
    return params, hidden, *stream(model, LENGTH)


def error(estimator, window, model, params, hidden, xs, ys):
    run = jax.jit(lambda: gradient(estimator, params, hidden, xs, ys, key=jax.random.key(1), window=window))
    return run(), exact_gradient(model, params, hidden, xs, ys)


@pytest.mark.parametrize("window", [1, 7, LENGTH])
@pytest.mark.parametrize("name", MODELS)
def test_equals_the_gradient_of_the_whole_sequence(name, window):
    model = MODELS[name]()
    got, exact = error(rtrl(model), window, model, *setup(model))
    assert relative_error(got, exact) <= 1e-10
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(exact), strict=True):
        np.testing.assert_array_equal(one != 0, other != 0)
        assert jnp.any(one != 0)


@pytest.mark.parametrize("wrong", [tbptt, snap])
@pytest.mark.parametrize("name", ["vanilla", "stacked"])
def test_the_assertion_above_fails_for_a_biased_estimator(name, wrong):
    model = MODELS[name]()
    assert relative_error(*error(wrong(model), 7, model, *setup(model))) > (1e-3 if wrong is tbptt else 1e-10)


@pytest.mark.parametrize("block", [1, 3, 5, LENGTH])
def test_blocks_of_any_length_are_exact(block):
    model = MODELS["gru"]()
    assert relative_error(*error(rtrl(model, block=block), LENGTH, model, *setup(model))) <= 1e-10


@pytest.mark.parametrize("window", [1, 7, LENGTH])
@pytest.mark.parametrize("name", ["vanilla", "stacked", "normalised"])
def test_exact_with_resets_to_a_learned_initial_state(name, window):
    model = learned_start(MODELS[name]())
    params, hidden, (xs, resets), ys = setup(model)
    for at in ([4], [7], [0, 5, 6, 13]):
        inputs = (xs, resets.at[jnp.asarray(at)].set(True))
        got, exact = error(rtrl(model), window, model, params, hidden, inputs, ys)
        assert relative_error(got, exact) <= 1e-10
        assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(got["start"]))
    forgetful, _ = error(rtrl(model), window, model, params, hidden, (xs, resets), ys)
    assert relative_error(forgetful, exact) > 1e-3


def test_influence_equals_the_forward_mode_jacobian():
    model = MODELS["vanilla"]()
    params, hidden, xs, ys = setup(model)
    estimator = rtrl(model)
    state = estimator.init(params, hidden, key=jax.random.key(0))
    state, _ = estimator.update(state, params, xs, ys)

    def end(cell):
        body = lambda h, x: (model.transition({**params, "cell": cell}, h, x), None)
        return jax.lax.scan(body, hidden, xs)[0]

    expected = jax.jacfwd(end)(params["cell"])
    for name in ("W_rec", "W_in"):
        assert any(
            m.size == expected[name].size and np.allclose(m.reshape(expected[name].shape), expected[name])
            for m in state.influence
        )


def test_a_block_below_one_is_refused():
    with pytest.raises(ValueError, match="block must be at least 1, got 0"):
        rtrl(MODELS["vanilla"](), block=0)
