"""Write the part files of a run on a cluster; only the machine that started the run does."""

import io
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from clipcls.distributed.plan import Part, read_part
from clipcls.distributed.work import PartReport, Task
from clipcls.outputs.atomic import can_write, write_atomically
from clipcls.outputs.formats import format_for
from clipcls.outputs.formats.output_format import OutputFormat
from clipcls.outputs.part_files import part_name
from clipcls.outputs.read_back import predictions_in
from clipcls.outputs.sinks import encode
from clipcls.records import Prediction


class PartFiles:
    """The part files in a folder; each is written whole or not at all.

    Args:
        format: format of new files.
        files: existing files, by the number of their part.
        retry: whether to run again the images that failed in existing files.

    Attributes:
        done: number of images in the files that aren't run again, and how many of them have an error; set by `count`.
        mended: paths of shards and tables that are read again because they were broken.
    """

    def __init__(self, folder: Path, format: OutputFormat, files: dict[int, Path], retry: bool) -> None:
        self.format = format
        self._folder = folder
        self._files = files
        self._retry = retry
        self._merging: set[int] = set()  # parts of which only some rows are run again
        self.done = (0, 0)
        self.mended: set[str] = set()

    def __contains__(self, number: int) -> bool:
        return number in self._files

    def count(self, parts: Sequence[Part]) -> list[Task]:
        """Count the images that are done into `done`, and return the tasks to run again."""
        again = []
        done = failed = 0
        for part in parts:
            if part.number not in self._files:
                continue
            rows, errors = self._tally(part)
            task = self._retry_of(part) if self._retry and (errors or part.container in self.mended) else None
            if rows < (part.count or 0):
                # rows are missing: a retry was cut short, or a broken shard ended within the part
                task = Task(part.line)
            if task is not None:
                again.append(task)
                rows, errors = (0, 0) if task.again is None else (rows - errors, 0)
            done, failed = done + rows, failed + errors
        self.done = done, failed
        self._merging = {read_part(task.line).number for task in again if task.again is not None}
        return again

    def _tally(self, part: Part) -> tuple[int, int]:
        path = self._files[part.number]
        rows, errors = format_for(path).tally(path)
        if part.container is None and part.count is not None and rows > part.count:
            # a retry took images that couldn't be listed out of the plan, to list them anew
            planned = Counter(part.paths)
            kept = [row for row in self._rows(part.number) if planned[row.path] > 0]
            self._replace(path, encode(kept, format_for(path, self.format.shape)))
            rows, errors = len(kept), sum(row.error is not None for row in kept)
        return rows, errors

    def _retry_of(self, part: Part) -> Task:
        failed = tuple(row.path for row in self._rows(part.number) if row.error is not None)
        if part.container in failed:
            self.mended.add(str(part.container))
        # of a broken shard or table all is run again: how much it holds wasn't known, nor in its later parts
        return Task(part.line, None if part.container in self.mended else failed)

    def write(self, report: PartReport) -> None:
        """Write a part's file, or replace in it the rows that were run again.

        Raises:
            StoppedError: it can't be written; an existing file is left as it was.
        """
        path = self._files.get(report.number)
        if path is None:
            self._replace(self._folder / part_name(report.number, self.format), report.content)
            return
        # an earlier run may have written the file in another format
        rows = self.format.read(io.BytesIO(report.content), "memory")
        merged = self._merged(report.number, rows) if report.number in self._merging else rows
        self._replace(path, encode(merged, format_for(path, self.format.shape)))

    @staticmethod
    def _replace(path: Path, content: bytes) -> None:
        with can_write(str(path)):
            write_atomically(path, lambda file: file.write(content))

    def _rows(self, number: int) -> Iterator[Prediction]:
        return predictions_in(self._files[number])

    def _merged(self, number: int, rows: Iterable[Prediction]) -> Iterator[Prediction]:
        new: dict[str, deque[Prediction]] = defaultdict(deque)
        for row in rows:
            new[row.path].append(row)
        for row in self._rows(number):
            # a failed image that its shard or table no longer holds keeps its error
            again = row.error is not None and new[row.path]
            yield replace(again.popleft(), index=row.index) if again else row
