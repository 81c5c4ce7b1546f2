"""One observation at a time: the numbers of `run`, refusals that cost nothing, latencies."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from online_grads import (
    DataError,
    Latency,
    Metrics,
    cells,
    checkpoint,
    from_cell,
    learner,
    losses,
    readouts,
    run,
    snap,
    stepper,
)

STEPS, TRACES = 12, []


@pytest.fixture(scope="module")
def setting():
    """A learner that counts its tracings, its state, and a stream."""
    cell, readout = cells.gru(2, 3), readouts.linear(3, 1)
    model = from_cell(cell, readout, losses.squared_error, example=(jnp.zeros(2), jnp.zeros(1)))
    online = learner(snap(model), optax.sgd(0.1, momentum=0.9))

    def update(*args):
        TRACES.append(1)
        return online.update(*args)

    state = online.init(*model.init(jax.random.key(0)), key=jax.random.key(1))
    xs, ys = np.random.default_rng(0).normal(size=(STEPS, 2)), np.ones((STEPS, 1))
    return online._replace(update=update), state, xs, ys


@pytest.fixture(scope="module")
def kept(setting):
    """A stepper that keeps every state, compiled ahead."""
    online, state, xs, ys = setting
    step = stepper(online)
    with pytest.raises(ValueError, match="no latency yet"):
        step.latency()
    step.compile(state, xs[0], ys[0])
    return step


def same(a, b):
    raw = lambda leaf: jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    return jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(raw(a), raw(b)), a, b))


def test_the_numbers_are_those_of_run(setting, kept):
    online, state, xs, ys = setting
    expected, reported = run(online, state, xs, ys, chunk=1, keep=Metrics._fields)
    states, metrics = [state], []
    for x, y in zip(xs, ys, strict=True):
        state, seen = kept(state, x, y)
        states.append(state)
        metrics.append(seen)
    assert same(states[-1], expected)
    assert not same(states[-2], expected)
    without_time = reported._replace(outputs=jax.tree.map(lambda leaf: leaf[:, 0], reported.outputs))
    assert same(jax.tree.map(lambda *leaves: jnp.stack(leaves), *metrics), without_time)


def test_the_first_state_survives_and_later_ones_are_donated(setting, kept):
    online, state, xs, ys = setting
    step = stepper(online, donate=True)
    first, _ = step(state, xs[0], ys[0])
    assert not state.step.is_deleted()
    second, _ = step(first, xs[1], ys[1])
    assert first.step.is_deleted()
    for again in (lambda: step(first, xs[2], ys[2]), lambda: run(online, first, xs, ys)):
        with pytest.raises(ValueError, match=r"given away \(donated\) .* the state that was returned"):
            again()
    kept_first, _ = kept(state, xs[0], ys[0])
    assert same(kept(kept_first, xs[1], ys[1])[0], second)
    assert not kept_first.step.is_deleted()
    assert step.latency().calls == 1  # the call that compiled does not count
    with pytest.raises(DataError, match="x is not finite at step 2") as caught:
        step(second, np.array([0.0, np.nan]), ys[2])
    assert caught.value.step == 2
    step(caught.value.state, xs[2], ys[2])


def test_an_interrupt_between_a_step_and_its_assignment_loses_nothing(setting, kept, monkeypatch, tmp_path):
    """The signal comes when the new state is there already."""
    _, state, xs, ys = setting

    class Interrupting:
        def append(self, seconds):
            raise KeyboardInterrupt

    monkeypatch.setattr(kept, "_seconds", Interrupting())
    before = state
    with pytest.raises(KeyboardInterrupt):
        state, _ = kept(state, xs[0], ys[0])
    assert state is before
    assert same(checkpoint.restore(checkpoint.save(tmp_path / "saved", state), state), state)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros(3), np.zeros(1), r"x: expected float64\[2\], got float64\[3\]"),
        (np.zeros((1, 2)), np.zeros((1, 1)), r"x: expected float64\[2\], got float64\[1, 2\]"),
        (np.zeros(2), 1.0, r"y: expected float64\[1\], got float64\[\]"),
        (np.zeros(2), None, r"expected x float64\[2\], y float64\[1\], got the leaves x: "),
        (np.zeros(2, complex), np.zeros(1), r"x: expected float64\[2\], got complex128"),
    ],
)
def test_another_shape_is_refused_before_anything_is_compiled(setting, kept, x, y, message):
    _, state, xs, ys = setting
    traced = len(TRACES)
    with pytest.raises(ValueError, match=message):
        kept(state, x, y)
    assert same(
        kept(state, xs[0].astype(np.float32), ys[0].astype(int)), kept(state, np.float32(xs[0]), ys[0])
    )
    assert len(TRACES) == traced


def test_latencies(setting, kept, monkeypatch):
    """Of calls that take 1, 2, ... seconds on a clock that goes on by itself."""
    _, state, xs, ys = setting
    kept._seconds.clear()
    ticks = iter(np.cumsum([0, *(delta for call in range(1, 101) for delta in (call, 0))]))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    for _ in range(100):
        kept(state, xs[0], ys[0])
    latency = kept.latency()
    assert latency == (100, 50.5, 50.5, pytest.approx(99.01), 100)
    assert str(latency) == "100 calls: p50 50.5 s, p99 99 s, worst 100 s"
    assert str(Latency(2000, 1.0, 0.000251, 0.000551, 0.0132)) == (
        "2000 calls: p50 251 µs, p99 551 µs, worst 13.2 ms"
    )
    kept._seconds.extend([1.0] * 10_000)
    assert kept.latency() == (10_000, 1.0, 1.0, 1.0, 1.0)
