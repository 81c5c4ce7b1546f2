"""Streams of single observations give what arrays give, gathered ahead in constant memory."""

import gc
import itertools
import threading

import jax
import numpy as np
import pytest

from online_grads import run
from online_grads.streams import AHEAD, Gathering
from tests import sensors
from tests.sensors import STEPS, TRACES, equal, first, stream, threads

online = pytest.fixture(sensors.online, scope="module")
begun = pytest.fixture(sensors.begun, scope="module")
data = pytest.fixture(sensors.data, scope="module")


@pytest.mark.parametrize("window", [1, 2])
def test_an_iterator_gives_what_arrays_give(online, begun, data, window):
    expected = run(online, begun, *data, window=window, chunk=8)
    got = run(online, begun, stream(data), window=window, chunk=8, history=True)
    assert equal(got, expected)
    one_less = run(online, begun, *first(data, STEPS - window), window=window, chunk=8)
    assert not equal(got[0], one_less[0])
    assert threads() == []


def test_only_the_last_chunk_is_remembered_unless_asked(online, begun, data):
    seen = []
    callback = lambda done, metrics: seen.append((done, metrics.loss))
    metrics = run(online, begun, stream(data), chunk=8, callback=callback)[1]
    assert [(done, loss.shape) for done, loss in seen] == [(8, (8,)), (16, (8,)), (22, (6,))]
    assert equal(metrics.loss, seen[-1][1])
    assert equal(metrics, run(online, begun, *data, chunk=8, history=False)[1])


def test_no_step_is_asked_for_beyond_the_last(online, begun, data):
    """So that the stream goes on where learning stopped."""
    endless = (pair for _ in itertools.count() for pair in stream(data))
    half, _ = run(online, begun, endless, steps=8, chunk=8)
    whole, _ = run(online, half, endless, steps=8, chunk=8)
    assert equal(whole, run(online, begun, *first(data, 16), chunk=8)[0])
    assert equal(next(endless)[0], data[0][16])


def test_what_run_opened_is_closed(online, begun, data):
    opened = []

    def sensor(start):
        opened.append(stream(data, start=start))
        return opened[-1]

    run(online, begun, sensor, steps=8, chunk=8)
    assert [generator.gi_frame for generator in opened] == [None]


def test_an_array_that_is_yielded_again_and_again_is_copied(online, begun, data):
    def reused():
        x, y = np.empty(2), np.empty(2)
        for step in range(STEPS):
            x[:], y[:] = data[0][step], data[1]["y"][step]
            yield x, {"y": y}

    assert equal(run(online, begun, reused(), chunk=8)[0], run(online, begun, *data, chunk=8)[0])


def test_the_next_chunks_are_gathered_while_the_device_works(data):
    """Without a chunk being taken, the thread goes as far as it may, and no further."""
    asked = []
    ready = threading.Event()

    def sensor():
        for step in itertools.count():
            asked.append(step)
            if step == (AHEAD + 2) * 4 - 1:
                ready.set()
            yield float(step), 0.0

    chunks = Gathering(sensor(), itertools.repeat(4)).chunks()
    taken = next(filter(None, chunks))
    assert ready.wait(5)
    assert taken[1][0].tolist() == [0, 1, 2, 3]
    assert next(filter(None, chunks))[1][0].tolist() == [4, 5, 6, 7]
    chunks.close()
    assert threads() == []
    assert len(asked) <= (AHEAD + 3) * 4 + 1


def test_memory_is_constant(online, begun):
    """As many arrays on the device after every chunk, and one program for all of them."""
    alive, traced = [], []

    def callback(done, metrics):
        gc.collect()
        alive.append(len(jax.live_arrays()))
        traced.append(len(TRACES))

    sensor = ((np.ones(2), {"y": np.ones(2)}) for _ in itertools.count())
    run(online, begun, sensor, steps=160, chunk=4, callback=callback)
    assert len(alive) == 40
    assert alive[1] >= alive[-1]
    assert len(set(traced)) == 1
