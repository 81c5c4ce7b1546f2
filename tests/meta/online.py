"""What the tests of meta-learning share: a stream, and the gradient of an estimator that follows it."""

import functools

import jax
import jax.numpy as jnp

import online_grads as og

T, INPUTS, UNITS = 8, 2, 3
NUMBER = jnp.zeros(())


def online(make, model, params, hidden, stream):
    follow = lambda *args: og.gradient(make(model), *args, key=jax.random.key(1))
    return jax.jit(follow)(params, hidden, *stream)


def start(model):
    """Where a training begins: (θ, hidden state)."""
    return jax.jit(model.init)(jax.random.key(0))


@functools.cache
def examples(length=T, inputs=INPUTS):
    keys = jax.random.split(jax.random.key(2), 2)
    return jax.random.normal(keys[0], (length, inputs)), jax.random.normal(keys[1], (length,))
