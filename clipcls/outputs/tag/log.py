"""The log of files that were tagged: it holds what is needed to restore every byte of them.

Lines of JSON, each on the disk before its file is replaced: the path, digests of the content before and after, how many
bytes at its start and end stayed, and the bytes between as they were.
"""

import base64
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from clipcls.errors import ImageError, UsageError
from clipcls.outputs.atomic import can_write


@dataclass(frozen=True, slots=True)
class Change:
    """How a file was changed.

    Attributes:
        path: absolute.
        before: SHA-256 of the content before, in hexadecimal digits; None if there was no file.
        after: the same of the content after.
        start: how many bytes at the start are the same.
        end: how many bytes at the end, after those, are the same.
        middle: the bytes between, as they were.
        mtime_ns: when the file was last changed before.
    """

    path: Path
    before: str | None
    after: str
    start: int = 0
    end: int = 0
    middle: bytes = b""
    mtime_ns: int = 0

    @classmethod
    def of(cls, path: Path, old: bytes | None, new: bytes) -> "Change":
        """Return the change of a file's content; None for a new file."""
        if old is None:
            return cls(path, None, digest(new))
        start = _same_bytes(old, new)
        end = min(_same_bytes(old[::-1], new[::-1]), min(len(old), len(new)) - start)
        middle = old[start : len(old) - end]
        return cls(path, digest(old), digest(new), start, end, middle, path.stat().st_mtime_ns)

    def restored(self, content: bytes) -> bytes | None:
        """Return the content before the change; None if there was no file.

        Args:
            content: the content after the change.

        Raises:
            ImageError: it is another one.
        """
        if digest(content) != self.after:
            raise ImageError("it has been changed since")
        if self.before is None:
            return None
        old = content[: self.start] + self.middle + content[len(content) - self.end :]
        if digest(old) != self.before:
            raise ImageError("the log doesn't hold what it was")
        return old

    def line(self) -> bytes:
        """Return the log's line."""
        fields = {"path": os.fspath(self.path), "before": self.before, "after": self.after, "start": self.start}
        fields |= {"end": self.end, "middle": base64.b64encode(self.middle).decode(), "mtime_ns": self.mtime_ns}
        # names that aren't UTF-8 have surrogates, which JSON escapes
        return json.dumps({"clipcls_tag": 1, **fields}).encode() + b"\n"


def digest(content: bytes) -> str:
    """Return the SHA-256 of a content, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def _same_bytes(one: bytes, other: bytes) -> int:
    """Return how many bytes at the start of both are the same."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def read_changes(log: Path) -> list[Change]:
    """Read a log; a line that was cut short belongs to a file that wasn't touched.

    Raises:
        UsageError: it can't be read, or isn't such a log.
    """
    try:
        *lines, _ = log.read_bytes().split(b"\n")
    except OSError as exc:
        raise UsageError(f"{log}: can't be read: {exc.strerror}.") from exc
    changes = []
    for number, line in enumerate(lines, 1):
        try:
            fields = json.loads(line)
            if fields.pop("clipcls_tag") != 1:
                raise ValueError("of another version")
            fields["path"], fields["middle"] = Path(fields["path"]), base64.b64decode(fields["middle"], validate=True)
            changes.append(Change(**fields))
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise UsageError(
                f"{log}, line {number}: not the record of `clipcls tag` as this version writes it."
            ) from exc
    return changes


def append(file: BinaryIO, changes: Iterable[Change]) -> None:
    """Append changes to an open log; they are on the disk when this returns.

    Raises:
        StoppedError: it can't be written.
    """
    with can_write(file.name):
        for change in changes:
            file.write(change.line())
        file.flush()
        os.fsync(file.fileno())
