"""Handles SIGINT and SIGTERM in commands that stop in order."""

import os
import signal
from types import FrameType
from typing import Any, Self

import typer


def is_first_process() -> bool:
    """Return whether this is the one process under torchrun that prints messages."""
    return os.environ.get("RANK", "0") == "0"


class StopSignals:
    """Turns SIGINT and SIGTERM into a request to stop after the current step; a second one ends the process at once.

    Args:
        message: printed at the first signal, such as `saving after this step`.

    Attributes:
        exit_code: 128 plus the signal's number; 0 before any signal.
    """

    def __init__(self, message: str) -> None:
        self.exit_code = 0
        self._message = message
        self._before: dict[int, Any] = {}
        self._has_begun = False

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._receive_early)
        return self

    def __exit__(self, *_: object) -> None:
        self._let_through()

    def received(self) -> bool:
        """Return whether there was a signal; before the first call, once work has begun, one ends the work at once."""
        if not self._has_begun:
            self._has_begun = True
            for number in self._before:
                signal.signal(number, self._receive)
        return self.exit_code != 0

    def _receive_early(self, number: int, frame: FrameType | None) -> None:
        self.exit_code = 128 + number
        if _is_importing(frame):
            # no work has begun, and an exception that passes through C++ code such as torch's would abort Python
            typer.echo("clipcls: interrupted", err=True)
            os._exit(self.exit_code)
        # running code may swallow the exception of the earlier handler; exit_code keeps the request
        before = self._before[number]
        if callable(before):
            before(number, frame)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        # torchrun forwards a signal to processes that may have received it from the terminal already, so that a
        # second one means nothing; it ends them itself after a while
        under_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
        if self.exit_code == 0 and is_first_process():
            end = "" if under_torchrun else "; a second signal ends the run at once"
            typer.echo(f"clipcls: {self._message}{end}", err=True)
        self.exit_code = 128 + number
        if not under_torchrun:
            self._let_through()

    def _let_through(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
