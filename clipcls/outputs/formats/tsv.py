"""TSV for shell pipelines: `path<TAB>label<TAB>score`."""

import math
import re
from collections.abc import Iterable, Iterator

from clipcls.outputs.formats.text import StoredPrediction, TextFormat, answers, parse_row, whole_lines
from clipcls.records import Prediction, ScoredLabel

_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
_ESCAPED = re.compile(r"\\([tnr\\])")
_SIGNS = {"t": "\t", "n": "\n", "r": "\r", "\\": "\\"}


class Tsv(TextFormat):
    """A line for each listed answer; none for an image with an error."""

    name = "tsv"
    extensions = ("tsv", "txt", "")
    keeps_errors = False
    one_row_per_image = False

    def row(self, prediction: Prediction) -> str:
        """See `TextFormat.row`."""
        if prediction.error is not None:
            return ""
        path = escaped(prediction.path)
        return "".join(f"{path}\t{escaped(label)}\t{score:.6f}\n" for label, score in answers(prediction))

    def read_rows(self, lines: Iterable[bytes], name: str) -> Iterator[StoredPrediction]:
        """See `TextFormat.read_rows`.

        The lines of one image follow one another; the same image again begins with a label that it had.
        """
        path = ""
        found: dict[str, ScoredLabel] = {}
        first = start = 0
        for number, line in enumerate(whole_lines(lines), 1):
            place, answer = parse_row(_parse, line, name, number)
            # an unknown image has one line, without a label
            again = answer.label in found or not answer.label or "" in found
            if found and (place != path or again):
                yield StoredPrediction(_prediction(path, found), first, start)
                found, first = {}, start
            path = place
            found[answer.label] = answer
            start += len(line)
        if found:
            yield StoredPrediction(_prediction(path, found), first, start)


def escaped(text: str) -> str:
    """Return text as a cell of TSV."""
    return text.translate(_ESCAPES)


def _unescaped(cell: str) -> str:
    return _ESCAPED.sub(lambda found: _SIGNS[found[1]], cell)


def _parse(line: bytes) -> tuple[str, ScoredLabel]:
    path, label, score = line.decode("utf-8", "surrogateescape").removesuffix("\n").split("\t")
    return _unescaped(path), ScoredLabel(_unescaped(label), float(score), math.nan)


def _prediction(path: str, found: dict[str, ScoredLabel]) -> Prediction:
    best = next(iter(found.values()))
    return Prediction(path, best.label or None, best.score, None, tuple(found.values()) if best.label else ())
