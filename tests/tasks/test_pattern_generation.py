import jax
import jax.numpy as jnp
import numpy as np
import pytest

from online_grads import tasks


def stream(task, length, seed=0):
    return jax.tree.map(
        np.asarray, jax.jit(task.draw, static_argnums=1)(task.init(jax.random.key(seed)), length)[1]
    )


def test_an_episode_comes_again_and_begins_with_a_reset():
    task = tasks.pattern_generation(neurons=30, steps=40, periods=(40, 13))
    (x, reset), y = stream(task, 100)
    np.testing.assert_array_equal(np.flatnonzero(reset), [0, 40, 80])
    for rows in (x, y):
        np.testing.assert_array_equal(rows[40:], rows[:60])
    (other_x, _), other_y = stream(task, 100, seed=1)
    assert (other_x != x).any()
    assert np.abs(other_y - y).max() > 0.1


def test_inputs_are_frozen_poisson_noise():
    (x, _), _ = stream(tasks.pattern_generation(neurons=200, rate=80.0), 1000)
    assert set(np.unique(x)) == {0.0, 1.0}
    np.testing.assert_allclose(x.mean(), 0.08, rtol=0.02)
    # no neuron, no step and no pair of steps is special
    np.testing.assert_allclose(x.mean(0), 0.08, atol=0.05)
    np.testing.assert_allclose((x[1:] * x[:-1]).mean(), 0.08**2, rtol=0.1)


def test_the_target_is_a_sum_of_its_sines():
    periods = (1000, 500, 333, 200)
    t = np.arange(1000)
    waves = np.stack([wave(2 * np.pi * t / p) for p in periods for wave in (np.sin, np.cos)] + [1 + 0 * t], 1)
    for seed in range(3):
        y = stream(tasks.pattern_generation(neurons=1), 1000, seed)[1][:, 0]
        assert y[0] == 0
        np.testing.assert_allclose(np.abs(y).max(), 1, rtol=1e-15)
        weights, *_ = np.linalg.lstsq(waves, y, rcond=None)
        np.testing.assert_allclose(waves @ weights, y, atol=1e-10)
        amplitudes = np.hypot(weights[:-1:2], weights[1:-1:2])
        # all sines take part, with amplitudes of U(½, 2)
        assert amplitudes.max() <= 4 * amplitudes.min()
        without = waves[:, 2:] @ np.linalg.lstsq(waves[:, 2:], y, rcond=None)[0]
        assert np.abs(without - y).max() > 1e-2


def test_its_reference_is_a_mean_over_targets():
    task = tasks.pattern_generation(neurons=1, steps=100, periods=(100, 50))
    ys = jax.jit(jax.vmap(lambda key: task.draw(task.init(key), 100)[1][1]))(
        jax.random.split(jax.random.key(0), 500)
    )
    zero = jax.vmap(jax.vmap(task.loss))(jnp.zeros_like(ys), ys).mean()
    np.testing.assert_allclose(zero, task.references["always 0"], rtol=0.05)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 1}, ValueError, "steps must be at least 2, got 1"),
        ({"rate": 1000}, ValueError, r"rate must be in \(0, 1000\), got 1000"),
        ({"periods": ()}, TypeError, r"periods must be a list of at least one integer, got \[\]"),
        ({"periods": (10, 2)}, ValueError, "a period must be at least 3, got 2"),
        ({"periods": 10}, TypeError, "periods must be a list"),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        tasks.pattern_generation(**options)
