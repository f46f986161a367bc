"""Standard error, which messages go to."""

import contextlib
import io
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _Messages(io.FileIO):
    """Standard error; that nobody reads it any more, or that a log's disk is full, is no reason to end a job."""

    def write(self, data: "ReadableBuffer") -> int:
        rest = memoryview(data)
        length = rest.nbytes
        with contextlib.suppress(OSError):
            # of what would have to wait, nothing is written
            while rest and (written := super().write(rest)):
                rest = rest[written:]
        return length


def open_stderr() -> None:
    """Make `sys.stderr` what can't fail."""
    if sys.stderr is None:
        # closed by whoever started us; messages are lost, results need not be
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123
    else:
        _write_to(sys.stderr.fileno())


def silence_libraries() -> None:
    """Keep to ourselves what is written to standard error, and to standard output by `print`, until the end.

    For libraries that write from threads and from C++ whenever they like.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError, io.UnsupportedOperation):
        number = sys.stderr.fileno()
        _write_to(os.dup(number))
        os.dup2(nowhere, number)
    sys.stdout = open(nowhere, "w", closefd=False)  # noqa: SIM115


def _write_to(number: int) -> None:
    sys.stderr = io.TextIOWrapper(
        _Messages(number, "w", closefd=False), sys.stderr.encoding, sys.stderr.errors, line_buffering=True
    )
