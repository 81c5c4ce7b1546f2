"""Streams of single observations give what arrays give; what goes wrong is said, nothing before is lost."""

import itertools
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from online_grads import DataError, Estimate, Estimator, StreamError, learner, run
from online_grads.streams import AHEAD, Gathering

STEPS = 22
TRACES = []


@pytest.fixture(scope="module")
def online():
    """A learner of h ← θ x with a noisy gradient."""

    def update(state, params, xs, ys):
        TRACES.append(xs.shape)
        key, noise = jax.random.split(state[1])
        loss, grads = jax.value_and_grad(lambda p: jnp.mean((p[None] * xs - ys["y"]) ** 2))(params)
        grads += 0.01 * jax.random.normal(noise, grads.shape, grads.dtype)
        return (params * xs[-1], key), Estimate(grads, loss, params[None] * xs, {})

    estimator = Estimator(lambda params, hidden, *, key: (hidden, key), update)
    return learner(estimator, optax.sgd(0.1, momentum=0.9))


@pytest.fixture(scope="module")
def begun(online):
    return online.init(jnp.ones(2), jnp.zeros(2), key=jax.random.key(3))


@pytest.fixture(scope="module")
def data():
    xs = np.random.default_rng(0).normal(size=(STEPS, 2))
    return xs, {"y": 0.5 * xs}


def stream(data, steps=STEPS, start=0):
    for step in range(start, steps):
        yield data[0][step], {"y": data[1]["y"][step]}


def raw(tree):
    leaves = jax.tree.leaves(tree)
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return [np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf) for leaf in leaves]


def equal(a, b):
    return all(map(np.array_equal, raw(a), raw(b)))


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "online-grads stream"]


def first(data, steps):
    return jax.tree.map(lambda leaf: leaf[:steps], data)


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
    "blocks": (13, lambda: iter(time.sleep, 0), r"no observation for 0.05 s: the stream blocks at step 13"),
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
        run(online, begun, sensor, steps=20, timeout=0.05 if name == "blocks" else None, **settings)
    release.set()
    assert caught.value.step == 13
    assert isinstance(caught.value.__cause__, OSError if name == "raises" else object)
    assert equal(
        (caught.value.state, caught.value.metrics), run(online, begun, *first(data, whole), **settings)
    )
    assert not equal(caught.value.state, run(online, begun, *first(data, whole + window), **settings)[0])
    for thread in threads():
        thread.join(1)
    assert threads() == []


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


def test_numbers_that_are_cast_and_numbers_that_are_not():
    taken = [(0.5, 1), (np.float32(0.5), 2), (1, np.int8(3))]
    [(length, (xs, ys))] = filter(None, Gathering(iter(taken), [3]).chunks())
    assert (length, xs.tolist(), ys.tolist()) == (3, [0.5, 0.5, 1.0], [1, 2, 3])
    assert (xs.dtype, ys.dtype) == (np.float64, np.int64)
    with pytest.raises(StreamError, match=r"step 1 of the stream: y: expected int64\[\], got float64\[\]"):
        list(Gathering(iter([(0.5, 1), (0.5, 1.5)]), [2]).chunks())


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
        alive.append(len(jax.live_arrays()))
        traced.append(len(TRACES))

    sensor = ((np.ones(2), {"y": np.ones(2)}) for _ in itertools.count())
    run(online, begun, sensor, steps=160, chunk=4, callback=callback)
    assert len(alive) == 40
    assert len(set(alive[1:])) == len(set(traced)) == 1


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
