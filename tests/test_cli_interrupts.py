"""A signal ends a command wherever it comes, also where its exception is dropped."""

import contextlib
import gc
import signal
import sys
import time

import pytest

from online_grads.cli import interrupts


def in_a_collection():
    """Python only reports what is raised in a callback of the garbage collector."""
    once = iter([None])

    def collecting(phase, info):
        for _ in once:
            signal.raise_signal(signal.SIGTERM)

    gc.callbacks.append(collecting)
    try:
        gc.collect()
    finally:
        gc.callbacks.remove(collecting)


def in_a_hurry():
    try:
        signal.raise_signal(signal.SIGTERM)
    except:  # noqa: E722
        return


@pytest.mark.parametrize("drop", [in_a_collection, in_a_hurry])
def test_a_signal_whose_exception_is_dropped_comes_again(capsys, drop):
    @interrupts.terminable()
    def command():
        drop()
        went_on.append(True)
        time.sleep(60)

    went_on = []
    before = interrupts.handlers(), sys.unraisablehook
    with pytest.raises(interrupts.Stopped) as stopped:
        command()
    assert went_on
    assert stopped.value.signal == signal.SIGTERM
    assert (interrupts.handlers(), sys.unraisablehook) == before
    assert capsys.readouterr().err == ""


def test_other_errors_of_finalizers_are_reported(monkeypatch):
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", lambda error: reported.append(error.exc_type))

    class Broken:
        def __del__(self):
            raise ArithmeticError

    with interrupts.terminable():
        Broken()
    assert reported == [ArithmeticError]


def twice():
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("interrupted", [lambda: signal.raise_signal(signal.SIGINT), twice])
def test_an_answered_signal_does_not_come_again(interrupted):
    came = []
    with interrupts.terminable():
        try:
            interrupted()
        except KeyboardInterrupt as stopped:
            came.append(interrupts.answer(stopped))
        try:
            time.sleep(0.2)
        except KeyboardInterrupt as stopped:
            came.append(interrupts.answer(stopped))
    assert came == [130]


def test_a_signal_is_not_sent_again_when_the_work_is_done(handled):
    with interrupts.terminable():
        in_a_hurry()
    time.sleep(0.2)
    assert handled == []


def test_a_signal_while_the_handlers_are_restored(monkeypatch, handled):
    def restoring(number, handler, change=signal.signal):
        if handler is signal.default_int_handler:
            signal.raise_signal(signal.SIGTERM)
        return change(number, handler)

    before = interrupts.handlers(), sys.unraisablehook
    with contextlib.suppress(interrupts.Stopped), interrupts.terminable():
        monkeypatch.setattr(signal, "signal", restoring)
    assert handled == [signal.SIGTERM]
    assert (interrupts.handlers(), sys.unraisablehook) == before
