"""Ctrl-C, once and twice."""

import os
import signal
import threading

import pytest

from flgo_hydra.job.interrupt import ctrl_c_at_round_boundary


def test_once_is_heard_twice_ends_and_then_all_is_as_before(capfd):
    with pytest.raises(KeyboardInterrupt):
        with ctrl_c_at_round_boundary() as is_interrupted:
            assert not is_interrupted.is_set()
            os.kill(os.getpid(), signal.SIGINT)
            assert is_interrupted.wait(10)
            assert "after this round" in capfd.readouterr().err
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(10)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


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
