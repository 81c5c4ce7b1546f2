"""A model from a cell, and what a reset does to values and derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from online_grads import cells, losses, model, readouts

M, N = 3, 4
X, Y = np.array([0.3, -1.0, 0.7]), np.ones(2)


@pytest.fixture
def plain():
    return model.from_cell(cells.lstm(M, N), readouts.linear(N, 2), losses.squared_error, example=(X, Y))


def random_params(built):
    draw = np.random.default_rng(0).normal
    return jax.tree.map(lambda leaf: draw(size=leaf.shape), jax.eval_shape(built.init, jax.random.key(0))[0])


def first_hidden(built):
    return jax.jit(lambda key: built.init(key)[1])(jax.random.key(0))


def start(value):
    return cells.LstmHidden(np.full(N, value), np.full(N, 2 * value))


def assert_trees_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_from_cell_reads_the_output_not_the_memory(plain):
    params, hidden = random_params(plain), start(0.3)
    assert params.keys() == {"cell", "readout"}
    assert_trees_equal(plain.transition(params, hidden, X), cells.lstm(M, N).step(params["cell"], hidden, X))
    loss, prediction = plain.loss(params, hidden, Y)
    expected = params["readout"]["W"] @ hidden.h + params["readout"]["bias"]
    np.testing.assert_allclose(prediction, expected, rtol=1e-14)
    np.testing.assert_allclose(loss, np.sum((expected - Y) ** 2) / 2, rtol=1e-14)


def test_a_reset_replaces_the_past(plain):
    episodic = model.with_resets(plain, start(0.5))
    assert_trees_equal(first_hidden(episodic), start(0.5))
    params, late = random_params(episodic), start(-3.0)
    step = lambda hidden, reset: episodic.transition(params, hidden, (X, reset))
    assert_trees_equal(step(late, True), plain.transition(params, start(0.5), X))
    assert_trees_equal(step(late, False), plain.transition(params, late, X))
    jacobian = jax.jit(jax.jacobian(step))
    assert not any(np.any(block) for block in jax.tree.leaves(jacobian(late, True)))
    assert all(np.any(block) for block in jax.tree.leaves(jacobian(late, False)))


def test_the_past_of_a_reset_may_be_infinite(plain):
    episodic = model.with_resets(plain, start(0.5))
    step = lambda params: episodic.transition(params, start(np.inf), (X, True))
    moved, influence = jax.jit(lambda params: (step(params), jax.jacobian(step)(params)))(
        random_params(episodic)
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((moved, influence)))


def test_a_learned_initial_state_gets_its_gradient(plain):
    widened = plain._replace(
        init=lambda key: ({"start": jnp.array(0.5), "model": plain.init(key)[0]}, plain.init(key)[1]),
        transition=lambda params, hidden, x: plain.transition(params["model"], hidden, x),
    )
    episodic = model.with_resets(widened, lambda params: cells.LstmHidden(params["start"], 0.0))
    assert_trees_equal(first_hidden(episodic), cells.LstmHidden(jnp.full(N, 0.5), jnp.zeros(N)))

    def h_after(params, reset):
        return episodic.transition(params, start(1.0), (X, reset)).h.sum()

    gradient, params = jax.jit(jax.grad(h_after)), random_params(episodic)
    assert gradient(params, True)["start"] != 0
    assert gradient(params, False)["start"] == 0


def test_the_example_and_the_flag_follow(plain):
    episodic = model.with_resets(plain, start(0.0))
    (x, reset), y = episodic.example
    assert (x.shape, y.shape) == ((M,), (2,))
    assert (reset.shape, reset.dtype) == ((), bool)
    assert episodic.reset((X, True)) is True


@pytest.mark.parametrize("hidden", [jnp.zeros(N), lambda params: (jnp.zeros(N), jnp.zeros(N))])
def test_a_reset_state_of_another_structure_is_refused(plain, hidden):
    with pytest.raises(
        ValueError, match=r"hidden at a reset has structure .* the model's hidden state .*LstmHidden"
    ):
        jax.eval_shape(model.with_resets(plain, hidden).init, jax.random.key(0))
