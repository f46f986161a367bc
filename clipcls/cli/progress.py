"""Progress of a run over images, on stderr."""

import os
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress as Bar


class Progress:
    """A bar with images done, images per second, time left and failures; and the errors of single images.

    There is a bar where stderr is a terminal that can redraw a line, and rows don't go to the same terminal:
    there the rows themselves show how far it is.

    Args:
        wanted: False for neither bar nor errors.
        output: of the run; `-` is standard output.
    """

    def __init__(self, wanted: bool, output: str) -> None:
        self._wanted = wanted
        rows_on_terminal = output == "-" and sys.stdout.isatty()
        able = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._bar: Bar | None = _make_bar() if wanted and able and not rows_on_terminal else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, count: Callable[[], int] | None) -> None:
        """Show the bar; `count` gives the number of images, and may take long: it runs on a thread of its own."""
        bar = self._bar
        if bar is None:
            return
        task = bar.add_task("images", total=None, failures="")
        bar.start()
        if count is not None:
            counting = count
            threading.Thread(target=lambda: bar.update(task, total=counting()), daemon=True).start()

    def update(self, done: int, failed: int) -> None:
        """Tell how many images are done, and how many of them failed."""
        if self._bar is not None:
            failures = f"[red]{failed} failed[/]" if failed else ""
            self._bar.update(self._bar.task_ids[0], completed=done, failures=failures)

    def print_error(self, path: str, error: str) -> None:
        """A line for an image that could not be read."""
        if not self._wanted:
            return
        shown = os.fsencode(path).decode("utf-8", "replace")
        line = f"clipcls: {''.join(c if c.isprintable() else '�' for c in shown)}: {error}"
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=sys.stderr)


def _make_bar() -> "Bar":
    # only a run that shows a bar pays for importing it
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.0f} images/s" if task.speed else "")

    return RichProgress(
        BarColumn(),
        MofNCompleteColumn(),
        Speed(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[failures]}"),
        console=Console(stderr=True),
        transient=True,
    )
