"""Choose what a report shows of predictions, and write it."""

import hashlib
import heapq
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from clipcls.embed.execution import Execution
from clipcls.embed.watch import Watch
from clipcls.errors import ImageError, UsageError
from clipcls.inputs.labelled.examples import Truth
from clipcls.labels.label_files import label_key
from clipcls.outputs.report.contents import Histogram, Report, ReportRow, TruthFigures
from clipcls.outputs.report.page import write_page
from clipcls.predict.previews import previews_of, write_preview
from clipcls.records import Prediction

#: The most pictures that a page holds by default.
MOST_PICTURES = 2000
_MOST_FAILURES = 1000
# parts of a score of 1 in which scores are counted, and the most bars that these make
_CELLS, _MOST_BARS = 100, 20


@dataclass(frozen=True, slots=True)
class ReportPlan:
    """What a report is made with, besides the predictions.

    Attributes:
        title: what the predictions are called.
        most: the most pictures that the page shows; the others are only counted. None for `MOST_PICTURES`, or for all
            where the small pictures have a folder.
        previews: a folder for the small pictures; None to put them into the page.
        labels: the run's labels, as far as they are known; the page offers them for corrections.
        multi_label: whether a picture's best labels are all answers.
        truth: the labels that pictures should have.
        column: the column of pictures in tables; None to know it by its name.

    Raises:
        UsageError: `most` is under 1, or the truth has several labels a picture.
    """

    title: str
    most: int | None = None
    previews: Path | None = None
    labels: Sequence[str] = ()
    multi_label: bool = False
    truth: Truth | None = None
    column: str | None = None

    def __post_init__(self) -> None:
        if self.most is not None and self.most < 1:
            raise UsageError("A report shows one picture or more.")
        if self.truth is not None and self.truth.multi_label:
            raise UsageError(
                "The truth has several labels a picture, which `clipcls eval` measures; a report takes one each."
            )

    @property
    def limit(self) -> int | None:
        """The most pictures that the page shows; None for any number."""
        return MOST_PICTURES if self.most is None and self.previews is None else self.most


@dataclass(frozen=True, slots=True)
class ReportOutcome:
    """What came of a report.

    Attributes:
        total: the number of predictions.
        shown: how many pictures the page shows, those without a preview included.
        unreadable: path and reason of each picture without a preview.
    """

    total: int
    shown: int
    unreadable: tuple[tuple[str, str], ...]


def write_report(
    predictions: Iterable[Prediction],
    page: Path,
    plan: ReportPlan,
    settings: Sequence[tuple[str, str]] = (),
    execution: Execution | None = None,
    watch: Watch | None = None,
) -> ReportOutcome:
    """Write a page on which predictions can be looked at, filtered and corrected.

    Args:
        settings: names and values of the run's settings, as far as they are known.
        execution: the limits on pictures, what fetches them, and how many threads make them small.
        watch: told how many pictures are made small.

    Raises:
        StoppedError: the page can't be written.
        UsageError: there are no predictions, or none is of a picture of the truth.
    """
    gathered = ReportRows(plan)
    for prediction in predictions:
        gathered.add(prediction)
    return gathered.write(page, settings, execution, watch)


class ReportRows:
    """Counts predictions, and keeps those that a report shows: the least sure ones.

    Unknown and wrong ones come first, but take more than half of the room only where the others leave it free. Memory
    is bounded by the pictures that are shown, the labels, and the reasons of failures.
    """

    def __init__(self, plan: ReportPlan) -> None:
        self._plan = plan
        self._base = os.getcwd()  # noqa: PTH109
        self._digest = hashlib.sha256(os.fsencode(self._base))
        self._labels = Counter[str](dict.fromkeys(plan.labels, 0))
        self._unknown = 0
        self._cells = Counter[int]()
        self._failures: list[tuple[str, str]] = []
        self._reasons = Counter[str]()
        self._judge = None if plan.truth is None else _Judge(plan.truth, plan.labels)
        self._urgent, self._others = _LeastSure(plan.limit), _LeastSure(plan.limit)

    def add(self, prediction: Prediction) -> None:
        """Count one more prediction."""
        truth, is_wrong = (None, False) if self._judge is None else self._judge.judge(prediction)
        if prediction.error is not None:
            self._reasons[prediction.error] += 1
            if len(self._failures) < _MOST_FAILURES:
                self._failures.append((prediction.path, prediction.error))
            return
        self._digest.update(f"{prediction.path}\0{prediction.label}\n".encode("utf-8", "surrogatepass"))
        if prediction.label is None:
            self._unknown += 1
        else:
            self._labels[prediction.label] += 1
        if prediction.score is not None and math.isfinite(prediction.score):
            self._cells[max(-_CELLS, min(math.floor(prediction.score * _CELLS + 1e-6), _CELLS - 1))] += 1
        row = ReportRow(prediction, margin(prediction, self._plan.multi_label), truth, is_wrong)
        (self._urgent if prediction.label is None or is_wrong else self._others).add(row)

    def write(
        self,
        page: Path,
        settings: Sequence[tuple[str, str]] = (),
        execution: Execution | None = None,
        watch: Watch | None = None,
    ) -> ReportOutcome:
        """Make the pictures small, and write the page; see `write_report`."""
        total = self._labels.total() + self._unknown + self._reasons.total()
        if not total:
            raise UsageError("There are no predictions to report.")
        truth = None if self._judge is None else self._judge.figures()
        labels = dict(self._labels.most_common())
        rows = self._with_previews(self._chosen(labels), execution or Execution(), watch or Watch())
        previews = self._plan.previews
        report = Report(
            title=self._plan.title,
            base=self._base,
            digest=self._digest.hexdigest()[:32],
            settings=settings,
            labels=labels,
            total=total,
            unknown=self._unknown,
            histogram=_histogram(self._cells),
            failures=self._failures,
            reasons=dict(self._reasons.most_common()),
            truth=truth,
            rows=rows,
            preview_folder=None if previews is None else _address(previews, page.parent),
        )
        write_page(report, page)
        unreadable = tuple((row.prediction.path, row.reason) for row in rows if row.reason is not None)
        return ReportOutcome(total, len(rows), unreadable)

    def _chosen(self, labels: Mapping[str, int]) -> list[ReportRow]:
        """Return the rows to show, unknown ones first, then those of each label; the least sure first."""
        urgent, others = self._urgent.rows(), self._others.rows()
        most = self._plan.limit
        if most is not None:
            urgent = urgent[: max(most - most // 2, most - len(others))]
            others = others[: most - len(urgent)]
        places = {label: place for place, label in enumerate(labels)}
        rows = [*urgent, *others]
        rows.sort(key=lambda row: (-1 if row.prediction.label is None else places[row.prediction.label], row.margin))
        return rows

    def _with_previews(self, rows: Sequence[ReportRow], execution: Execution, watch: Watch) -> list[ReportRow]:
        watch.begin(lambda: len(rows), 0)
        folder = self._plan.previews
        found = list(rows)
        paths = [row.prediction.path for row in rows]
        for place, preview in previews_of(paths, execution, self._plan.column, watch):
            row = found[place] if self._judge is None else self._judge.renamed(found[place])
            if isinstance(preview, ImageError):
                found[place] = replace(row, reason=str(preview))
            else:
                shown = preview if folder is None else write_preview(preview, paths[place], folder)
                found[place] = replace(row, preview=shown)
        return found


def margin(prediction: Prediction, multi_label: bool = False) -> float:
    """Return how sure an answer is: the distance of the two best scores, or the best score where no other is known.

    Args:
        multi_label: all labels are answers, so that the answer is as sure as its last label.
    """
    scores = [entry.score for entry in prediction.top]
    if multi_label and scores:
        found: float | None = min(scores)
    else:
        found = scores[0] - scores[1] if len(scores) > 1 else prediction.score
    return found if found is not None and math.isfinite(found) else 0.0


def _histogram(cells: Mapping[int, int]) -> Histogram:
    """Put counts of scores, by hundredths, into some bars."""
    low, high = min(cells, default=0), max(cells, default=0) + 1
    # probabilities may have any value from 0 to 1, cosines are near one another
    if low >= 0 and high > _CELLS // 2:
        low, high = 0, _CELLS
    width = math.ceil((high - low) / _MOST_BARS)
    counts = [0] * math.ceil((high - low) / width)
    for cell, count in cells.items():
        counts[(cell - low) // width] += count
    return Histogram(low / _CELLS, (low + width * len(counts)) / _CELLS, tuple(counts))


def _address(folder: Path, start: Path) -> str:
    """Return the address of a folder from a page in another."""
    return quote(os.fsencode(os.path.relpath(folder, start).replace(os.sep, "/"))) + "/"


class _LeastSure:
    """Keeps the rows with the least margins, at most so many; of equal ones the first."""

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._seen = 0
        self._heap: list[tuple[float, int, ReportRow]] = []

    def add(self, row: ReportRow) -> None:
        self._seen += 1
        entry = (-row.margin, -self._seen, row)
        if self._most is None:
            self._heap.append(entry)
        elif len(self._heap) < self._most:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heappushpop(self._heap, entry)

    def rows(self) -> list[ReportRow]:
        """Return the rows, the least sure first."""
        return [row for _, _, row in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)]


class _Judge:
    """Compares answers with the truth; labels that differ only in case, underscores or spacing are equal."""

    def __init__(self, truth: Truth, labels: Iterable[str]) -> None:
        self._expected = {_key(example.image.path): example.labels[0] for example in truth.examples if example.labels}
        self._first = truth.examples[0].image.path if truth.examples else ""
        self._names = {label_key(label): label for label in labels}
        self._keys: dict[str, str] = {}
        self._confusion = Counter[tuple[str, str | None]]()
        self._right = self._without = 0
        self._seen: set[str] = set()
        self._example = ""

    def judge(self, prediction: Prediction) -> tuple[str | None, bool]:
        """Return the label that a picture should have, None where that isn't known, and whether its answer is wrong."""
        path = _key(prediction.path)
        self._example = self._example or prediction.path
        truth = self._expected.get(path)
        if truth is not None:
            self._seen.add(path)
        if prediction.error is not None:
            return truth, False
        if prediction.label is not None:
            self._names.setdefault(self._label_key(prediction.label), prediction.label)
        if truth is None:
            self._without += 1
            return None, False
        is_right = prediction.label is not None and self._label_key(prediction.label) == self._label_key(truth)
        self._right += is_right
        self._confusion[truth, prediction.label] += 1
        return truth, not is_right

    def figures(self) -> TruthFigures:
        """Return how the answers compare.

        Raises:
            UsageError: none is of a picture of the truth.
        """
        if not self._seen:
            raise UsageError(
                f"None of the predictions is of a picture of the truth. The first prediction is of {self._example}, "
                f"the first picture of the truth is {self._first}. Paths are taken from the folder that this is run "
                "in: run it where `clipcls predict` was run."
            )
        confusion = Counter[tuple[str, str | None]]()
        for (truth, label), count in self._confusion.most_common():
            confusion[self._name(truth), label] += count
        unseen = len(self._expected) - len(self._seen)
        return TruthFigures(confusion.total(), self._right, self._without, unseen, dict(confusion.most_common()))

    def renamed(self, row: ReportRow) -> ReportRow:
        """Return a row whose truth is called as the run's label is."""
        return row if row.truth is None else replace(row, truth=self._name(row.truth))

    def _name(self, truth: str) -> str:
        return self._names.get(self._label_key(truth), truth)

    def _label_key(self, label: str) -> str:
        if label not in self._keys:
            self._keys[label] = label_key(label)
        return self._keys[label]


def _key(path: str) -> str:
    return os.path.abspath(path)  # noqa: PTH100, it may be the name of something inside a file
