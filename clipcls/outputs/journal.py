"""The journal: a file beside an output that records the settings of its run, so that the run can be resumed.

It holds lines of JSON, appended whole: `settings` first, and again after failures were removed; `failed` for an image
that has no row because the format keeps no errors; `retry`, which voids all failures before it; `listing` when the rows
of a part of a job are complete, with what the job's inputs were, or null once they may no longer be; `whole` when a run
ends in order, with the output's size in bytes.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from clipcls.errors import StoppedError, UsageError
from clipcls.outputs.atomic import can_write, require_lock
from clipcls.outputs.rows import prediction_of, row_fields
from clipcls.records import Listing, Prediction

RunSettings = Mapping[str, Any]
#: The setting that says which part of a job an output holds, recorded only where it is one.
PART_SETTING = "--part"


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What a journal says of an output that a run finished, and that nothing has changed since.

    Attributes:
        settings: all that the rows depend on besides the images, by the names of the options.
        failed: the failed images that have no row in the output.
    """

    settings: RunSettings
    failed: tuple[Prediction, ...] = ()


def journal_path(output: Path) -> Path:
    """Return the path of the journal of an output file, or of a folder of part files."""
    return output / ".clipcls-run" if output.is_dir() else output.with_name(f".{output.name}.run")


class Journal:
    """An open and locked journal: of two runs that write to the same output, the second is refused.

    Args:
        output: the output's name, for messages.
        read_only: the journal is only read, not made where it is missing.

    Attributes:
        path: the journal's path.
        settings: the settings by the names of their options; None for a new journal.
        failed: the failed images that have no row in the output.
        listing: what the inputs of a part's job were; None unless the part is complete.
        whole: the output's size in bytes when a run ended in order; None if none did.

    Raises:
        OSError: the journal can't be opened.
        StoppedError: another run holds it.
        UsageError: the file isn't a journal.
    """

    def __init__(self, path: Path, output: str, *, read_only: bool = False) -> None:
        self.path = path
        self._output = output
        self.settings: dict[str, Any] | None = None
        self.failed: list[Prediction] = []
        self.listing: Listing | None = None
        self.whole: int | None = None
        self._file = cast("BinaryIO", path.open("rb" if read_only else "ab+", buffering=0))
        try:
            require_lock(self._file, output)
            self._read()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def begin(self, settings: RunSettings) -> None:
        """Empty the journal and record the settings of an output that is empty."""
        self._file.truncate(0)
        self.settings, self.failed, self.listing, self.whole = dict(settings), [], None, None
        self._append({"settings": self.settings})
        # without the settings, no run could be resumed after a power failure
        os.fsync(self._file.fileno())

    def restate(self, settings: RunSettings) -> None:
        """Record changed settings, which the output's rows agree with from now on."""
        self.settings = dict(settings)
        self._append({"settings": self.settings})

    def add_failure(self, prediction: Prediction) -> None:
        """Record a failed image that the output has no row for."""
        self._append({"failed": row_fields(prediction)})

    def retry(self) -> None:
        """Void all recorded failures."""
        self.failed = []
        self._append({"retry": True})

    def complete(self, listing: Listing | None) -> None:
        """Record that the output has all rows of its part, and what the job's inputs were; None for no longer."""
        self.listing = listing
        self._append({"listing": None if listing is None else asdict(listing)})

    def finish(self, size: int) -> None:
        """Record that the output's rows are whole up to its size in bytes."""
        self._append({"whole": size})

    def _read(self) -> None:
        self._file.seek(0)
        data = self._file.read()
        end = data.rfind(b"\n") + 1
        if self._file.writable():
            self._file.truncate(end)  # cuts off a partly written last line
        for line in data[:end].splitlines():
            self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            match json.loads(line):
                case {"settings": dict(settings)}:
                    self.settings = settings
                case {"failed": dict(row)}:
                    self.failed.append(prediction_of(row))
                case {"retry": True}:
                    self.failed = []
                case {"listing": None}:
                    self.listing = None
                case {"listing": {"count": int(count), "digest": str(digest)}}:
                    self.listing = Listing(count, digest)
                case {"whole": int(size)}:
                    self.whole = size
                case _:
                    raise ValueError("no such entry")
        except (ValueError, KeyError, TypeError, RecursionError) as exc:
            raise UsageError(
                f"{self.path}: not the record of a run; {self._output} can't be gone on with. Remove both, or choose "
                "another output."
            ) from exc

    def _append(self, entry: dict[str, Any]) -> None:
        data = json.dumps(entry, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
        start = self._file.seek(0, os.SEEK_END)
        try:
            with can_write(str(self.path)):
                while data:
                    data = data[self._file.write(data) :]
        except StoppedError:
            with contextlib.suppress(OSError):
                self._file.truncate(start)
            raise


def read_record(output: Path) -> RunRecord | None:
    """Return what the journal of a file, or of a folder of part files, says of it; None where nothing sure is known."""
    path = Path(os.path.realpath(output))
    try:
        with Journal(journal_path(path), str(output), read_only=True) as journal:
            is_whole = output.is_dir() or journal.whole == output.stat().st_size
            return RunRecord(journal.settings, tuple(journal.failed)) if journal.settings and is_whole else None
    except (OSError, StoppedError, UsageError):
        return None


def differences(before: RunSettings, now: RunSettings) -> Iterator[str]:
    """Yield the names of the settings that differ, with their values where these are short."""
    for name in dict.fromkeys([*before, *now]):
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        short = all(value is None or isinstance(value, str | int | float) for value in (old, new))
        brief = short and max(len(str(old)), len(str(new))) <= 40
        yield f"{name} ({_shown(old)} then, {_shown(new)} now)" if brief else name


def _shown(value: object) -> str:
    return "not given" if value is None else str(value)
