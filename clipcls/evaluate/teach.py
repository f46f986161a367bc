"""Teach a classifier by labelled pictures, and measure what they taught it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version

import numpy as np

from clipcls.embed.execution import Execution
from clipcls.embed.prepare import quantise_ahead
from clipcls.embed.session import Session
from clipcls.embed.watch import Watch
from clipcls.errors import UsageError, listed
from clipcls.evaluate import metrics
from clipcls.evaluate.few_shot import FewShot, fit_few_shot, log_losses
from clipcls.evaluate.match_labels import label_indices
from clipcls.evaluate.metrics import Estimate
from clipcls.evaluate.pictures import Pictures
from clipcls.inputs.labelled.examples import Truth
from clipcls.predict.classifier import Classifier
from clipcls.predict.ranking import Array, Indices, Scoring, rank
from clipcls.predict.taught import Taught, TaughtOrigin, absolute_path
from clipcls.records import Label, ModelSpec, Prediction, PromptSet

# the last digit in which features of one picture agree
_DIGITS = 4


@dataclass(frozen=True, slots=True)
class TeachPlan:
    """What is taught.

    Attributes:
        labels: labels besides the classes of the examples, which may be among them.
        prompts: what labels' texts are filled into; None for the model's own.
    """

    model: ModelSpec
    execution: Execution
    labels: tuple[Label, ...] = ()
    prompts: PromptSet | None = None


@dataclass(frozen=True, slots=True)
class Suspect:
    """An example whose label the others contradict.

    Attributes:
        label: as it was given.
        likely: the label that the others make the most likely.
        score: of the given label; `likely_score` is that of the likely one.
    """

    path: str
    label: str
    likely: str
    score: float
    likely_score: float


@dataclass(frozen=True, slots=True)
class TeachReport:
    """What examples taught, and how well, each example judged by what the others taught.

    Attributes:
        is_zero_shot: whether the zero-shot function was kept, since examples taught nothing better.
        count: the number of examples that were used.
        zero_shot: the accuracy of zero-shot answers.
        accuracy: the accuracy of leave-one-out answers.
        gain: the latter minus the former, paired.
        p: of McNemar's exact test.
        recalls: for each label the share of its examples that are right zero-shot, and as taught; NaN without examples.
        suspects: examples with wrong leave-one-out answers, the least likely labels first.
        answers: the leave-one-out answers, as `predict` gives them, with all labels listed.
        repeated: paths of examples that are another one's picture with the same label, and were left out.
        failed: path and error of each picture that couldn't be read.
        problems: messages about the data.
    """

    taught: Taught
    is_zero_shot: bool
    count: int
    zero_shot: Estimate
    accuracy: Estimate
    gain: Estimate
    p: float
    recalls: tuple[tuple[float, float], ...]
    suspects: tuple[Suspect, ...]
    answers: tuple[Prediction, ...]
    repeated: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Examples:
    """Pictures that could be read, each once."""

    paths: tuple[str, ...]
    features: Array
    truth: Indices


def teach(truth: Truth, plan: TeachPlan, watch: Watch | None = None) -> TeachReport:
    """Teach a model by examples, each with one label.

    Raises:
        ModelError: the model can't be loaded.
        UsageError: the examples show fewer than two labels, contradict one another or have several labels, or labels
            or prompts can't be used.
    """
    labels = _all_labels(truth, plan.labels)
    watch = watch or Watch()
    pictures = Pictures([example.image for example in truth.examples], watch)
    with Session(plan.model, plan.execution) as session:
        quantise_ahead(session, lambda: [example.image for example in truth.examples])
        classifier = Classifier(session, labels, plan.prompts, allow_equal=True)  # examples tell them apart
        embedded = classifier.embed_labels(watch.labels)
        watch.begin(lambda: len(truth.examples), 0)
        features = np.concatenate([features for _, features in pictures.embed(session)])
        examples, repeated = _examples(truth, labels, np.flatnonzero(pictures.good()), features)
        learned = fit_few_shot(examples.features, examples.truth, embedded)
        origin = _origin(session, examples.paths)
    counts = tuple(np.bincount(examples.truth, minlength=len(labels)).tolist())
    taught = Taught(labels, classifier.prompts, learned.head, learned.prototypes, counts, origin)
    report = _report(taught, learned, examples)
    return replace(report, repeated=repeated, failed=pictures.failures(), problems=truth.problems)


def _all_labels(truth: Truth, given: Sequence[Label]) -> tuple[Label, ...]:
    """Return the given labels, and those of the data's classes that aren't among them."""
    if truth.multi_label:
        raise UsageError("The examples give a picture several labels, or none: teach takes one label a picture.")
    shown = list(dict.fromkeys(name for example in truth.examples for name in example.labels))
    if len(shown) < 2:
        raise UsageError(
            f"Examples of one label only ({listed(shown)}): teaching takes examples of two or more, to tell them apart."
        )
    among = label_indices(truth.classnames, given)
    return (*given, *(label for label in truth.labels if label.name not in among))


def _examples(
    truth: Truth, labels: Sequence[Label], good: Indices, features: Array
) -> tuple[_Examples, tuple[str, ...]]:
    """Return the examples that can be learned from, and the paths of those that repeat another.

    Raises:
        UsageError: features are no numbers, two labels have the same picture, or one label is left.
    """
    indices = label_indices(truth.classnames, labels)
    shown = [truth.examples[place] for place in good]
    strange = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if strange.size:
        raise UsageError(f"The features of {shown[strange[0]].image.path} are no numbers: the model can't embed it.")
    first: dict[bytes, int] = {}
    repeated = []
    for row, key in enumerate(np.round(features, _DIGITS) + np.float32(0)):  # -0 becomes 0
        earlier = first.setdefault(key.tobytes(), row)
        if earlier == row:
            continue
        one, other = shown[earlier], shown[row]
        if indices[one.labels[0]] != indices[other.labels[0]]:
            raise UsageError(
                f"The same picture has two labels: {one.image.path} ({one.labels[0]}) and {other.image.path} "
                f"({other.labels[0]}). Leave the wrong one out."
            )
        repeated.append(other.image.path)
    rows = np.array(list(first.values()))
    right = np.array([indices[shown[row].labels[0]] for row in rows])
    if len(set(right.tolist())) < 2:
        raise UsageError("Examples of one label only could be read: teaching takes examples of two or more.")
    return _Examples(tuple(shown[row].image.path for row in rows), features[rows], right), tuple(repeated)


def _origin(session: Session, paths: Sequence[str]) -> TaughtOrigin:
    return TaughtOrigin(
        absolute_path(session.name),
        session.fingerprint.hex(),
        session.facts.precision,
        session.execution.decode,
        session.facts.logit_scale,
        tuple(map(absolute_path, paths)),
        datetime.now(UTC).date().isoformat(),
        version("clipcls"),
    )


def _report(taught: Taught, learned: FewShot, examples: _Examples) -> TeachReport:
    truth, names = examples.truth, [label.name for label in taught.labels]
    before, after = (values.argmax(axis=1) == truth for values in (learned.zero_shot, learned.scores))
    figures = metrics.bootstrap({"before": metrics.mean(before), "after": metrics.mean(after)}, len(truth))
    scoring = Scoring(top_k=len(names))
    answers = [
        rank(path, learned.zero_shot[row], learned.scores[row], tuple(names), scoring)
        for row, path in enumerate(examples.paths)
    ]
    by_loss = np.argsort(-log_losses(learned.scores, truth), kind="stable")
    suspects = [
        Suspect(
            examples.paths[row],
            names[truth[row]],
            answers[row].top[0].label,
            float(learned.scores[row, truth[row]]),
            answers[row].top[0].score,
        )
        for row in by_loss
        if not after[row]
    ]
    recalls = [
        (float(before[own].mean()), float(after[own].mean())) if own.any() else (float("nan"),) * 2
        for own in (truth == label for label in range(len(names)))
    ]
    return TeachReport(
        taught=taught,
        is_zero_shot=learned.is_zero_shot,
        count=len(truth),
        zero_shot=figures["before"],
        accuracy=figures["after"],
        gain=metrics.difference(figures["after"], figures["before"]),
        p=metrics.mcnemar(after, before),
        recalls=tuple(recalls),
        suspects=tuple(suspects),
        answers=tuple(answers),
        repeated=(),
        failed=(),
        problems=(),
    )
