"""CSV: a header, and the fields of each row as cells."""

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from clipcls.errors import UsageError
from clipcls.outputs.formats.answer_cells import answer_cells, answer_columns, answers_in, has_answers
from clipcls.outputs.formats.text import TextFormat, WholeLines
from clipcls.outputs.rows import prediction_of, row_fields
from clipcls.records import Prediction
from clipcls.text_files import CsvError, csv_rows

COLUMNS = ("path", "label", "score", "similarity", "top", "error", "path_b64")
_WITH_KNOWN = (*COLUMNS, "known")
_SEMICOLONS = ((";".join(COLUMNS),), (";".join(_WITH_KNOWN),))

# in bytes: a cell may hold the scores of many thousand labels
_LONGEST_CELL = 2**31 - 1


class CsvFormat(TextFormat):
    """Rows as cells; `top` is JSON text."""

    name = "csv"
    extensions = ("csv",)

    @property
    def header(self) -> str:
        return ",".join(self._columns) + "\n"

    @property
    def _columns(self) -> tuple[str, ...]:
        if self.shape.questions:
            return ("path", *answer_columns(self.shape), "error", "path_b64")
        return _WITH_KNOWN if self.shape.has_known else COLUMNS

    def row(self, prediction: Prediction) -> str:
        fields = row_fields(prediction, self.shape.questions)
        if self.shape.questions:
            fields |= dict(zip(answer_columns(self.shape), answer_cells(prediction, self.shape), strict=True))
        else:
            fields["top"] = json.dumps(fields["top"], ensure_ascii=False)
        buffer = io.StringIO()
        # with this line end, cells with a lone carriage return are quoted as well
        csv.writer(buffer, lineterminator="\r\n").writerow([fields.get(column) for column in self._columns])
        return buffer.getvalue().removesuffix("\r\n") + "\n"

    def parse(self, lines: WholeLines) -> Iterator[tuple[Prediction, int]]:
        csv.field_size_limit(_LONGEST_CELL)
        header: tuple[str, ...] = COLUMNS
        rows = csv_rows(line.decode("utf-8", "surrogateescape") for line in lines)
        try:
            header = tuple(next(rows, (0, COLUMNS))[1])
            if header not in (COLUMNS, _WITH_KNOWN) and not has_answers(header):
                semicolons = " Save it with commas between the cells." if header in _SEMICOLONS else ""
                raise UsageError(
                    f"{lines.name}: its first line isn't the header that `clipcls predict` writes.{semicolons}"
                )
            for _, cells in rows:
                yield _prediction(cells, header), lines.end
        except CsvError as exc:
            # the last row may have been cut off, and only it
            if not exc.is_unclosed or (lines.number > exc.first and _is_row(lines.last, header)):
                raise UsageError(f"{lines.name}, {exc}.") from exc


def _is_row(line: bytes, columns: tuple[str, ...]) -> bool:
    """Tell whether a line is a whole row by itself."""
    try:
        ((_, cells),) = csv_rows([line.decode("utf-8", "surrogateescape")])
        _prediction(cells, columns)
    except (CsvError, ValueError, TypeError, KeyError):
        return False
    return True


def _prediction(cells: list[str], columns: tuple[str, ...]) -> Prediction:
    fields: dict[str, Any] = dict(zip(columns, cells, strict=True))
    if has_answers(columns):
        return prediction_of(
            {"path": fields["path"], "error": fields["error"] or None, "path_b64": fields["path_b64"]}
            | answers_in(fields)
        )
    fields["top"] = json.loads(fields["top"])
    for column in ("label", "error"):
        # CSV can't tell an empty text from None, and labels and errors are never empty
        fields[column] = fields[column] or None
    return prediction_of(fields)
