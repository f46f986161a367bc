"""The part files of a run on a cluster, which only the machine writes that the run was started on."""

import io
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from clipcls.distributed.plan import Part
from clipcls.distributed.work import Report, Task
from clipcls.errors import StoppedError
from clipcls.files import write_atomically
from clipcls.outputs import predictions_in, tally
from clipcls.records import Format, Prediction
from clipcls.results import read_predictions
from clipcls.sinks import encode, format_for, part_name


class PartFiles:
    """Part files in a folder, each written at once and whole.

    Args:
        kind: of new ones.
        files: those that are there, by their parts' numbers.
        retry: whether the images in them that failed are to be run again.

    Attributes:
        done: images in the files that aren't run again, and how many of them have an error.
    """

    def __init__(self, folder: Path, kind: Format, files: dict[int, Path], retry: bool) -> None:
        self.kind = kind
        self._folder = folder
        self._files = files
        counts = {number: tally(path, format_for(path)) for number, path in files.items()}
        self._broken = {number for number, (_, failed) in counts.items() if failed} if retry else set()
        count, failed = (sum(pair[i] for pair in counts.values()) for i in range(2))
        self.done = (count - failed, 0) if retry else (count, failed)

    def __contains__(self, number: int) -> bool:
        return number in self._files

    def retries(self, parts: Iterable[Part]) -> Iterator[Task]:
        """What is to be run again."""
        for part in parts:
            if part.number in self._broken:
                failed = (row.path for row in self._rows(part.number) if row.error is not None)
                yield Task(part.line, tuple(failed))

    def write(self, report: Report) -> None:
        """Write a part, or the rows of it that were run again in their old places.

        Raises:
            StoppedError: it can't be written; what was there is as it was.
        """
        path = self._folder / part_name(report.number, self.kind)
        content = report.content
        if report.number in self._broken:
            path = self._files[report.number]
            content = encode(self._merged(report), format_for(path))
        try:
            write_atomically(path, lambda file: file.write(content))
        except OSError as exc:
            raise StoppedError(f"{path}: can't be written: {exc.strerror}.") from exc

    def _rows(self, number: int) -> Iterator[Prediction]:
        path = self._files[number]
        return predictions_in(path, format_for(path))

    def _merged(self, report: Report) -> Iterator[Prediction]:
        new: dict[str, deque[Prediction]] = defaultdict(deque)
        for row in read_predictions(io.BytesIO(report.content), self.kind, "memory"):
            new[row.path].append(row)
        for row in self._rows(report.number):
            # what isn't in its shard or table any more keeps its error
            again = row.error is not None and new[row.path]
            yield replace(again.popleft(), index=row.index) if again else row
