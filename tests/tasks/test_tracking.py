"""Tracking: which weights the stream has, what fixed step sizes reach, and that IDBD comes close."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import online_grads as og
from online_grads import tasks


def stream(task, length, keys=None):
    """Of one key, or of several, [keys, length, ...]."""
    draw = lambda key: task.draw(task.init(key), length)[1]
    drawn = jax.jit(draw)(jax.random.key(0)) if keys is None else jax.jit(jax.vmap(draw))(keys)
    return jax.tree.map(np.asarray, drawn)


def weights(task, every, blocks):
    """What the targets depend on, solved for between the moves."""
    (x, target), _ = stream(task, every * blocks)
    rows = zip(np.split(x, blocks), np.split(target, blocks), strict=True)
    return np.array([np.linalg.lstsq(*block, rcond=None)[0] for block in rows])


@pytest.mark.parametrize("walk", [0.0, 0.5])
def test_one_relevant_weight_moves_at_a_time(walk):
    found = weights(tasks.tracking(inputs=4, relevant=2, every=6, walk=walk), 6, 60)
    assert np.abs(found[:, 2:]).max() < 1e-12
    np.testing.assert_allclose(found[0, :2], 0.0 if walk else 1.0, atol=1e-12)
    moves = np.diff(found[:, :2], axis=0)
    np.testing.assert_allclose(np.sort(np.abs(moves)), [[0, walk or 2]] * 59, atol=1e-12)
    # either weight, both ways
    assert len(np.unique(np.round(moves, 6), axis=0)) == 4
    if not walk:
        np.testing.assert_allclose(np.abs(found[:, :2]), 1, atol=1e-12)


def test_the_target_of_a_step_is_the_next_example():
    task = tasks.tracking(noise=0.5)
    (x, target), (following, next_target) = stream(task, 50)
    np.testing.assert_array_equal(x[1:], following[:-1])
    np.testing.assert_array_equal(target[1:], next_target[:-1])
    params, hidden = task.model.init(jax.random.key(0))
    example, ahead = (x[0], target[0]), (following[0], next_target[0])
    moved = task.model.transition(params, hidden, example)
    np.testing.assert_allclose(moved.params, 0.05 * target[0] * x[0], rtol=1e-12)
    loss, prediction = task.model.loss(params, moved, ahead)
    np.testing.assert_allclose(prediction, moved.params @ following[0], rtol=1e-12)
    np.testing.assert_allclose(loss, (next_target[0] - prediction) ** 2 / 2, rtol=1e-12)


@pytest.mark.parametrize("options", [{"every": 10}, {"every": 3, "walk": 0.5, "noise": 0.5}])
def test_references_are_what_the_best_fixed_step_sizes_reach(options):
    task = tasks.tracking(inputs=6, relevant=2, **options)
    steps, skipped = 500, 100
    (x, target), _ = stream(task, steps, jax.random.split(jax.random.key(0), 400))
    relevant = np.arange(6) < 2
    for (name, theory), mask in zip(task.references.items(), (np.ones(6), relevant), strict=True):
        reached = []
        for rate in np.geomspace(0.05, 0.4, 8):
            w, total = np.zeros((len(x), 6)), 0.0
            for t in range(steps):
                error = target[:, t] - np.sum(w * x[:, t], axis=1)
                w += rate * mask * error[:, None] * x[:, t]
                total += np.mean(error**2) if t >= skipped else 0.0
            reached.append(total / (steps - skipped))
        np.testing.assert_allclose(np.nanmin(reached), theory, rtol=0.05, err_msg=name)
    least = task.references.values()
    assert max(least) > 1.1 * min(least)


def test_idbd_comes_close_to_the_best_step_sizes_for_each_input():
    task, steps = tasks.tracking(), 30_000

    def late_error(rate):
        learner = og.learner(og.snap(task.model), optax.sgd(rate))
        state = learner.init(*task.model.init(jax.random.key(0)), key=jax.random.key(1))
        data = task.draw(task.init(jax.random.key(2)), steps)[1]
        return task.scale * jnp.mean(og.scan(learner, state, *data)[1].loss[steps // 2 :])

    found, fixed = jax.jit(jax.vmap(late_error))(jnp.array([0.01, 0.0]))
    for_all, for_each = task.references.values()
    assert found < 1.2 * for_each
    assert fixed > for_all


def test_bad_arguments():
    with pytest.raises(ValueError, match="relevant must be at most inputs, got 3 of 2"):
        tasks.tracking(inputs=2, relevant=3)
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        tasks.tracking(every=0)
    with pytest.raises(ValueError, match=r"walk must be at least 0, got -1"):
        tasks.tracking(walk=-1.0)
    with pytest.raises(ValueError, match=r"rate must be above 0, got 0"):
        tasks.tracking(rate=0.0)
