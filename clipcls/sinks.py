"""Where predictions are written: a table for people, TSV, JSONL and CSV for programs. One row at a time."""

import base64
import contextlib
import csv
import io
import json
import os
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast, get_args

from rich.cells import cell_len, set_cell_size

from clipcls.errors import StoppedError, UsageError
from clipcls.records import Format, Prediction, ScoredLabel

FORMATS: tuple[str, ...] = get_args(Format)
COLUMNS = ("path", "label", "score", "similarity", "top", "error", "path_b64")
_TSV_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


Row = Callable[[Prediction], str]


class Sink:
    """Writes predictions row by row, each at once.

    Args:
        stream: binary, so that names in any bytes come out as they are.
        row: turns a prediction into text with its line ends; may be empty.
        name: of the output, for messages.
    """

    def __init__(self, stream: BinaryIO, row: Row, header: str = "", name: str = "standard output") -> None:
        self._stream = stream
        self._row = row
        self._name = name
        self._whole = 0
        self._write(header)

    def write(self, prediction: Prediction) -> None:
        """Write one prediction.

        Raises:
            BrokenPipeError: the reader of a pipe is gone.
            StoppedError: the output can't be written; a file then ends with its last whole row.
        """
        self._write(self._row(prediction))

    def _write(self, text: str) -> None:
        data = text.encode("utf-8", "surrogateescape")
        length = len(data)
        try:
            while data:
                # a file without a buffer may take a part only
                data = data[self._stream.write(data) :]
            self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError as exc:
            # standard output may be appended to a file that others wrote before
            if self._stream is not sys.stdout.buffer:
                with contextlib.suppress(OSError):
                    self._stream.truncate(self._whole)
            raise StoppedError(f"{self._name}: can't be written: {exc.strerror}.") from exc
        self._whole += length


@contextlib.contextmanager
def open_sink(output: str, kind: str | None, *, labels: tuple[str, ...]) -> Iterator[Sink]:
    """The sink for a file, or for standard output.

    Args:
        output: a file's name, or `-`.
        kind: one of FORMATS; None for what the file's extension tells, or else a table on a terminal and TSV.
        labels: all labels of the run, for the widths of the table.

    Raises:
        StoppedError: the output can't be written.
        UsageError: the extension tells no format, and none is given.
    """
    if output == "-":
        if sys.stdout is None:
            raise StoppedError("standard output is closed. Give --output FILE.")
        kind = kind or ("table" if sys.stdout.isatty() else "tsv")
        yield _make_sink(kind, sys.stdout.buffer, labels, "standard output")
        return
    path = Path(output)
    kind = kind or format_for(path)
    try:
        stream = cast("BinaryIO", path.open("wb", buffering=0))
    except OSError as exc:
        raise StoppedError(f"{output}: can't be written: {exc.strerror}.") from exc
    with stream:
        yield _make_sink(kind, stream, labels, output)


def _make_sink(kind: str, stream: BinaryIO, labels: tuple[str, ...], name: str) -> Sink:
    match kind:
        case "table":
            return Sink(stream, table_row(labels, shutil.get_terminal_size().columns), name=name)
        case "tsv":
            return Sink(stream, tsv_row, name=name)
        case "jsonl":
            return Sink(stream, jsonl_row, name=name)
        case "csv":
            return Sink(stream, csv_row, header=_csv_line(COLUMNS), name=name)
    raise UsageError(f"Unknown format {kind!r}. Use one of: {', '.join(FORMATS)}.")


def format_for(output: Path) -> str:
    """The format that a file's extension tells.

    Raises:
        UsageError: it tells none that clipcls writes.
    """
    suffix = output.suffix.lower().removeprefix(".")
    kind = {"ndjson": "jsonl", "txt": "tsv", "": "tsv"}.get(suffix, suffix)
    if kind not in FORMATS:
        raise UsageError(f"{output}: .{suffix} tells no format that clipcls writes. Give --format {'|'.join(FORMATS)}.")
    return kind


def record(prediction: Prediction) -> dict[str, Any]:
    """A prediction as JSON's types; a path that isn't UTF-8 gets replacement characters and `path_b64`."""
    raw = os.fsencode(prediction.path)
    path = raw.decode("utf-8", "replace")
    fields: dict[str, Any] = {
        "path": path,
        "label": prediction.label,
        "score": _rounded(prediction.score),
        "similarity": _rounded(prediction.similarity),
        "top": [
            {"label": entry.label, "score": _rounded(entry.score), "similarity": _rounded(entry.similarity)}
            for entry in prediction.top
        ],
        "error": prediction.error and os.fsencode(prediction.error).decode("utf-8", "replace"),
    }
    if path != prediction.path:
        fields["path_b64"] = base64.b64encode(raw).decode("ascii")
    return fields


def jsonl_row(prediction: Prediction) -> str:
    """One JSON object on a line."""
    return json.dumps(record(prediction), ensure_ascii=False) + "\n"


def tsv_row(prediction: Prediction) -> str:
    """`path<TAB>label<TAB>score`, a line for each listed label; none for an image with an error."""
    if prediction.error is not None:
        return ""
    path = prediction.path.translate(_TSV_ESCAPES)
    return "".join(f"{path}\t{label.translate(_TSV_ESCAPES)}\t{score:.6f}\n" for label, score in _answers(prediction))


def csv_row(prediction: Prediction) -> str:
    """The columns of a JSONL row; `top` is JSON text."""
    fields = record(prediction)
    fields["top"] = json.dumps(fields["top"], ensure_ascii=False)
    return _csv_line([fields.get(column) for column in COLUMNS])


def table_row(labels: tuple[str, ...], width: int) -> Row:
    """Rows of fixed widths, so that none has to wait for the next."""
    label_width = min(
        max((cell_len(_printable(label)) for label in labels), default=7), max(min(width // 2, width - 23), 8)
    )
    label_width = max(label_width, len("unknown"))
    path_width = max(width - label_width - 11, 12)

    def row(prediction: Prediction) -> str:
        if prediction.error is not None:
            return ""
        lines = []
        path = _shortened(_printable(prediction.path), path_width)
        for label, score in _answers(prediction):
            lines.append(
                f"{path}  {_fitted(_printable(label) or 'unknown', label_width)}  {score:7.4f}".rstrip() + "\n"
            )
            # the path is said once for the labels of one image
            path = " " * path_width
        return "".join(lines)

    return row


def _answers(prediction: Prediction) -> list[tuple[str, float]]:
    """Label and score of each line; an unknown image has one line with an empty label."""
    top: tuple[ScoredLabel, ...] = prediction.top
    if prediction.label is None:
        return [("", entry.score) for entry in top[:1]]
    return [(entry.label, entry.score) for entry in top]


def _rounded(value: float | None) -> float | None:
    # float32 holds seven digits; more would only look exact
    return None if value is None else float(f"{value:.7g}")


def _csv_line(cells: Any) -> str:
    buffer = io.StringIO()
    # a lone carriage return is quoted only where it is part of the line end
    csv.writer(buffer, lineterminator="\r\n").writerow(cells)
    return buffer.getvalue().removesuffix("\r\n") + "\n"


def _printable(text: str) -> str:
    """Control characters could move the cursor; lone surrogates can't be shown; a space of any width is a space."""
    spaced = "".join(" " if unicodedata.category(sign) == "Zs" else sign for sign in text)
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in spaced)


def _fitted(label: str, width: int) -> str:
    if cell_len(label) <= width:
        return set_cell_size(label, width)
    return set_cell_size(label, width - 1) + "…"


def _shortened(path: str, width: int) -> str:
    """The end of a long path says more than its beginning."""
    if cell_len(path) <= width:
        return set_cell_size(path, width)
    while cell_len(path) > width - 1:
        path = path[1:]
    return set_cell_size("…" + path, width)
