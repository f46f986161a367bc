"""Makes standard error safe to write messages to."""

import contextlib
import io
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _Messages(io.FileIO):
    """Standard error without errors: a closed pipe, or a log on a full disk, is no reason to end a job."""

    def write(self, data: "ReadableBuffer") -> int:
        rest = memoryview(data)
        length = rest.nbytes
        with contextlib.suppress(OSError):
            # the rest is dropped if writing it would have to wait
            while rest and (written := super().write(rest)):
                rest = rest[written:]
        return length


def open_stderr() -> None:
    """Replace `sys.stderr` by a stream whose writes never fail."""
    if sys.stderr is None:
        # closed by the parent process; messages are lost, but results needn't be
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123
    else:
        _write_to(sys.stderr.fileno())


def silence_libraries() -> None:
    """Discard what libraries write to standard error and print to standard output, also from threads and C++.

    It lasts until the process ends; `sys.stderr` still works.
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
