"""TD prediction: an exact estimator follows minus the TD error times the gradient of the value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import online_grads as og
from online_grads import cells, readouts
from online_grads.td import TdTarget, td_model

T, INPUTS, HIDDEN, DISCOUNT = 12, 3, 4, 0.8
NUMBER, X = jnp.zeros(()), jnp.zeros(INPUTS)
EXAMPLE = (X, TdTarget(NUMBER, X, NUMBER))


def lstm(discount=DISCOUNT):
    return td_model(
        cells.lstm(INPUTS, HIDDEN), readouts.linear(HIDDEN, 1), discount=discount, example=EXAMPLE
    )


@pytest.fixture(scope="module")
def case():
    """(parameters, hidden state, x_1 ... x_{T+1}, c_2 ... c_{T+1})."""
    keys = jax.random.split(jax.random.key(0), 3)
    params, hidden = lstm().init(keys[0])
    return params, hidden, jax.random.normal(keys[1], (T + 1, INPUTS)), jax.random.normal(keys[2], (T,))


def values(params, hidden, xs):
    """v(h_1) ... v(h_{T+1}), without the model's loss."""
    cell, readout = cells.lstm(INPUTS, HIDDEN), readouts.linear(HIDDEN, 1)

    def step(h, x):
        h = cell.step(params["cell"], h, x)
        return h, readout.apply(params["readout"], cell.output(h))[0]

    return jax.lax.scan(step, hidden, xs)[1]


def errors(v, cumulants):
    return cumulants + DISCOUNT * v[1:] - v[:-1]


def semi_gradient(params, hidden, xs, cumulants):
    """-δ dv/dθ, mean over the steps."""
    delta = errors(values(params, hidden, xs), cumulants)
    jacobian = jax.jacrev(values)(params, hidden, xs)
    return jax.tree.map(lambda rows: -jnp.tensordot(delta, rows[:-1], 1) / T, jacobian)


def full_gradient(params, hidden, xs, cumulants):
    return jax.grad(lambda params: jnp.mean(errors(values(params, hidden, xs), cumulants) ** 2) / 2)(params)


def online(estimator, case, window=1):
    params, hidden, xs, cumulants = case
    # the return is not read: NaN would show
    ys = TdTarget(cumulants, xs[1:], jnp.full(T, jnp.nan))
    follow = lambda *args: og.gradient(estimator, *args, key=jax.random.key(1), window=window)
    return jax.jit(follow)(params, hidden, xs[:-1], ys)


def apart(left, right):
    return max(float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (left, right)), strict=True))


@pytest.mark.parametrize(("estimator", "window"), [(og.rtrl, 1), (og.rtrl, 4), (og.tbptt, T)])
def test_an_exact_estimator_follows_the_semi_gradient(case, estimator, window):
    assert apart(online(estimator(lstm()), case, window), semi_gradient(*case)) < 1e-12


def test_neither_the_full_gradient_nor_a_short_past_is_the_semi_gradient(case):
    expected = semi_gradient(*case)
    assert apart(full_gradient(*case), expected) > 1e-3
    assert apart(online(og.tbptt(lstm()), case, window=1), expected) > 1e-3


def test_the_loss_is_half_the_squared_error_and_the_output_is_the_value(case):
    params, hidden, xs, cumulants = case
    v, delta = values(params, hidden, xs), errors(values(params, hidden, xs), cumulants)
    model = lstm()
    h = model.transition(params, hidden, xs[0])
    loss, prediction = model.loss(params, h, TdTarget(cumulants[0], xs[1], NUMBER))
    np.testing.assert_allclose((loss, prediction), (delta[0] ** 2 / 2, v[0]), rtol=1e-12)


def test_the_target_has_no_gradient(case):
    params, hidden, xs, cumulants = case
    loss = lambda params, h, y: lstm().loss(params, h, y)[0]
    y = TdTarget(cumulants[0], xs[1], NUMBER)
    of_params, of_y = jax.grad(loss, (0, 2))(params, hidden, y)
    assert apart(of_params["cell"], jax.tree.map(jnp.zeros_like, params["cell"])) == 0
    assert apart(of_params["readout"], jax.tree.map(jnp.zeros_like, params["readout"])) > 0
    assert apart(of_y, jax.tree.map(jnp.zeros_like, y)) == 0


def test_a_traced_discount(case):
    params, hidden, xs, cumulants = case
    y = TdTarget(cumulants[0], xs[1], NUMBER)
    traced = jax.jit(lambda discount: lstm(discount).loss(params, hidden, y)[0])
    assert traced(DISCOUNT) == pytest.approx(float(lstm().loss(params, hidden, y)[0]), rel=1e-12)
    assert traced(0.1) != traced(DISCOUNT)


def test_bad_arguments():
    cell, readout = cells.lstm(INPUTS, HIDDEN), readouts.linear(HIDDEN, 1)
    make = lambda readout=readout, **given: td_model(
        cell, readout, **{"discount": 0.9, "example": EXAMPLE} | given
    )
    with pytest.raises(ValueError, match=r"discount must be in \[0, 1\), got 1"):
        make(discount=1)
    with pytest.raises(TypeError, match="discount must be a number, got 'a'"):
        make(discount="a")
    with pytest.raises(TypeError, match="the y of example must be a TdTarget, got ShapeDtypeStruct"):
        make(example=(X, X))
    with pytest.raises(ValueError, match=r"cumulant must be a scalar, got shape \(3,\)"):
        make(example=(X, TdTarget(X, X, NUMBER)))
    with pytest.raises(ValueError, match="the x of y must be like x: expected"):
        make(example=(X, TdTarget(NUMBER, jnp.zeros(2), NUMBER)))
    with pytest.raises(ValueError, match=r"the readout must have one output, got shape \(2,\)"):
        make(readouts.linear(HIDDEN, 2))
    with pytest.raises(ValueError, match="the readout does not fit the cell"):
        make(readouts.linear(HIDDEN + 1, 1))
