"""Tables of pictures and captions, and the decoded pictures of a batch."""

import csv
import json
import random
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from clipcls.errors import ImageError, UsageError
from clipcls.images import open_file, pillow_errors

_CJK = re.compile("[\u3005-\u30ff\u3400-\u4dbf\u4e00-\u9fff]")
LOOK_AHEAD = 2  # batches that are decoded while one is trained on


@dataclass(frozen=True, slots=True)
class Row:
    """One picture and what may be said of it; a caption that is listed twice is drawn twice as often."""

    image: Path
    captions: tuple[str, ...]

    @property
    def concept(self) -> str:
        """What the row is counted as by the helper loss."""
        return self.captions[0]


@dataclass(frozen=True, slots=True)
class Table:
    """The usable rows of a file, and a message for each that isn't."""

    rows: tuple[Row, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """Pictures as `(n, 4, side, side) uint8` in RGBA, with their rows."""

    pictures: torch.Tensor
    rows: tuple[Row, ...]


# ---- tables


def read_table(path: Path) -> Table:
    """Read a table; columns are `image` and `caption`, `caption2`, …, or in JSON lines a list `captions`.

    Args:
        path: a .csv, .tsv or .jsonl file; relative picture paths are taken from its folder.

    Returns:
        The rows that can be used, and what is wrong with the others. Pictures aren't opened here.

    Raises:
        UsageError: the file can't be read, lacks a column, or holds no usable row.
    """
    rows: list[Row] = []
    problems: list[str] = []
    try:
        for line, record in _records(path):
            row = _row(record, path.parent) if isinstance(record, dict) else record
            if isinstance(row, Row):
                rows.append(row)
            else:
                problems.append(f"{path}:{line}: {row}")
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        raise UsageError(f"{path}: the table can't be read: {exc}") from exc
    if not rows:
        first = f"; the first problem: {problems[0]}" if problems else ""
        raise UsageError(f"{path}: no usable row{first}")
    return Table(tuple(rows), tuple(problems))


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(line number, record or what is wrong with it) of each line."""
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        yield from _json_records(path)
    elif suffix in (".csv", ".tsv"):
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t" if suffix == ".tsv" else ",")
            columns = reader.fieldnames or []
            missing = " and no ".join(name for name in ("image", "caption") if name not in columns)
            if columns and missing:
                raise UsageError(f"{path}: no column {missing}; there are: {', '.join(columns)}")
            for record in reader:
                yield reader.line_num, record
    else:
        raise UsageError(f"{path}: a table is a .csv, .tsv or .jsonl file")


def _json_records(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as exc:
                yield number, f"not JSON: {exc}"
                continue
            yield number, record if isinstance(record, dict) else "not a JSON object"


def _row(record: dict[str, Any], folder: Path) -> Row | str:
    """A row, or what is wrong with the record."""
    image = record.get("image")
    if not isinstance(image, str) or not image.strip():
        return "no image"
    listed = record.get("captions") or []
    if not isinstance(listed, list):
        return "captions isn't a list"
    columns = [value for name, value in record.items() if name and re.fullmatch(r"caption\d*", name)]
    captions = tuple(text.strip() for text in [*columns, *listed] if isinstance(text, str) and text.strip())
    return Row(folder / image.strip(), captions) if captions else "no caption"


# ---- captions


class Phrasing:
    """Draws a caption of a row, and a template around it."""

    def __init__(self, templates: Sequence[str]) -> None:
        bare = [template for template in templates if template == "{}"]
        self._chinese = [t for t in templates if _CJK.search(t)] + bare or ["{}"]
        self._other = [t for t in templates if not _CJK.search(t)] or ["{}"]

    def draw(self, row: Row, rng: random.Random) -> tuple[str, str]:
        """The caption that was drawn, and the same as it is shown to the text tower."""
        caption = rng.choice(row.captions)
        template = rng.choice(self._chinese if _CJK.search(caption) else self._other)
        return caption, template.replace("{}", caption)

    def every(self, captions: Iterable[str]) -> Iterator[str]:
        """Every caption in every template that may be drawn around it."""
        for caption in captions:
            for template in self._chinese if _CJK.search(caption) else self._other:
                yield template.replace("{}", caption)


# ---- pictures


@dataclass(frozen=True, slots=True)
class Canvas:
    """The square that pictures are decoded to; the last two as in the model's preprocessing.

    Attributes:
        side: in pixels.
        resize_mode: `shortest`, `longest` or `squash`.
        fill_color: the grey of the padding, 0 to 255.
    """

    side: int
    resize_mode: str
    fill_color: int


def decode_picture(path: Path, canvas: Canvas) -> torch.Tensor:
    """Decode a picture to a square.

    Args:
        path: of the picture.
        canvas: the square.

    Returns:
        `(4, side, side) uint8` in RGBA.

    Raises:
        ImageError: the file can't be read as a picture.
    """
    with open_file(path) as file, pillow_errors("image"), Image.open(file) as opened:
        opened.draft("RGB", (2 * canvas.side, 2 * canvas.side))
        picture = ImageOps.exif_transpose(opened).convert("RGBA")
    size, method = (canvas.side, canvas.side), Image.Resampling.BICUBIC
    if canvas.resize_mode == "shortest":
        picture = ImageOps.fit(picture, size, method)
    elif canvas.resize_mode == "longest":
        picture = ImageOps.pad(picture, size, method, color=(canvas.fill_color,) * 3 + (255,))
    else:
        picture = picture.resize(size, method)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()  # HWC -> CHW


class Pictures:
    """Decodes the pictures of a table on threads, and keeps as many as fit in memory.

    Attributes:
        canvas: what they are decoded to.
    """

    def __init__(self, rows: Sequence[Row], canvas: Canvas, cache_mb: int) -> None:
        self.rows = rows
        self._problems: dict[int, str] = {}  # two threads may meet the same picture
        self.canvas = canvas
        self._room = cache_mb * 2**20 // (4 * canvas.side**2)
        self._kept: dict[int, torch.Tensor | None] = {}

    @property
    def problems(self) -> list[str]:
        """One message for each picture that couldn't be decoded."""
        return list(self._problems.values())

    def picture(self, index: int) -> torch.Tensor | None:
        """The picture of a row, or None where it can't be decoded."""
        if index in self._kept:
            return self._kept[index]
        path = self.rows[index].image
        picture = None
        try:
            picture = decode_picture(path, self.canvas)
        except ImageError as exc:
            self._problems[index] = f"{path}: {exc}"
        if picture is None or len(self._kept) < self._room:
            self._kept[index] = picture
        return picture

    def batches(self, order: Iterable[Sequence[int]], workers: int) -> Iterator[Batch]:
        """Decode batch after batch, a little ahead; pictures that can't be decoded are left out.

        Args:
            order: the rows of each batch.
            workers: threads.
        """
        waiting: deque[tuple[Sequence[int], Iterator[torch.Tensor | None]]] = deque()
        with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
            for indices in order:
                waiting.append((indices, pool.map(self.picture, indices)))
                if len(waiting) > LOOK_AHEAD:
                    yield self._batch(*waiting.popleft())
            while waiting:
                yield self._batch(*waiting.popleft())

    def _batch(self, indices: Sequence[int], pictures: Iterable[torch.Tensor | None]) -> Batch:
        pairs = zip(indices, pictures, strict=True)
        found = [(self.rows[index], picture) for index, picture in pairs if picture is not None]
        side = self.canvas.side
        stacked = [picture for _, picture in found] or [torch.empty(0, 4, side, side, dtype=torch.uint8)]
        return Batch(torch.stack(stacked) if found else stacked[0], tuple(row for row, _ in found))
