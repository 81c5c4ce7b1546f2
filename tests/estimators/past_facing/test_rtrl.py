import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from online_grads import Model, cells, gradient, rtrl, snap, tbptt
from online_grads.estimators.past_facing import masked
from tests.models import (
    EXAMPLE,
    MODELS,
    exact_gradient,
    learned_start,
    of_cell,
    problem,
    problem_of,
    relative_error,
    stream,
)

LENGTH = 14


def online(estimator, window, *args):
    """The estimator's gradient of the whole stream, in one compiled program."""
    return jax.jit(lambda *args: gradient(estimator, *args, key=jax.random.key(1), window=window))(*args)


@pytest.mark.parametrize("window", [1, 7])
@pytest.mark.parametrize("name", MODELS)
def test_equals_the_gradient_of_the_whole_sequence(name, window):
    given = problem(name, LENGTH)
    got = online(rtrl(given.model), window, *given.args)
    assert relative_error(got, given.exact) <= 1e-10
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(given.exact), strict=True):
        np.testing.assert_array_equal(one != 0, other != 0)
        assert jnp.any(one != 0)


@pytest.mark.parametrize("wrong", [tbptt, snap])
@pytest.mark.parametrize("name", ["vanilla", "gru"])
def test_the_assertion_above_fails_for_a_biased_estimator(name, wrong):
    given = problem(name, LENGTH)
    assert relative_error(online(wrong(given.model), 7, *given.args), given.exact) > 1e-3


@pytest.mark.parametrize("block", [1, 3, 5, LENGTH])
def test_blocks_of_any_length_are_exact(block):
    given = problem("gru", LENGTH)
    assert relative_error(online(rtrl(given.model, block=block), LENGTH, *given.args), given.exact) <= 1e-10


@pytest.mark.parametrize(
    ("name", "window"), [("vanilla", 1), ("vanilla", LENGTH), ("stacked", 7), ("normalised", 7)]
)
def test_exact_with_resets_to_a_learned_initial_state(name, window):
    model = learned_start(MODELS[name]())
    params, hidden = jax.jit(model.init)(jax.random.key(0))
    (xs, never), ys = stream(model, LENGTH)
    run = jax.jit(
        lambda resets: gradient(
            rtrl(model), params, hidden, (xs, resets), ys, key=jax.random.key(1), window=window
        )
    )
    expected = jax.jit(lambda resets: exact_gradient(model, params, hidden, (xs, resets), ys))
    for at in ([4], [7], [0, 5, 6, 13]):
        resets = never.at[jnp.asarray(at)].set(True)
        got = run(resets)
        assert relative_error(got, expected(resets)) <= 1e-10
        assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(got["start"]))
    assert relative_error(run(never), expected(resets)) > 1e-3


def test_influence_equals_the_forward_mode_jacobian():
    model, params, hidden, xs, ys, _ = problem("vanilla", LENGTH)
    estimator = rtrl(model)
    state = estimator.init(params, hidden, key=jax.random.key(0))
    state, _ = jax.jit(estimator.update)(state, params, xs, ys)

    def end(cell):
        body = lambda h, x: (model.transition({**params, "cell": cell}, h, x), None)
        return jax.lax.scan(body, hidden, xs)[0]

    expected = jax.jit(jax.jacfwd(end))(params["cell"])
    # one drive with the presynaptic vector [h; x; 1]
    together = [expected["W_rec"], expected["W_in"], expected["bias"][..., None]]
    (influence,) = state.influence
    np.testing.assert_allclose(influence[:, 0], np.concatenate(together, axis=2), rtol=1e-10)


COLUMNS = {  # cell of n units -> hidden entries that a weight ever reaches and the next step reads
    "columnar_lstm": (lambda n: cells.columnar_lstm(3, n), 2),
    "lru": (lambda n: cells.lru(3, n, outputs=5), 2),
    "elstm": (lambda n: cells.elstm(3, n), 1),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_block_diagonal_cells_are_compressed(name):
    """They are exact: tests/cells/test_linear_time.py."""
    make, kept = COLUMNS[name]
    half = functools.partial(rtrl, influence_dtype=jnp.bfloat16)
    (drives,) = influence(half, of_cell(make(8)))
    assert {leaf.dtype for leaf in jax.tree.leaves(drives)} == {jnp.dtype(jnp.bfloat16)}
    assert max(len(arrays) for sites in drives for arrays in sites) == kept
    size = lambda estimator, n: entries(estimator, of_cell(make(n)))
    assert size(rtrl, 16) == 2 * size(rtrl, 8) == 2 * size(snap, 8)
    assert widest(of_cell(make(16))) <= 2 * widest(of_cell(make(8)))
    whole = lambda model: rtrl(model, block=1)
    assert size(whole, 16) > 3 * size(whole, 8)


def test_a_block_asks_for_the_dense_influence_even_of_columns():
    given = problem_of(of_cell(cells.lru(3, 2)), LENGTH)
    dense = rtrl(given.model, block=LENGTH)
    assert relative_error(online(dense, LENGTH, *given.args), given.exact) <= 1e-10
    assert entries(lambda model: dense, given.model) > 2 * entries(rtrl, given.model)


def test_what_spreads_is_not_compressed():
    """One unit that moves all others, columns with many links, or units in a ring."""
    one_way = cells.stack(cells.low_pass(3, 1), cells.low_pass(1, 8))
    apart = cells.low_pass(3, 8)
    around = apart._replace(step=lambda params, h, x: apart.step(params, h, x) + jnp.roll(h, 1))
    for cell in (one_way, cells.columnar_rnn(3, 8, width=2, density=8.0), around):
        assert {m.ndim for m in influence(rtrl, of_cell(cell))} == {4}  # [n, batch, post, pre]


def influence(estimator, model):
    """What is carried of the past, as shapes."""
    start = jax.eval_shape(model.init, jax.random.key(0))
    carried = jax.eval_shape(lambda *start: estimator(model).init(*start, key=jax.random.key(0)), *start)
    return carried.influence


def widest(model):
    """Entries of the largest array that one step takes."""
    estimator = rtrl(model)
    start = jax.eval_shape(model.init, jax.random.key(0))
    state = jax.eval_shape(lambda *start: estimator.init(*start, key=jax.random.key(0)), *start)
    step = jax.make_jaxpr(estimator.update)(state, start[0], *jax.eval_shape(lambda: stream(model, 1)))
    return max(math.prod(map(int, shape.split(","))) for shape in re.findall(r"f64\[([\d,]+)\]", str(step)))


def diagonal(weight_of, theta, step=lambda params, h, drive: h / 2 + drive, hidden=16):
    """A leaky sum of drives W x, W [16, inputs] made of θ; a `step` may give h further entries."""

    def transition(params, h, x):
        return step(params, h, weight_of(params["theta"]) @ x)

    loss = lambda params, h, y: (jnp.sum(jnp.tanh(h)) * y[0], ())
    return Model(lambda key: ({"theta": theta}, jnp.ones(hidden)), transition, loss, EXAMPLE)


def test_few_parameters_of_many_weights_are_not_blown_up():
    """A scale of a constant matrix: the dense influence has 16 numbers, that of the matrix 48."""
    fixed = jax.random.normal(jax.random.key(5), (16, 3))
    assert entries(rtrl, diagonal(lambda scale: scale * fixed, jnp.ones(()))) == 16
    assert entries(rtrl, diagonal(lambda scale: scale * fixed, jnp.ones((16, 1)))) == 48


def test_one_weight_that_reaches_everything_leaves_the_others_compressed(monkeypatch):
    """W [32, 3] keeps one entry each; only the gain, one number, keeps all 32."""
    gained = lambda params, h, drive: h / 2 + params["theta"]["gain"] * drive
    theta = {"W": jnp.ones((32, 3)), "gain": jnp.ones(())}
    given = problem_of(diagonal(lambda theta: theta["W"], theta, gained, hidden=32), 4)
    assert entries(rtrl, given.model) == 32 * 3 + 32
    assert relative_error(online(rtrl(given.model), 2, *given.args), given.exact) <= 1e-10
    # 32² entries of J are gathered for the gain at every step: with too many of them, dense
    monkeypatch.setattr("online_grads.estimators.past_facing.rtrl.DENSE_LIMIT", 32**2 - 1)
    assert entries(rtrl, given.model) == 32 * (32 * 3 + 1)


def test_what_no_weight_reaches_does_not_count():
    """A trace of the input that all units read: dense in J, and no weight ever acts on it."""

    def step(params, h, drive):
        return jnp.concatenate([h[:1] * 0.9 + 1, h[1:] / 2 * h[:1] + drive])

    model = diagonal(lambda theta: theta, jnp.ones((16, 3)), step, hidden=17)
    assert entries(rtrl, model) == 48


def test_a_large_direct_weight_is_served(monkeypatch):
    monkeypatch.setattr(masked, "DENSE_LIMIT", 3)
    model = of_cell(cells.low_pass(3, 8))
    with pytest.raises(ValueError, match="over the limit of 3"):
        snap(model)
    assert entries(rtrl, model) < entries(lambda model: rtrl(model, block=1), model)


def entries(estimator, model):
    """Numbers in the influence alone."""
    return sum(leaf.size for leaf in jax.tree.leaves(influence(estimator, model)))


def test_a_block_below_one_is_refused():
    with pytest.raises(ValueError, match="block must be at least 1, got 0"):
        rtrl(MODELS["vanilla"](), block=0)
