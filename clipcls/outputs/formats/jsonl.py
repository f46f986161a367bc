"""JSONL: one JSON object a line."""

import json
from collections.abc import Iterator

from clipcls.outputs.formats.text import TextFormat, WholeLines
from clipcls.outputs.rows import prediction_of, row_fields
from clipcls.records import Prediction


class JsonlFormat(TextFormat):
    """Rows as JSON objects."""

    name = "jsonl"
    extensions = ("jsonl", "ndjson")
    keeps_explanations = True
    keeps_index = True

    def row(self, prediction: Prediction) -> str:
        return json.dumps(row_fields(prediction, self.shape.questions), ensure_ascii=False) + "\n"

    def parse(self, lines: WholeLines) -> Iterator[tuple[Prediction, int]]:
        for line in lines:
            if line.strip():
                yield prediction_of(json.loads(line)), lines.end
