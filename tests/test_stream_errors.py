"""What goes wrong with a stream of single observations is said, and nothing before is lost."""

import queue
import sys
import threading
import time

import numpy as np
import pytest

from online_grads import DataError, StreamError, run
from tests import sensors
from tests.sensors import equal, first, stream, threads

online = pytest.fixture(sensors.online, scope="module")
begun = pytest.fixture(sensors.begun, scope="module")
data = pytest.fixture(sensors.data, scope="module")


class Closing:
    """An iterator that cannot be closed."""

    def __init__(self, data):
        self.observations = stream(data)

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.observations)

    def close(self):
        next(boom())


class Sensor:
    """An iterable that goes wrong at a step, in a way that the test chooses."""

    def __init__(self, data, step, trouble):
        self.data, self.step, self.trouble = data, step, trouble

    def __iter__(self):
        yield from stream(self.data, self.step)
        yield from self.trouble()


def boom():
    raise OSError("cable pulled")
    yield


TROUBLES = {
    "ends early": (13, lambda: (), r"the stream ended after 13 of 20 steps"),
    "shape": (
        13,
        lambda: [(np.zeros(3), {"y": np.zeros(2)})],
        r"step 13 of the stream: x: expected float64\[2\], got float64\[3\]",
    ),
    "kind": (
        13,
        lambda: [(np.zeros(2, complex), {"y": np.zeros(2)})],
        r"x: expected float64\[2\], got complex128",
    ),
    "text": (13, lambda: [(np.zeros(2), {"y": "off"})], r"y\['y'\]: expected float64\[2\], got <U3\[\]"),
    "structure": (
        13,
        lambda: [(np.zeros(2), np.zeros(2))],
        r"expected x float64\[2\], y\['y'\] float64\[2\], got the leaves x, y",
    ),
    "mixed keys": (13, lambda: [({1: 0.0, "a": 0.0}, 0.0)], r"step 13 of the stream: .*keys"),
    "no pair": (13, lambda: [np.zeros(2)], r"step 13 of the stream: expected a pair \(x, y\), got ndarray"),
    "raises": (13, boom, r"the stream raised OSError at step 13: cable pulled"),
    "blocks": (
        13,
        lambda: iter(time.sleep, 0),
        r"no observation for 0.5 s: the stream blocks at step 13; its iterator is given up",
    ),
}


@pytest.mark.parametrize(("window", "whole"), [(1, 13), (2, 12)])
@pytest.mark.parametrize("name", TROUBLES)
def test_what_goes_wrong_is_said_and_nothing_before_is_lost(online, begun, data, name, window, whole):
    step, trouble, message = TROUBLES[name]
    release = threading.Event()
    if name == "blocks":
        trouble = lambda: iter(release.wait, True)
    sensor, settings = Sensor(data, step, trouble), dict(window=window, chunk=4, history=True)
    with pytest.raises(StreamError, match=message) as caught:
        run(online, begun, sensor, steps=20, timeout=0.5 if name == "blocks" else None, **settings)
    release.set()
    assert caught.value.step == 13
    assert isinstance(caught.value.__cause__, OSError if name == "raises" else object)
    assert equal(
        (caught.value.state, caught.value.metrics), run(online, begun, *first(data, whole), **settings)
    )
    assert not equal(caught.value.state, run(online, begun, *first(data, whole + window), **settings)[0])
    assert threads() == []


def test_what_cannot_be_opened_or_closed_is_said_and_what_is_never_read_is_never_opened(
    online, begun, data, monkeypatch
):
    with pytest.raises(
        StreamError, match="opening the stream raised OSError at step 0: cable pulled"
    ) as caught:
        run(online, begun, lambda start: next(boom()), steps=8, chunk=8)
    assert equal(caught.value.state, begun)
    with pytest.raises(
        StreamError, match="closing the stream raised OSError at step 8: cable pulled"
    ) as caught:
        run(online, begun, lambda start: Closing(data), steps=8, chunk=8)
    assert equal(caught.value.state, run(online, begun, *first(data, 8), chunk=8)[0])
    opened = []
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ImportError, match="tqdm"):
        run(online, begun, lambda start: opened.append(start) or [], progress=True)
    assert opened == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "the stream has no steps"),
        ([np.zeros(2)], r"step 0 of the stream: expected a pair \(x, y\), got ndarray"),
        ([("a", 1.0)], r"step 0 of the stream: x: expected numbers, got <U1\[\]"),
        ([(None, ())], "step 0 of the stream: an observation holds no numbers"),
    ],
)
def test_a_stream_that_never_began(online, begun, given, message):
    with pytest.raises(StreamError, match=message) as caught:
        run(online, begun, iter(given))
    assert caught.value.metrics is None
    assert equal(caught.value.state, begun)


def test_an_iterator_that_still_blocks_is_not_read_again(online, begun):
    """Its next observation would go to the run before."""
    waiting = queue.Queue()
    sensor = iter(waiting.get, None)
    with pytest.raises(StreamError, match=r"no observation for 0\.2 s"):
        run(online, begun, sensor, timeout=0.2)
    with pytest.raises(
        StreamError, match=r"an earlier run, .* still waits .*: go on with a new one"
    ) as caught:
        run(online, begun, sensor, timeout=5)
    assert equal(caught.value.state, begun)
    waiting.put(None)
    assert threads() == []
    with pytest.raises(StreamError, match="the stream has no steps"):
        run(online, begun, sensor, timeout=5)


def test_a_rest_that_fills_no_window(online, begun, data):
    with pytest.raises(StreamError, match="the last 2 steps of the stream's 22 do not fill a window of 4"):
        run(online, begun, stream(data), window=4, chunk=4)


def test_data_that_are_not_finite(online, begun, data):
    data = np.copy(data[0]), data[1]
    data[0][13, 1] = np.nan
    with pytest.raises(DataError, match="xs is not finite at step 13 of the stream") as caught:
        run(online, begun, stream(data), chunk=8)
    assert equal(caught.value.state, run(online, begun, *first(data, 8), chunk=8)[0])
    assert threads() == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ys": np.zeros(3)}, r"a stream gives pairs \(x, y\), so ys must be left out"),
        ({"steps": 7, "window": 2}, "a window of 2 steps does not divide steps=7"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"timeout": 0}, "timeout must be above 0, got 0"),
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"every": 3}, "every and resume need a folder"),
        ({"resume": True}, "every and resume need a folder"),
    ],
)
def test_what_does_not_fit_together_is_refused(online, begun, settings, message):
    with pytest.raises(ValueError, match=message):
        run(online, begun, iter([]), **settings)
