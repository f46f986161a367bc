"""TSV for shell pipelines: `path<TAB>label<TAB>score`."""

import math
import re
from collections.abc import Iterator

from clipcls.outputs.formats.answer_cells import answer_cells, answer_columns, answers_in, has_answers
from clipcls.outputs.formats.text import TextFormat, WholeLines, answers
from clipcls.outputs.rows import prediction_of
from clipcls.records import Prediction, ScoredLabel

_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
_ESCAPED = re.compile(r"\\([tnr\\])")
# the end of a line whose score has all its digits
_WHOLE = re.compile(rb"\.[0-9]{6}$")
_SIGNS = {"t": "\t", "n": "\n", "r": "\r", "\\": "\\"}


class TsvFormat(TextFormat):
    """A line for each listed answer; none for an image with an error.

    With several questions there is a header, and one line for each image.
    """

    name = "tsv"
    extensions = ("tsv", "txt", "")
    keeps_errors = False
    one_row_per_image = False

    @property
    def header(self) -> str:
        return _line(["path", *answer_columns(self.shape)]) if self.shape.questions else ""

    def row(self, prediction: Prediction) -> str:
        if prediction.error is not None:
            return ""
        path = escaped(prediction.path)
        if self.shape.questions:
            return _line([prediction.path, *answer_cells(prediction, self.shape)])
        return "".join(f"{path}\t{escaped(label)}\t{score:.6f}\n" for label, score in answers(prediction))

    def parse(self, lines: WholeLines) -> Iterator[tuple[Prediction, int]]:
        # an image's lines are adjacent; if it is listed twice, a label that repeats begins its second prediction
        path = ""
        found: dict[str, ScoredLabel] = {}
        end = 0
        header: list[str] = []
        for line in lines:
            if header or (lines.number == 1 and has_answers(_cells(line))):
                if header:
                    fields = dict(zip(header, _cells(line), strict=True))
                    yield prediction_of({"path": fields["path"], "error": None} | answers_in(fields)), lines.end
                header = header or _cells(line)
                continue
            if not line.endswith(b"\n") and not _WHOLE.search(line):
                raise ValueError("a score that may be cut off")
            place, label, score = _cells(line)
            answer = ScoredLabel(label, float(score), math.nan)
            # an unknown image has a single line with an empty label
            again = answer.label in found or not answer.label or "" in found
            if found and (place != path or again):
                yield _prediction(path, found), end
                found = {}
            path = place
            found[answer.label] = answer
            end = lines.end
        if found:
            yield _prediction(path, found), end


def _cells(line: bytes) -> list[str]:
    return list(map(unescaped, line.decode("utf-8", "surrogateescape").removesuffix("\n").split("\t")))


def _line(cells: list[str]) -> str:
    return "\t".join(map(escaped, cells)) + "\n"


def escaped(text: str) -> str:
    """Escape text for a cell of TSV."""
    return text.translate(_ESCAPES)


def unescaped(cell: str) -> str:
    """Return the text of a cell of TSV."""
    return _ESCAPED.sub(lambda found: _SIGNS[found[1]], cell)


def _prediction(path: str, found: dict[str, ScoredLabel]) -> Prediction:
    best = next(iter(found.values()))
    return Prediction(path, best.label or None, best.score, None, tuple(found.values()) if best.label else ())
