"""Cells whose exact influence is O(p): exact by rtrl and by snap's first order, links, how they are drawn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from online_grads import cells, gradient, rtrl, snap, tbptt
from tests.cells.test_cells import decay_of, random_like, sigmoid, unroll
from tests.models import INPUTS, of_cell, problem_of, relative_error

D, STEPS = 3, 6
CELLS = {
    "columnar_lstm": cells.columnar_lstm(INPUTS, D),
    "elstm": cells.elstm(INPUTS, D),
    "low_pass": cells.low_pass(INPUTS, D, longest=9.0),
    "lru": cells.lru(INPUTS, D, outputs=2),
    "rtu": cells.rtu(INPUTS, D),
    "rtu nonlinear": cells.rtu(INPUTS, D, nonlinear=True),
}


def given_of(cell):
    """The problem of a cell with random parameters, its biases too, that starts somewhere."""
    begin = lambda key: random_like(jax.eval_shape(cell.init, key))
    return problem_of(of_cell(cell._replace(init=begin)), STEPS)


def online(estimator, given, window=3):
    go = lambda *args: gradient(estimator, *args, key=jax.random.key(1), window=window)
    return jax.jit(go)(*given.args)


@pytest.mark.parametrize("name", CELLS)
def test_rtrl_and_the_first_order_of_snap_are_exact(name):
    given = given_of(CELLS[name])
    assert relative_error(online(rtrl(given.model), given), given.exact) <= 1e-10
    assert relative_error(online(snap(given.model, order=1), given, window=1), given.exact) <= 1e-10
    # the past matters
    assert relative_error(online(tbptt(given.model), given, window=1), given.exact) > 1e-3


def test_the_nonlinear_rtu_follows_its_equations():
    cell = cells.rtu(INPUTS, D, nonlinear=True)
    params, hidden = random_like(jax.eval_shape(cell.init, jax.random.key(0)))

    def by_hand(p, state, x, squash=np.tanh):
        decay = decay_of(p)
        c = decay * (state[0] + 1j * state[1])
        c = c + np.sqrt(1 - np.abs(decay) ** 2) * (p["W"][:D] @ x + 1j * (p["W"][D:] @ x))
        return squash(c.real), squash(c.imag)

    stream = np.random.default_rng(0).normal(size=(STEPS, INPUTS))
    expected = unroll(by_hand, params, hidden, stream)
    np.testing.assert_allclose(
        unroll(jax.jit(cell.step), params, hidden, stream), expected, rtol=0, atol=1e-14
    )
    linear = unroll(functools.partial(by_hand, squash=lambda z: z), params, hidden, stream)
    assert np.abs(linear - expected).max() > 1e-3


def test_an_rtu_is_not_linear_in_its_output_or_else_in_its_recurrence():
    state = cells.RtuHidden(jnp.array([0.5, -2.0]), jnp.array([1.0, 3.0]))
    flat = np.concatenate(state)
    outputs = [cells.rtu(1, 2, nonlinear=nonlinear).output(state) for nonlinear in (False, True)]
    np.testing.assert_allclose(outputs, [np.tanh(flat), flat], rtol=1e-14)


def test_tangents_are_the_slopes_of_the_steps():
    """No part of a step is held: γ of an RTU moves with |λ|."""
    for name, cell in CELLS.items():
        start = random_like(jax.eval_shape(cell.init, jax.random.key(0)))
        tangent = jax.tree.map(jnp.cos, start)
        step = jax.jit(lambda start, cell=cell: jax.tree.leaves(cell.step(*start, jnp.ones(INPUTS))))
        got = jax.jit(lambda a, b, step=step: jax.jvp(step, (a,), (b,))[1])(start, tangent)
        moved = [step(jax.tree.map(lambda a, b, e=e: a + e * b, start, tangent)) for e in (1e-5, -1e-5)]
        slope = [(up - down) / 2e-5 for up, down in zip(*moved, strict=True)]
        np.testing.assert_allclose(
            np.concatenate(got), np.concatenate(slope), rtol=0, atol=1e-7, err_msg=name
        )


def test_the_phase_of_an_rtu_has_the_factor_that_the_public_code_leaves_out():
    """∂g/∂θ = −s e^θ and ∂s/∂θ = g e^θ."""
    cell = cells.rtu(INPUTS, D)
    params, (c1, c2) = random_like(jax.eval_shape(cell.init, jax.random.key(0)))
    step = lambda theta_log: cell.step(
        params | {"theta_log": theta_log}, cells.RtuHidden(c1, c2), jnp.ones(INPUTS)
    )
    got = jax.jvp(step, (params["theta_log"],), (jnp.ones(D),))[1]
    g, s = decay_of(params).real, decay_of(params).imag
    public = np.stack([-s * c1 - g * c2, -s * c2 + g * c1])
    np.testing.assert_allclose(np.stack(got), np.exp(params["theta_log"]) * public, rtol=1e-12)
    assert (np.abs(np.stack(got) - public) > 1e-2).all()


LINKS = {"density": 0.6, "wiring": 3}


@functools.cache
def linked(local):
    return given_of(cells.columnar_lstm(INPUTS, D, local=local, **LINKS))


def mask():
    """Which columns read which, from the rule in words."""
    drawn = np.random.default_rng(LINKS["wiring"]).random((D, D)) < LINKS["density"]
    np.fill_diagonal(drawn, False)
    assert 0 < drawn.sum() < D * (D - 1)
    return drawn.astype(float)


def per_column(theta):
    """The parameters with a first axis of columns and a second one of gates."""
    return jax.tree.map(lambda leaf: leaf.reshape(4, D, *leaf.shape[1:]).swapaxes(0, 1), theta)


def column(theta, own, x, others):
    """One column by itself, (h_i, c_i); `others` [d] holds the states that it reads, 0 elsewhere."""
    h, c = own
    i, f, g, o = theta["W"] @ x + theta["self"] * h + theta["links"] @ others + theta["bias"]
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jnp.stack([jax.nn.sigmoid(o) * jnp.tanh(c), c])


def master_user(given):
    """One trace per parameter, on its own column: TH' = ∂s_i'/∂θ_i + (∂s_i'/∂s_i) TH, others fixed."""
    theta, exists = per_column(given.params["cell"]), jnp.asarray(mask())
    every = lambda function: jax.vmap(function, (0, 0, None, 0))
    read = lambda readout, s, y: given.model.loss({"readout": readout}, cells.LstmHidden(*s.T), y)[0]

    def body(carry, xy):
        s, traces, total = carry
        args = theta, s, xy[0], exists * s[None, :, 0]
        immediate, through = every(jax.jacfwd(column, (0, 1)))(*args)
        traces = jax.tree.map(
            lambda now, old: now + jnp.einsum("dab,db...->da...", through, old), immediate, traces
        )
        s = every(column)(*args)
        readout, credit = jax.grad(read, (0, 1))(given.params["readout"], s, xy[1])
        grads = jax.tree.map(lambda trace: jnp.einsum("da,da...->d...", credit, trace), traces)
        total = jax.tree.map(jnp.add, total, {"cell": grads, "readout": readout})
        return (s, traces, total), s

    zeros = functools.partial(jax.tree.map, jnp.zeros_like)
    traces = jax.tree.map(lambda leaf: jnp.zeros((D, 2, *leaf.shape[1:])), theta)
    start = jnp.stack(given.hidden, axis=1), traces, zeros(given.params | {"cell": theta})
    (_, _, total), states = jax.lax.scan(body, start, (given.xs, given.ys))
    total["cell"] = jax.tree.map(lambda g: g.swapaxes(0, 1).reshape(4 * D, *g.shape[2:]), total["cell"])
    return jax.tree.map(lambda g: g / STEPS, total), states


def test_rtrl_of_local_columns_is_the_master_user_algorithm():
    given, whole = linked(True), linked(False)
    by_hand, states = jax.jit(lambda: master_user(given))()
    hidden, step = given.hidden, jax.jit(given.model.transition)
    for x, expected in zip(given.xs, states, strict=True):
        hidden = step(given.params, hidden, x)
        np.testing.assert_allclose(np.stack(hidden, axis=1), expected, rtol=0, atol=1e-14)
    got = online(rtrl(given.model), given)
    assert relative_error(got, by_hand) <= 1e-12
    np.testing.assert_array_equal(got["cell"]["links"] != 0, by_hand["cell"]["links"] != 0)
    # what passes through the links is lost, unless the gradient may pass
    assert relative_error(got, whole.exact) > 1e-3
    assert relative_error(online(rtrl(whole.model), whole), whole.exact) <= 1e-10
    assert relative_error(online(snap(whole.model), whole), whole.exact) > 1e-3


def test_columns_are_drawn_with_the_fan_in_and_linked_with_the_density():
    d, m, density = 60, 15, 0.25
    draw = lambda **options: cells.columnar_lstm(m, d, density=density, forget_bias=2.0, **options)
    params, hidden = jax.jit(draw().init)(jax.random.key(0))
    for name in ("W", "self", "links"):
        bound = 1 / np.sqrt(m + 1 + density * (d - 1))
        assert jnp.abs(params[name]).max() <= bound
        np.testing.assert_allclose(jnp.std(params[name]), bound / np.sqrt(3), rtol=0.1)
    np.testing.assert_array_equal(params["bias"].reshape(4, d), np.tile([[0], [2], [0], [0]], d))

    def reads(cell):
        """[d, d] whether a column's state moves with another's, through no weight of its own."""
        one = jax.tree.map(jnp.ones_like, params) | {"self": jnp.zeros(4 * d)}
        state = lambda h: cell.step(one, cells.LstmHidden(h, hidden.c), jnp.zeros(m)).h
        return np.asarray(jax.jit(jax.jacfwd(state))(hidden.h)) != 0

    exists = reads(draw())
    np.testing.assert_allclose(exists.sum(), density * d * (d - 1), atol=4 * np.sqrt(density * d * (d - 1)))
    assert not exists.diagonal().any()
    assert (reads(draw(wiring=1)) != exists).any()
    assert not reads(draw(local=True)).any()


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.bfloat16])
def test_decays_are_uniform_in_area_on_their_ring(dtype):
    n, low, high, most = 4000, 0.4, 0.9, 2.0
    cell = cells.lru(1, n, outputs=1, r_min=low, r_max=high, max_phase=most, dtype=dtype)
    drawn = jax.jit(cell.init)(jax.random.key(0))[0]
    params = {name: np.asarray(drawn[name], float) for name in ("nu_log", "theta_log", "gamma_log")}
    radius, phase = np.abs(decay_of(params)), np.exp(params["theta_log"])
    uniform = {"area": (radius**2 - low**2) / (high**2 - low**2), "phase": phase / most}
    rounding = 0.02 if dtype == jnp.bfloat16 else 1e-9
    for unit in uniform.values():
        assert unit.min() > -rounding
        assert unit.max() < 1 + rounding
        np.testing.assert_allclose(np.histogram(unit, 4, (0, 1))[0] / n, 0.25, atol=0.04)
    np.testing.assert_allclose(np.exp(params["gamma_log"]), np.sqrt(1 - radius**2), rtol=rounding)
    assert len(np.unique(params["nu_log"])) > 300  # of bfloat16's numbers; its uniform draws are 128
    # the whole disk is open: no unit is at its bounds, where it would stay
    whole = jax.jit(cells.rtu(1, n, dtype=dtype).init)(jax.random.key(0))[0]
    edge = cells.rtu(1, 2, r_min=1.0, max_phase=5e-324, dtype=dtype).init(jax.random.key(0))[0]
    assert all(jnp.isfinite(leaf).all() for leaf in (*whole.values(), *edge.values()))


def test_what_is_drawn_besides():
    """Standard deviations times the root of what a product sums over."""
    m, n, o = 50, 80, 60
    params = jax.jit(cells.lru(m, n, outputs=o).init)(jax.random.key(0))[0]
    params |= jax.jit(cells.elstm(m, n).init)(jax.random.key(0))[0]
    gate = params.pop("W_o")
    np.testing.assert_allclose(gate[:, :n].T @ gate[:, :n], np.eye(n), atol=1e-12)
    params |= {"W_o": gate[:, n:], "rtu": cells.rtu(m, n).init(jax.random.key(0))[0]["W"]}
    params["low_pass"] = cells.low_pass(m, n).init(jax.random.key(0))[0]["W"]
    scales = {"B_re": 1 / np.sqrt(2), "B_im": 1 / np.sqrt(2), "self": 0.1 * np.sqrt(2 * n)}
    for name in ("B_re", "B_im", "C_re", "C_im", "D", "W", "W_o", "self", "rtu", "low_pass"):
        found = jnp.std(params[name]) * np.sqrt(params[name].shape[-1])
        np.testing.assert_allclose(found, scales.get(name, 1.0), rtol=0.2, err_msg=name)


def test_time_constants_are_spread_evenly_in_their_logarithm():
    params, h = cells.low_pass(2, 4000, shortest=0.5, longest=800.0).init(jax.random.key(0))
    times = -1 / np.log(sigmoid(np.asarray(params["decay"])))
    unit = np.log(times / 0.5) / np.log(1600)
    assert (unit.min() > 0, unit.max() < 1, h.any()) == (True, True, False)
    np.testing.assert_allclose(np.histogram(unit, 4, (0, 1))[0] / 4000, 0.25, atol=0.04)


@pytest.mark.parametrize(
    ("build", "options", "error", "message"),
    [
        (cells.columnar_lstm, {"density": 1.1}, ValueError, r"density must be in \[0, 1\], got 1\.1"),
        (cells.columnar_lstm, {"density": -0.1}, ValueError, r"density must be in \[0, 1\], got -0\.1"),
        (cells.columnar_lstm, {"local": 1}, TypeError, "local must be True or False, got 1"),
        (cells.columnar_lstm, {"wiring": -1}, ValueError, "wiring must be at least 0, got -1"),
        (cells.columnar_lstm, {"forget_bias": "1"}, TypeError, "forget_bias must be a number, got '1'"),
        (cells.columnar_lstm, {"forget_bias": np.nan}, ValueError, "forget_bias must be finite, got nan"),
        (cells.lru, {"outputs": 0}, ValueError, "outputs must be at least 1, got 0"),
        (cells.lru, {"r_max": 1.5}, ValueError, r"r_max must be above 0 and at most 1, got 1\.5"),
        (
            cells.lru,
            {"r_min": 0.9, "r_max": 0.8},
            ValueError,
            r"r_min must be at most r_max, got 0\.9 and 0\.8",
        ),
        (cells.rtu, {"max_phase": 0.0}, ValueError, r"max_phase must be above 0 .*, got 0\.0"),
        (cells.rtu, {"r_min": "0"}, TypeError, "r_min must be a number, got '0'"),
        (cells.rtu, {"nonlinear": "tanh"}, TypeError, "nonlinear must be True or False, got 'tanh'"),
        (cells.elstm, {"dtype": int}, TypeError, "dtype must be a real floating dtype, got int64"),
        (cells.low_pass, {"shortest": 0.0}, ValueError, r"shortest must be above 0, got 0\.0"),
        (cells.low_pass, {"shortest": 200.0}, ValueError, "shortest must be at most longest"),
    ],
)
def test_bad_arguments(build, options, error, message):
    with pytest.raises(error, match=message):
        build(3, 4, **options)
