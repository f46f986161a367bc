"""Measure how well labels, prompts and models do on pictures whose answers are known."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from clipcls.embed.cache.database import default_folder
from clipcls.embed.execution import Execution
from clipcls.embed.prepare import quantise_ahead
from clipcls.embed.session import Session
from clipcls.embed.watch import Watch
from clipcls.errors import UsageError
from clipcls.evaluate import metrics
from clipcls.evaluate.groups import Grouping, groupings
from clipcls.evaluate.match_labels import label_indices
from clipcls.evaluate.metrics import UNKNOWN, Answers, LabelAnswers
from clipcls.evaluate.pictures import Pictures
from clipcls.evaluate.results import (
    BRIER_SCORE,
    CALIBRATION_ERROR,
    MEAN_AVERAGE_PRECISION,
    Caveats,
    Classes,
    EvalOutcome,
    EvalResult,
    judge,
    judge_labels,
    match_classes,
    outcome,
)
from clipcls.inputs.labelled.examples import Truth
from clipcls.labels.label_files import make_label
from clipcls.predict.classifier import Classifier
from clipcls.predict.ranking import (
    Array,
    Flags,
    Indices,
    LabelFeatures,
    Scoring,
    best_labels,
    label_places,
    scores,
)
from clipcls.predict.scores import Cosine, ScoreKind
from clipcls.predict.taught import Taught, absolute_path
from clipcls.records import Label, ModelSpec, Prediction, PromptSet

if TYPE_CHECKING:
    from clipcls.models.encoder import Encoder

DEFAULT_CONFUSED = 10
_NOWHERE = 2**31  # the rank of a label that a prediction doesn't list
_OUT_OF_RANGE = "scores that don't lie between 0 and 1 are no probabilities"
# how far from 1 the sum of an image's scores may be, since files hold rounded scores
_ROUNDING = 1e-3


@dataclass(frozen=True, slots=True)
class EvalPlan:
    """What is evaluated: each model with each prompt set.

    Attributes:
        prompts: None stands for each model's own, see `Classifier`; what examples taught has prompts and a function of
            its own, of the same labels.
        scoring: used are its `kind` and `multi_label`, and where an image may have several labels its `threshold`.
        confused: the number of most confused pairs to report.
    """

    labels: tuple[Label, ...]
    models: "tuple[ModelSpec | Encoder | Callable[[], Encoder], ...]"
    prompts: tuple[PromptSet | Taught | None, ...] = (None,)
    scoring: Scoring = field(default_factory=Scoring)
    background: str | None = None
    execution: Execution = field(default_factory=lambda: Execution(cache_dir=default_folder()))
    confused: int = DEFAULT_CONFUSED


def evaluate(truth: Truth, plan: EvalPlan, watch: Watch | None = None) -> EvalOutcome:
    """Run each model with each prompt set over labelled pictures.

    The pictures are embedded once for each model, or taken from the cache; scores are those of `predict`. A picture
    that can't be read is left out for all models alike.

    Raises:
        ModelError: a model can't be loaded.
        UsageError: labels, prompts or settings can't be used, or no picture can be read.
    """
    if truth.multi_label or plan.scoring.multi_label:
        _refuse_groups_of_labels(truth)
        truth, plan = replace(truth, multi_label=True), _for_labels(plan)
    truth = without_taught(truth, plan.prompts)
    classes = match_classes(truth, plan.labels)
    watch = watch or Watch()
    pictures = Pictures([example.image for example in truth.examples], watch)
    with Session(plan.models[0], plan.execution) as first:
        sessions = [first, *(first.beside(model) for model in plan.models[1:])]
        for session in sessions:
            quantise_ahead(session, lambda: [example.image for example in truth.examples])
        # before the first picture, so that errors of models and prompts come early
        classify = partial(classifier_of, plan, bool(truth.same))
        classifiers = [[classify(session, prompts) for prompts in plan.prompts] for session in sessions]
        sides = [[classifier.embed_labels(watch.labels) for classifier in own] for own in classifiers]
        watch.begin(lambda: len(sessions) * len(truth.examples), 0)
        tally = partial(_tally, truth, classes, plan.scoring)
        answers = [_answer(pictures, session, own, tally) for session, own in zip(sessions, sides, strict=True)]
        titles = session_titles(sessions)
        names = [(title, _prompts_title(one)) for title, own in zip(titles, classifiers, strict=True) for one in own]
    good = pictures.good()
    results = _results(list(chain(*answers)), good, plan, classes, truth)
    named = [replace(result, model=m, prompts=p) for result, (m, p) in zip(results, names, strict=True)]
    return outcome(truth, classes, good, named, Caveats(failed=pictures.failures()))


def _refuse_groups_of_labels(truth: Truth) -> None:
    """Refuse groups of pictures that may have several labels.

    Raises:
        UsageError: there are columns of groups.
    """
    if truth.group_columns:
        raise UsageError("Groups are compared by their accuracy, which needs one label an image.")


def session_titles(sessions: Sequence[Session]) -> list[str]:
    """Return the models' names, with the precision of those that are evaluated in several."""
    names = [session.name for session in sessions]
    return [
        f"{name}, {session.facts.precision}" if names.count(name) > 1 else name
        for name, session in zip(names, sessions, strict=True)
    ]


def without_taught(truth: Truth, prompts: "Sequence[PromptSet | Taught | None]") -> Truth:
    """Return the data without the examples that taught any of the functions, which would look too good on them.

    Raises:
        UsageError: no others are left.
    """
    taught = [one for one in prompts if isinstance(one, Taught)]
    known = {path for one in taught for path in one.origin.paths}
    rest = [example for example in truth.examples if absolute_path(example.image.path) not in known]
    count = len(truth.examples) - len(rest)
    if not count:
        return truth
    names = " and ".join(one.name for one in taught)
    if not rest:
        raise UsageError(f"All pictures of the data are examples that taught {names}: measure on others.")
    left_out = f"{count:,} pictures are examples that taught {names}, and left out"
    return replace(truth, examples=tuple(rest), problems=(*truth.problems, left_out))


def _prompts_title(classifier: Classifier) -> str:
    return classifier.prompts.name if classifier.taught is None else classifier.taught.name


def _results(
    tallies: "Sequence[_AnyTally]", good: Flags, plan: EvalPlan, classes: Classes, truth: Truth
) -> list[EvalResult]:
    paths = [truth.examples[image].image.path for image in np.flatnonzero(good)]
    omitted = {} if plan.scoring.multi_label else _untellable(plan.scoring.score_kind)
    groups = _groups(truth, good)
    return [_judged(tally.answers(good), classes, paths, omitted, plan.confused, groups) for tally in tallies]


def _for_labels(plan: EvalPlan) -> EvalPlan:
    """Return the plan for images that may have several labels."""
    scoring = plan.scoring
    if scoring.multi_label:
        return plan
    kind = None if scoring.score_kind.adds_up else scoring.kind
    return replace(plan, scoring=Scoring(kind, multi_label=True, threshold=scoring.threshold))


def _untellable(kind: ScoreKind) -> dict[str, str]:
    """Return the figures that such scores can't give with one label an image, and why, by name."""
    if kind.adds_up:
        return {}
    if not kind.is_probability:
        return dict.fromkeys((CALIBRATION_ERROR, BRIER_SCORE), f"{kind.plural} are no probabilities")
    return {BRIER_SCORE: f"{kind.plural} don't add up to 1"}


def _judged(
    answers: Answers | LabelAnswers,
    classes: Classes,
    paths: Sequence[str],
    omitted: Mapping[str, str],
    confused: int,
    groups: Sequence[Grouping],
) -> EvalResult:
    if isinstance(answers, Answers):
        return judge(answers, classes, paths, omitted, confused, groups)
    return judge_labels(answers, omitted)


def _groups(truth: Truth, measured: Flags) -> tuple[Grouping, ...]:
    """Return the groups of the measured pictures, by each column of groups."""
    return groupings(truth.group_columns, [truth.examples[image].groups for image in np.flatnonzero(measured)])


# ---------------------------------------------------------------------------------------------------------
# Answers of models


def classifier_of(
    plan: EvalPlan, allow_equal: bool, session: Session, prompts: PromptSet | Taught | None
) -> Classifier:
    """Return the classifier with one of a plan's prompt sets, or with what examples taught."""
    if isinstance(prompts, Taught):
        return Classifier(session, prompts, scoring=plan.scoring, background=plan.background)
    return Classifier(session, plan.labels, prompts, plan.scoring, background=plan.background, allow_equal=allow_equal)


def _answer(
    pictures: Pictures, session: Session, sides: Sequence[LabelFeatures], tally: "Callable[[LabelFeatures], _AnyTally]"
) -> "list[_AnyTally]":
    tallies = [tally(side) for side in sides]
    for rows, features in pictures.embed(session):
        for own in tallies:
            own.add(features, rows)
    return tallies


def _tally(truth: Truth, classes: Classes, scoring: Scoring, side: LabelFeatures) -> "_AnyTally":
    if scoring.multi_label:
        return _LabelTally(side, scoring, right_flags(truth, classes))
    return _Tally(side, scoring, right_labels(truth, classes))


def right_labels(truth: Truth, classes: Classes) -> Indices:
    """Return the index of each picture's class in `classes.names`, (n,) int64; 0 for a picture without a label."""
    names = [example.labels[0] if example.labels else None for example in truth.examples]
    return np.array([0 if name is None else classes.indices[name] for name in names], dtype=np.int64)


def right_flags(truth: Truth, classes: Classes) -> Flags:
    """Return which labels each picture has, (n, n_labels) bool."""
    flags = np.zeros((len(truth.examples), len(classes.names)), dtype=bool)
    for row, example in enumerate(truth.examples):
        flags[row, [classes.indices[name] for name in example.labels]] = True
    return flags[:, : classes.n_labels]


class _Tally:
    """Collects the answers of one model with one prompt set, one label an image.

    Args:
        truth: (n,) int64, the right label of each picture, from `right_labels`.
    """

    def __init__(self, side: LabelFeatures, scoring: Scoring, truth: Indices) -> None:
        self._side = side
        self._kind = scoring.score_kind
        self._truth = truth
        self._predicted, self._places = np.zeros_like(truth), np.zeros_like(truth)
        self._scores = np.zeros(len(truth), dtype=np.float32)
        self._brier = np.zeros(len(truth))

    def add(self, features: Array, rows: Indices) -> None:
        """Take the features of some pictures in."""
        cosines, label_scores = scores(features, self._side, self._kind)
        truth = self._truth[rows]
        self._predicted[rows] = best_labels(cosines, label_scores)
        self._scores[rows] = label_scores.max(axis=1)
        self._places[rows] = label_places(cosines, label_scores, truth)
        if self._kind.adds_up:
            self._brier[rows] = metrics.brier(label_scores, truth)

    def answers(self, good: Flags) -> Answers:
        """The answers to the pictures that could be read."""
        brier = self._brier[good] if self._kind.adds_up else None
        return Answers(self._truth[good], self._predicted[good], self._places[good], self._scores[good], brier)


class _LabelTally:
    """Collects the answers of one model with one prompt set, any number of labels an image; see `_Tally`."""

    def __init__(self, side: LabelFeatures, scoring: Scoring, truth: Flags) -> None:
        self._side = side
        self._scoring = scoring
        self._truth = truth
        self._scores = np.zeros(truth.shape, dtype=np.float32)

    def add(self, features: Array, rows: Indices) -> None:
        """Take the features of some pictures in."""
        self._scores[rows] = scores(features, self._side, self._scoring.score_kind)[1]

    def answers(self, good: Flags) -> LabelAnswers:
        """The answers to the pictures that could be read."""
        found = self._scores[good]
        return LabelAnswers(self._truth[good], self._scoring.reached(found), found)


_AnyTally = _Tally | _LabelTally


# ---------------------------------------------------------------------------------------------------------
# Answers that were given before


def evaluate_predictions(
    truth: Truth,
    predictions: Iterable[Prediction],
    labels: Sequence[Label] | None = None,
    confused: int = DEFAULT_CONFUSED,
) -> EvalOutcome:
    """Judge predictions that an earlier run wrote; no model is needed.

    Args:
        labels: the labels of that run; None for those that the predictions name, together with the data's classes if
            the predictions don't list all labels for each image.

    Raises:
        UsageError: none of the predictions is of a picture of the data, or none has an answer.
    """
    if truth.multi_label:
        _refuse_groups_of_labels(truth)
    found = _by_path(predictions)
    keys = [_key(example.image.path) for example in truth.examples]
    given = [found.get(key) for key in keys]
    asked = set(keys)
    good = [prediction for prediction in given if prediction is not None and prediction.error is None]
    if not good:
        raise UsageError(_no_match(truth, found, given))
    listing = _Listing(good, truth, labels)
    classes = match_classes(truth, listing.labels)
    chosen = np.array([prediction is not None and prediction.error is None for prediction in given])
    answers = (
        listing.label_answers(right_flags(truth, classes)[chosen])
        if truth.multi_label
        else listing.answers(right_labels(truth, classes)[chosen], classes)
    )
    paths = [prediction.path for prediction in good]
    omitted = listing.omitted(classes, truth.multi_label)
    result = _judged(answers, classes, paths, omitted, confused, _groups(truth, chosen))
    pairs = list(zip(truth.examples, given, strict=True))
    caveats = Caveats(
        failed=tuple((e.image.path, p.error) for e, p in pairs if p is not None and p.error is not None),
        missing=tuple(e.image.path for e, p in pairs if p is None),
        unasked=tuple(prediction.path for key, prediction in found.items() if key not in asked),
        unknown=0 if truth.multi_label else sum(prediction.label is None for prediction in good),
    )
    return outcome(truth, classes, chosen, [result], caveats)


def _by_path(predictions: Iterable[Prediction]) -> dict[str, Prediction]:
    """Return the predictions by the absolute paths of their pictures; the first one where a path is repeated."""
    found: dict[str, Prediction] = {}
    for prediction in predictions:
        found.setdefault(_key(prediction.path), prediction)
    return found


def _key(path: str) -> str:
    return os.path.abspath(path)  # noqa: PTH100, it may be the name of something inside a file


def _no_match(truth: Truth, found: Mapping[str, Prediction], given: Sequence[Prediction | None]) -> str:
    failed = next((p for p in given if p is not None), None)
    if failed is not None:
        return f"None of the predictions has an answer. The first: {failed.path}: {failed.error}"
    if not found:
        return "The file holds no predictions."
    return (
        "None of the predictions is of a picture of the data. The first prediction is of "
        f"{next(iter(found.values())).path}, the first picture of the data is {truth.examples[0].image.path}. "
        "Paths are taken from the folder that this is run in: run it where `clipcls predict` was run."
    )


class _Listing:
    """The labels that predictions list for each image.

    Args:
        predictions: those that have answers.
        labels: see `evaluate_predictions`.

    Attributes:
        labels: all labels that could be answered.

    Raises:
        UsageError: a prediction names a label that isn't among them.
    """

    def __init__(self, predictions: Sequence[Prediction], truth: Truth, labels: Sequence[Label] | None) -> None:
        self._predictions = predictions
        self._shortest = min(len(prediction.top) for prediction in predictions)
        named = dict.fromkeys(entry.label for prediction in predictions for entry in prediction.top)
        if labels is None:
            labels = [make_label(name) for name in named]
            if len(named) < 2 or self._shortest < len(named):
                known = label_indices(truth.classnames, labels)
                labels += [label for label in truth.labels if label.name not in known]
        self.labels = tuple(labels)
        self._places = label_indices(named, labels)
        strange = next((name for name in named if name not in self._places), None)
        if strange is not None:
            raise UsageError(
                f"The predictions name {strange!r}, which isn't among the labels that were given. Give all that "
                "`clipcls predict` had, or none."
            )
        self._is_whole = self._shortest >= len(self.labels)

    def answers(self, right: Indices, classes: Classes) -> Answers:
        """Return one answer an image.

        Args:
            right: (n,) int64, the right label of each image.
        """
        predicted, places = [], []
        for prediction, truth in zip(self._predictions, right, strict=True):
            ranked = [self._places[entry.label] for entry in prediction.top]
            known = prediction.label is not None
            predicted.append(ranked[0] if known else UNKNOWN)
            places.append(ranked.index(truth) if known and truth in ranked else _NOWHERE)
        best = np.array([prediction.score for prediction in self._predictions], dtype=np.float32)
        brier = None if BRIER_SCORE in self.omitted(classes, False) else metrics.brier(self._scores, right)
        return Answers(right, np.array(predicted), np.array(places), best, brier)

    def label_answers(self, right: Flags) -> LabelAnswers:
        """Return each listed label as an answer; an unknown image has none.

        Args:
            right: (n, n_labels) bool, whether an image has a label.
        """
        answered = np.zeros(right.shape, dtype=bool)
        for row, prediction in enumerate(self._predictions):
            if prediction.label is not None:
                answered[row, [self._places[entry.label] for entry in prediction.top]] = True
        return LabelAnswers(right, answered, self._scores if self._is_whole else None)

    def omitted(self, classes: Classes, multi_label: bool) -> dict[str, str]:
        """Return the figures that the predictions can't give, and why, by name."""
        partly = f"the predictions list {self._shortest} of {len(self.labels)} labels for some images"
        if multi_label:
            reason = f"{partly}; with --threshold 0 `clipcls predict` lists all"
            return {} if self._is_whole else {MEAN_AVERAGE_PRECISION: reason}
        found: dict[str, str] = {}
        if self._shortest < classes.places:
            found[f"accuracy@{classes.places}"] = (
                f"{partly}; --top-k {classes.places} of `clipcls predict` lists enough"
            )
        if all(prediction.score == prediction.similarity for prediction in self._predictions):
            return found | _untellable(Cosine())
        if not all(prediction.score is None or 0 <= prediction.score <= 1 for prediction in self._predictions):
            return found | {CALIBRATION_ERROR: _OUT_OF_RANGE, BRIER_SCORE: _OUT_OF_RANGE}
        if not self._is_whole:
            found[BRIER_SCORE] = f"{partly}; --top-k {len(self.labels)} of `clipcls predict` lists all"
        elif np.abs(self._scores.sum(axis=1) - 1).max() > _ROUNDING:
            found[BRIER_SCORE] = "the scores don't add up to 1"
        return found

    @cached_property
    def _scores(self) -> Array:
        """(n, n_labels) float32; only meaningful where the predictions list all labels."""
        found = np.zeros((len(self._predictions), len(self.labels)), dtype=np.float32)
        for row, prediction in enumerate(self._predictions):
            for entry in prediction.top:
                found[row, self._places[entry.label]] = entry.score
        return found
