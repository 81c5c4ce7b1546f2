"""Columns: the equations with links, exactness without, and the Master-User recursion column by column."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from online_grads import cells, from_cell, gradient, losses, memory, readouts, rtrl, snap
from tests.models import EXAMPLE, INPUTS, OUTPUTS, problem_of, relative_error

D, W, STEPS = 5, 3, 6


def model_of(d=D, **options):
    cell = cells.columnar_rnn(INPUTS, d, width=W, **options)
    return from_cell(cell, readouts.linear(d, OUTPUTS), losses.squared_error, example=EXAMPLE)


@functools.cache
def given_of(**options):
    return problem_of(model_of(**options), STEPS)


def online(estimator, given):
    go = lambda *args: gradient(estimator, *args, key=jax.random.key(1), window=3)
    return jax.jit(go)(*given.args)


def column(theta, h_i, x, i, f, h):
    """One column by itself, (h_i(t), f_i); f [d, w] and h [d] of the others are plain inputs."""
    relu = lambda z: jnp.maximum(z, 0)
    own = relu(theta["fc2"]["W"] @ relu(theta["fc1"]["W"] @ x + theta["fc1"]["bias"]) + theta["fc2"]["bias"])
    drive = theta["own"] @ own + theta["bias"]
    if "links" in theta:
        others = jnp.concatenate([f.at[i].set(0).ravel(), h.at[i].set(0)])
        drive = drive + theta["self"] * h_i + theta["links"] @ others
    return h_i + jnp.tanh(drive), own


def masked(theta, density, seed=0):
    """The parameters with zeros where there is no link, from the rule in words."""
    everything = D * W + D
    exists = np.random.default_rng(seed).random((D, everything)) < density * W / (W * (D - 1) + D)
    exists[:, : D * W].reshape(D, D, W)[np.arange(D), np.arange(D)] = False
    exists = exists.astype(float)
    itself = exists[np.arange(D), D * W + np.arange(D)]
    return theta | {"self": theta["self"] * itself, "links": theta["links"] * exists}, exists, itself


def features(theta, x):
    zeros = jnp.zeros((D, W)), jnp.zeros(D)
    return jax.vmap(lambda theta: column(theta, jnp.zeros(()), x, 0, *zeros)[1])(
        {name: theta[name] for name in ("fc1", "fc2", "own", "bias")}
    )


def every(function):
    return jax.vmap(function, (0, 0, None, 0, None, None))


def forward(theta, h, x):
    return every(column)(theta, h, x, jnp.arange(D), features(theta, x), h)[0]


@pytest.mark.parametrize("local", [False, True])
def test_linked_columns_follow_their_equations(local):
    given = given_of(density=2.0, local=local)
    theta, exists, _ = masked(given.params["cell"], 2.0)
    assert 0 < exists.sum() < exists.size
    h, expected = given.hidden, given.hidden
    step = jax.jit(given.model.transition)
    for x in given.xs:
        h, expected = step(given.params, h, x), forward(theta, expected, x)
        np.testing.assert_allclose(h, expected, rtol=0, atol=1e-14)
    # without its zeros the mask is another network
    assert jnp.abs(forward(given.params["cell"], given.hidden, given.xs[0]) - expected).max() > 1e-3


def times(factor, tree):
    """Every column's part of the tree times its factor [d]."""
    return jax.tree.map(lambda leaf: factor.reshape(-1, *[1] * (leaf.ndim - 1)) * leaf, tree)


def master_user(given, density):
    """One trace per parameter, on its own column: TH' = ∂h_i'/∂θ_i + (∂h_i'/∂h_i) TH, others fixed."""
    theta, exists, itself = masked(given.params["cell"], density)
    own = lambda *args: column(*args)[0]
    read = lambda readout, h, y: given.model.loss({"readout": readout}, h, y)[0]
    h, traces = given.hidden, jax.tree.map(jnp.zeros_like, theta)
    total = jax.tree.map(jnp.zeros_like, given.params)
    for x, y in zip(given.xs, given.ys, strict=True):
        f = features(theta, x)
        immediate, carry = every(jax.grad(own, (0, 1)))(theta, h, x, jnp.arange(D), f, h)
        traces = jax.tree.map(jnp.add, immediate, times(carry, traces))
        h = every(own)(theta, h, x, jnp.arange(D), f, h)
        readout, credit = jax.grad(read, (0, 1))(given.params["readout"], h, y)
        total = jax.tree.map(jnp.add, total, {"cell": times(credit, traces), "readout": readout})
    # a parameter without a link has no effect
    total["cell"]["self"] *= itself
    total["cell"]["links"] *= exists
    return jax.tree.map(lambda g: g / STEPS, total)


def test_rtrl_of_local_columns_is_the_master_user_algorithm():
    given = given_of(density=2.0, local=True)
    got = online(rtrl(given.model), given)
    by_hand = jax.jit(lambda: master_user(given, 2.0))()
    assert relative_error(got, by_hand) <= 1e-12
    # the links are there, and what passes through them is lost
    whole = given_of(density=2.0).exact
    assert relative_error(got, whole) > 1e-2
    assert relative_error(online(rtrl(model_of(density=2.0)), given), whole) <= 1e-10
    np.testing.assert_array_equal(got["cell"]["links"] != 0, by_hand["cell"]["links"] != 0)


@pytest.mark.parametrize("estimator", [rtrl, snap])
def test_columns_without_links_have_an_exact_gradient(estimator):
    given = given_of()
    assert relative_error(online(estimator(given.model), given), given.exact) <= 1e-10
    assert relative_error(given_of(local=True).exact, given.exact) == 0


def test_snap_holds_one_entry_per_weight_of_independent_columns():
    sizes = []
    for d in (4, 8, 16):
        params, hidden = jax.eval_shape((model := model_of(d)).init, jax.random.key(0))
        sizes.append(memory(snap(model), params, hidden))
    assert sizes[2] - sizes[1] == 2 * (sizes[1] - sizes[0])
    linked = model_of(16, density=1.0)
    assert memory(snap(linked), *jax.eval_shape(linked.init, jax.random.key(0))) > 5 * sizes[2]


def test_the_mask_has_as_many_links_as_the_density_says():
    d, w, density = 40, 6, 0.5

    def links(**options):
        cell = cells.columnar_rnn(1, d, width=w, density=density, **options)
        params, h = jax.jit(cell.init)(jax.random.key(0))
        # every feature is 1, so that a weight acts exactly where there is a link
        params["fc2"] = {"W": jnp.zeros((d, w, w)), "bias": jnp.ones((d, w))}
        summed = lambda weights: jnp.sum(cell.step(params | weights, h + 1, jnp.ones(1)))
        given = {name: params[name] for name in ("self", "links")}
        return jax.tree.map(lambda g: np.asarray(g != 0), jax.jit(jax.grad(summed))(given))

    drawn = links()
    count, expected = drawn["self"].sum() + drawn["links"].sum(), d * w * density
    np.testing.assert_allclose(count, expected, atol=4 * np.sqrt(expected))
    blocks = drawn["links"][:, : d * w].reshape(d, d, w)
    assert not blocks[np.arange(d), np.arange(d)].any()
    assert not np.diagonal(drawn["links"][:, d * w :]).any()
    np.testing.assert_array_equal(links()["links"], drawn["links"])
    assert (links(wiring=1)["links"] != drawn["links"]).any()


def test_weights_are_drawn_as_torch_draws_them():
    d, m, w = 60, 16, 9
    params, h = jax.jit(cells.columnar_rnn(m, d, width=w, density=0.1).init)(jax.random.key(0))
    assert not h.any()
    fan_in = {"fc1": m, "fc2": w}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        bound = 1 / np.sqrt(fan_in.get(path[0].key, d * w + d))
        assert jnp.abs(leaf).max() <= bound
        np.testing.assert_allclose(jnp.std(leaf), bound / np.sqrt(3), rtol=0.2)
    assert cells.columnar_rnn(m, d).init(jax.random.key(0))[0].keys() == {"fc1", "fc2", "own", "bias"}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"width": 0}, ValueError, "width must be at least 1, got 0"),
        ({"density": -0.1}, ValueError, r"density must be at least 0, got -0\.1"),
        ({"density": "1"}, TypeError, "density must be a number, got '1'"),
        ({"local": 1}, TypeError, "local must be True or False, got 1"),
        ({"wiring": -1}, ValueError, "wiring must be at least 0, got -1"),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        cells.columnar_rnn(3, 4, **options)
