"""Control: the gradient of the value and the policy through the whole past, and what it refuses."""

import jax
import jax.numpy as jnp
import pytest

import online_grads as og
from online_grads import cells, control, readouts
from online_grads.td import TdOutputs, TdTarget

T, INPUTS, HIDDEN, ACTIONS, DISCOUNT, WEIGHT = 6, 3, 4, 2, 0.8, 0.5
NUMBER, X = jnp.zeros(()), jnp.zeros(INPUTS)
EXAMPLE = (X, TdTarget(NUMBER, X, action=jnp.zeros((), jnp.int32)))
CELL, READOUT = cells.gru(INPUTS, HIDDEN), readouts.linear(HIDDEN, 1 + ACTIONS)


def model(weight=WEIGHT):
    return control.actor_critic(CELL, READOUT, discount=DISCOUNT, example=EXAMPLE, weight=weight)


def test_an_exact_estimator_follows_the_value_and_the_policy():
    keys = jax.random.split(jax.random.key(0), 4)
    params, hidden = model().init(keys[0])
    xs, rewards = jax.random.normal(keys[1], (T + 1, INPUTS)), jax.random.normal(keys[2], (T,))
    actions = jax.random.randint(keys[3], (T,), 0, ACTIONS, jnp.int32)
    ys = TdTarget(rewards, xs[1:], action=actions)

    def predictions(params):
        def step(h, x):
            h = CELL.step(params["cell"], h, x)
            return h, READOUT.apply(params["readout"], CELL.output(h))

        return jax.lax.scan(step, hidden, xs)[1]

    def expected(weight):
        def total(params):
            found = predictions(params)[:-1]
            policy = found[:, 1:] - jax.nn.logsumexp(found[:, 1:], axis=1, keepdims=True)
            taken = jnp.take_along_axis(policy, actions[:, None], axis=1)
            return jnp.mean(found[:, 0]) + weight * jnp.mean(taken)

        return jax.grad(total)(params)

    estimator = og.rtrl(model())
    state = estimator.init(params, hidden, key=keys[0])
    _, estimate = jax.jit(estimator.update)(state, params, xs[:-1], ys)
    error = lambda other: max(
        jax.tree.leaves(jax.tree.map(lambda a, b: jnp.abs(a - b).max(), estimate.grads, other))
    )
    assert error(expected(WEIGHT)) < 1e-12
    assert error(expected(0.0)) > 1e-3
    v = predictions(params)[:, 0]
    assert isinstance(estimate.outputs, TdOutputs)
    assert jnp.allclose(estimate.outputs.value, v[:-1], rtol=1e-12)
    assert jnp.allclose(estimate.outputs.error, rewards + DISCOUNT * v[1:] - v[:-1], rtol=1e-10)


def test_bad_arguments():
    make = lambda readout=READOUT, **given: control.actor_critic(
        CELL, readout, **{"discount": DISCOUNT, "example": EXAMPLE} | given
    )
    make(example=(X, TdTarget(NUMBER, X, action=1)))
    with pytest.raises(ValueError, match="weight must be at least 0, got -1"):
        make(weight=-1)
    with pytest.raises(TypeError, match="TdTarget with an integer action"):
        make(example=(X, TdTarget(NUMBER, X)))
    for action in (NUMBER, 1.0, True):
        with pytest.raises(TypeError, match="TdTarget with an integer action"):
            make(example=(X, TdTarget(NUMBER, X, action=action)))
    with pytest.raises(ValueError, match=r"at least 3 outputs, got shape \(2,\)"):
        make(readouts.linear(HIDDEN, 2))
