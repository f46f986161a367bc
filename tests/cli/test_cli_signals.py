"""Signals as wishes to stop."""

import contextlib
import signal

import pytest

from clipcls.cli.signals import StopSignals


def test_stop_signals_end_what_is_at_hand_until_work_has_begun(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopSignals("finishing"):
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert capfd.readouterr().err == ""
    assert signal.getsignal(signal.SIGINT) is before


def test_stop_signals_finish_what_is_at_hand_once_work_has_begun(capfd: pytest.CaptureFixture[str]) -> None:
    with StopSignals("finishing") as signals:
        assert not signals.received()
        signal.raise_signal(signal.SIGINT)
        assert signals.received() and signals.exit_code == 130
        assert "clipcls: finishing; a second signal" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_stop_signals_keep_one_that_was_swallowed() -> None:
    with StopSignals("finishing") as signals:
        # as an object does that is taken apart while the signal comes
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert signals.received() and signals.exit_code == 130


def test_sigterm_is_known_in_what_other_code_makes_of_its_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    from clipcls import cli

    def app(**_: object) -> None:
        try:
            cli._terminate(signal.SIGTERM, None)
        except cli._TerminatedError:  # as C++ code does that calls Python
            raise ValueError("could not determine the shape") from None

    monkeypatch.setattr(cli, "app", app)
    monkeypatch.setattr(cli._TerminatedError, "was_raised", False)
    with pytest.raises(cli._TerminatedError):
        cli._run()
