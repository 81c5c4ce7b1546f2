import jax
import jax.numpy as jnp
import numpy as np
import pytest

from online_grads import tasks


def stream(task, length):
    return jax.tree.map(
        np.asarray, jax.jit(task.draw, static_argnums=1)(task.init(jax.random.key(0)), length)[1]
    )


def test_fair_bits_uniform_targets_and_a_reset_per_episode():
    (x, reset), y = stream(tasks.columnar_alignment(bits=20, episode=7, target=3.0), 7000)
    assert set(np.unique(x)) == {0.0, 1.0}
    np.testing.assert_allclose(x.mean(0), 0.5, atol=0.03)
    np.testing.assert_array_equal(np.flatnonzero(reset), np.arange(0, 7000, 7))
    np.testing.assert_allclose(np.quantile(y, [0, 0.25, 0.5, 0.75, 1]), [-3, -1.5, 0, 1.5, 3], atol=0.15)
    # nothing is predictable: not from the bits, and not from the target before
    together = np.corrcoef(np.concatenate([x[1:], y[1:], y[:-1]], axis=1).T)
    assert np.abs(together - np.eye(22)).max() < 0.06


def test_its_reference_is_what_zero_scores():
    task = tasks.columnar_alignment()
    _, y = stream(task, 10_000)
    zero = jax.vmap(task.loss)(jnp.zeros_like(y), y).mean()
    np.testing.assert_allclose(zero, task.references["always 0"], rtol=0.03)


def test_the_readout_begins_small_and_has_no_bias():
    task = tasks.columnar_alignment()
    params = task.readout(5000, task.outputs, dtype=jnp.float32).init(jax.random.key(0))
    assert params.keys() == {"W"}
    assert params["W"].dtype == jnp.float32
    np.testing.assert_allclose(params["W"].std(), 0.1, rtol=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 0}, "bits must be at least 1, got 0"),
        ({"episode": 0}, "episode must be at least 1, got 0"),
        ({"target": 0.0}, r"target must be above 0, got 0\.0"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        tasks.columnar_alignment(**options)
