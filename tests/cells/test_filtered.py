"""Filtered outputs: the trace, the leaky readout that it stands for, and e-prop's filtered eligibility."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from online_grads import cells, eprop, gradient, memory
from tests.estimators.past_facing.test_eprop import CUT
from tests.models import exact_gradient, of_cell, problem_of, relative_error

DECAY, STEPS = 0.8, 12
SPIKING = ("lif", "alif")


@pytest.mark.parametrize("name", SPIKING)
def test_spiking_cells_filter_their_spikes_on_request(name):
    make = cells.CELLS[name]
    plain, cell = make(2, 3, threshold=0.4), make(2, 3, threshold=0.4, readout_decay=DECAY)
    params, inner = plain.init(jax.random.key(0))
    _, hidden = cell.init(jax.random.key(0))
    readout, bias, y, spikes = jnp.array([1.0, -2.0, 3.0]), 0.5, jnp.array(0.5), 0.0
    for x in np.random.default_rng(0).normal(size=(STEPS, 2)):
        inner, hidden = plain.step(params, inner, x), cell.step(params, hidden, x)
        jax.tree.map(np.testing.assert_array_equal, hidden.cell, inner)
        y = DECAY * y + readout @ inner.z + (1 - DECAY) * bias
        np.testing.assert_allclose(readout @ cell.output(hidden) + bias, y, rtol=0, atol=1e-14)
        spikes += inner.z.sum()
    assert spikes > 0
    assert (cell.inputs, cell.size) == (2, 3)


@pytest.mark.parametrize("name", SPIKING)
def test_eprop_is_a_stop_gradient_at_the_recurrent_input(name):
    plain, step = CUT[name]
    cell = cells.filtered(plain, DECAY)
    given = problem_of(of_cell(cell), STEPS)
    # weights large enough for spikes to come and go
    params = jax.tree.map(lambda leaf: 2 * leaf, given.params)
    args = params, *given.args[1:]

    def exact(cut):
        def transition(params, hidden, x):
            inner = step(params["cell"], hidden.cell, x, cut)
            return cells.FilteredHidden(inner, DECAY * hidden.trace + inner.z)

        return exact_gradient(given.model._replace(transition=transition), *args)

    go = lambda *args: gradient(eprop(given.model), *args, key=jax.random.key(1), window=4)
    got, whole = jax.jit(go)(*args), exact(lambda z: z)
    assert relative_error(got, exact(jax.lax.stop_gradient)) <= 1e-10
    assert relative_error(exact_gradient(given.model, *args), whole) <= 1e-10
    assert relative_error(got["cell"], whole["cell"]) > 1e-2


def test_eprop_keeps_as_many_entries_of_any_size():
    """The trace joins a neuron's unit, and no two neurons become one."""
    sizes = []
    for n in (10, 20, 40):
        model = of_cell(cells.lif(3, n, readout_decay=DECAY))
        sizes.append(memory(eprop(model), *jax.eval_shape(model.init, jax.random.key(0))))
    # n² + 3n weights, each with as many entries; a whole influence grows eightfold
    assert sizes[2] < 4 * sizes[1] < 16 * sizes[0]


def test_any_cell_can_be_filtered():
    cell = cells.filtered(cells.stack(cells.gru(2, 3), cells.lstm(3, 4)), DECAY)
    params, hidden = cell.init(jax.random.key(0))
    moved = cell.step(params, hidden, jnp.ones(2))
    np.testing.assert_array_equal(cell.output(moved), moved.cell[1].h)
    again = cell.step(params, moved, jnp.ones(2))
    np.testing.assert_allclose(again.trace, again.cell[1].h + DECAY * moved.trace, rtol=1e-14)


def test_bad_arguments():
    with pytest.raises(TypeError, match="filtered needs a Cell, got 'lif'"):
        cells.filtered("lif", 0.5)
    for decay in (0.0, 1.0):
        with pytest.raises(ValueError, match=r"decay must be in \(0, 1\)"):
            cells.filtered(cells.gru(2, 3), decay)
