"""Tags pictures, one file after the other, and undoes it.

Each file is replaced whole once the log says how to restore it: a process that is killed leaves every file as it was or
as it is to be, and an undo knows which by its content.
"""

import contextlib
import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from clipcls.errors import ImageError, StoppedError, UsageError, reason
from clipcls.outputs.atomic import can_write, require_lock, write_atomically
from clipcls.outputs.sort.place import require_file
from clipcls.outputs.tag import in_file, sidecar
from clipcls.outputs.tag.keywords import Keyword
from clipcls.outputs.tag.log import Change, append, digest, read_changes


@dataclass(frozen=True, slots=True)
class Tagger:
    """Adds keywords to pictures.

    Attributes:
        write: where to: a sidecar, or XMP or EXIF in the file itself, where its format allows it.
        naming: of sidecars.
    """

    write: in_file.Write = "sidecar"
    naming: sidecar.Naming = "full"

    def __post_init__(self) -> None:
        """Check that what is needed is installed.

        Raises:
            UsageError: it isn't.
        """
        if self.write != "sidecar":
            in_file.require_exiv2()

    def target(self, picture: str) -> Path:
        """Return the file that is written for a picture.

        Raises:
            ImageError: there is no such file.
        """
        require_file(picture)
        path = Path(os.path.realpath(picture))
        is_inside = self.write != "sidecar" and path.suffix.lower() in in_file.EXTENSIONS
        return path if is_inside else sidecar.sidecar_of(Path(picture).absolute(), self.naming)

    def tag(self, picture: str, keywords: tuple[Keyword, ...], log: BinaryIO) -> bool:
        """Add keywords to a picture; return whether anything had to be written.

        Args:
            log: an open log, which receives how to restore the file.

        Raises:
            ImageError: the picture, or what is beside it, can't be read or written.
            StoppedError: the log can't be written.
        """
        target = self.target(picture)
        try:
            old = target.read_bytes() if target.exists() else None
            new = self._tagged(target, old, keywords)
            if new == old:
                return False
            append(log, [Change.of(target, old, new)])
            _replace(target, new)
        except OSError as exc:
            raise ImageError(f"{target.name} can't be written: {reason(exc)}") from exc
        return True

    def _tagged(self, target: Path, old: bytes | None, keywords: tuple[Keyword, ...]) -> bytes:
        if target.suffix.lower() == ".xmp":
            return sidecar.with_keywords(old, keywords)
        if old is None:
            raise ImageError("no such file")
        return in_file.with_keywords(old, keywords, self.write, target.suffix.lower())


def _replace(path: Path, content: bytes) -> None:
    try:
        write_atomically(path, lambda file: file.write(content))
    except StoppedError as exc:  # another program's draft
        raise ImageError(str(exc)) from exc


@contextlib.contextmanager
def open_log(path: Path) -> Iterator[BinaryIO]:
    """Open a log to append to; it is removed again if it stays empty.

    Raises:
        StoppedError: it can't be written, or another process does.
    """
    with can_write(str(path)), contextlib.ExitStack() as stack:
        file = stack.enter_context(path.open("ab"))
        require_lock(file, str(path))
        if file.tell():
            _cut_partial_line(path)
        yield file
        if not file.tell():
            path.unlink()


def _cut_partial_line(path: Path) -> None:
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        os.truncate(path, end)


def undo(log: Path) -> Generator[tuple[Path, str | None], None, None]:
    """Restore the files that a log names, the last first; yield each with the reason if it can't be restored.

    Those that can't be restored stay in the log; without any it is removed. An undo may be killed and run again.

    Raises:
        StoppedError: the log can't be written.
        UsageError: it can't be read.
    """
    if not log.is_file():
        raise UsageError(f"{log}: no such file; `clipcls tag` says where it writes its log.")
    changes = read_changes(log)
    kept: list[Change] = []
    blocked: set[Path] = set()
    try:
        while changes:
            change = changes[-1]
            try:
                why = None if change.path not in blocked else "a later change couldn't be taken back"
                if why is None:
                    _restore(change)
            except (ImageError, OSError) as exc:
                why = reason(exc) if isinstance(exc, OSError) else str(exc)
            if why is not None:
                kept.append(change)
                blocked.add(change.path)
            changes.pop()
            yield change.path, why
    finally:
        left = [*changes, *reversed(kept)]
        with can_write(str(log)):
            if left:
                write_atomically(log, lambda file: file.writelines(change.line() for change in left))
            else:
                log.unlink()


def _restore(change: Change) -> None:
    content = change.path.read_bytes() if change.path.exists() else None
    draft = change.path.with_name(f".{change.path.name}.part")  # of a run that was killed
    draft.unlink(missing_ok=True)
    if (None if content is None else digest(content)) == change.before:
        return  # never changed, or restored by an undo that was killed
    if content is None:
        raise ImageError("it isn't there any more")
    old = change.restored(content)
    if old is None:
        change.path.unlink()
        return
    _replace(change.path, old)
    os.utime(change.path, ns=(change.mtime_ns, change.mtime_ns))
