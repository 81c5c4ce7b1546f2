"""Mimic: the labels, computed again in NumPy from the teacher that the stream carries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from online_grads import tasks


def stream(task, lengths, seed=0):
    """The stream's first state, its first steps, drawn in turns, and its state after them."""
    state = begin = task.init(jax.random.key(seed))
    drawn = []
    for length in lengths:
        state, pair = jax.jit(task.draw, static_argnums=1)(state, length)
        drawn.append(pair)
    return begin, jax.tree.map(lambda *parts: np.concatenate(parts), *drawn), state


def labels(state, xs, leak):
    """What the teacher says, step by step in NumPy."""
    cell, readout = jax.tree.map(np.asarray, (state.cell, state.readout))
    a, ys = np.zeros(xs.shape[1]), []
    for x in xs:
        a = (1 - leak) * a + leak * np.tanh(cell["W_rec"] @ a + cell["W_in"] @ x + cell["bias"])
        ys.append(readout["W"] @ a + readout["bias"])
    return np.array(ys)


@pytest.mark.parametrize(("leak", "repeat"), [(1.0, 1), (0.5, 2)])
def test_labels_are_the_teachers_outputs_also_across_draws(leak, repeat):
    task = tasks.mimic(size=8, leak=leak, repeat=repeat)
    begin, (xs, ys), end = stream(task, (7, 13, 1, 19))
    assert set(np.unique(xs)) == {0, 1}
    np.testing.assert_allclose(ys, labels(begin, xs, leak), rtol=1e-12, atol=1e-12)
    assert np.abs(ys - labels(begin, xs, 0.9)).max() > 0.01
    np.testing.assert_array_equal(xs, xs[::repeat].repeat(repeat, 0)[:40])
    assert len(np.unique(xs[::repeat], axis=0)) > 10
    # the teacher stays
    jax.tree.map(np.testing.assert_array_equal, (begin.cell, begin.readout), (end.cell, end.readout))


def test_inputs_are_fair_and_independent_coins():
    _, (xs, _), _ = stream(tasks.mimic(), (20_000,))
    tolerance = 5 / np.sqrt(20_000)
    coins = 2 * xs - 1
    np.testing.assert_allclose(coins.mean(0), 0, atol=tolerance)
    np.testing.assert_allclose(coins.T @ coins / len(coins), np.eye(32), atol=tolerance)
    np.testing.assert_allclose(coins[1:].T @ coins[:-1] / len(coins), 0, atol=tolerance)


def test_teachers_are_drawn_as_said_and_every_stream_has_its_own():
    n = 16
    task = tasks.mimic(size=n)
    states = jax.jit(jax.vmap(task.init))(jax.random.split(jax.random.key(0), 500))
    W_rec = np.asarray(states.cell["W_rec"])
    np.testing.assert_allclose(W_rec @ W_rec.swapaxes(1, 2), np.tile(np.eye(n), (500, 1, 1)), atol=1e-12)
    expected = [(states.cell["W_in"], 1 / n), (states.readout["W"], 1 / n)]
    expected += [(states.cell["bias"], 0.01), (states.readout["bias"], 0.01)]
    for leaf, variance in expected:
        z = np.asarray(leaf).ravel() / np.sqrt(variance)
        np.testing.assert_allclose([z.mean(), z.var(), (z**4).mean()], [0, 1, 3], atol=0.3)
        assert abs(z.mean()) < 5 / np.sqrt(z.size)
        assert abs(z.var() - 1) < 5 * np.sqrt(2 / z.size)
    # the biases of cell and readout are not the same draws, nor are those of two streams
    biases = np.concatenate([states.cell["bias"], states.readout["bias"]])
    assert len(np.unique(biases)) == biases.size
    np.testing.assert_array_equal(states.hidden, np.zeros((500, n)))


def test_the_gradient_is_the_error_and_half_the_mean_square_is_shown():
    task = tasks.mimic(size=4)
    prediction, y = jnp.array([1.0, 2, 3, 4]), jnp.array([1.0, 1, 1, 1])
    loss, gradient = jax.value_and_grad(task.loss)(prediction, y)
    np.testing.assert_allclose(gradient, prediction - y)
    np.testing.assert_allclose(task.scale * loss, np.mean((prediction - y) ** 2) / 2)
    assert task.references == {"the teacher itself": 0.0}


@pytest.mark.parametrize(("options", "half_variance"), [({}, 0.099), ({"leak": 0.5, "repeat": 2}, 0.043)])
def test_what_the_labels_mean_scores(options, half_variance):
    task = tasks.mimic(**options)
    keys = jax.random.split(jax.random.key(0), 40)
    _, ys = jax.jit(jax.vmap(lambda key: task.draw(task.init(key), 2000)[1]))(keys)
    scores = np.asarray(ys)[:, 100:].var(1).mean(1) / 2
    np.testing.assert_allclose(scores.mean(), half_variance, atol=4 * scores.std() / np.sqrt(40))
    assert scores.std() < 0.2 * half_variance


def test_bad_arguments():
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        tasks.mimic(size=0)
    with pytest.raises(ValueError, match=r"leak must be in \(0, 1\], got 1.5"):
        tasks.mimic(leak=1.5)
    with pytest.raises(ValueError, match="repeat must be at least 1, got 0"):
        tasks.mimic(repeat=0)
    with pytest.raises(TypeError, match=r"size must be an integer, got 2.0"):
        tasks.mimic(size=2.0)
