"""Answers for videos as a whole, from the features of their frames.

- `video`: what a video shows, by the mean of its frames' features (ViFi-CLIP, arXiv 2212.03640).
- `occurs`: what occurs in it, by each label's highest score among the frames.
- `segment`: what it shows when. Neighbouring frames with the same answer become one row, with the mean of their scores.
  A single frame between two of another answer counts to these; cuts stay where they are.

Memory doesn't grow with a video's length.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clipcls.embed.images import ImageBatch
from clipcls.errors import UsageError
from clipcls.inputs.video import frame_path
from clipcls.predict.ranking import Array, LabelFeatures, Scoring, rank, scores
from clipcls.records import Frame, ImageRef, Per, Prediction

Sums = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FrameScorer:
    """Scores features, and ranks scores.

    Attributes:
        labels: the embedded labels.
        scoring: how similarities become an answer.
    """

    labels: LabelFeatures
    scoring: Scoring

    def scores(self, features: Array) -> tuple[Array, Array]:
        """Return cosines and scores of one picture, (n_labels,) each; features needn't have unit length."""
        unit = features / max(float(np.linalg.norm(features)), 1e-12)
        cosines, label_scores = scores(unit[None].astype(np.float32), self.labels, self.scoring.score_kind)
        return cosines[0], label_scores[0]

    def rank(self, path: str, cosines: Array, label_scores: Array) -> Prediction:
        """Return the answer for one path."""
        return rank(path, cosines, label_scores, self.labels.names, self.scoring, self.labels.thresholds)


class _Summary(ABC):
    """What is known of a video from the frames that were added."""

    def __init__(self, scorer: FrameScorer, first: Frame) -> None:
        self.scorer = scorer
        self.last = first

    def goes_on_with(self, frame: Frame) -> bool:
        """Tell whether a frame is a later one of the same video."""
        return frame.video == self.last.video and frame.time > self.last.time

    def add(self, frame: Frame, features: Array) -> Iterator[Prediction]:
        """Add a frame's features, (embed_dim,), and yield answers that won't change any more."""
        self.last = frame
        return iter(self.added(frame, features))

    @abstractmethod
    def added(self, frame: Frame, features: Array) -> Iterable[Prediction]:
        """Do what `add` does."""

    @abstractmethod
    def answers(self) -> Iterable[Prediction]:
        """Return the answers that are left at the video's end."""


class _Mean(_Summary):
    """The mean of the frames' features, ranked as one picture's."""

    def __init__(self, scorer: FrameScorer, first: Frame) -> None:
        super().__init__(scorer, first)
        self._sum: Sums | float = 0.0

    def added(self, frame: Frame, features: Array) -> Iterable[Prediction]:
        self._sum = self._sum + features.astype(np.float64)
        return ()

    def answers(self) -> Iterable[Prediction]:
        yield self.scorer.rank(self.last.video, *self.scorer.scores(np.asarray(self._sum)))


class _Occurrence(_Summary):
    """The highest score of each label, and its cosine there."""

    def __init__(self, scorer: FrameScorer, first: Frame) -> None:
        super().__init__(scorer, first)
        self._best: tuple[Array, Array] | None = None

    def added(self, frame: Frame, features: Array) -> Iterable[Prediction]:
        cosines, label_scores = self.scorer.scores(features)
        if self._best is not None:
            is_better = label_scores > self._best[1]
            cosines = np.where(is_better, cosines, self._best[0])
            label_scores = np.maximum(label_scores, self._best[1])
        self._best = cosines, label_scores
        return ()

    def answers(self) -> Iterable[Prediction]:
        assert self._best is not None
        yield self.scorer.rank(self.last.video, *self._best)


@dataclass(frozen=True, slots=True)
class _ScoredFrame:
    """A frame with its cosines and scores, and the labels that are its answer."""

    frame: Frame
    cosines: Array
    scores: Array
    answer: tuple[str, ...]


class _Segment:
    """Neighbouring frames with the same answer."""

    def __init__(self, first: _ScoredFrame) -> None:
        self.answer = first.answer
        self.until = first.frame.until
        self._start = first.frame.time
        self._count = 0
        self._cosines = np.zeros(len(first.cosines))
        self._scores = np.zeros(len(first.scores))

    def add(self, one: _ScoredFrame) -> None:
        self.until = one.frame.until
        self._count += 1
        self._cosines += one.cosines
        self._scores += one.scores

    def rank(self, video: str, scorer: FrameScorer) -> Prediction:
        """Return the answer, with the means of cosines and scores, by which the labels come in the same order."""
        means = ((sums / self._count).astype(np.float32) for sums in (self._cosines, self._scores))
        prediction = scorer.rank(frame_path(video, self._start, self.until), *means)
        # the mean margin of unknown frames may be large enough
        return prediction if self.answer else replace(prediction, label=None)


class _Segments(_Summary):
    """Neighbouring frames with the same answer; a single other one between two of them counts to neither."""

    def __init__(self, scorer: FrameScorer, first: Frame) -> None:
        super().__init__(scorer, first)
        self._segment: _Segment | None = None
        self._latest: _ScoredFrame | None = None  # not in a segment yet

    def added(self, frame: Frame, features: Array) -> Iterable[Prediction]:
        one = self._scored(frame, features)
        yield from self._place(one.answer)
        self._latest = one

    def answers(self) -> Iterable[Prediction]:
        yield from self._place(None)
        if self._segment is not None:
            yield self._segment.rank(self.last.video, self.scorer)

    def _place(self, following: tuple[str, ...] | None) -> Iterator[Prediction]:
        """Put the latest frame into a segment, knowing the answer of the next; yield the segment before, if it ends."""
        segment, latest = self._segment, self._latest
        if latest is None:
            return
        if segment is not None and segment.answer == following != latest.answer:
            segment.until = latest.frame.until
            return
        if segment is None or segment.answer != latest.answer:
            if segment is not None:
                yield segment.rank(self.last.video, self.scorer)
            self._segment = segment = _Segment(latest)
        segment.add(latest)

    def _scored(self, frame: Frame, features: Array) -> _ScoredFrame:
        cosines, label_scores = self.scorer.scores(features)
        label = self.scorer.rank(frame.video, cosines, label_scores).label
        answer: tuple[str, ...] = () if label is None else (label,)
        if self.scorer.scoring.multi_label:
            reached = self.scorer.scoring.reached(label_scores, self.scorer.labels.thresholds)
            answer = tuple(self.scorer.labels.names[place] for place in np.flatnonzero(reached))
        return _ScoredFrame(frame, cosines, label_scores, answer)


_SUMMARIES: dict[Per, type[_Summary]] = {"video": _Mean, "occurs": _Occurrence, "segment": _Segments}


def check_per(per: Per, scoring: Scoring, explain: bool) -> None:
    """Refuse settings that answers for videos can't follow.

    Raises:
        UsageError: there are such settings.
    """
    if per == "occurs" and scoring.score_kind.adds_up:
        raise UsageError(
            "--per occurs asks for each label by itself whether it occurs: give --multi-label, or a --score that "
            "doesn't share 1 among the labels, as softmax does."
        )
    if per != "frame" and scoring.unknown is not None:
        raise UsageError(f"--unknown looks at pictures and frames by themselves; leave it out with --per {per}.")
    if per != "frame" and explain:
        raise UsageError(f"--explain explains the answers for pictures and frames; leave it out with --per {per}.")


def summarise(
    batches: Iterable[ImageBatch],
    per: Per,
    scorer: FrameScorer,
    rank_pictures: Callable[[ImageBatch], Iterator[Prediction]],
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Prediction]:
    """Yield answers for videos, and for pictures among them as they are.

    A frame that can't be read is a row with an error, and counts for nothing else.

    Args:
        per: anything but `frame`.
        rank_pictures: returns the answers for pictures.
        stop: where it returns True at the end, a video that may have more frames gets no answer.
    """
    summary: _Summary | None = None
    for image, features in _rows(batches):
        frame = image.content if isinstance(image.content, Frame) else None
        if summary is not None and (frame is None or not summary.goes_on_with(frame)):
            yield from summary.answers()
            summary = None
        if isinstance(features, str):
            yield Prediction(image.path, None, None, None, error=features)
        elif frame is None:
            yield from rank_pictures(ImageBatch((image,), features[None], (None,)))
        else:
            summary = summary or _SUMMARIES[per](scorer, frame)
            yield from summary.add(frame, features)
    if summary is not None and not stop():
        yield from summary.answers()


def _rows(batches: Iterable[ImageBatch]) -> Iterator[tuple[ImageRef, Array | str]]:
    """Yield each image with its features, (embed_dim,), or its error."""
    for batch in batches:
        rows = iter(batch.features)
        for image, error in zip(batch.images, batch.errors, strict=True):
            yield image, next(rows) if error is None else error
