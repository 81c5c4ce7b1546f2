"""Cells against their equations in NumPy, recorded values, and the cells of flax and equinox."""

from pathlib import Path

import equinox
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from online_grads import cells, from_cell, losses, readouts
from online_grads.analysis import analyse
from online_grads.linearize import Weights

M, N = 3, 5  # inputs, units
STREAM = np.random.default_rng(0).normal(size=(7, M))


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def vanilla_step(p, a, x):
    return 0.7 * a + 0.3 * np.tanh(p["W_rec"] @ a + p["W_in"] @ x + p["bias"])


def lstm_step(p, state, x):
    h, c = state
    i, f, g, o = (p["W"] @ np.concatenate([h, x]) + p["bias"]).reshape(4, N)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def gru_step(p, h, x):
    r, z = sigmoid(p["W_rz"] @ np.concatenate([h, x]) + p["bias_rz"]).reshape(2, N)
    new = np.tanh(p["W_in"] @ x + p["bias_in"] + r * (p["W_hn"] @ h + p["bias_hn"]))
    return (1 - z) * new + z * h


def gru_reset_before_step(p, h, x):
    r, z = sigmoid(p["W_rz"] @ np.concatenate([h, x]) + p["bias_rz"]).reshape(2, N)
    new = np.tanh(p["W_x"] @ x + p["W_h"] @ (r * h) + p["bias"])
    return (1 - z) * new + z * h


def current(p, z, x):
    W = p["W_rec"].copy()
    np.fill_diagonal(W, 0)
    return W @ z + p["W_in"] @ x


def fire(u, silent):
    z = np.where(silent > 0, 0.0, u > 0)
    return z, np.clip(silent + 2 * z.astype(int) - 1, 0, 2)


def lif_step(p, state, x):
    v, z, silent = state
    v = 0.9 * v + current(p, z, x) - 0.5 * z
    return v, *fire(v - 0.5, silent)


def alif_step(p, state, x):
    v, a, z, silent = state
    v, a = 0.9 * v + current(p, z, x) - 0.5 * z, 0.8 * a + z
    return v, a, *fire(v - 0.5 - 0.3 * a, silent)


def columnar_step(p, h, x):
    below = np.maximum(p["fc1"]["W"] @ x + p["fc1"]["bias"], 0)
    f = np.maximum([W @ b for W, b in zip(p["fc2"]["W"], below, strict=True)] + p["fc2"]["bias"], 0)
    return h + np.tanh((p["own"] * f).sum(1) + p["bias"])


def columnar_lstm_step(p, state, x):
    h, c = state
    z = [p["W"][rows] @ x + p["self"][rows] * h + p["bias"][rows] for rows in np.arange(4 * N).reshape(4, N)]
    c = sigmoid(z[1]) * c + sigmoid(z[0]) * np.tanh(z[2])
    return sigmoid(z[3]) * np.tanh(c), c


def constructive_step(p, state, x):
    """One column per stage, the next one after two steps."""
    (h, c), mean, variance, step, stage = jax.tree.map(np.array, state)
    f = np.where(np.arange(N)[:, None] <= stage, (h - mean) / np.sqrt(np.maximum(variance, 0.25)), 0)
    stage = np.clip(step // 2, 0, N - 1)
    for r in range(stage + 1):
        seen = np.concatenate([x, f[:r, 0], np.zeros(N - r)])
        i, forget, g, o = p["W"][r] @ seen + p["self"][r] * h[r] + p["bias"][r]
        c[r] = sigmoid(forget) * c[r] + sigmoid(i) * np.tanh(g)
        h[r] = sigmoid(o) * np.tanh(c[r])
        mean[r] = 0.9 * mean[r] + 0.1 * h[r]
        variance[r] = 0.9 * variance[r] + 0.1 * (h[r] - mean[r]) ** 2
    moved = cells.LstmHidden(h, c), mean, variance, np.minimum(step + 1, 2 * (N - 1)), stage
    return cells.ConstructiveHidden(*moved)


def decay_of(p):
    return np.exp(-np.exp(p["nu_log"]) + 1j * np.exp(p["theta_log"]))


def lru_step(p, state, x):
    h = decay_of(p) * (state[0] + 1j * state[1])
    h = h + np.exp(p["gamma_log"]) * ((p["B_re"] + 1j * p["B_im"]) @ x)
    return h.real, h.imag, ((p["C_re"] + 1j * p["C_im"]) @ h).real + p["D"] @ x


def rtu_step(p, state, x):
    decay = decay_of(p)
    c = decay * (state[0] + 1j * state[1])
    c = c + np.sqrt(1 - np.abs(decay) ** 2) * ((p["W"][:N] + 1j * p["W"][N:]) @ x)
    return c.real, c.imag


def elstm_step(p, state, x):
    c, _ = state
    of_f, of_z = slice(N), slice(N, 2 * N)
    f = sigmoid(p["W"][of_f] @ x + p["self"][of_f] * c + p["bias"][of_f])
    z = np.tanh(p["W"][of_z] @ x + p["self"][of_z] * c + p["bias"][of_z])
    c = f * c + (1 - f) * z
    return c, sigmoid(p["W_o"][:, :N] @ c + p["W_o"][:, N:] @ x + p["bias_o"]) * c


def low_pass_step(p, h, x):
    alpha = sigmoid(p["decay"])
    return alpha * h + (1 - alpha) * np.tanh(p["W"] @ x + p["bias"])


SPIKING = {"decay": 0.9, "threshold": 0.5, "refractory": 2}
EQUATIONS = {
    "lif": (cells.lif(M, N, **SPIKING), lif_step),
    "alif": (cells.alif(M, N, adaptation_decay=0.8, beta=0.3, **SPIKING), alif_step),
    "columnar_lstm": (cells.columnar_lstm(M, N), columnar_lstm_step),
    "columnar_rnn": (cells.columnar_rnn(M, N, width=4), columnar_step),
    "constructive_columns": (
        cells.constructive_columns(M, N, every=2, decay=0.9, floor=0.5),
        constructive_step,
    ),
    "elstm": (cells.elstm(M, N), elstm_step),
    "low_pass": (cells.low_pass(M, N), low_pass_step),
    "lru": (cells.lru(M, N, outputs=4), lru_step),
    "rtu": (cells.rtu(M, N), rtu_step),
    "vanilla_rnn": (cells.vanilla_rnn(M, N, leak=0.3), vanilla_step),
    "lstm": (cells.lstm(M, N), lstm_step),
    "gru": (cells.gru(M, N), gru_step),
    "gru_reset_before": (cells.gru_reset_before(M, N), gru_reset_before_step),
}

# the leaves that act entry by entry: all others are matrices
ELEMENTWISE = ("bias", "self", "decay", "_log")


def random_like(tree):
    """Random everywhere, so that biases and initial states take part."""
    draw = np.random.default_rng(1).normal
    return jax.tree.map(lambda leaf: draw(size=leaf.shape).astype(leaf.dtype), tree)


def drawn(cell):
    """Random parameters and a random hidden state."""
    return random_like(jax.eval_shape(cell.init, jax.random.key(0)))


def unroll(step, params, hidden, stream=STREAM):
    """All hidden states, flattened: [T, n]."""
    states = []
    for x in stream:
        hidden = step(params, hidden, x)
        states.append(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(hidden)]))
    return np.stack(states)


def test_every_named_cell_is_tested():
    assert EQUATIONS.keys() == cells.CELLS.keys()


@pytest.mark.parametrize("name", EQUATIONS)
def test_follows_its_equations(name):
    cell, by_hand = EQUATIONS[name]
    params, hidden = drawn(cell)
    expected = unroll(by_hand, params, hidden)
    step = jax.jit(cell.step)
    np.testing.assert_allclose(unroll(step, params, hidden), expected, rtol=0, atol=1e-14)
    # every parameter, and the hidden state, takes part
    for i, leaf in enumerate(leaves := jax.tree.leaves(params)):
        other = [*leaves[:i], leaf + 0.1, *leaves[i + 1 :]]
        moved = unroll(step, jax.tree.unflatten(jax.tree.structure(params), other), hidden)
        assert np.abs(moved - expected).max() > 1e-3


def test_where_the_reset_gate_acts_matters():
    params, h = drawn(cells.gru(M, N))
    params["bias_hn"] = jnp.zeros(N)
    swapped = {"W_x": params["W_in"], "W_h": params["W_hn"], "bias": params["bias_in"]} | params
    after, before = (
        cells.gru(M, N).step(params, h, STREAM[0]),
        cells.gru_reset_before(M, N).step(swapped, h, STREAM[0]),
    )
    assert np.abs(after - before).max() > 1e-3


def test_vanilla_rnn_reproduces_the_recorded_states():
    recorded = np.load(Path(__file__).parents[1] / "data" / "vanilla_rnn.npz")
    params = {"W_rec": recorded["W_rec"], "W_in": recorded["W_in"], "bias": recorded["b_rec"]}
    states = {
        leak: unroll(
            cells.vanilla_rnn(3, 6, leak=leak).step, params, jnp.asarray(recorded["a0"]), recorded["X"]
        )
        for leak in (float(recorded["alpha"]), 1.0)
    }
    leaky, leakless = states.values()
    np.testing.assert_allclose(leaky, recorded["states"], rtol=0, atol=1e-14)
    assert np.abs(leakless - recorded["states"]).max() > 1e-2


def test_gru_equals_flax():
    theirs = flax.linen.GRUCell(N, param_dtype=jnp.float64)
    variables = random_like(jax.eval_shape(theirs.init, jax.random.key(0), jnp.zeros(N), jnp.zeros(M)))
    p = variables["params"]
    rz = [jnp.concatenate([p["h" + g]["kernel"], p["i" + g]["kernel"]]).T for g in "rz"]
    ours = {
        "W_rz": jnp.concatenate(rz),
        "bias_rz": jnp.concatenate([p["ir"]["bias"], p["iz"]["bias"]]),
        "W_in": p["in"]["kernel"].T,
        "bias_in": p["in"]["bias"],
        "W_hn": p["hn"]["kernel"].T,
        "bias_hn": p["hn"]["bias"],
    }
    step = jax.jit(lambda variables, h, x: theirs.apply(variables, h, x)[0])
    h = np.full(N, 0.5)
    np.testing.assert_allclose(
        unroll(jax.jit(cells.gru(M, N).step), ours, h), unroll(step, variables, h), rtol=0, atol=1e-14
    )


def test_gru_equals_equinox():
    theirs = random_like(
        equinox.filter_eval_shape(equinox.nn.GRUCell, M, N, dtype=jnp.float64, key=jax.random.key(0))
    )
    joint = jnp.concatenate([theirs.weight_hh, theirs.weight_ih], axis=1)
    ours = {
        "W_rz": joint[: 2 * N],
        "bias_rz": theirs.bias[: 2 * N],
        "W_in": theirs.weight_ih[2 * N :],
        "bias_in": theirs.bias[2 * N :],
        "W_hn": theirs.weight_hh[2 * N :],
        "bias_hn": theirs.bias_n,
    }
    h = np.full(N, 0.5)
    expected = unroll(jax.jit(lambda cell, h, x: cell(x, h)), theirs, h)
    np.testing.assert_allclose(unroll(jax.jit(cells.gru(M, N).step), ours, h), expected, rtol=0, atol=1e-14)


def test_lstm_equals_equinox():
    theirs = random_like(
        equinox.filter_eval_shape(equinox.nn.LSTMCell, M, N, dtype=jnp.float64, key=jax.random.key(0))
    )
    ours = {"W": jnp.concatenate([theirs.weight_hh, theirs.weight_ih], axis=1), "bias": theirs.bias}
    state = cells.LstmHidden(np.full(N, 0.5), np.full(N, 0.3))
    expected = unroll(jax.jit(lambda cell, state, x: cell(x, state)), theirs, tuple(state))
    np.testing.assert_allclose(
        unroll(jax.jit(cells.lstm(M, N).step), ours, state), expected, rtol=0, atol=1e-14
    )


def test_initial_weights():
    m, n = 50, 64
    vanilla, _ = jax.jit(cells.vanilla_rnn(m, n).init)(jax.random.key(0))
    np.testing.assert_allclose(vanilla["W_rec"] @ vanilla["W_rec"].T, np.eye(n), atol=1e-12)
    np.testing.assert_allclose(jnp.var(vanilla["W_in"]), 1 / m, rtol=0.1)
    assert not vanilla["bias"].any()
    init = jax.jit(cells.lstm(m, n, forget_bias=2.0).init)
    params, hidden = jax.tree.map(np.asarray, init(jax.random.key(0)))
    gates = params["W"][:, :n].reshape(4, n, n)
    np.testing.assert_allclose(gates @ gates.transpose(0, 2, 1), np.stack([np.eye(n)] * 4), atol=1e-12)
    np.testing.assert_allclose(params["bias"].reshape(4, n)[:, 0], [0, 2, 0, 0])
    assert not np.any(hidden)
    # neither gates nor parameters share a draw
    assert np.abs(gates[0] - gates[1]).max() > 0.1
    assert np.abs(params["W"] - init(jax.random.key(1))[0]["W"]).max() > 0.1


@pytest.mark.parametrize("name", EQUATIONS)
@pytest.mark.parametrize("dtype", [None, jnp.float32, jnp.bfloat16])
def test_dtype_is_honoured(name, dtype):
    cell = cells.CELLS[name](M, N, dtype=dtype)
    expected = jnp.dtype(dtype or jnp.float64)
    params, hidden = jax.eval_shape(cell.init, jax.random.key(0))
    moved = jax.eval_shape(cell.step, params, hidden, jnp.zeros(M, expected))
    dtypes = {leaf.dtype for leaf in jax.tree.leaves((params, hidden, moved))}
    # spiking cells count steps of silence
    assert dtypes - {jnp.dtype(jnp.int32)} == {expected}
    assert jax.tree.structure(moved) == jax.tree.structure(hidden)


@pytest.mark.parametrize("name", EQUATIONS)
def test_every_weight_matrix_meets_a_vector_in_a_plain_product(name):
    cell, _ = EQUATIONS[name]
    example = jnp.zeros(M), jnp.zeros(2)
    found = analyse(from_cell(cell, readouts.linear(cell.size, 2), losses.squared_error, example=example))
    structure = Weights(found, dense=False)
    leaves = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(found.params["cell"])]
    alone = {leaf for leaf in leaves if any(word in leaf for word in ELEMENTWISE)}
    synapses = [site for site in structure.sites if not site.direct]
    direct = [site for site in structure.sites if site.direct]
    assert len({site.weight for site in synapses}) == len(synapses) == len(leaves) - len(alone)
    read = [leaf for site in direct for leaf in structure.names[site.weight].split(", ")]
    assert all(any(word in leaf for word in ELEMENTWISE) for leaf in read)
    assert len(set(read)) == len(alone)


def test_a_stack_moves_every_layer_in_one_step():
    bottom, top = cells.lstm(M, N), cells.gru(N, 2)
    stacked = cells.stack(bottom, top)
    params, hidden = drawn(stacked)
    below = bottom.step(params[0], hidden[0], STREAM[0])
    above = top.step(params[1], hidden[1], below.h)
    moved = stacked.step(params, hidden, STREAM[0])
    np.testing.assert_array_equal(moved[0].c, below.c)
    np.testing.assert_array_equal(stacked.output(moved), above)
    assert (stacked.inputs, stacked.size) == (M, 2)
    stale = top.step(params[1], hidden[1], hidden[0].h)
    assert np.abs(above - stale).max() > 1e-3


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: cells.stack(), ValueError, "at least one cell"),
        (
            lambda: cells.stack(cells.gru(2, 3), cells.gru(3, 4), cells.gru(3, 4)),
            ValueError,
            r"cells\[2\] takes inputs of size 3, but cells\[1\] below it outputs size 4",
        ),
        (lambda: cells.stack(cells.gru(2, 3), "gru"), TypeError, r"cells\[1\] must be a Cell, got 'gru'"),
        (lambda: cells.gru(2, 0), ValueError, "hidden must be at least 1, got 0"),
        (lambda: cells.lstm(2.0, 3), TypeError, "inputs must be an integer, got 2.0"),
        (lambda: cells.lstm(True, 3), TypeError, "inputs must be an integer, got True"),
        (lambda: cells.lstm(2, 3, forget_bias="1"), TypeError, "forget_bias must be a number, got '1'"),
        (lambda: cells.lstm(2, 3, forget_bias=np.inf), ValueError, "forget_bias must be finite, got inf"),
        (lambda: cells.vanilla_rnn(2, 3, leak=0), ValueError, r"leak must be in \(0, 1\], got 0"),
        (lambda: cells.vanilla_rnn(2, 3, leak=float("nan")), ValueError, "leak must be in"),
        (lambda: cells.vanilla_rnn(2, 3, leak="1"), TypeError, "leak must be a number, got '1'"),
        (
            lambda: cells.vanilla_rnn(2, 3, activation="tanh"),
            TypeError,
            "activation must be a function, got 'tanh'",
        ),
        (
            lambda: cells.gru_reset_before(2, 3, dtype=int),
            TypeError,
            "dtype must be a real floating dtype, got int64",
        ),
    ],
)
def test_bad_arguments(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_float64_is_not_quietly_truncated():
    jax.config.update("jax_enable_x64", False)
    try:
        with pytest.raises(ValueError, match="dtype float64 needs"):
            cells.gru(2, 3, dtype=jnp.float64)
    finally:
        jax.config.update("jax_enable_x64", True)


def test_a_spike_has_the_papers_slope():
    """dz/dv = (γ/v_th) max(0, 1 − |v − v_th|/v_th), and none while the neuron is silent."""
    cell = cells.lif(1, 1, threshold=0.5, dampening=0.3, refractory=1)
    params = {"W_rec": jnp.zeros((1, 1)), "W_in": jnp.ones((1, 1))}
    slope = lambda x, silent: jax.jacfwd(
        lambda x: cell.step(params, cells.LifHidden(jnp.zeros(1), jnp.zeros(1), jnp.array([silent])), x).z
    )(jnp.array([x]))
    for v in (-0.1, 0.2, 0.5, 0.7, 1.2):
        expected = 0.3 / 0.5 * max(0.0, 1 - abs(v - 0.5) / 0.5)
        assert float(slope(v, 0)[0, 0]) == pytest.approx(expected, abs=1e-12)
        assert float(slope(v, 1)[0, 0]) == 0


@pytest.mark.parametrize("refractory", [0, 1, 2, 3])
def test_a_neuron_spikes_at_most_once_in_its_refractory_period(refractory):
    cell = cells.lif(1, 1, threshold=0.5, refractory=refractory)
    params = {"W_rec": jnp.zeros((1, 1)), "W_in": jnp.ones((1, 1))}
    spikes = unroll(cell.step, params, cell.init(jax.random.key(0))[1], 9 * np.ones((12, 1)))[:, 1]
    np.testing.assert_array_equal(np.flatnonzero(spikes), np.arange(0, 12, max(refractory, 1)))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"decay": 1.0}, ValueError, r"decay must be in \(0, 1\), got 1\.0"),
        ({"threshold": 0.0}, ValueError, r"threshold must be in \(0, inf\), got 0\.0"),
        ({"dampening": "much"}, TypeError, "dampening must be a number, got 'much'"),
        ({"readout_decay": 1.0}, ValueError, r"readout_decay must be in \[0, 1\), got 1\.0"),
        ({"refractory": -1}, ValueError, "refractory must be at least 0, got -1"),
    ],
)
@pytest.mark.parametrize("constructor", [cells.lif, cells.alif])
def test_bad_spiking_options(constructor, options, error, message):
    with pytest.raises(error, match=message):
        constructor(2, 3, **options)
