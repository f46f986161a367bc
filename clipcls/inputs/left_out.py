"""Count what listing leaves out of folders, so that nothing is missing without a word."""

import logging
import os
from collections import Counter
from collections.abc import Sequence

from clipcls.errors import NOTICE, listed, printable
from clipcls.inputs.video import VIDEOS

logger = logging.getLogger(__name__)

# what programs keep beside pictures: thumbnails of network storage, caches, archives' and systems' own
SIDE_FOLDERS = frozenset(
    (
        *("@eaDir", "#recycle", "@Recycle", "#snapshot", "__MACOSX", "__pycache__"),
        *("$RECYCLE.BIN", "System Volume Information", "lost+found"),
    )
)
# what describes pictures, and nobody takes for one
_TEXTS = frozenset(".txt .md .json .jsonl .csv .tsv .yaml .yml .xml .xmp .aae .ini".split())  # noqa: SIM905
_MOST_KINDS = 8


class LeftOut:
    """What was left out: files that aren't pictures by their names, unless they are texts, and folders of programs.

    Args:
        takes_videos: whether the run would take videos if it were asked to.
    """

    def __init__(self, takes_videos: bool = False) -> None:
        self._kinds: Counter[str] = Counter()
        self._takes_videos = takes_videos

    def add_file(self, path: str) -> None:
        """Count a file."""
        extension = os.path.splitext(path)[1].lower()  # noqa: PTH122
        if extension not in _TEXTS:
            self._add(path, extension if 1 < len(extension) < 10 else "without an extension")

    def add_folder(self, path: str) -> None:
        """Count a folder with all that is in it."""
        self._add(path, f"folder {os.path.basename(path.rstrip('/'))}")  # noqa: PTH119

    def _add(self, path: str, kind: str) -> None:
        self._kinds[kind] += 1
        logger.info("left out: %s", printable(path))

    def report(self, names: Sequence[str]) -> None:
        """Say by kind what was left out.

        Args:
            names: the inputs.
        """
        if self._kinds:
            kinds = (f"{count:,} {kind}" for kind, count in self._kinds.most_common())
            said = listed(map(printable, kinds), _MOST_KINDS)
            hint = "; --fps 1 takes frames of the videos" if self._takes_videos and VIDEOS & self._kinds.keys() else ""
            logger.log(NOTICE, "left out of %s: %s (-v lists them)%s", listed(map(printable, names), 2), said, hint)
