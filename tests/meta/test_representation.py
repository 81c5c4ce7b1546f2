"""A representation, through a readout that learns."""

import jax
import jax.numpy as jnp
import optax
import pytest

import online_grads as og
from online_grads import cells, losses, meta, readouts
from tests.meta.online import INPUTS, UNITS, examples, online
from tests.models import relative_error

COLUMNS, ALPHA = 3, 1e-2


def representation(columns, carry):
    """Columns that add up, or that forget: without a carry their state is read once."""
    cell = cells.columnar_rnn(INPUTS, columns, width=2)
    if not carry:
        adding = cell.step
        cell = cell._replace(step=lambda theta, h, x: adding(theta, h, x) - h)
    readout = readouts.linear(columns, 1, bias=False)
    example = (jnp.zeros(INPUTS), jnp.zeros(1))
    return meta.online_readout(cell, readout, losses.squared_error, optax.sgd(ALPHA), example=example)


def column(theta, h, x, carry):
    """One column, by its equation."""
    relu = lambda z: jnp.maximum(z, 0)
    below = relu(theta["fc1"]["W"] @ x + theta["fc1"]["bias"])
    features = relu(theta["fc2"]["W"] @ below + theta["fc2"]["bias"])
    return carry * h + jnp.tanh(theta["own"] @ features + theta["bias"])


def per_column(theta, v, xs, ys, carry):
    """The reference's recursion: every parameter's influence TH on its own h and TW on its own v."""
    columns = jax.vmap(jax.value_and_grad(column, (0, 1)), (0, 0, None, None))
    sums = lambda *terms: jax.tree.map(lambda *leaves: sum(leaves), *terms)
    scaled = lambda scale, tree: jax.tree.map(lambda leaf: jax.vmap(jnp.multiply)(scale, leaf), tree)

    def step(state, xy):
        h, v, TH, TW = state
        h, (immediate, kept) = columns(theta, h, xy[0], carry)
        TH = sums(immediate, scaled(kept, TH))
        delta = xy[1] - v @ h
        of_prediction = sums(scaled(v, TH), scaled(h, TW))
        TW = sums(TW, scaled(ALPHA * delta + 0 * h, TH), scaled(-ALPHA * h, of_prediction))
        return (h, v + ALPHA * delta * h, TH, TW), scaled(-delta + 0 * h, of_prediction)

    zeros = jax.tree.map(jnp.zeros_like, theta)
    _, slopes = jax.lax.scan(step, (jnp.zeros_like(v), v, zeros, zeros), (xs, ys))
    return jax.tree.map(lambda rows: rows.mean(0), slopes)


def trained_through(theta, v, xs, ys, carry):
    """Mean loss of the stream while v learns."""

    def step(state, xy):
        h, v = state
        h = jax.vmap(column, (0, 0, None, None))(theta, h, xy[0], carry)
        delta = xy[1] - v @ h
        return (h, v + ALPHA * delta * h), delta**2 / 2

    return jnp.mean(jax.lax.scan(step, (jnp.zeros_like(v), v), (xs, ys))[1])


@pytest.mark.parametrize("carry", [1.0, 0.0])
def test_snap_on_columns_is_the_recursion_per_column(carry):
    xs, ys = examples(20)
    model = representation(COLUMNS, carry)
    params, hidden = model.init(jax.random.key(5))
    given, stream = (params, hidden.readout["W"][0], xs, ys, carry), meta.taught(xs, ys[:, None])
    snap = online(og.snap, model, params, hidden, stream)
    assert relative_error(snap, jax.jit(per_column)(*given)) < 1e-12
    exact = jax.jit(jax.grad(trained_through))(*given)
    assert relative_error(online(og.rtrl, model, params, hidden, stream), exact) < 1e-12
    # columns meet in the common error alone
    assert relative_error(snap, exact) > 1e-4
    if not carry:
        assert relative_error(snap, exact) < 1e-2


def test_snap_is_exact_on_one_column():
    xs, ys = examples(20)
    model = representation(1, carry=True)
    params, hidden = model.init(jax.random.key(5))
    snap = online(og.snap, model, params, hidden, meta.taught(xs, ys[:, None]))
    exact = jax.jit(jax.grad(trained_through))(params, hidden.readout["W"][0], xs, ys, 1.0)
    assert relative_error(snap, exact) < 1e-12


# ---- what does not fit


GRU, READOUT = cells.gru(INPUTS, UNITS), readouts.linear(UNITS, 1)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"optimizer": optax.sgd}, TypeError, "optimizer must be an optax GradientTransformation"),
        ({"cell": None}, TypeError, "cell must have the functions init, step, output, got None"),
        ({"readout": READOUT.apply}, TypeError, "readout must have the functions init, apply, got "),
        ({"example": jnp.zeros(3)}, TypeError, r"example must be a pair \(x, y\) of one step, got "),
        ({"example": None}, TypeError, r"example must be a pair \(x, y\) of one step, got None"),
        ({"cell": cells.gru(INPUTS + 1, UNITS)}, ValueError, "cell fails on x: .* the same shape"),
        ({"readout": readouts.linear(9, 1)}, ValueError, "readout or loss fails on the cell's output: "),
        ({"loss": lambda prediction, y: y}, TypeError, "what loss returns must be a floating scalar"),
    ],
)
def test_bad_arguments_of_a_readout_that_learns(given, error, message):
    fits = {"cell": GRU, "readout": READOUT, "loss": losses.squared_error, "optimizer": optax.sgd(0.1)}
    fits["example"] = (jnp.zeros(INPUTS), jnp.zeros(1))
    meta.online_readout(**fits)
    with pytest.raises(error, match=message):
        meta.online_readout(**fits | given)
