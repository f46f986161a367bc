"""Refuse outputs that a run shouldn't write to, before anything is opened."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clipcls.outputs.destination import Destination


def refuse_output(destination: "Destination", sources: Sequence[str | Path | None]) -> None:
    """Refuse an output that can't be written, or that would replace a picture or what the results are made from."""
    from clipcls.errors import StoppedError, UsageError
    from clipcls.inputs.discover import EXTENSIONS
    from clipcls.outputs.destination import check_destination

    check_destination(destination)
    if destination.folder is not None or destination.output == "-":
        return
    path = Path(destination.output)
    if path.suffix.lower() in EXTENSIONS:
        raise UsageError(f"--output {destination.output!r}: not a name for results.")
    if path.is_dir() or not path.absolute().parent.is_dir() or (path.exists() and not os.access(path, os.W_OK)):
        raise StoppedError(
            f"{destination.output}: can't be written: it is a folder, closed to you, or in a folder that isn't there."
        )
    for source in sources:
        if source and os.path.exists(source) and path.exists() and path.samefile(source):  # noqa: PTH110, globs may be long
            raise UsageError(f"--output {destination.output!r} is one of the inputs, which it would overwrite.")


def refuse_page(option: str, page: Path, sources: Sequence[str | Path | None]) -> None:
    """Refuse a page that can't be written, that doesn't look like one, or that would replace an input."""
    from clipcls.errors import StoppedError, UsageError

    if page.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{option} {page}: a name that ends in .html is needed.")
    if page.is_dir() or not os.access(page.absolute().parent, os.W_OK):
        raise StoppedError(f"{page}: can't be written: it is a folder, or in one that isn't there or is closed.")
    for source in sources:
        is_there = source and page.exists() and os.path.exists(source)  # noqa: PTH110
        if source and (page.samefile(source) if is_there else os.path.abspath(source) == os.path.abspath(page)):  # noqa: PTH100
            raise UsageError(f"{option} {page} is also an input or the output, which it would overwrite.")
