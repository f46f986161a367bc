"""JSONL: an object on each line."""

import json
from collections.abc import Iterable, Iterator

from clipcls.outputs.formats.text import StoredPrediction, TextFormat, parse_row, whole_lines
from clipcls.outputs.rows import prediction_of, row_fields
from clipcls.records import Prediction


class Jsonl(TextFormat):
    """Rows as JSON objects."""

    name = "jsonl"
    extensions = ("jsonl", "ndjson")
    keeps_explanations = True
    keeps_index = True

    def row(self, prediction: Prediction) -> str:
        """See `TextFormat.row`."""
        return json.dumps(row_fields(prediction), ensure_ascii=False) + "\n"

    def read_rows(self, lines: Iterable[bytes], name: str) -> Iterator[StoredPrediction]:
        """See `TextFormat.read_rows`."""
        start = 0
        for number, line in enumerate(whole_lines(lines), 1):
            end = start + len(line)
            if line.strip():
                yield StoredPrediction(parse_row(_parse, line, name, number), start, end)
            start = end


def _parse(line: bytes) -> Prediction:
    return prediction_of(json.loads(line))
