"""Keywords for a picture, from a row of predictions."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from clipcls.outputs.journal import RunSettings
from clipcls.records import Prediction, ScoredLabel

#: What stands between the levels of a hierarchical keyword, in Lightroom and what reads its keywords.
LEVELS = "|"


@dataclass(frozen=True, slots=True)
class Keyword:
    """A keyword.

    Attributes:
        name: of its last level.
        path: all levels.
    """

    name: str
    path: str


def keywords_of(prediction: Prediction, settings: RunSettings | None, under: str | None = None) -> tuple[Keyword, ...]:
    """Return the keywords for a picture: its label, all labels of a run with several, the answers to all questions.

    Args:
        settings: those of the run; None where nothing says them, so that only the best label is an answer.
        under: a level above all of them.
    """
    found = dict.fromkeys(_answers(prediction, settings or {}))
    return tuple(Keyword(label, LEVELS.join(filter(None, (under, question, label)))) for question, label in found)


def _answers(prediction: Prediction, settings: RunSettings) -> Iterator[tuple[str | None, str]]:
    several = {name for name, *_, is_multi, _, _ in settings.get("--questions", ()) if is_multi}
    for name, answer in prediction.answers:
        if answer is not None:
            # cells of CSV and TSV hold answers only, and no cosines
            are_several = name in several or all(math.isnan(entry.similarity) for entry in answer.top)
            yield from ((name, label) for label in _labels(answer.label, answer.top, are_several))
    is_multi = bool(settings.get("--multi-label"))
    yield from ((None, label) for label in _labels(prediction.label, prediction.top, is_multi))


def _labels(label: str | None, top: tuple[ScoredLabel, ...], are_several: bool) -> tuple[str, ...]:
    if label is None:
        return ()
    return tuple(entry.label for entry in top) if top and are_several else (label,)
