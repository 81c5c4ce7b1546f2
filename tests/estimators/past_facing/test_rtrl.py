import jax
import jax.numpy as jnp
import numpy as np
import pytest

from online_grads import gradient, rtrl, snap, tbptt
from tests.models import MODELS, exact_gradient, learned_start, problem, relative_error, stream

LENGTH = 14


def online(estimator, window, *args):
    """The estimator's gradient of the whole stream, in one compiled program."""
    return jax.jit(lambda *args: gradient(estimator, *args, key=jax.random.key(1), window=window))(*args)


@pytest.mark.parametrize("window", [1, 7, LENGTH])
@pytest.mark.parametrize("name", MODELS)
def test_equals_the_gradient_of_the_whole_sequence(name, window):
    given = problem(name, LENGTH)
    got = online(rtrl(given.model), window, *given.args)
    assert relative_error(got, given.exact) <= 1e-10
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(given.exact), strict=True):
        np.testing.assert_array_equal(one != 0, other != 0)
        assert jnp.any(one != 0)


@pytest.mark.parametrize("wrong", [tbptt, snap])
@pytest.mark.parametrize("name", ["vanilla", "gru"])
def test_the_assertion_above_fails_for_a_biased_estimator(name, wrong):
    given = problem(name, LENGTH)
    assert relative_error(online(wrong(given.model), 7, *given.args), given.exact) > 1e-3


@pytest.mark.parametrize("block", [1, 3, 5, LENGTH])
def test_blocks_of_any_length_are_exact(block):
    given = problem("gru", LENGTH)
    assert relative_error(online(rtrl(given.model, block=block), LENGTH, *given.args), given.exact) <= 1e-10


@pytest.mark.parametrize(
    ("name", "window"), [("vanilla", 1), ("vanilla", LENGTH), ("stacked", 7), ("normalised", 7)]
)
def test_exact_with_resets_to_a_learned_initial_state(name, window):
    model = learned_start(MODELS[name]())
    params, hidden = jax.jit(model.init)(jax.random.key(0))
    (xs, never), ys = stream(model, LENGTH)
    run = jax.jit(
        lambda resets: gradient(
            rtrl(model), params, hidden, (xs, resets), ys, key=jax.random.key(1), window=window
        )
    )
    expected = jax.jit(lambda resets: exact_gradient(model, params, hidden, (xs, resets), ys))
    for at in ([4], [7], [0, 5, 6, 13]):
        resets = never.at[jnp.asarray(at)].set(True)
        got = run(resets)
        assert relative_error(got, expected(resets)) <= 1e-10
        assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(got["start"]))
    assert relative_error(run(never), expected(resets)) > 1e-3


def test_influence_equals_the_forward_mode_jacobian():
    model, params, hidden, xs, ys, _ = problem("vanilla", LENGTH)
    estimator = rtrl(model)
    state = estimator.init(params, hidden, key=jax.random.key(0))
    state, _ = jax.jit(estimator.update)(state, params, xs, ys)

    def end(cell):
        body = lambda h, x: (model.transition({**params, "cell": cell}, h, x), None)
        return jax.lax.scan(body, hidden, xs)[0]

    expected = jax.jit(jax.jacfwd(end))(params["cell"])
    # one drive with the presynaptic vector [h; x; 1]
    together = [expected["W_rec"], expected["W_in"], expected["bias"][..., None]]
    (influence,) = state.influence
    np.testing.assert_allclose(influence[:, 0], np.concatenate(together, axis=2), rtol=1e-10)


def test_a_block_below_one_is_refused():
    with pytest.raises(ValueError, match="block must be at least 1, got 0"):
        rtrl(MODELS["vanilla"](), block=0)
