"""A run that is saved goes on: after its end, after an error, after a signal."""

import os
import signal
import threading

import jax
import numpy as np
import pytest

from online_grads import DataError, Interrupted, checkpoint, run
from online_grads.checkpoint import CheckpointError
from tests.noisy import TRACES, assert_equal, setting


@pytest.fixture(scope="module", name="setting")
def made():
    return setting()


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def pairs(xs, ys):
    return lambda start: zip(xs[start:], ys[start:], strict=True)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_saved_run_goes_on_as_if_nothing_had_been(setting, tmp_path, streamed):
    online, state, xs, ys = setting
    data = (pairs(xs, ys),) if streamed else (xs, ys)
    settings = dict(window=4, chunk=12, checkpoints=tmp_path, resume=True, history=True)
    whole, expected = run(online, state, xs, ys, window=4, chunk=12)
    half, _ = run(online, state, *data, steps=36, **settings)
    assert checkpoint.notes(checkpoint.latest(tmp_path)) == {"steps": 36, "window": 4}
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
    with pytest.raises(ValueError, match="36 steps are asked for, but the newest checkpoint is of step 60"):
        run(online, state, *data, steps=36, **settings)
    with pytest.raises(ValueError, match="saved by a run with window=4, now it is 2"):
        run(online, state, *data, steps=60, **settings | {"window": 2})
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


def test_a_folder_that_cannot_be_written_to_is_found_at_once(setting, tmp_path):
    online, state, xs, ys = setting
    traced = len(TRACES)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=f"cannot write to {tmp_path}/file: File exists"):
        run(online, state, xs, ys, window=6, checkpoints=tmp_path / "file")
    assert len(TRACES) == traced
