"""Tables of pictures and captions: every row is known, so that they are shuffled as a whole."""

import csv
import hashlib
import json
import os
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from clipcls.errors import UsageError
from clipcls.labels.vocabulary import all_words
from clipcls.train.data.corpus import Row, Share

SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Table:
    """The usable rows of a file or a folder, and a message for each that isn't; a `Corpus`.

    Attributes:
        root: the folder that the pictures lie in, mostly; with them it may move.
    """

    rows: tuple[Row, ...]
    problems: tuple[str, ...]
    root: Path = Path()

    @property
    def count(self) -> int:
        """Rows that are gone through in an epoch."""
        return len(self.rows)

    @cached_property
    def captions(self) -> tuple[str, ...]:
        """All captions, each once."""
        return tuple(dict.fromkeys(caption for row in self.rows for caption in row.captions))

    @cached_property
    def words(self) -> frozenset[str]:
        """The words of all captions."""
        return all_words(self.captions)

    def batches(self, size: int, seed: int, share: Share, first: int = 0) -> Iterator[Sequence[Row]]:
        """See `Corpus`: shuffled anew each epoch, the incomplete last batch left out; a small table is one batch."""
        rng = random.Random(f"order {seed}")
        indices = list(range(len(self.rows)))
        size = min(size, len(indices))
        while True:
            rng.shuffle(indices)
            for start in range(0, len(indices) - size + 1, size):
                if first:
                    first -= 1
                    continue
                own = indices[start : start + size][share.rank :: share.count]
                yield [self.rows[index] for index in own]

    def sample(self, count: int, rng: random.Random) -> Sequence[Row]:
        """Up to `count` different rows."""
        return rng.sample(self.rows, min(count, len(self.rows)))

    def digest(self) -> str:
        """SHA-256 of the rows; pictures below the root count by their path in it, so that it may move."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        root = f"{self.root}{os.sep}"
        result = hashlib.sha256()
        for row in self.rows:
            image = row.image.removeprefix(root)
            # a name from JSON may hold what no file name can be encoded from
            result.update(image.encode("utf-8", "surrogatepass") + b"\0" + json.dumps(row.captions).encode() + b"\0")
        return result.hexdigest()


def read_table(path: Path) -> Table:
    """Read a table; columns are `image` and `caption`, `caption2`, …, and in JSON lines alone a list `captions`.

    Args:
        path: a .csv, .tsv or .jsonl file; relative picture paths are taken from its folder.

    Returns:
        The rows that can be used, and what is wrong with the others. Pictures aren't opened here.

    Raises:
        UsageError: the file can't be read, lacks a column, has a column `captions`, or holds no usable row.
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
    except OSError as exc:
        raise UsageError(f"{path}: the table can't be read: {(exc.strerror or str(exc)).lower()}") from exc
    except (ValueError, csv.Error) as exc:  # not UTF-8, or not a possible file name
        raise UsageError(f"{path}: the table can't be read: {exc}") from exc
    if not rows:
        first = f"; the first problem: {problems[0]}" if problems else ""
        raise UsageError(f"{path}: no usable row{first}")
    return Table(tuple(rows), tuple(problems), path.parent)


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(line number, record or what is wrong with it) of each line."""
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        yield from _json_records(path)
    elif suffix in (".csv", ".tsv"):
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t" if suffix == ".tsv" else ",")
            _check_columns(path, reader.fieldnames or ())
            for record in reader:
                yield reader.line_num, record
    elif not path.exists():
        raise UsageError(f"{path}: no such file or folder")
    else:
        raise UsageError(f"{path}: a table is a .csv, .tsv or .jsonl file")


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    if "captions" in columns:  # it would have to be guessed whether it is one caption, or how several are separated
        raise UsageError(
            f"{path}: a column captions, which only JSON lines have, as a list; name it caption if each row has one, "
            "else make it the columns caption, caption2, …"
        )
    missing = " and no ".join(name for name in ("image", "caption") if name not in columns)
    if columns and missing:
        raise UsageError(f"{path}: no column {missing}; there are: {', '.join(columns)}")


def _json_records(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as exc:
                yield number, f"not JSON: {exc}"
                continue
            yield number, record if isinstance(record, dict) else "not a JSON object"


def _row(record: dict[str, Any], folder: Path) -> Row | str:
    """A row, or what is wrong with the record."""
    image = record.get("image")
    if not isinstance(image, str) or not image.strip():
        return "no image"
    captions = listed_captions(record)
    if isinstance(captions, str):
        return captions
    return Row(str(folder / image.strip()), captions) if captions else "no caption"


def listed_captions(record: dict[str, Any]) -> tuple[str, ...] | str:
    """The captions of a record, in `caption`, `caption2`, … and the list `captions`; or what is wrong with them."""
    listed = record.get("captions") or []
    if not isinstance(listed, list):
        return "captions isn't a list"
    columns = [value for name, value in record.items() if name and re.fullmatch(r"caption\d*", name)]
    captions = tuple(text.strip() for text in [*columns, *listed] if isinstance(text, str) and text.strip())
    if any(map(SURROGATE.search, captions)):  # Hugging Face's tokenizers would fail
        return "a caption isn't valid Unicode"
    return captions
