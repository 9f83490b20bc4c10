"""Ctrl-C, once and twice."""

import os
import signal
import threading

import pytest

from flgo_hydra.job.interrupt import ctrl_c_at_round_boundary


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_once_is_heard_twice_ends_and_then_all_is_as_before(capfd, number):
    outer = signal.getsignal(number)
    before = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    signal.signal(number, before)  # the tests may run under nohup
    try:
        with pytest.raises(KeyboardInterrupt):
            with ctrl_c_at_round_boundary() as is_interrupted:
                assert not is_interrupted.is_set()
                os.kill(os.getpid(), number)
                assert is_interrupted.wait(10)
                assert "after this round" in capfd.readouterr().err
                os.kill(os.getpid(), number)
                threading.Event().wait(10)
        assert signal.getsignal(number) is before
    finally:
        signal.signal(number, outer)


def test_nohup_stays_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ctrl_c_at_round_boundary() as is_interrupted:
            signal.raise_signal(signal.SIGHUP)
            assert not is_interrupted.is_set()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_who_has_a_handler_keeps_it():
    heard = []
    before = signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    try:
        with ctrl_c_at_round_boundary() as is_interrupted:
            signal.raise_signal(signal.SIGINT)
        assert heard == [1] and not is_interrupted.is_set()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_thread_leaves_ctrl_c_to_the_program():
    handlers = []

    def body():
        with ctrl_c_at_round_boundary():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join(10)
    assert handlers == [signal.default_int_handler]
