"""Shows the progress of a run over images on stderr."""

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Self

from clipcls.errors import ClipclsError, printable

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from clipcls.embed.watch import Watch


class Progress:
    """Shows a bar with images done, images per second, time left and failures; and the errors of single images.

    The bar is shown if stderr is a terminal that can redraw a line, unless rows go to the terminal: these show the
    progress themselves.

    Args:
        wanted: False to show neither bar nor errors.
        output: the output of the run; `-` is standard output.
    """

    def __init__(self, wanted: bool, output: str) -> None:
        self._wanted = wanted
        rows_on_terminal = output == "-" and sys.stdout is not None and sys.stdout.isatty()
        able = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._bar: Bar | None = _make_bar() if wanted and able and not rows_on_terminal else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def watch(self, resumed: str = "") -> "Watch":
        """Return the callbacks with which a run shows its progress here.

        Args:
            resumed: name of the output, printed if the run resumes it.
        """
        from clipcls.embed.watch import Watch

        def begin(count: Callable[[], int] | None, already: int) -> None:
            if already and self._wanted:
                print(f"clipcls: {resumed}: going on after {already:,} images", file=sys.stderr)
            self.start(count, already)

        return Watch(self.update_labels, begin, self.update, self.print_error)

    def update_labels(self, done: int, total: int) -> None:
        """Show how many labels, or words, are embedded, of those that weren't cached."""
        if self._bar is None:
            return
        if not self._bar.task_ids:
            self._bar.add_task("labels", total=total, failures="", already=0)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done, total=total)

    def start(self, count: Callable[[], int] | None, already: int = 0) -> None:
        """Show the bar.

        Args:
            count: returns the number of images; it may take long, so that it runs on a thread of its own.
            already: images that an earlier run has done.
        """
        bar = self._bar
        if bar is None:
            return
        for labels in bar.task_ids:
            bar.remove_task(labels)
        task = bar.add_task("images", total=None, completed=already, failures="", already=already)
        bar.start()
        if count is not None:
            threading.Thread(target=_set_total, args=(bar, task, count), daemon=True).start()

    def update(self, done: int, failed: int) -> None:
        """Show how many images are done, and how many of them failed."""
        if self._bar is not None:
            failures = f"[red]{failed} failed[/]" if failed else ""
            self._bar.update(self._bar.task_ids[0], completed=done, failures=failures)

    def print_error(self, path: str, error: str) -> None:
        """Print a line for an image that could not be read."""
        if not self._wanted:
            return
        # if there is a bar, it has replaced sys.stderr, and redraws itself below the line
        print(f"clipcls: {printable(path)}: {error}", file=sys.stderr)


def _set_total(bar: "Bar", task: "TaskID", count: Callable[[], int]) -> None:
    """Count the images beside the run, which couldn't stream if it waited for the count."""
    # the run itself reports inputs that change meanwhile
    with contextlib.suppress(OSError, ClipclsError):
        bar.update(task, total=count())


def _make_bar() -> "Bar":
    # only a run that shows a bar pays for importing it
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            # rich's own speed covers only the last updates, which come a batch at a time
            speed = (task.completed - task.fields["already"]) / task.elapsed if task.elapsed else 0.0
            return Text(f"{speed:.0f} {task.description}/s" if speed else "")

    class TimeLeft(ProgressColumn):
        def render(self, task: Task) -> Text:
            done = task.completed - task.fields["already"]
            if not done or task.total is None or task.elapsed is None:
                return Text("")
            seconds = round(task.elapsed * (task.total - task.completed) / done)
            return Text(f"{timedelta(seconds=max(seconds, 0))} left")

    return RichProgress(
        BarColumn(),
        MofNCompleteColumn(),
        Speed(),
        TimeLeft(),
        TextColumn("{task.fields[failures]}"),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
    )
