"""The loop itself: when it saves, and what its errors say and carry."""

import os
import pickle
import signal

import numpy as np
import pytest

from online_grads import DataError, Interrupted, Metrics, StreamError, loop
from online_grads.loop import drive


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


def test_the_metrics_are_joined_only_for_who_wants_them(monkeypatch):
    joins = []
    monkeypatch.setattr(loop, "_joined", lambda history: joins.append(len(history)))
    drive(counting, 0, [(5, 5)] * 3, save=lambda *_: "there", every=5)
    assert joins == [3]  # what it returns
    drive(counting, 0, [(5, 5)] * 3, save=lambda done, state, metrics: metrics(), every=5)
    assert joins == [3, 1, 2, 3, 3]


def full(*_):
    raise OSError("disk full")


def test_a_save_that_fails_carries_the_state_and_hides_nothing():
    with pytest.raises(OSError, match="disk full") as caught:
        drive(counting, 0, [(5, 5)] * 2, save=full, every=5)
    assert (caught.value.state, len(caught.value.metrics.loss)) == (5, 1)

    def silent():
        yield 5, 5
        raise StreamError("silent", 5)

    with pytest.raises(OSError, match="disk full") as caught:
        drive(counting, 0, silent(), save=full)
    before = caught.value.__context__
    assert isinstance(before, StreamError)
    assert caught.value.state == before.state == 5
    assert len(before.metrics.loss) == 1


def test_an_error_of_the_callback_stays_as_it_is():
    """Its own runs, on other data, may raise what this one's stream does."""
    mine = DataError("of the validation data", 3, "another state")

    def validate(done, metrics):
        raise mine

    with pytest.raises(DataError) as caught:
        drive(counting, 0, [(5, 5)], callback=validate)
    assert (caught.value, mine.step, mine.state, mine.metrics) == (mine, 3, "another state", None)


@pytest.mark.parametrize("by", ["callback", "stream"])
def test_a_signal_and_an_error_in_one_chunk(by):
    """Neither is lost: the signal ends the run, with the error behind it."""

    def broken(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        raise StreamError("broken", 5)

    def chunks():
        yield 5, 5
        if by == "stream":
            broken()

    callback = broken if by == "callback" else None
    with pytest.raises(Interrupted, match="SIGTERM; saved in there") as caught:
        drive(counting, 0, chunks(), save=lambda *_: "there", callback=callback)
    assert (str(caught.value.__context__), caught.value.state) == ("broken", 5)


@pytest.mark.parametrize("kind", [StreamError, DataError])
def test_errors_are_the_same_in_another_process(kind):
    error = kind("it ended", 7)
    error.state = np.arange(3)
    read = pickle.loads(pickle.dumps(error))
    assert (type(read), str(read), read.step, read.state.tolist()) == (kind, "it ended", 7, [0, 1, 2])
    error = pickle.loads(pickle.dumps(Interrupted(15, "there", 1, 2)))
    assert str(error) == "SIGTERM; saved in there"
    assert (error.signal, error.saved, error.state, error.metrics) == (15, "there", 1, 2)
