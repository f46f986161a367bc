"""SIGINT and SIGTERM in commands that would rather come to an orderly end."""

import os
import signal
from types import FrameType
from typing import Any, Self

import typer


def is_first_process() -> bool:
    """Whether this is the process that speaks, of those that torchrun has started."""
    return os.environ.get("RANK", "0") == "0"


class StopSignals:
    """SIGINT and SIGTERM, as a wish to stop after what is at hand; a second one ends the process at once.

    Args:
        message: what is said at the first one, such as `saving after this step`.

    Attributes:
        exit_code: 128 and the signal's number; 0 before any.
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
        """Whether there was one; until this is first asked, once work has begun, a signal ends what is at hand."""
        if not self._has_begun:
            self._has_begun = True
            for number in self._before:
                signal.signal(number, self._receive)
        return self.exit_code != 0

    def _receive_early(self, number: int, frame: FrameType | None) -> None:
        self.exit_code = 128 + number
        if _is_importing(frame):
            # nothing has begun, and an exception that met C++ code on its way, as torch's, would make Python abort
            typer.echo("clipcls: interrupted", err=True)
            os._exit(self.exit_code)
        # what is at hand may swallow the exception that the handler before raises; the wish is kept
        before = self._before[number]
        if callable(before):
            before(number, frame)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        # torchrun passes a signal on to processes that may have had it from the terminal already, so that a second
        # one means nothing; it ends them itself after a while
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
