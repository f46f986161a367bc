"""The log in a folder of sorted pictures: it records what was put where, so that any run can be undone.

It holds lines of JSON, appended whole. A run begins with a line with its settings; each file has a line before it is
touched and one once it is in place; `{"end": true}` follows if the run stopped between two files. Paths inside the
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
    """One run of `clipcls sort` into a folder.

    Attributes:
        folders: the name of each label's folder.
        made: names of the folders that the run made; `.` is the folder around them.
        tried: whether an undo was tried, and failed for the files that are left.
        files: the files by number.
        ended: whether the run stopped between two files; files without a stamp were then never touched.
        remains: files that it left when it was killed, to be removed before anything else is done.
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
        """Return the log's line with the settings of the run."""
        line = {"clipcls_sort": _VERSION, "run": self.name, "by": self.by, "folders": dict(self.folders)}
        return line | {"made": list(self.made), "tried": self.tried}


def file_line(file: SortedFile, root: Path) -> dict[str, Any]:
    """Return the log's line for a file that is about to be touched, or is in place."""
    source = file.source.relative_to(root) if file.source.is_relative_to(root) else file.source
    line = {"file": file.number, "source": os.fspath(source), "target": os.fspath(file.target.relative_to(root))}
    line |= {"size": file.size, "mtime_ns": file.mtime_ns, "link": file.link, "source_link": file.source_link}
    line["mark"] = astuple(file.stamp) if file.stamp is not None else None
    return {name: value for name, value in line.items() if value is not None}


def read_runs(root: Path) -> list[SortRun]:
    """Read the runs in a folder's log, in order; files of a killed run are looked up, and are in place or untouched.

    Raises:
        UsageError: the log can't be read, or isn't such a log.
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
    # an earlier version wrote names that aren't UTF-8 in base64
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
    """Replace a folder's log; remove it if there are no runs.

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
            # an unbuffered file may take only a part
            data = data[file.write(data) :]
        if durable:
            os.fsync(file.fileno())


def _encoded(lines: Sequence[Mapping[str, Any]]) -> bytes:
    # names that aren't UTF-8 have surrogates, which JSON and Python escape in the same way
    return b"".join(json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n" for line in lines)


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Keep other processes from sorting or undoing in a folder.

    Raises:
        StoppedError: another one is doing so.
    """
    # locks the folder, since the log in it may be replaced or removed
    descriptor = os.open(root, os.O_RDONLY)
    try:
        if not lock(descriptor):
            raise StoppedError(f"{root}: another `clipcls sort` is at work there. Wait for its end.")
        yield
    finally:
        os.close(descriptor)
