"""The host loop: chunks change nothing, the caller's state survives, bad data end a run, runs go on."""

import os
import signal
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from online_grads import DataError, Estimate, Estimator, Interrupted, Metrics, checkpoint, learner, run, scan
from online_grads.loop import drive

TRACES = []


@pytest.fixture(scope="module")
def setting():
    """A learner of h ← θ x with a noisy gradient, its state, and a stream of 60 steps."""

    def init(params, hidden, *, key):
        return hidden, key

    def update(state, params, xs, ys):
        TRACES.append(xs.shape)
        key = state[1]
        key, noise = jax.random.split(key)
        loss, grads = jax.value_and_grad(lambda p: jnp.mean((p[None] * xs - ys) ** 2))(params)
        grads += 0.01 * jax.random.normal(noise, grads.shape, grads.dtype)
        return (params * xs[-1], key), Estimate(grads, loss, params[None] * xs, {"last": ys[-1]})

    online = learner(Estimator(init, update), optax.sgd(0.1, momentum=0.9))
    state = online.init(jnp.ones(2), jnp.zeros(2), key=jax.random.key(3))
    xs = np.random.default_rng(0).normal(size=(60, 2))
    return online, state, xs, 0.5 * xs


def assert_equal(a, b):
    raw = lambda leaf: jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(raw(a), raw(b)), a, b)


@pytest.mark.parametrize("chunk", [1, 12, 16, 1000])
@pytest.mark.parametrize("put", [np.asarray, jnp.asarray])
def test_chunks_change_nothing(setting, chunk, put):
    online, state, xs, ys = setting
    expected_state, expected = jax.jit(lambda *args: scan(online, *args, window=4))(state, xs, ys)
    ended, metrics = run(online, state, put(xs), put(ys), window=4, chunk=chunk)
    assert_equal(ended, expected_state)
    assert_equal(metrics._replace(outputs=expected.outputs), expected)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(metrics))


def test_the_callers_state_stays_usable_and_nothing_is_compiled_twice(setting):
    online, state, xs, ys = setting
    first = run(online, state, xs, ys, window=5, chunk=30)
    traced = len(TRACES)
    assert_equal(run(online, state, xs, ys, window=5, chunk=30), first)
    assert len(TRACES) == traced
    assert not np.array_equal(first[0].params, state.params)


def test_metrics_that_are_kept(setting):
    online, state, xs, ys = setting
    assert run(online, state, xs, ys)[1].outputs is None
    metrics = run(online, state, xs, ys, window=2, keep=("outputs",))[1]
    assert metrics.outputs.shape == (30, 2, 2)
    assert metrics.loss is metrics.info is None
    with pytest.raises(ValueError, match="keep names output; the fields are loss, finite"):
        run(online, state, xs, ys, keep=("output",))


def test_callback_between_chunks(setting):
    online, state, xs, ys = setting
    seen = []
    run(online, state, xs, ys, window=4, chunk=25, callback=lambda step, m: seen.append((step, m.loss.shape)))
    assert seen == [(20, (5,)), (40, (5,)), (60, (5,))]


def test_a_window_that_does_not_divide_the_stream(setting):
    online, state, xs, ys = setting
    traced = len(TRACES)
    with pytest.raises(ValueError, match="a window of 7 steps does not divide the stream's 60 steps"):
        run(online, state, xs, ys, window=7)
    assert len(TRACES) == traced
    with pytest.raises(ValueError, match="the stream has no steps"):
        run(online, state, xs[:0], ys[:0])
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        run(online, state, xs, ys, chunk=0)


@pytest.mark.parametrize(("which", "value"), [("xs", np.nan), ("ys", np.inf)])
def test_data_that_are_not_finite(setting, which, value):
    online, state, *data = setting
    data = dict(zip(("xs", "ys"), map(np.copy, data), strict=True))
    data[which][47, 1] = value
    with pytest.raises(DataError, match=f"{which} is not finite at step 47 of the stream") as caught:
        run(online, state, **data, window=4, chunk=20)
    good = run(online, state, data["xs"][:40], data["ys"][:40], window=4, chunk=20)
    assert caught.value.step == 47
    assert_equal((caught.value.state, caught.value.metrics), good)
    resumed, _ = run(online, caught.value.state, data["xs"][48:], data["ys"][48:], window=4)
    assert int(resumed.step) == 13


def test_bad_data_in_the_first_chunk(setting):
    online, state, xs, ys = setting
    with pytest.raises(DataError) as caught:
        run(online, state, np.full_like(xs, np.nan), ys)
    assert caught.value.metrics is None
    assert_equal(caught.value.state, state)


def test_a_learner_that_diverges_on_finite_data_goes_on(setting):
    online, state, xs, ys = setting
    ended, metrics = run(online, state._replace(params=jnp.full(2, 1e200)), xs, ys, window=4)
    assert not metrics.finite.any()
    assert int(ended.step) == 15


def test_progress_bar(setting, capsys, monkeypatch):
    online, state, xs, ys = setting
    run(online, state, xs, ys, progress=True)
    assert "60.0/60.0" in (shown := capsys.readouterr().err)
    assert "step/s" in shown
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ImportError, match=r"needs tqdm: pip install online-grads\[run\]"):
        run(online, state, xs, ys, progress=True)


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_the_first_steps_of_arrays(setting):
    online, state, xs, ys = setting
    assert_equal(
        run(online, state, xs, ys, steps=40, window=4), run(online, state, xs[:40], ys[:40], window=4)
    )
    with pytest.raises(ValueError, match="steps=64, but the stream has 60"):
        run(online, state, xs, ys, steps=64, window=4)
    with pytest.raises(ValueError, match="timeout is for a stream of single observations"):
        run(online, state, xs, ys, timeout=1.0)


def pairs(xs, ys):
    return lambda start: zip(xs[start:], ys[start:], strict=True)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_saved_run_goes_on_as_if_nothing_had_been(setting, tmp_path, streamed):
    online, state, xs, ys = setting
    data = (pairs(xs, ys),) if streamed else (xs, ys)
    settings = dict(window=4, chunk=12, checkpoints=tmp_path, resume=True, history=True)
    whole, expected = run(online, state, xs, ys, window=4, chunk=12)
    half, _ = run(online, state, *data, steps=36, **settings)
    assert checkpoint.notes(checkpoint.latest(tmp_path)) == {"steps": 36}
    seen = []
    ended, metrics = run(
        online, state, *data, steps=60, callback=lambda done, _: seen.append(done), **settings
    )
    assert seen == [48, 60]
    assert_equal(ended, whole)
    assert_equal(metrics, jax.tree.map(lambda leaf: leaf[9:], expected))
    assert not np.array_equal(half.params, whole.params)
    ended, metrics = run(online, state, *data, steps=60, **settings)  # nothing is left to do
    assert_equal(ended, whole)
    assert metrics is None
    with pytest.raises(
        ValueError, match="holds checkpoints, the newest is step_000000000060: go on with resume"
    ):
        run(online, state, *data, checkpoints=tmp_path)


def test_when_checkpoints_are_saved_and_how_many_are_kept(setting, tmp_path):
    online, state, xs, ys = setting
    seen = []
    look = lambda done, metrics: seen.append(names(tmp_path) if tmp_path.exists() else [])
    run(online, state, xs, ys, window=4, chunk=12, callback=look, checkpoints=tmp_path / "a")
    assert names(tmp_path / "a") == ["step_000000000060"]
    run(online, state, xs, ys, window=4, chunk=12, checkpoints=tmp_path / "b", every=20, last=2)
    assert names(tmp_path / "b") == ["step_000000000048", "step_000000000060"]  # and 24 before
    xs = np.copy(xs)
    xs[47] = np.nan
    with pytest.raises(DataError) as caught:
        run(online, state, xs, ys, window=4, chunk=12, checkpoints=tmp_path / "c")
    assert names(tmp_path / "c") == ["step_000000000036"]
    assert_equal(checkpoint.restore(checkpoint.latest(tmp_path / "c"), state), caught.value.state)
    with pytest.raises(ZeroDivisionError):  # by the callback of the second chunk
        run(
            online,
            state,
            xs,
            ys,
            window=4,
            chunk=12,
            callback=lambda n, _: 1 // (24 - n),
            checkpoints=tmp_path / "d",
        )
    assert names(tmp_path / "d") == ["step_000000000024"]


def test_a_checkpoint_of_something_else_is_refused(setting, tmp_path):
    online, state, xs, ys = setting
    checkpoint.save_step(tmp_path, 4, state)
    with pytest.raises(ValueError, match="was not saved by run"):
        run(online, state, xs, ys, checkpoints=tmp_path, resume=True)
    checkpoint.save_step(tmp_path, 6, state, notes={"steps": 6})
    with pytest.raises(
        ValueError, match="a window of 4 steps does not divide the 54 steps after the checkpoint"
    ):
        run(online, state, xs, ys, window=4, checkpoints=tmp_path, resume=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_is_saved_and_goes_on(setting, tmp_path, number):
    online, state, xs, ys = setting
    seen = []

    def send(done, metrics):
        seen.append(done)
        if done == 24:
            os.kill(os.getpid(), number)

    settings = dict(window=4, chunk=12, checkpoints=tmp_path)
    with pytest.raises(Interrupted, match=f"{number.name}; saved in .*step_000000000024") as caught:
        run(online, state, xs, ys, callback=send, **settings)
    assert seen == [12, 24]
    assert (caught.value.signal, caught.value.saved) == (number, checkpoint.latest(tmp_path))
    assert_equal((caught.value.state, caught.value.metrics), run(online, state, xs[:24], ys[:24], window=4))
    assert_equal(
        run(online, state, xs, ys, resume=True, **settings)[0], run(online, state, xs, ys, window=4)[0]
    )


def test_without_checkpoints_an_interrupt_acts_at_once(setting):
    online, state, xs, ys = setting
    after = []

    def send(done, metrics):
        os.kill(os.getpid(), signal.SIGINT)
        after.append(done)

    with pytest.raises(KeyboardInterrupt) as caught:
        run(online, state, xs, ys, callback=send)
    assert not isinstance(caught.value, Interrupted)
    assert after == []


@pytest.mark.parametrize("saved", [True, False])
def test_a_stream_that_blocks_can_be_interrupted(setting, tmp_path, saved):
    online, state, xs, ys = setting
    learned, release = threading.Event(), threading.Event()

    def sensor():
        yield from zip(xs[:12], ys[:12], strict=True)
        learned.wait()
        os.kill(os.getpid(), signal.SIGINT)
        release.wait()

    settings = dict(chunk=12, callback=lambda *_: learned.set(), checkpoints=tmp_path if saved else None)
    with pytest.raises(Interrupted if saved else KeyboardInterrupt) as caught:
        run(online, state, sensor(), **settings)
    release.set()
    if saved:
        assert caught.value.saved.name == "step_000000000012"
        assert_equal(caught.value.state, run(online, state, xs[:12], ys[:12])[0])


def counting(state, length):
    return state + length, Metrics(np.zeros(1), np.ones(1, bool), np.zeros(1), None, {}), np.full(2, length)


def test_every_so_many_steps_counts_from_the_streams_beginning():
    saved = []
    save = lambda done, state, metrics: saved.append((done, state, len(metrics().loss)))
    drive(counting, 24, [(12, 12)] * 4, start=24, save=save, every=30)
    assert saved == [(36, 36, 1), (60, 60, 3), (72, 72, 4)]
    saved.clear()
    drive(counting, 24, [(12, 12)] * 2, start=24, save=save, every=20, joined=True)
    assert [done for done, *_ in saved] == [48]


def test_a_signal_during_the_last_save_is_not_lost():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="SIGTERM; saved in there") as caught:
        drive(counting, 0, [(5, 5)], save=lambda *_: os.kill(os.getpid(), signal.SIGTERM) or "there")
    assert caught.value.state == 5
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(Interrupted, match="SIGINT; there was nothing new to save"):
        drive(
            counting,
            7,
            iter(lambda: os.kill(os.getpid(), signal.SIGINT), 1),
            start=7,
            save=lambda *_: "there",
        )
