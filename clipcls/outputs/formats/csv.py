"""CSV: the columns of a row, with a header."""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from typing import Any

from clipcls.errors import UsageError
from clipcls.outputs.formats.text import StoredPrediction, TextFormat, parse_row, whole_lines
from clipcls.outputs.rows import prediction_of, row_fields
from clipcls.records import Prediction

COLUMNS = ("path", "label", "score", "similarity", "top", "error", "path_b64")

# in bytes: a cell may hold the scores of many thousand labels
_LONGEST_CELL = 2**31 - 1


class Csv(TextFormat):
    """Rows as cells; `top` is JSON text."""

    name = "csv"
    extensions = ("csv",)
    header = ",".join(COLUMNS) + "\n"

    def row(self, prediction: Prediction) -> str:
        """See `TextFormat.row`."""
        fields = row_fields(prediction)
        fields["top"] = json.dumps(fields["top"], ensure_ascii=False)
        buffer = io.StringIO()
        # a lone carriage return is quoted only where it is part of the line end
        csv.writer(buffer, lineterminator="\r\n").writerow([fields.get(column) for column in COLUMNS])
        return buffer.getvalue().removesuffix("\r\n") + "\n"

    def read_rows(self, lines: Iterable[bytes], name: str) -> Iterator[StoredPrediction]:
        """See `TextFormat.read_rows`."""
        end = 0

        def decoded() -> Iterator[str]:
            nonlocal end
            for line in whole_lines(lines):
                end += len(line)
                yield line.decode("utf-8", "surrogateescape")

        csv.field_size_limit(_LONGEST_CELL)
        # strict, so that a file that ends within quotes is seen to do so
        reader = csv.reader(decoded(), strict=True)
        header = next(reader, None)
        if header is None:
            return
        if tuple(header) != COLUMNS:
            raise UsageError(f"{name}: its first line isn't the header that `clipcls predict` writes.")
        start = end
        while True:
            try:
                row = next(reader, None)
            except csv.Error as exc:
                if "unexpected end" in str(exc):
                    return
                raise UsageError(f"{name}, line {reader.line_num}: not CSV: {exc}.") from exc
            if row is None:
                return
            yield StoredPrediction(parse_row(_parse, row, name, reader.line_num), start, end)
            start = end


def _parse(cells: list[str]) -> Prediction:
    fields: dict[str, Any] = dict(zip(COLUMNS, cells, strict=True))
    fields["top"] = json.loads(fields["top"])
    for column in ("label", "error"):
        # CSV doesn't tell an empty text from none, and no label and no error is empty
        fields[column] = fields[column] or None
    return prediction_of(fields)
