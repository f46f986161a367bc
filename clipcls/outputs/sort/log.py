"""The log, in a folder of sorted pictures, of what was put where: enough to undo it, wherever it broke off.

Lines of JSON, appended whole. A run begins with a line on how it goes about things; a file has a line before it is
touched and one once it is in place; `{"end": true}` follows when the run stopped between two files. Paths in the
folder are relative to it, so that it can be moved.
"""

import base64
import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

from clipcls.errors import StoppedError, UsageError
from clipcls.outputs.atomic import lock, write_atomically
from clipcls.outputs.sort.place import SortedFile, find_remains, translated
from clipcls.records import FileStamp, SortMethod

LOG_NAME = ".clipcls-sort.jsonl"
END = {"end": True}
_VERSION = 1


@dataclass(slots=True)
class SortRun:
    """What is done at one time.

    Attributes:
        folders: name of the folder of each label.
        made: names of the folders that it made; `.` is the whole.
        tried: whether it was to be undone, and these files couldn't be.
        files: by number.
        ended: whether it stopped between two files; files without a stamp were then never touched.
        remains: what it left when it was killed, to be removed before anything else is done.
    """

    name: str
    by: SortMethod
    folders: dict[str, str]
    made: list[str] = field(default_factory=list)
    tried: bool = False
    files: dict[int, SortedFile] = field(default_factory=dict)
    ended: bool = False
    remains: list[Path] = field(default_factory=list)

    def line(self) -> dict[str, Any]:
        """Return what the log says of how the run goes about things."""
        line = {"clipcls_sort": _VERSION, "run": self.name, "by": self.by, "folders": dict(self.folders)}
        return line | {"made": list(self.made), "tried": self.tried}


def file_line(file: SortedFile, root: Path) -> dict[str, Any]:
    """Return what the log of a folder says of a file before it is touched, and of one that is in place."""
    source = file.source.relative_to(root) if file.source.is_relative_to(root) else file.source
    line = {"file": file.number, "source": os.fspath(source), "target": os.fspath(file.target.relative_to(root))}
    line |= {"size": file.size, "mtime_ns": file.mtime_ns, "link": file.link, "source_link": file.source_link}
    line["mark"] = astuple(file.stamp) if file.stamp is not None else None
    return {name: value for name, value in line.items() if value is not None}


def read_runs(root: Path) -> list[SortRun]:
    """Read a folder's log: its runs, in order; what the last one was at when it was killed is in place, or untouched.

    Raises:
        UsageError: it can't be read, or isn't such a log.
    """
    path = root / LOG_NAME
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as exc:
        raise UsageError(f"{path}: can't be read: {exc.strerror}.") from exc
    runs: list[SortRun] = []
    *lines, partial = data.split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            _take(json.loads(line), runs, root)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as exc:
            raise UsageError(
                f"{path}, line {number}: not the record of `clipcls sort` as this version writes it. What was sorted "
                "can't be undone; to sort more into this folder, move the record away."
            ) from exc
    for run in runs[-1:]:
        run.ended = run.ended and not partial
        for file in [] if run.ended else list(run.files.values()):
            if file.stamp is None:
                stamp, remains = find_remains(file)
                run.files[file.number] = replace(file, stamp=stamp)
                run.remains += remains
    return runs


def _take(record: dict[str, Any], runs: list[SortRun], root: Path) -> None:
    # an earlier version wrote the bytes of names that aren't UTF-8 so
    for name in [name for name in record if name.endswith("_b64")]:
        record[name.removesuffix("_b64")] = os.fsdecode(base64.b64decode(record[name], validate=True))
    match record:
        case {"clipcls_sort": 1, "by": "copy" | "hardlink" | "symlink" | "move" as by, "run": name}:
            folders, made = record["folders"], record["made"]
            if any(PurePath(each).name != each for each in (name, *made, *folders.values()) if each != "."):
                raise ValueError("leads out of the folder")
            runs.append(SortRun(name, by, folders, made, record["tried"]))
        case {"file": int(number), "source": source, "target": target, "size": int(size), "mtime_ns": int(mtime_ns)}:
            if PurePath(target).is_absolute() or ".." in PurePath(target).parts:
                raise ValueError("leads out of the folder")
            file = SortedFile(runs[-1].name, number, runs[-1].by, root / source, root / target)
            file = replace(file, size=size, mtime_ns=mtime_ns, link=record.get("link"))
            stamp = _stamp_of(record["mark"]) if "mark" in record else None
            runs[-1].files[number] = replace(file, source_link=record.get("source_link"), stamp=stamp)
        case {"done": int(number), "mark": mark}:
            runs[-1].files[number] = replace(runs[-1].files[number], stamp=_stamp_of(mark))
        case {"end": True}:
            runs[-1].ended = True
        case _:
            raise ValueError("of another version")


def _stamp_of(mark: list[int]) -> FileStamp:
    # an earlier version wrote the device before the inode
    return FileStamp(*map(int, [*mark[:3], *mark[-1:]]))


def write_runs(root: Path, runs: Sequence[SortRun]) -> None:
    """Replace a folder's log; without runs there is none.

    Raises:
        StoppedError: it can't be written.
    """
    lines: list[Mapping[str, Any]] = []
    for run in runs:
        lines += [run.line(), *(file_line(file, root) for file in run.files.values()), END]
    with translated(root / LOG_NAME):
        if lines:
            write_atomically(root / LOG_NAME, lambda file: file.write(_encoded(lines)))
        else:
            (root / LOG_NAME).unlink(missing_ok=True)


def append(root: Path, *lines: Mapping[str, Any], durable: bool = False) -> None:
    """Append lines to a folder's log; if durable, they are on the disk when this returns.

    Raises:
        StoppedError: it can't be written.
    """
    data = _encoded(lines)
    with translated(root / LOG_NAME), (root / LOG_NAME).open("ab", buffering=0) as file:
        while data:
            # a file without a buffer may take a part only
            data = data[file.write(data) :]
        if durable:
            os.fsync(file.fileno())


def _encoded(lines: Sequence[Mapping[str, Any]]) -> bytes:
    # names that aren't UTF-8 have surrogates, for which JSON and Python know one escape
    return b"".join(json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n" for line in lines)


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Let no other process sort into a folder, or undo there.

    Raises:
        StoppedError: one is at it.
    """
    # the folder, not the log in it, which comes and goes
    descriptor = os.open(root, os.O_RDONLY)
    try:
        if not lock(descriptor):
            raise StoppedError(f"{root}: another `clipcls sort` is at work there. Wait for its end.")
        yield
    finally:
        os.close(descriptor)
