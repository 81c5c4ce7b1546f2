import jax
import jax.numpy as jnp
import numpy as np
import pytest

from online_grads import Model, cells, gradient, losses, memory, rtrl, snap
from online_grads.estimators.past_facing import masked
from online_grads.flat import flatten
from tests.models import EXAMPLE, MODELS, exact_gradient, of_cell, relative_error, stream

STEPS = 10


def run(estimator, model, window=1):
    params, hidden = model.init(jax.random.key(0))
    xs, ys = stream(model, STEPS)
    got = jax.jit(lambda: gradient(estimator, params, hidden, xs, ys, key=jax.random.key(1), window=window))()
    return got, exact_gradient(model, params, hidden, xs, ys)


def masked_by_hand(model, order, units):
    """SnAp with a dense influence [n, p], the mask from the numbers themselves; `units` [n, n]."""
    params, hidden = model.init(jax.random.key(0))
    xs, ys = stream(model, STEPS)
    theta, unflatten = jax.flatten_util.ravel_pytree(params)
    flat = flatten(hidden)
    h, rest = flat.split(hidden)
    step = lambda theta, h, x: flat.split(model.transition(unflatten(theta), flat.join(h, rest), x))[0]
    loss = lambda theta, h, y: model.loss(unflatten(theta), flat.join(h, rest), y)[0]
    jacobians = lambda h, x: (jax.jacobian(step, 1)(theta, h, x), jax.jacobian(step)(theta, h, x))
    nonzero = [(one != 0).astype(float) for one in jacobians(jnp.linspace(0.2, 0.5, h.size), xs[0])]
    mask = units @ nonzero[1]
    for _ in range(order - 1):
        mask = mask + units @ nonzero[0] @ mask
    M, total = jnp.zeros_like(mask), 0.0
    for x, y in zip(xs, ys, strict=True):
        J, immediate = jacobians(h, x)
        M = jnp.where(mask > 0, J @ M + immediate, 0.0)
        h = step(theta, h, x)
        total = total + jax.grad(loss, 1)(theta, h, y) @ M + jax.grad(loss)(theta, h, y)
    return unflatten(total / STEPS)


def pair(n):
    """Units of an LSTM, whose hidden entries are (h, c)."""
    return jnp.kron(jnp.ones((2, 2)), jnp.eye(n))


@pytest.mark.parametrize("window", [1, 5])
@pytest.mark.parametrize(
    ("name", "units"),
    [("vanilla", jnp.eye(4)), ("gru", jnp.eye(4)), ("lstm", pair(4)), ("normalised", jnp.eye(4))],
)
def test_order_one_is_the_masked_recursion(name, units, window):
    got, exact = run(snap(MODELS[name]()), MODELS[name](), window)
    assert relative_error(got, masked_by_hand(MODELS[name](), 1, units)) <= 1e-10
    assert relative_error(got, exact) > 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_an_order_that_drops_nothing_is_rtrl(name):
    model = MODELS[name]()
    assert relative_error(*run(snap(model, order=5), model)) <= 1e-10


def ring(n=5):
    """A tanh network whose unit i is driven by i-1 and itself only."""
    mask = jnp.eye(n) + jnp.roll(jnp.eye(n), 1, axis=0)

    def init(key):
        keys = jax.random.split(key, 3)
        shapes = {"W": (n, n), "U": (n, EXAMPLE[0].size), "out": (EXAMPLE[1].size, n)}
        draw = zip(shapes.items(), keys, strict=True)
        return {name: jax.random.normal(k, shape) for (name, shape), k in draw}, jnp.zeros(n)

    def transition(params, h, x):
        return jnp.tanh((params["W"] * mask) @ h + params["U"] @ x)

    def loss(params, h, y):
        return losses.squared_error(params["out"] @ h, y), ()

    return Model(init, transition, loss, EXAMPLE)


def test_orders_on_a_sparse_network_keep_what_the_structure_reaches():
    model, errors, bytes_kept = ring(), [], []
    params, hidden = model.init(jax.random.key(0))
    for order in (1, 2, 3, 5):
        got, exact = run(snap(model, order=order), model)
        assert relative_error(got, masked_by_hand(model, order, jnp.eye(5))) <= 1e-10
        errors.append(relative_error(got, exact))
        bytes_kept.append(memory(snap(model, order=order), params, hidden))
    assert errors[0] > errors[1] > errors[2] > 1e-6 > errors[3]
    assert errors[3] <= 1e-10
    assert bytes_kept == sorted(set(bytes_kept))
    # a network with the same weights but no zeros by structure keeps everything at order 2
    assert relative_error(*run(snap(MODELS["vanilla"](), order=2), MODELS["vanilla"]())) <= 1e-10


def test_a_diagonal_cell_is_exact_at_order_one():

    def init(key):
        params = {"decay": jnp.linspace(0.3, 0.9, 4), "U": jax.random.normal(key, (4, EXAMPLE[0].size))}
        return {**params, "out": jnp.ones((EXAMPLE[1].size, 4))}, jnp.zeros(4)

    transition = lambda params, h, x: params["decay"] * jnp.tanh(h) + params["U"] @ x
    loss = lambda params, h, y: (losses.squared_error(params["out"] @ h, y), ())
    model = Model(init, transition, loss, EXAMPLE)
    assert relative_error(*run(snap(model), model)) <= 1e-10


def test_memory_is_that_of_the_parameters():
    """K entries per weight: one for a GRU, (h, c) for an LSTM, against n for rtrl."""
    for cell, kept in ((cells.gru(3, 16), 1), (cells.lstm(3, 16), 2)):
        model = of_cell(cell)
        params, hidden = model.init(jax.random.key(0))
        cell_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(params["cell"]))
        small = sum(leaf.nbytes for leaf in jax.tree.leaves(hidden)) + 8  # the key
        assert memory(snap(model), params, hidden) - small == kept * cell_bytes
        assert memory(rtrl(model), params, hidden) > 8 * kept * cell_bytes


def test_bad_arguments(monkeypatch):
    with pytest.raises(ValueError, match="order must be at least 1, got 0"):
        snap(MODELS["gru"](), order=0)
    monkeypatch.setattr(masked, "DENSE_LIMIT", 3)
    with pytest.raises(ValueError, match=r"params\['cell'\]\['bias_.*keeps 8 influence entries.*limit of 3"):
        snap(MODELS["gru"]())


def test_both_layouts_agree(monkeypatch):
    """Arrays like the weight below FEW entries, stacked ones above it."""
    few, _ = run(snap(MODELS["lstm"]()), MODELS["lstm"]())
    monkeypatch.setattr(masked, "FEW", 0)
    many, exact = run(snap(MODELS["lstm"]()), MODELS["lstm"]())
    assert relative_error(many, few) <= 1e-12
    assert relative_error(many, exact) > 1e-4
    np.testing.assert_array_less(0, jnp.abs(many["cell"]["W"]))
