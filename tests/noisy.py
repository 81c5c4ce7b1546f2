"""A small learner with a noisy gradient, for the tests of the host loop."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from online_grads import Estimate, Estimator, learner

TRACES: list[tuple[int, ...]] = []  # the shapes of the segments that were traced


def setting():
    """A learner of h ← θ x with a noisy gradient, its state, and a stream of 60 steps."""

    def init(params, hidden, *, key):
        return hidden, key

    def update(state, params, xs, ys):
        TRACES.append(xs.shape)
        key = state[1]
        key, noise = jax.random.split(key)
        loss, grads = jax.value_and_grad(lambda p: jnp.mean((p[None] * xs - ys) ** 2))(params)
        grads += 0.01 * jax.random.normal(noise, grads.shape, grads.dtype)
        return (params * xs[-1], key), Estimate(grads, loss, params[None] * xs, {"last": ys[-1]})

    online = learner(Estimator(init, update), optax.sgd(0.1, momentum=0.9))
    state = online.init(jnp.ones(2), jnp.zeros(2), key=jax.random.key(3))
    xs = np.random.default_rng(0).normal(size=(60, 2))
    return online, state, xs, 0.5 * xs


def assert_equal(a, b):
    raw = lambda leaf: jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(raw(a), raw(b)), a, b)
