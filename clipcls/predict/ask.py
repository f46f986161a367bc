"""Answer several questions about each picture, whose features are computed once."""

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from clipcls.embed.images import ImageBatch, embed_images
from clipcls.embed.session import Session
from clipcls.embed.watch import Watch
from clipcls.errors import UsageError
from clipcls.labels.questions import Question, weaknesses
from clipcls.outputs.rows import RowShape
from clipcls.predict.classifier import Classifier, Paths, references
from clipcls.predict.ranking import LabelFeatures, LinearHead, Scoring
from clipcls.records import Answer, ImageRef, Label, Per, Prediction, ScoredLabel

logger = logging.getLogger(__name__)


class Questionnaire:
    """Asks questions about pictures; used like a `Classifier`, as by `clipcls.predict.run.run`.

    Args:
        questions: those that others are asked `when` come before them.
        top_k: how many choices an answer lists; None for 1. With `multi` all that reach the threshold are listed.

    Raises:
        UsageError: choices, prompts or settings can't be used.
    """

    def __init__(
        self,
        session: Session,
        questions: Sequence[Question],
        *,
        top_k: int | None = None,
    ) -> None:
        if not questions:
            raise UsageError("No questions.")
        self.session: Final = session
        self.questions: Final = tuple(questions)
        self._mean: NDArray[np.float64] | None = None
        self._classifiers: Final = [
            Classifier(
                session,
                question.labels,
                question.prompts,
                Scoring(None, question.multi, None if question.multi else top_k, question.threshold),
                allow_equal=True,
            )
            for question in questions
        ]
        for question in questions:
            for weakness, source in weaknesses(question):
                logger.warning(
                    "question %r asks for %s, which models like these are known to tell badly (%s)",
                    question.name,
                    weakness,
                    source,
                )

    #: Videos have a row for each frame.
    per: Final[Per] = "frame"

    def __getstate__(self) -> dict[str, Any]:
        # a session belongs to its process; see `on`
        return self.__dict__ | {"session": None}

    def on(self, session: Session) -> "Questionnaire":
        """Return the same questions on another session of the same model; embedded choices are kept."""
        other = copy.copy(self)
        other.__dict__["session"] = session
        other.__dict__["_classifiers"] = [classifier.on(session) for classifier in self._classifiers]
        return other

    def without_priors(self, mean: NDArray[np.float64]) -> "Questionnaire":
        """Return the same questions, whose choices aren't preferred for what all pictures have in common with them.

        Each choice's cosine with the mean picture is taken off its cosine with a picture. Both answers are given then;
        questions with several answers stay as they are.

        Args:
            mean: (embed_dim,), from `mean_features`.
        """
        other = self.on(self.session)
        other.__dict__["_mean"] = mean
        return other

    @property
    def labels(self) -> tuple[Label, ...]:
        """All choices of all questions."""
        return tuple(label for question in self.questions for label in question.labels)

    @property
    def label_features(self) -> tuple[LabelFeatures, ...]:
        """The embedded choices of each question."""
        return tuple(classifier.label_features for classifier in self._classifiers)

    def embed_labels(self, report: Callable[[int, int], None] | None = None) -> tuple[LabelFeatures, ...]:
        """Embed the choices at the first call; see `Classifier.embed_labels`."""
        return tuple(classifier.embed_labels(report) for classifier in self._classifiers)

    @property
    def row_shape(self) -> RowShape:
        """What rows hold."""
        return RowShape(questions=tuple(q.name for q in self.questions), has_uncorrected=self._mean is not None)

    def settings(self) -> dict[str, Any]:
        """Return all that answers depend on besides the images, by the names of the options, in JSON's types."""
        whole = [classifier.settings() for classifier in self._classifiers]
        own = ("--labels", "--prompts", "--score", "--multi-label", "--threshold", "--background")
        settings = {name: value for name, value in whole[0].items() if name not in own}
        settings["--questions"] = [
            [question.name, list(question.when), *(one[name] for name in own)]
            for question, one in zip(self.questions, whole, strict=True)
        ]
        if self._mean is not None:
            settings["--without-priors"] = [round(float(value), 4) for value in self._mean]
        return settings

    def predict(self, paths: Paths, stop: Callable[[], bool] = lambda: False) -> Iterator[Prediction]:
        """Answer the questions for images, in input order; see `Classifier.predict`."""
        self.embed_labels()
        for batch in embed_images(references(paths), self.session, stop):
            yield from self._answer(batch)

    def _answer(self, batch: ImageBatch) -> Iterator[Prediction]:
        plain = [classifier.answer(batch) for classifier in self._classifiers]
        corrected = plain
        if self._mean is not None:
            corrected = [
                own if question.multi else self._without_prior(classifier).answer(batch)
                for question, classifier, own in zip(self.questions, self._classifiers, plain, strict=True)
            ]
        for row, image in enumerate(batch.images):
            if batch.errors[row] is not None:
                yield plain[0][row]
                continue
            answers: dict[str, Answer | None] = {}
            for question, before, after in zip(self.questions, plain, corrected, strict=True):
                is_asked = all(_gives(answers[name], wanted) for name, wanted in question.when)
                answers[question.name] = (
                    _answer_of(after[row], before[row], before is not after, question.multi) if is_asked else None
                )
            yield Prediction(image.path, None, None, None, index=image.index, answers=tuple(answers.items()))

    def _without_prior(self, classifier: Classifier) -> Classifier:
        """Return the classifier without what the mean picture has in common with each choice."""
        labels = classifier.label_features
        common = labels.features.astype(np.float64) @ np.asarray(self._mean)
        return classifier.with_head(LinearHead(labels.features, (common.mean() - common).astype(np.float32)))


def mean_features(
    images: Iterable[ImageRef], session: Session, stop: Callable[[], bool] = lambda: False, watch: Watch | None = None
) -> NDArray[np.float64]:
    """Return the mean of the features of all pictures that can be read, (embed_dim,).

    Args:
        stop: called after every batch; once it returns True, the mean is that of the pictures so far.
        watch: told how far it is, but not of errors, which a later run meets again.

    Raises:
        UsageError: none can be read.
    """
    total, count, done = np.zeros(session.facts.embed_dim), 0, 0
    watch = watch or Watch()
    watch.begin(None, 0)
    for batch in embed_images(images, session, stop):
        total += batch.features.sum(axis=0, dtype=np.float64)
        count, done = count + len(batch.features), done + len(batch.images)
        watch.images(done, done - count)
    if not count:
        raise UsageError("No picture could be read, so that nothing is known of what all have in common.")
    mean: NDArray[np.float64] = total / count
    return mean


def _answer_of(found: Prediction, plain: Prediction, is_corrected: bool, several: bool) -> Answer:
    assert found.score is not None and found.similarity is not None
    uncorrected = ScoredLabel(plain.top[0].label, plain.top[0].score, plain.top[0].similarity) if is_corrected else None
    return Answer(found.label, found.score, found.similarity, found.top, uncorrected, several)


def _gives(answer: Answer | None, wanted: tuple[str, ...]) -> bool:
    """Tell whether an answer is one of those wanted; what wasn't asked, or is unknown, is none."""
    return answer is not None and any(label in wanted for label in answer.labels)
