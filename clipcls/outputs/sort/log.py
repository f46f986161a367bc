"""The record, in a folder of sorted pictures, of what was put where: enough to undo it, wherever it broke off.

Lines of JSON, appended whole. A run begins with a line on how it goes about things; a file has a line before it is
touched and one once it is in place; `{"end": true}` follows when the run stopped between two files. Paths in the
folder are relative to it, so that it can be moved; a name that isn't UTF-8 has its bytes in a further `…_b64`.
"""

import base64
import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any, BinaryIO, Literal, cast

from clipcls.errors import StoppedError, UsageError
from clipcls.outputs.atomic import lock, write_atomically

Method = Literal["copy", "hardlink", "symlink", "move"]

NAME = ".clipcls-sort.jsonl"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Mark:
    """What tells whether a file is the same one, and as it was."""

    size: int
    mtime_ns: int
    ctime_ns: int
    device: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> "Mark":
        """The mark of a file with this status."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_dev, status.st_ino)


@dataclass(frozen=True, slots=True)
class Entry:
    """One file.

    Attributes:
        number: in its run.
        source: its path, absolute, the folders in it no links.
        target: what is made of it, likewise.
        size: of the source, in bytes.
        mtime_ns: of the source.
        link: what a symbolic link that is made says.
        source_link: what the source says, where that is a link that is moved.
        mark: of the target once it is in place.
    """

    number: int
    source: Path
    target: Path
    size: int
    mtime_ns: int
    link: str | None = None
    source_link: str | None = None
    mark: Mark | None = None


@dataclass(slots=True)
class Run:
    """What was done at one time.

    Attributes:
        name: in the names of unfinished copies.
        folders: name of the folder of each label.
        made: names of the folders that it made; `.` is the whole.
        tried: whether it was to be undone, and these entries couldn't be.
        entries: by number.
        ended: whether it stopped between two files; entries without a mark were then never touched.
        start: of its lines in the record, in bytes.
        stop: of its lines.
    """

    name: str
    by: Method
    folders: Mapping[str, str]
    made: Sequence[str]
    tried: bool = False
    entries: dict[int, Entry] = field(default_factory=dict)
    ended: bool = False
    start: int = 0
    stop: int = 0

    def part(self, entry: Entry, folder: Path) -> Path:
        """What a copy is called in a folder until it is whole."""
        return folder / f".clipcls-sort-{self.name}-{entry.number}.part"


def read_runs(root: Path) -> list[Run]:
    """The runs that a folder's record holds, in order.

    Raises:
        UsageError: it can't be read, or isn't such a record.
    """
    path = root / NAME
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as exc:
        raise UsageError(f"{path}: can't be read: {exc.strerror}.") from exc
    runs: list[Run] = []
    start = 0
    # what follows the last line's end was written in part
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        stop = start + len(line) + 1
        try:
            _take(json.loads(line), runs, root, start)
            runs[-1].stop = stop
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as exc:
            raise UsageError(
                f"{path}, line {number}: not the record of `clipcls sort` as this version writes it. What was sorted "
                "can't be undone; to sort more into this folder, move the record away."
            ) from exc
        start = stop
    return runs


def _take(record: dict[str, Any], runs: list[Run], root: Path, start: int) -> None:
    if "clipcls_sort" in record:
        runs.append(_run_of(record, start))
    elif "file" in record:
        entry = _entry_of(record, root)
        runs[-1].entries[entry.number] = entry
    elif "done" in record:
        entries = runs[-1].entries
        entries[record["done"]] = replace(entries[record["done"]], mark=_mark_of(record["mark"]))
    elif record["end"]:
        runs[-1].ended = True


def _run_of(record: dict[str, Any], start: int) -> Run:
    if record["clipcls_sort"] != _VERSION or record["by"] not in ("copy", "hardlink", "symlink", "move"):
        raise ValueError("of another version")
    names = [str(record["run"]), *record["made"], *record["folders"].values()]
    if any(PurePath(name).name != name for name in names if name != "."):
        raise ValueError("leads out of the folder")
    return Run(names[0], record["by"], record["folders"], record["made"], record["tried"], start=start)


def _entry_of(record: dict[str, Any], root: Path) -> Entry:
    target = PurePath(_text_of(record, "target"))
    if target.is_absolute() or ".." in target.parts:
        raise ValueError("leads out of the folder")
    return Entry(
        number=int(record["file"]),
        source=root / _text_of(record, "source"),
        target=root / target,
        size=int(record["size"]),
        mtime_ns=int(record["mtime_ns"]),
        link=_text_of(record, "link") if "link" in record else None,
        source_link=_text_of(record, "source_link") if "source_link" in record else None,
        mark=_mark_of(record["mark"]) if "mark" in record else None,
    )


def _mark_of(values: list[int]) -> Mark:
    return Mark(*(int(value) for value in values))


def _text_of(record: dict[str, Any], name: str) -> str:
    raw = record.get(f"{name}_b64")
    text = os.fsdecode(base64.b64decode(raw, validate=True)) if raw else record[name]
    return cast("str", text)


class Ledger:
    """A folder's record, open for appending.

    Raises:
        StoppedError: it can't be written.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._path = root / NAME
        with self._can_write():
            self._file = cast("BinaryIO", self._path.open("ab+", buffering=0))
            self._cut_off_partial_line()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def begin(self, run: Run) -> None:
        """Begin a run; what is appended from now on belongs to it."""
        self._append(_header(run))

    def intend(self, entries: Iterable[Entry]) -> None:
        """Say what will be touched next; on the disk when this returns."""
        self._append(b"".join(_file_line(entry, self._root) for entry in entries))
        with self._can_write():
            os.fsync(self._file.fileno())

    def finish(self, entry: Entry) -> None:
        """Say that a file is in place; its entry has a mark."""
        self._append(_line({"done": entry.number, "mark": _values(entry.mark)}))

    def end(self) -> None:
        """Say that nothing is half done."""
        self._append(_line({"end": True}))

    def _append(self, data: bytes) -> None:
        start = self._file.seek(0, os.SEEK_END)
        try:
            with self._can_write():
                while data:
                    # a file without a buffer may take a part only
                    data = data[self._file.write(data) :]
        except StoppedError:
            with contextlib.suppress(OSError):
                self._file.truncate(start)
            raise

    def _cut_off_partial_line(self) -> None:
        self._file.seek(0)
        data = self._file.read()
        if not data.endswith(b"\n"):
            self._file.truncate(data.rfind(b"\n") + 1)

    @contextlib.contextmanager
    def _can_write(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise StoppedError(f"{self._path}: can't be written: {exc.strerror}.") from exc


def shorten(root: Path, run: Run, kept: Sequence[Entry]) -> None:
    """Take a run out of the record, but for some of its entries; a record that holds nothing more is removed.

    Args:
        run: as `read_runs` gave it; those before it keep their places.

    Raises:
        StoppedError: the record can't be written.
    """
    path = root / NAME
    try:
        data = path.read_bytes()
        data = data[: data.rfind(b"\n") + 1]
        left = b""
        if kept:
            lines = [_file_line(entry, root) for entry in kept]
            left = b"".join([_header(replace(run, tried=True)), *lines, _line({"end": True})])
        data = data[: run.start] + left + data[run.stop :]
        if data:
            write_atomically(path, lambda file: file.write(data))
        else:
            path.unlink()
    except OSError as exc:
        raise StoppedError(f"{path}: can't be written: {exc.strerror}.") from exc


def _header(run: Run) -> bytes:
    return _line(
        {
            "clipcls_sort": _VERSION,
            "run": run.name,
            "by": run.by,
            "folders": dict(run.folders),
            "made": list(run.made),
            "tried": run.tried,
        }
    )


def _file_line(entry: Entry, root: Path) -> bytes:
    record: dict[str, Any] = {"file": entry.number}
    record |= _texts("source", _relative(entry.source, root)) | _texts("target", _relative(entry.target, root))
    record |= {"size": entry.size, "mtime_ns": entry.mtime_ns}
    if entry.link is not None:
        record |= _texts("link", entry.link)
    if entry.source_link is not None:
        record |= _texts("source_link", entry.source_link)
    if entry.mark is not None:
        record["mark"] = _values(entry.mark)
    return _line(record)


def _relative(path: Path, root: Path) -> str:
    return os.fspath(path.relative_to(root) if path.is_relative_to(root) else path)


def _values(mark: Mark | None) -> list[int]:
    return list(astuple(mark)) if mark is not None else []


def _texts(name: str, value: str) -> dict[str, str]:
    raw = os.fsencode(value)
    text = raw.decode("utf-8", "replace")
    return {name: text} | ({f"{name}_b64": base64.b64encode(raw).decode("ascii")} if text != value else {})


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Let no other process sort into a folder, or undo there.

    Raises:
        StoppedError: one is at it.
    """
    # the folder, not the record in it, which comes and goes
    descriptor = os.open(root, os.O_RDONLY)
    try:
        if not lock(descriptor):
            raise StoppedError(f"{root}: another `clipcls sort` is at work there. Wait for its end.")
        yield
    finally:
        os.close(descriptor)
