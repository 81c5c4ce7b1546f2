"""Step by step against values of an independent implementation, tests/data/vanilla_rnn.npz."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from online_grads import (
    Model,
    dni,
    fbptt,
    feedback,
    kernl,
    kf_rtrl,
    losses,
    reverse_kf_rtrl,
    rflo,
    rtrl,
    tbptt,
    uoro,
)
from online_grads.analysis import analyse
from online_grads.estimators.past_facing import factored
from online_grads.estimators.past_facing import uoro as uoro_file
from online_grads.estimators.past_facing.kf_rtrl import KfFactors
from online_grads.estimators.past_facing.reverse_kf_rtrl import ReverseKfFactors
from online_grads.linearize import Segment, Weights

DATA = dict(np.load(Path(__file__).parent / "data" / "vanilla_rnn.npz"))
STEPS, SIZE = DATA["states"].shape
LEAVES = ("W_rec", "W_in", "b_rec", "W_out", "b_out")
# a setting with which the same comparison must fail
WRONG = pytest.mark.xfail(strict=True, raises=AssertionError)


def network():
    """The reference network and its hidden state before the first step."""
    alpha = float(DATA["alpha"])
    params = {name: jnp.asarray(DATA[name]) for name in LEAVES}

    def transition(params, a, x):
        drive = params["W_rec"] @ a + params["W_in"] @ x + params["b_rec"]
        return (1 - alpha) * a + alpha * jnp.tanh(drive)

    def loss(params, a, y):
        logits = params["W_out"] @ a + params["b_out"]
        return losses.softmax_cross_entropy(logits, y), logits

    example = jnp.asarray(DATA["X"][0]), jnp.asarray(DATA["Y"][0])
    return Model(lambda key: (params, jnp.asarray(DATA["a0"])), transition, loss, example)


def assert_emits(name, steps, grads):
    """The sum of what the reference emits over `steps`."""
    for leaf in LEAVES:
        expected = DATA[f"{name}_g{leaf}"][steps].sum(axis=0)
        np.testing.assert_allclose(grads[leaf], expected, rtol=1e-10, atol=1e-12, err_msg=leaf)


def begin(estimator, params, hidden):
    return jax.jit(estimator.init)(params, hidden, key=jax.random.key(0))


def run(estimator, window):
    """The estimates of consecutive segments."""
    model = network()
    params, hidden = model.init(None)
    state, update = begin(estimator, params, hidden), jax.jit(estimator.update)
    for start in range(0, STEPS, window):
        part = slice(start, start + window)
        state, estimate = update(state, params, jnp.asarray(DATA["X"][part]), jnp.asarray(DATA["Y"][part]))
        yield part, state, jax.tree.map(lambda g: window * g, estimate.grads), estimate.loss


def test_rtrl_emits_the_reference_gradient_at_every_step():
    for step, state, grads, loss in run(rtrl(network()), 1):
        np.testing.assert_allclose(state.hidden, DATA["states"][step][0], rtol=1e-12)
        np.testing.assert_allclose(loss, DATA["loss"][step][0], rtol=1e-12)
        assert_emits("rtrl", step, grads)


def test_windows_of_backpropagation():
    for window, _, grads, _ in run(tbptt(network()), 4):
        assert_emits("ebptt4", window, grads)


def test_windows_with_a_longer_memory_emit_something_else():
    _, (window, _, grads, _), *_ = run(tbptt(network(), history=4), 4)
    with pytest.raises(AssertionError):
        assert_emits("ebptt4", window, grads)


@pytest.mark.parametrize("horizon", [4, pytest.param(5, marks=WRONG)])
@pytest.mark.parametrize("window", [1, 4])
def test_fbptt_emits_the_reference_gradient(horizon, window):
    for steps, _, grads, _ in run(fbptt(network(), horizon=horizon), window):
        assert_emits("fbptt4", steps, grads)


@pytest.mark.parametrize("copy_every", [3, pytest.param(4, marks=WRONG)])
def test_dni_learns_and_emits_as_the_reference(copy_every):
    """From the reference's start: a random synthesiser, and a lesson from the state before the first step."""
    params, a0 = network().init(None)
    estimator = dni(network(), inner_optimizer=optax.sgd(0.05), copy_every=copy_every)
    state, update = begin(estimator, params, a0), jax.jit(estimator.update)
    A, labels = jnp.asarray(DATA["dni_A0"]), np.zeros(DATA["Y"].shape[1])
    features = jnp.asarray(np.concatenate([a0, labels, np.ones(1)]))
    lesson = state.learned.lesson._replace(features=features, waiting=jnp.array(True))
    state = state._replace(learned=state.learned._replace(synthesiser=A, copy=A, lesson=lesson))
    for step in range(STEPS):
        part = slice(step, step + 1)
        xs, ys = jnp.asarray(DATA["X"][part]), jnp.asarray(DATA["Y"][part])
        state, estimate = update(state, params, xs, ys)
        expected = DATA["dni_A"][step]
        np.testing.assert_allclose(state.learned.synthesiser, expected, rtol=1e-10, atol=1e-12)
        assert_emits("dni", part, estimate.grads)


def uoro_influence(A, B):
    """s̃ and θ̃ of the reference: B's columns are [W_rec, W_in, b_rec]."""
    inputs = DATA["W_in"].shape[1]
    W_rec, W_in, bias = np.split(B, [SIZE, SIZE + inputs], axis=1)
    # the weights in the order in which they act
    return uoro_file.UoroInfluence(
        jnp.asarray(A), [jnp.asarray(W_rec), jnp.asarray(W_in), jnp.asarray(bias[:, 0])]
    )


@pytest.mark.parametrize("epsilon", [0.0, pytest.param(1e-3, marks=WRONG)])
def test_uoro_moves_as_the_reference_under_the_recorded_noise(epsilon):
    model = network()
    found = analyse(model)
    structure = Weights(found, dense=True)
    params, a = model.init(None)
    theta = found.theta(params)
    influence = uoro_influence(DATA["uoro_A0"], DATA["uoro_B0"])
    assert [found.names[i] for i in found.moving] == ["params['W_in']", "params['W_rec']", "params['b_rec']"]

    @jax.jit
    def propagate(influence, a, x, noise):
        segment = Segment(structure, structure.effective(theta), a, [], x[None], 1)
        return uoro_file.propagate(influence, segment, noise, epsilon), segment.end[0]

    for step in range(STEPS):
        noise = DATA["uoro_nu"][step].astype(float)
        influence, a = propagate(influence, a, DATA["X"][step], noise)
        expected = uoro_influence(DATA["uoro_A"][step], DATA["uoro_B"][step])
        for got, value in zip(jax.tree.leaves(influence), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(got, value, rtol=1e-10, atol=1e-12)
        scale = DATA["uoro_q"][step] @ influence.s
        W_rec, W_in, bias = (scale * leaf for leaf in influence.theta)
        np.testing.assert_allclose(W_rec, DATA["uoro_gW_rec"][step], rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(W_in, DATA["uoro_gW_in"][step], rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(bias, DATA["uoro_gb_rec"][step], rtol=1e-10, atol=1e-12)


def test_uoro_emits_what_its_moved_influence_reads():
    """direct=False through the estimator itself: readout exact, the rest (q·s̃)θ̃."""
    for step, state, grads, _ in run(uoro(network(), direct=False, epsilon=0.0), 1):
        scale = DATA["uoro_q"][step][0] @ state.influence.s
        for leaf, factor in zip(("W_rec", "W_in", "b_rec"), state.influence.theta, strict=True):
            np.testing.assert_allclose(grads[leaf], scale * factor, rtol=1e-10, atol=1e-12)
        for leaf in ("W_out", "b_out"):
            np.testing.assert_allclose(grads[leaf], DATA[f"rtrl_g{leaf}"][step][0], rtol=1e-10, atol=1e-12)


def follow(estimator, influence, draw, noise):
    """The states of an estimator that starts from `influence`, with every step's noise given to `draw`.

    Yields (step, influence, gradient).
    """
    params, hidden = network().init(None)
    state = begin(estimator, params, hidden)
    state = state._replace(influence=influence(state.influence))

    @jax.jit
    def update(state, noise, *part):
        draw(noise)
        return estimator.update(state, params, *part)

    for step in range(STEPS):
        part = DATA["X"][step][None], DATA["Y"][step][None]
        state, estimate = update(state, noise[step].astype(float), *part)
        yield step, state.influence, estimate.grads


FACTORED = {
    "kf": (kf_rtrl, lambda u, B: KfFactors(u[None], B[None])),
    "rkf": (reverse_kf_rtrl, lambda A, B: ReverseKfFactors(A[None], B[None])),
}


@pytest.mark.parametrize("epsilon", [0.0, pytest.param(1e-3, marks=WRONG)])
@pytest.mark.parametrize("name", FACTORED)
def test_factors_move_and_emit_as_the_reference(name, epsilon, monkeypatch):
    """Like the reference, W_rec a + W_in x + b keeps one pair of factors, with a presynaptic [a; x; 1]."""

    def draw(signs):
        monkeypatch.setattr(factored, "random_signs", lambda key, shapes: [signs.reshape(shapes[0].shape)])

    constructor, factors = FACTORED[name]
    pair = lambda *which: factors(*(jnp.asarray(DATA[f"{name}_{part}"]) for part in which))
    estimator = constructor(network(), epsilon=epsilon, direct=False)
    start = lambda influence: influence._replace(products=[pair("A0", "B0")])
    for step, influence, grads in follow(estimator, start, draw, DATA[f"{name}_nu"]):
        expected = factors(jnp.asarray(DATA[f"{name}_A"][step]), jnp.asarray(DATA[f"{name}_B"][step]))
        for got, value in zip(influence.products[0], expected, strict=True):
            np.testing.assert_allclose(got, value, rtol=1e-10, atol=1e-12)
        assert_emits(name, slice(step, step + 1), grads)


@pytest.mark.parametrize("rate", [0.1, pytest.param(0.0, marks=WRONG)])
def test_kernl_learns_and_emits_as_the_reference(rate, monkeypatch):
    def draw(zeta):
        monkeypatch.setattr(jax.random, "normal", lambda key, shape, dtype: zeta)

    estimator = kernl(network(), sigma=1.0, gamma=0.3, inner_optimizer=optax.sgd(rate))
    start = lambda influence: influence._replace(noise=jnp.asarray(DATA["kernl_zeta"][0]))
    for step, influence, grads in follow(estimator, start, draw, DATA["kernl_zeta"][1:]):
        kernel = influence.learned.kernel
        (traces,) = influence.traces
        for got, name in (
            (kernel.A, "A"),
            (kernel.gamma, "alpha"),
            (influence.omega, "Omega"),
            (influence.slope, "Gamma"),
            (jnp.concatenate([trace.reshape(SIZE, -1) for (trace,) in traces], axis=1), "B"),
        ):
            np.testing.assert_allclose(got, DATA[f"kernl_{name}"][step], rtol=1e-10, atol=1e-12, err_msg=name)
        assert_emits("kernl", slice(step, step + 1), grads)


def test_rflo_emits_the_reference_gradient_with_both_feedbacks():
    back = feedback.fixed(jnp.asarray(DATA["rflo_W_fb"]).T)
    for name, estimator in (
        ("rflo", rflo(network())),
        ("rflo_random", rflo(network(), feedback=back)),
    ):
        for step, _, grads, _ in run(estimator, 1):
            assert_emits(name, step, grads)
    assert float(np.abs(DATA["rflo_gW_rec"] - DATA["rflo_random_gW_rec"]).max()) > 1e-3
