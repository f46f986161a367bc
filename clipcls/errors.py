"""Every error that clipcls raises on purpose, and the exit code of each.

    ClipclsError                2
    ├── UsageError              2   an option, a label, a prompt, a path that can't be used
    ├── ModelError              3   the model can't be had, or can't be trusted
    ├── ImageError              1   one image can't be read; in a run it becomes a record, not an exception
    └── StoppedError            4   the run stopped before its end: output can't be written, --on-error stop
        └── OutOfMemoryError    4   the device's memory doesn't hold what was asked of it

A message says what is wrong, where, and what to do. Errors of other libraries are translated once, at the place
where the library is called.
"""


class ClipclsError(Exception):
    """Root of the tree; `exit_code` is what the command line exits with.

    Attributes:
        told: whether another process of the same run says it.
    """

    exit_code = 2
    told = False


class UsageError(ClipclsError):
    """What the caller asked for can't be done as asked."""


class ModelError(ClipclsError):
    """A model can't be found, downloaded, or loaded without guessing."""

    exit_code = 3


class ImageError(ClipclsError):
    """One image can't be read."""

    exit_code = 1


class StoppedError(ClipclsError):
    """A run ended before its last image."""

    exit_code = 4


class OutOfMemoryError(StoppedError):
    """The device has no memory for a batch; smaller ones may fit."""


def first_line(exc: BaseException) -> str:
    """What another library's exception says, on one line."""
    return str(exc).strip().split("\n", 1)[0] or type(exc).__name__
