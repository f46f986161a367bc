"""What a report shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clipcls.records import Prediction


@dataclass(frozen=True, slots=True)
class ReportRow:
    """A picture that a report shows.

    Attributes:
        margin: how sure the answer is: the distance of the two best scores, or the best score where one is known.
        truth: the label that the picture should have; None where that isn't known.
        is_wrong: whether the answer is another.
        preview: the picture as a WebP, or the address of its file from the page; None where there is none.
        reason: why there is none.
    """

    prediction: Prediction
    margin: float
    truth: str | None = None
    is_wrong: bool = False
    preview: bytes | str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many pictures have a score in each of some ranges of equal width, the first of which begins at `low`."""

    low: float
    high: float
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TruthFigures:
    """How the answers compare with the truth.

    Attributes:
        judged: the number of pictures with an answer, unknown included, whose truth is known.
        right: how many of them have the right label.
        without: the number of pictures whose truth isn't known.
        unseen: the number of pictures in the truth that have no prediction.
        confusion: how many pictures have each pair of truth and answer; None is unknown.
    """

    judged: int
    right: int
    without: int
    unseen: int
    confusion: Mapping[tuple[str, str | None], int]


@dataclass(frozen=True, slots=True)
class Report:
    """All that a page shows.

    Attributes:
        title: what the predictions are called.
        base: the folder that relative paths start at.
        digest: names the predictions; corrections are kept in the browser under it.
        settings: names and values of the run's settings, as far as they are known.
        labels: how many pictures have each label, those with none included.
        total: the number of pictures, with an answer, unknown or failed.
        failures: path and error of failed pictures, the first ones.
        reasons: how many pictures failed for each reason.
        rows: the pictures that are shown, by label.
        preview_folder: the address, from the page, of the folder with the previews; None if the page holds them.
    """

    title: str
    base: str
    digest: str
    settings: Sequence[tuple[str, str]]
    labels: Mapping[str, int]
    total: int
    unknown: int
    histogram: Histogram
    failures: Sequence[tuple[str, str]]
    reasons: Mapping[str, int]
    truth: TruthFigures | None
    rows: Sequence[ReportRow]
    preview_folder: str | None = None

    @property
    def failed(self) -> int:
        """The number of pictures that failed."""
        return sum(self.reasons.values())
