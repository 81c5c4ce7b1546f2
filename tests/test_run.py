"""The host loop: chunks change nothing, the caller's state survives, bad data end a run."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from online_grads import DataError, run, scan
from tests.noisy import TRACES, assert_equal, setting


@pytest.fixture(scope="module", name="setting")
def made():
    return setting()


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


def test_the_first_steps_of_arrays(setting):
    online, state, xs, ys = setting
    assert_equal(
        run(online, state, xs, ys, steps=40, window=4), run(online, state, xs[:40], ys[:40], window=4)
    )
    with pytest.raises(ValueError, match="steps=64, but the stream has 60"):
        run(online, state, xs, ys, steps=64, window=4)
    with pytest.raises(ValueError, match="timeout is for a stream of single observations"):
        run(online, state, xs, ys, timeout=1.0)


def test_what_would_fail_later_is_refused_before_anything_is_compiled(setting):
    online, state, xs, ys = setting
    traced = len(TRACES)
    with pytest.raises(TypeError, match="callback must be a function, got 3"):
        run(online, state, xs, ys, window=3, callback=3)
    pairs = [*zip(xs, ys, strict=True)]
    with pytest.raises(ValueError, match=r"leading time axis .*; pairs \(x, y\) .* wrap them in iter"):
        run(online, state, [(0.0, 1.0)] * 60, window=3)
    assert len(TRACES) == traced
    assert_equal(run(online, state, iter(pairs), history=True), run(online, state, xs, ys))
