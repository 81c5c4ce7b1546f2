"""Layers of transitions, from which hidden leaves feed back on which."""

import chex
import jax
import jax.numpy as jnp
import pytest

from online_grads import Model
from online_grads.analysis import analyse
from online_grads.layers import Given, layers_of
from tests.models import stacked

N = 3


def tanh(params, name, *vectors):
    return jnp.tanh(sum(params[name] @ vector for vector in vectors))


def two_way(params, hidden, x):
    a, b = hidden
    a = tanh(params, "V", a, b, x)
    return a, tanh(params, "W", b, a)


def stopped(params, hidden, x):
    a, b = hidden
    a = tanh(params, "V", a, jax.lax.stop_gradient(b), x)
    return a, tanh(params, "W", b, a)


def copied(params, hidden, x):
    first, _ = hidden
    h = tanh(params, "W", first, params["V"] @ x)
    return h, h


def delayed(params, hidden, x):
    a, past = hidden
    return tanh(params, "V", a, params["W"] @ x), a + past - past


def remembered(params, hidden, x):
    a, past = hidden
    return tanh(params, "V", a, params["W"] @ past, x), a


def counted(params, hidden, x):
    """A counter that the leaves read and move does not join them."""
    a, count, b = hidden
    a = tanh(params, "V", a, x * count.astype(float))
    return a, count + (a[0] > 0).astype(int), tanh(params, "W", b, a)


def layers(transition, *hidden):
    start = {"W": jnp.eye(N), "V": jnp.ones((N, N))}, hidden or (jnp.zeros(N), jnp.zeros(N))
    loss = lambda params, hidden, y: (jnp.sum(hidden[0]) + jnp.sum(hidden[-1]), ())
    return layers_of(analyse(Model(lambda key: start, transition, loss, (jnp.zeros(N), jnp.zeros(())))))


COUNTED = jnp.zeros(N), jnp.zeros((), int), jnp.zeros(N)


@pytest.mark.parametrize(
    ("transition", "hidden", "leaves", "recurrent", "lower"),
    [
        (two_way, (), [(0, 1)], [True], [False]),
        (stopped, (), [(0,), (1,)], [True, True], [False, True]),
        # the copy is a leaf that reads the other one
        (copied, (), [(0,), (1,)], [True, False], [False, True]),
        (delayed, (), [(0,), (1,)], [True, True], [False, False]),
        (remembered, (), [(0, 1)], [True], [False]),
        (counted, COUNTED, [(0,), (2,)], [True, True], [False, True]),
    ],
)
def test_leaves_that_feed_back_are_one_layer(transition, hidden, leaves, recurrent, lower):
    found = layers(transition, *hidden)
    assert [layer.leaves for layer in found] == leaves
    assert [layer.recurrent for layer in found] == recurrent
    assert [layer.pull is not None for layer in found] == lower


def test_a_layer_is_its_part_of_the_transition_and_reads_nothing_else_of_itself():
    model = stacked()
    _, upper = layers_of(analyse(model))
    assert (upper.leaves, upper.entries.tolist(), upper.credited.tolist()) == (
        (1, 2),
        [*range(4, 10)],
        [0, 1, 2],
    )
    params, (bottom, top) = jax.jit(model.init)(jax.random.key(0))
    before = bottom + 0.3, jax.tree.map(lambda leaf: leaf - 0.2, top)
    x = jnp.ones(N)
    after = jax.jit(model.transition)(params, before, x)
    nothing = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), before)
    own = upper.hidden(before)
    # the lower layer's old state and the input do not matter where its new state is given
    move = jax.jit(upper.model.transition)
    moved = move(params, own, Given(x * jnp.nan, nothing, (after[0], nothing[1])))
    chex.assert_trees_all_close(moved, upper.hidden(after), rtol=1e-12)
    other = move(params, own, Given(x, before, (after[0] + 0.1, after[1])))
    assert not jnp.allclose(other[0], moved[0])


def test_credit_passes_through_a_layer_within_the_step():
    """The lower layer reaches the loss only through a leaf that no loss reads."""

    def transition(params, hidden, x):
        lower, c, h = hidden
        lower = tanh(params, "V", lower, x)
        c = tanh(params, "W", c, h, lower)
        return lower, c, 2.0 * c

    start = {"W": jnp.eye(N), "V": jnp.ones((N, N))}, (jnp.zeros(N),) * 3
    read = lambda params, hidden, y: (jnp.sum(hidden[2]), ())
    model = Model(lambda key: start, transition, read, (jnp.zeros(N), jnp.zeros(())))
    lower, upper = layers_of(analyse(model))
    assert (lower.leaves, lower.credited.tolist()) == ((0,), [0, 1, 2])
    assert (upper.leaves, upper.credited.tolist()) == ((1, 2), [3, 4, 5])
    params, hidden = start
    x, credit = jnp.full(N, 0.1), jnp.arange(6.0)
    after = transition(params, hidden, x)
    got = upper.pull(params, Given(x, hidden, after), credit)
    slope = (credit[:3] + 2 * credit[3:]) * (1 - after[1] ** 2)
    assert jnp.allclose(got, jnp.concatenate([slope, jnp.zeros(6)]))
