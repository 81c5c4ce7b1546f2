import jax
import jax.numpy as jnp
import pytest

from online_grads import Model, cells, eprop, feedback, from_cell, kernl, losses, readouts, rflo, rtrl, snap
from online_grads.analysis import analyse
from tests.models import EXAMPLE, MODELS, relative_error


def perceptron():
    """A readout of two layers, and a part of the loss that reads the hidden state without a matrix."""
    cell = cells.gru(3, 4)

    def init(key):
        keys = jax.random.split(key, 3)
        params, hidden = cell.init(keys[0])
        first, second = jax.random.normal(keys[1], (4, 5)), jax.random.normal(keys[2], (2, 5))
        return {"cell": params, "first": first, "second": second}, hidden + 0.3

    def loss(params, h, y):
        prediction = params["second"] @ jnp.tanh(h @ params["first"])
        return losses.squared_error(prediction, y) + 0.1 * jnp.sum(h**2), prediction

    return Model(init, lambda params, h, x: cell.step(params["cell"], h, x), loss, EXAMPLE)


def credit(back, model, params, h, y):
    found = analyse(model)
    return back(found)(found.readout(params), h, [], y)


def test_the_credit_passes_through_the_given_matrices():
    model = perceptron()
    params, h = model.init(jax.random.key(0))
    y = jnp.array([0.5, -1.0])
    keys = jax.random.split(jax.random.key(1))
    first, second = jax.random.normal(keys[0], (4, 5)), jax.random.normal(keys[1], (5, 2))
    got = credit(feedback.fixed(first, second), model, params, h, y)
    inner = jnp.tanh(h @ params["first"])
    error = jax.grad(lambda p: losses.squared_error(p, y))(params["second"] @ inner)
    expected = first @ ((1 - inner**2) * (second @ error)) + 0.2 * h
    assert relative_error(got, expected) <= 1e-12
    true = jax.grad(lambda h: model.loss(params, h, y)[0])(h)
    assert relative_error(got, true) > 0.1
    own = feedback.fixed(params["first"], params["second"].T)
    assert relative_error(credit(own, model, params, h, y), true) <= 1e-12


def test_random_matrices_hang_on_the_key_and_have_the_size_of_the_post():
    model = MODELS["vanilla"]()
    params, h = model.init(jax.random.key(0))
    y = jnp.array([1.0, 0.0])
    one, same, other = (credit(feedback.random(jax.random.key(k)), model, params, h, y) for k in (1, 1, 2))
    assert relative_error(one, same) == 0 < relative_error(one, other)
    many = jax.vmap(lambda key: credit(feedback.random(key), model, params, h, y))
    error = jax.nn.softmax(params["readout"]["W"] @ h + params["readout"]["bias"]) - y
    variance = jnp.var(many(jax.random.split(jax.random.key(3), 20_000)))
    assert float(variance) == pytest.approx(float(jnp.sum(error**2) / 2), rel=0.05)


@pytest.mark.parametrize("constructor", [eprop, rflo, kernl, snap])
def test_every_method_that_reads_step_by_step_takes_it(constructor):
    model = MODELS["gru"]()
    params, hidden = model.init(jax.random.key(0))
    estimator = constructor(model, feedback=feedback.random(jax.random.key(0)))
    state = estimator.init(params, hidden, key=jax.random.key(1))
    part = jnp.ones((2, 3)), jnp.ones((2, 2))
    symmetric = constructor(model).update(state, params, *part)[1].grads
    grads = estimator.update(state, params, *part)[1].grads
    assert relative_error(grads["readout"], symmetric["readout"]) <= 1e-12
    assert relative_error(grads["cell"], symmetric["cell"]) > 1e-3


def test_bad_feedback():
    with pytest.raises(TypeError, match="key must be a typed key"):
        feedback.random(jax.random.PRNGKey(0))
    cell = cells.gru(3, 2)
    plain = from_cell(cell, readouts.identity(), losses.squared_error, example=EXAMPLE)
    with pytest.raises(ValueError, match="the loss has none"):
        eprop(plain, feedback=feedback.random(jax.random.key(0)))
    with pytest.raises(ValueError, match=r"matrices \[batch, pre, post\] \[1, 4, 2\]; got \[1, 2, 4\]"):
        eprop(MODELS["gru"](), feedback=feedback.fixed(jnp.ones((2, 4))))
    for wrong in (feedback.random, feedback.fixed, "random", None):
        with pytest.raises(TypeError, match=r"feedback must be feedback\.symmetric"):
            eprop(MODELS["gru"](), feedback=wrong)
    sampled = lambda params, h, y: (jnp.sum(params["readout"]["W"][jnp.argmax(y)] * h), ())
    mixed = lambda params, h, y: (params["readout"]["W"][jnp.argmax(y)] @ h, ())
    model = MODELS["gru"]()._replace(loss=sampled)
    with pytest.raises(ValueError, match="the loss has none"):
        eprop(model, feedback=feedback.random(jax.random.key(0)), allow_unused=True)
    with pytest.raises(ValueError, match=r"params\['readout'\]\['W'\] meets the hidden state in the loss"):
        eprop(model._replace(loss=mixed), feedback=feedback.random(jax.random.key(0)), allow_unused=True)
    with pytest.raises(ValueError, match=r"\[1, 4, 5\], \[1, 5, 2\]; got \[1, 4, 5\]$"):
        eprop(perceptron(), feedback=feedback.fixed(jnp.ones((4, 5))))
    with pytest.raises(TypeError, match="unexpected keyword"):
        rtrl(MODELS["gru"](), feedback=feedback.symmetric)
