"""SIGINT and SIGTERM are held back while a chunk is at work, and never lost."""

import os
import signal
import threading

import pytest

from online_grads.signals import deferred


def send(number):
    os.kill(os.getpid(), number)


def test_a_signal_waits_until_the_body_asks(handled):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with deferred() as received:
        assert received() is None
        send(signal.SIGTERM)
        assert received() == signal.SIGTERM
        send(signal.SIGINT)
        assert received() == signal.SIGTERM
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert handled == []


def test_a_second_signal_acts_at_once(handled):
    with deferred() as received:
        send(signal.SIGTERM)
        assert handled == []
        send(signal.SIGTERM)
        assert handled == [signal.SIGTERM]
        assert received() == signal.SIGTERM
    with deferred():
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_that_nobody_asked_about_acts_in_the_end(handled):
    with deferred() as received:
        received()
        send(signal.SIGTERM)
        assert handled == []
    assert handled == [signal.SIGTERM]


def test_an_error_of_the_body_goes_on(handled):
    def body():
        with deferred():
            send(signal.SIGTERM)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        body()
    assert handled == []


def test_a_signal_while_handlers_are_restored(handled, monkeypatch):
    """Ctrl-C between one and the next: what is not restored yet holds nothing back."""
    install = signal.signal

    def interrupted(number, handler):
        install(number, handler)
        if number == signal.SIGINT and handler is signal.default_int_handler:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), deferred():
        monkeypatch.setattr(signal, "signal", interrupted)
    monkeypatch.undo()
    send(signal.SIGTERM)
    assert handled == [signal.SIGTERM]
    send(signal.SIGTERM)
    assert handled == [signal.SIGTERM] * 2


def test_a_signal_that_is_ignored_stays_ignored(handled):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with deferred() as received:
        send(signal.SIGTERM)
        assert received() is None
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN


def test_elsewhere_than_in_the_main_thread_nothing_is_held_back():
    seen = []

    def body():
        before = signal.getsignal(signal.SIGTERM)
        with deferred() as received:
            seen.append((signal.getsignal(signal.SIGTERM) is before, received()))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [(True, None)]
