"""Every error that clipcls raises on purpose, and the exit code of each.

    ClipclsError                2
    ├── UsageError              2   an option, a label, a prompt, a path that can't be used
    ├── ModelError              3   the model can't be had, or can't be trusted
    │   └── HubUnreachableError 3   its files aren't here, and there is no connection
    ├── ImageError              1   one image can't be read; in a run it becomes a record, not an exception
    │   ├── TooLargeError       1   it has more bytes or pixels than are allowed
    │   └── NotAnImageError     1   it is in no format that is known
    └── StoppedError            4   the run stopped before its end: output can't be written, --on-error stop
        └── OutOfMemoryError    4   the device's memory doesn't hold what was asked of it

A message says what is wrong, where, and what to do. Errors of other libraries are translated once, at the place
where the library is called. How a reason, a list of names and an odd text are said stands here too, once for all.
"""

from collections.abc import Iterable

# the logging level of what a user should know without asking, though nothing is wrong: between INFO and WARNING
NOTICE = 25


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


class HubUnreachableError(ModelError):
    """A model's files aren't on this machine, and the hub that has them can't be reached."""


class ImageError(ClipclsError):
    """One image can't be read."""

    exit_code = 1


class TooLargeError(ImageError):
    """An image has more bytes or pixels than are allowed."""


class NotAnImageError(ImageError):
    """A file is in no format of images that is known."""


class StoppedError(ClipclsError):
    """A run ended before its last image."""

    exit_code = 4


class OutOfMemoryError(StoppedError):
    """The device has no memory for a batch; smaller ones may fit."""


def first_line(exc: BaseException) -> str:
    """What another library's exception says, on one line."""
    return str(exc).strip().split("\n", 1)[0] or type(exc).__name__


def reason(exc: BaseException) -> str:
    """Return why something failed, as the system says it, else as the library does, on one line."""
    strerror = getattr(exc, "strerror", None)
    return str(strerror).lower() if strerror else first_line(exc)


def listed(names: Iterable[str], most: int = 5, separator: str = ", ") -> str:
    """Return the first of some names, and how many more there are."""
    found = list(names)
    more = f" and {len(found) - most:,} more" if len(found) > most else ""
    return separator.join(found[:most]) + more


def quoted(names: Iterable[str]) -> str:
    """Return the first three of some names in quotation marks, and how many more there are."""
    return listed((repr(shortened(name)) for name in names), 3)


def shortened(text: str, most: int = 200) -> str:
    """Return a text without what is beyond so many characters."""
    return text if len(text) <= most else f"{text[: most - 20]}… ({len(text):,} characters)"


def printable(text: str) -> str:
    """Return a text with U+FFFD for signs that would move a terminal's cursor, or that nothing shows."""
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in text)
