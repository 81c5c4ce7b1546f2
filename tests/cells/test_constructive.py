"""Growth: exact gradients across stages, what is frozen or not there yet, normalisation, one compilation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from online_grads import cells, gradient, learner, memory, rtrl, scan, tbptt
from online_grads.optimizers import lazy
from tests.models import INPUTS, of_cell, problem_of, relative_error

STAGES, UNITS, EVERY, STEPS = 3, 2, 4, 12
DECAY, FLOOR = 0.7, 0.3
SIZE = STAGES * UNITS


def columns(every=EVERY, stages=STAGES):
    return cells.constructive_columns(
        INPUTS, stages * UNITS, stages=stages, every=every, decay=DECAY, floor=FLOOR
    )


@functools.cache
def given_of(every):
    """The problem of growing columns with weights that are large enough to matter."""
    begin = columns(every).init
    large = lambda key: jax.tree.map(lambda leaf: 3 * leaf, begin(key)[0])
    return problem_of(of_cell(columns(every)._replace(init=lambda key: (large(key), begin(key)[1]))), STEPS)


@functools.cache
def states_of(every):
    """The hidden states [T, ...] along the stream."""
    given = given_of(every)
    step = lambda hidden, x: 2 * (given.model.transition(given.params, hidden, x),)
    return jax.jit(lambda: jax.lax.scan(step, given.hidden, given.xs)[1])()


def online(estimator, given, window):
    go = lambda *args: gradient(estimator, *args, key=jax.random.key(1), window=window)
    return jax.jit(go)(*given.args)


@pytest.mark.parametrize("every", [1000, (3, 7)])
def test_rtrl_is_exact_in_a_stage_and_across_stages(every):
    given = given_of(every)
    assert relative_error(online(rtrl(given.model), given, 3), given.exact) <= 1e-10
    # the past matters
    assert relative_error(online(tbptt(given.model), given, 1), given.exact) > 1e-2


def test_a_weight_is_carried_at_the_two_entries_of_its_column():
    given = given_of(EVERY)
    estimator = rtrl(given.model)
    held = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    carried = memory(estimator, given.params, given.hidden) - 2 * held(given.params["cell"])
    # besides it the hidden state, and no more
    assert 0 <= carried <= held(given.hidden) + 8


def magnitudes(steps):
    """[S] of the gradients of the loss at the last of so many steps."""
    given = given_of(EVERY)

    def last(params):
        step = lambda hidden, x: (given.model.transition(params, hidden, x), None)
        hidden, _ = jax.lax.scan(step, given.hidden, given.xs[:steps])
        return given.model.loss(params, hidden, given.ys[steps - 1])[0]

    grads = jax.jit(jax.grad(last))(given.params)["cell"]
    return sum(np.abs(grad).sum(tuple(range(1, grad.ndim))) for grad in jax.tree.leaves(grads))


@pytest.mark.parametrize("stage", range(STAGES))
def test_only_the_stage_in_charge_has_a_gradient(stage):
    found = magnitudes((stage + 1) * EVERY)
    assert found[stage] > 1e-6
    assert np.count_nonzero(found) == 1


def test_the_features_of_frozen_stages_are_those_of_the_smaller_network():
    given, grown = given_of(EVERY), states_of(EVERY)
    cell, small = columns(), columns(stages=2)
    params = jax.tree.map(lambda leaf: leaf[:2], given.params["cell"])
    params["W"] = params["W"][..., : INPUTS + small.size]
    step = lambda hidden, x: 2 * (small.step(params, hidden, x),)
    alone = jax.jit(lambda: jax.lax.scan(step, small.init(jax.random.key(0))[1], given.xs)[1])()
    whole, part = jax.vmap(cell.output)(grown), jax.vmap(small.output)(alone)
    np.testing.assert_allclose(whole[:, : small.size], part, rtol=0, atol=1e-14)
    assert jnp.abs(part[-1]).min() > 1e-3


def test_a_stage_is_not_there_before_its_time():
    outputs = jax.vmap(columns().output)(states_of(EVERY)).reshape(STEPS, STAGES, UNITS)
    hidden = states_of(EVERY)
    for stage in range(STAGES):
        before, after = slice(None, stage * EVERY), slice(stage * EVERY, None)
        for leaf in (outputs, *hidden.cells, hidden.mean):
            assert not leaf[before, stage].any()
            assert leaf[after, stage].all()
        assert (hidden.variance[before, stage] == 1).all()
    np.testing.assert_array_equal(hidden.stage, np.arange(STEPS) // EVERY)
    # the count ends where nothing depends on it any more
    np.testing.assert_array_equal(hidden.step, np.minimum(np.arange(1, STEPS + 1), (STAGES - 1) * EVERY))


def test_features_are_normalised_down_to_a_floor():
    """The states themselves are in `test_cells`."""
    hidden = states_of(EVERY)
    spread = np.sqrt(hidden.variance)
    expected = (hidden.cells.h - hidden.mean) / np.maximum(spread, FLOOR)
    got = jax.vmap(columns().output)(hidden)
    np.testing.assert_allclose(got, expected.reshape(STEPS, SIZE), rtol=0, atol=1e-14)
    assert spread.min() < FLOOR < spread.max()


def test_growth_from_one_to_twenty_columns_compiles_once():
    cell = cells.constructive_columns(INPUTS, 20, every=2, decay=DECAY)
    model = of_cell(cell)
    online = learner(rtrl(model), optax.sgd(0.1))
    traced = []

    @jax.jit
    def chunk(state, xs, ys):
        traced.append(state)
        return scan(online, state, xs, ys)

    given = problem_of(model, 10)
    state = jax.jit(online.init)(given.params, given.hidden, key=jax.random.key(0))
    there = []
    for _ in range(4):
        state, metrics = chunk(state, given.xs, given.ys)
        there.append(int(state.estimator.hidden.stage))
        np.testing.assert_array_equal(metrics.info["kept"], 2)
    assert there == [4, 9, 14, 19]
    assert len(traced) == 1
    assert chunk._cache_size() == 1


@pytest.mark.parametrize("keep", [True, False])
def test_a_lazy_optimizer_leaves_frozen_stages_where_they_are(keep):
    given = given_of(EVERY)
    adam = optax.adam(0.1)
    online = learner(rtrl(given.model), lazy(adam) if keep else adam)
    start = jax.jit(online.init)(given.params, given.hidden, key=jax.random.key(0))
    go = jax.jit(lambda state, xs, ys: scan(online, state, xs, ys)[0])
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam promotes its count
        first = go(start, given.xs[:EVERY], given.ys[:EVERY])
        later = go(first, given.xs[EVERY : 2 * EVERY], given.ys[EVERY : 2 * EVERY])
    same = jax.tree.map(
        lambda a, b: np.array_equal(a[0], b[0]), first.params["cell"], later.params["cell"]
    ).values()
    assert all(same) if keep else not any(same)
    changed = lambda a, b: jax.tree.map(lambda a, b: (a != b).any(), a, b)
    assert changed(start.params, first.params)["cell"]["bias"]
    assert all(jax.tree.leaves(changed(first.params, later.params)))


def test_future_features_are_zero_wherever_a_cell_begins():
    stage = cells.gru(INPUTS + 2, 1)
    begin = lambda key: (stage.init(key)[0], jnp.full(1, 0.5))
    cell = cells.constructive(stage._replace(init=begin), inputs=INPUTS, stages=2, every=1)
    params, hidden = jax.jit(cell.init)(jax.random.key(0))
    np.testing.assert_array_equal(cell.output(hidden), [0.5, 0])
    first = cell.step(params, hidden, jnp.ones(INPUTS))
    assert cell.output(first)[1] == first.mean[1, 0] == 0
    assert cell.output(cell.step(params, first, jnp.ones(INPUTS))).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"stages": 4}, ValueError, "the stages must divide the 6 columns, got 4"),
        ({"stages": 0}, ValueError, "stages must be at least 1, got 0"),
        ({"every": 0}, ValueError, "every must be at least 1, got 0"),
        ({"every": 1.5}, TypeError, r"every must be an integer, got 1\.5"),
        ({"every": (1, 2, 3)}, ValueError, r"one for each of the 3 stages but the last, got \(1, 2, 3\)"),
        ({"every": 2**30}, ValueError, "must begin within 2147483647 steps, got 2147483648"),
        ({"decay": 1.0}, ValueError, r"decay must be in \[0, 1\), got 1\.0"),
        ({"floor": 0.0}, ValueError, r"floor must be above 0, got 0\.0"),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        cells.constructive_columns(INPUTS, SIZE, **{"stages": STAGES} | options)


def test_the_cell_must_read_the_features_of_all_stages():
    with pytest.raises(ValueError, match=r"3 \+ 2 · 4 = 11, but the cell takes inputs of size 3"):
        cells.constructive(cells.gru(3, 4), inputs=3, stages=2, every=10)
    with pytest.raises(TypeError, match="constructive needs a Cell"):
        cells.constructive(cells.gru, inputs=3, stages=2, every=10)
