"""Signals that ask a run to stop; see tests/test_stopping.py for whole runs."""

import os
import signal

import pytest

from diffusion_distill.errors import Stopped
from diffusion_distill.terminal import stop as stopping
from diffusion_distill.terminal.stop import StopSignal

NOTICES = [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU]


@pytest.fixture
def heard():
    """heard(signum): how often a signal had its own effect, outside of a StopSignal."""
    calls = []
    before = {s: signal.signal(s, lambda *got: calls.append(got[0])) for s in (*NOTICES, 15, 2)}
    yield calls.count
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.parametrize("signum", [*NOTICES, signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_and_does_nothing_else(heard, capfd, signum):
    with StopSignal() as stop:
        stop.raise_if_asked()
        os.kill(os.getpid(), signum)
        assert stop.asked() == signum
        with pytest.raises(Stopped, match=f"stopped by signal {int(signum)};"):
            stop.raise_if_asked()
    assert heard(signum) == 0
    assert capfd.readouterr().out == f"{stopping.STOPPING}\n"
    os.kill(os.getpid(), signum)
    assert heard(signum) == 1


def test_a_second_one_ends_at_once_but_for_notices(heard):
    """Two SIGHUPs come from one closed terminal: from the shell, and from the system."""
    with StopSignal() as stop:
        for signum in (signal.SIGHUP, signal.SIGHUP, signal.SIGUSR1):
            os.kill(os.getpid(), signum)
        assert stop.asked() == signal.SIGHUP
        assert heard(signal.SIGHUP) == heard(signal.SIGUSR1) == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard(signal.SIGTERM) == 1


def test_after_nohup_a_closed_terminal_is_nothing(heard):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.asked() is None


def test_nobody_has_to_hear_that_it_stops(heard, monkeypatch):
    def closed(*args):
        raise BrokenPipeError

    monkeypatch.setattr(os, "write", closed)
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.asked() == signal.SIGHUP
