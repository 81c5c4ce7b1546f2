"""A learner and streams of single observations, for the tests of these."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax

from online_grads import Estimate, Estimator, learner

STEPS = 22
TRACES: list[tuple[int, ...]] = []  # the shapes of the segments that were traced


def online():
    """A learner of h ← θ x with a noisy gradient."""

    def update(state, params, xs, ys):
        TRACES.append(xs.shape)
        key, noise = jax.random.split(state[1])
        loss, grads = jax.value_and_grad(lambda p: jnp.mean((p[None] * xs - ys["y"]) ** 2))(params)
        grads += 0.01 * jax.random.normal(noise, grads.shape, grads.dtype)
        return (params * xs[-1], key), Estimate(grads, loss, params[None] * xs, {})

    estimator = Estimator(lambda params, hidden, *, key: (hidden, key), update)
    return learner(estimator, optax.sgd(0.1, momentum=0.9))


def begun(online):
    """Its state."""
    return online.init(jnp.ones(2), jnp.zeros(2), key=jax.random.key(3))


def data():
    """A stream as arrays."""
    xs = np.random.default_rng(0).normal(size=(STEPS, 2))
    return xs, {"y": 0.5 * xs}


def stream(data, steps=STEPS, start=0):
    """The same step by step."""
    for step in range(start, steps):
        yield data[0][step], {"y": data[1]["y"][step]}


def raw(tree):
    leaves = jax.tree.leaves(tree)
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return [np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf) for leaf in leaves]


def equal(a, b):
    return all(map(np.array_equal, raw(a), raw(b)))


def threads():
    """What still runs after a second."""
    found = [thread for thread in threading.enumerate() if thread.name == "online-grads stream"]
    for thread in found:
        thread.join(1)
    return [thread for thread in found if thread.is_alive()]


def first(data, steps):
    return jax.tree.map(lambda leaf: leaf[:steps], data)
