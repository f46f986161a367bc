"""Read text that other programs wrote: its encoding, and CSV whose quotes close."""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

from clipcls.errors import UsageError, reason

UTF8_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
# characters in a CSV cell; csv's own limit is 131,072
LONGEST_CELL = 2**24


def read_text(path: Path) -> str:
    """Return a file's text, in UTF-8 with or without a byte order mark; all line ends become newlines.

    Raises:
        UsageError: the file can't be read, or isn't in UTF-8.
    """
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as exc:
        raise UsageError(f"{path}: can't be read: {reason(exc)}.") from exc
    return decode_text(data, str(path))


def decode_text(data: bytes, name: str) -> str:
    """Return the text of UTF-8 with or without a byte order mark; all line ends become newlines.

    Args:
        name: the file's name, for messages.

    Raises:
        UsageError: it isn't UTF-8.
    """
    refuse_utf16(data, name)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise UsageError(f"{name}, line {line}: not UTF-8; save the file as UTF-8.") from exc
    return text.replace("\r\n", "\n").replace("\r", "\n")


def refuse_utf16(beginning: bytes, name: str) -> None:
    """Refuse UTF-16, which spreadsheets and PowerShell write, with its mark or with a NUL beside the first letter.

    Raises:
        UsageError: a text begins so.
    """
    first, second = beginning[:1], beginning[1:2]
    if beginning[:2] in _UTF16_MARKS or (second and (first == b"\0") != (second == b"\0")):
        raise UsageError(f"{name}: it is in UTF-16; save it as UTF-8.")


class CsvError(Exception):
    """A row of CSV can't be read; the message names its first line.

    Attributes:
        first: the number of that line.
        is_unclosed: whether the file ends within the row.
    """

    def __init__(self, message: str, first: int, is_unclosed: bool) -> None:
        super().__init__(message)
        self.first, self.is_unclosed = first, is_unclosed


def csv_rows(lines: Iterable[str], delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Read CSV rows that aren't empty.

    Args:
        lines: with their line ends.

    Yields:
        The number of a row's last line, from 1, and its cells.

    Raises:
        CsvError: a quote doesn't close, or closes before its cell ends; all rows up to the next quote, or to the end
            of the file, would become one cell.
    """
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_CELL))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        first = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as exc:
            is_unclosed = "unexpected end" in str(exc)
            raise CsvError(_explained(exc, first, reader.line_num), first, is_unclosed) from exc
        if row is None:
            return
        if row:
            yield reader.line_num, row


def _explained(exc: csv.Error, first: int, last: int) -> str:
    where = f"line {first}"
    if "unexpected end" in str(exc):
        return f'{where}: a quote (") opens in this row and never closes; close it, or write "" for one in the text'
    if "larger than" in str(exc):
        return f'{where}: a cell has more than {LONGEST_CELL:,} characters; is a quote (") left open?'
    if "expected after" in str(exc):
        upto = "" if first == last else f", which ends in line {last}"
        return f'{where}: text follows a cell in quotes (") of this row{upto}; write "" for a quote in a text'
    return f"{where}: not CSV: {exc}"
