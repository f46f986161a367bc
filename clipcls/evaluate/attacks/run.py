"""Attack the pictures of a data set, and measure how a model's answers hold."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from clipcls.embed.batches import Batches
from clipcls.embed.cache.database import default_folder
from clipcls.embed.execution import Execution
from clipcls.embed.image_reader import read_picture, read_pixels
from clipcls.embed.prepare import quantise_ahead
from clipcls.embed.session import Session
from clipcls.embed.texts import embed_texts
from clipcls.embed.watch import Watch
from clipcls.errors import ImageError, UsageError
from clipcls.evaluate.attacks.adversarial import VARIANTS, Adversary
from clipcls.evaluate.attacks.corruptions import Corruptions
from clipcls.evaluate.attacks.pictures import PictureAttack
from clipcls.evaluate.attacks.results import (
    AttackOutcome,
    Judged,
    NoteFigures,
    judge_notes,
    judge_variants,
    largest_note,
)
from clipcls.evaluate.attacks.text import NOTE_LABEL, Notes, TextAttack, choose_notes
from clipcls.evaluate.evaluate import right_labels
from clipcls.evaluate.groups import GroupShare
from clipcls.evaluate.pictures import Pictures
from clipcls.evaluate.results import match_classes
from clipcls.images.fit import fit
from clipcls.inputs.labelled.examples import Truth
from clipcls.inputs.tables import read_embedded
from clipcls.labels import vocabulary
from clipcls.labels.label_files import make_label
from clipcls.labels.prompts import render
from clipcls.predict.classifier import Classifier
from clipcls.predict.ranking import Array, Flags, Indices, LabelFeatures, best_labels, scores
from clipcls.predict.scores import DEFAULT_KIND
from clipcls.records import ImageRef, Label, ModelFacts, ModelSpec, PromptSet

if TYPE_CHECKING:
    from clipcls.models.encoder import Encoder

AttackKind = Literal["text", "corrupt", "adversarial"]

#: The number of pictures that made-up noise is measured on, unless another is asked for.
DEFAULT_ADVERSARIAL = 100

# pictures that are read ahead for each thread
_AHEAD = 2
# pictures that are attacked at once: gradients take several times the memory of features
_MOST_GRADIENTS = 32

_Pixels = NDArray[np.uint8]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class AttackPlan:
    """What is attacked, and how.

    Attributes:
        prompts: None stands for the model's own, see `Classifier`.
        severities: None for all of the kind.
        limit: the most pictures to attack, chosen by chance; None for all, or 100 of `adversarial`.
        seed: of all that is left to chance.
    """

    kind: AttackKind
    labels: tuple[Label, ...]
    model: "ModelSpec | Encoder | Callable[[], Encoder]"
    prompts: PromptSet | None = None
    execution: Execution = field(default_factory=lambda: Execution(cache_dir=default_folder()))
    severities: tuple[int, ...] | None = None
    limit: int | None = None
    seed: int = 0


def attack(truth: Truth, plan: AttackPlan, watch: Watch | None = None) -> AttackOutcome:
    """Attack labelled pictures, and compare the answers with those to the pictures as they are.

    The features of changed pictures are never cached.

    Raises:
        ModelError: the model can't be loaded.
        UsageError: labels, prompts or settings can't be used, or no picture can be read.
    """
    if truth.multi_label:
        raise UsageError("--attack measures whether an answer holds, which needs one label an image.")
    if len(plan.labels) < 2:
        raise UsageError("--attack needs a second label that could become the answer.")
    if plan.kind == "adversarial" and plan.severities is not None:
        raise UsageError("--severity is for --attack text and corrupt: noise that is made up has strengths of its own.")
    classes = match_classes(truth, plan.labels)
    chosen = _choose(len(truth.examples), plan)
    sample = replace(truth, examples=tuple(truth.examples[place] for place in chosen))
    with Session(plan.model, plan.execution) as session:
        run = _Run(session, sample, chosen, right_labels(sample, classes), watch or Watch())
        classifier = Classifier(session, plan.labels, plan.prompts, allow_equal=bool(truth.same))
        outcome = run.by_noise(classifier, plan) if plan.kind == "adversarial" else run.by_pictures(classifier, plan)
    return replace(outcome, images=len(truth.examples))


def _choose(count: int, plan: AttackPlan) -> list[int]:
    """Return the indices of the pictures to attack, in their order."""
    limit = plan.limit or (DEFAULT_ADVERSARIAL if plan.kind == "adversarial" else count)
    if limit >= count:
        return list(range(count))
    drawn: list[int] = np.random.default_rng(plan.seed).choice(count, limit, replace=False).tolist()
    return sorted(drawn)


@dataclass(frozen=True, slots=True)
class _View:
    """A changed picture.

    Attributes:
        row: the picture's index among the chosen ones.
        variant: the index of what was done to it.
    """

    row: int
    variant: int
    pixels: _Pixels


class _Run:
    """One attack on the chosen pictures of a data set.

    Args:
        sample: the chosen examples.
        chosen: their indices in the data.
        right: (n,) int64, the index of each picture's class.
    """

    def __init__(self, session: Session, sample: Truth, chosen: Sequence[int], right: Indices, watch: Watch) -> None:
        self._session = session
        self._sample = sample
        self._images = [example.image for example in sample.examples]
        self._chosen = chosen
        self._right = right
        self._watch = watch
        self._pictures = Pictures(self._images, watch)

    # -----------------------------------------------------------------------------------------------------
    # Changed pictures

    def by_pictures(self, classifier: Classifier, plan: AttackPlan) -> AttackOutcome:
        """Measure answers to pictures that have notes on them, or are spoilt."""
        session, preprocess = self._session, self._session.facts.preprocess
        notes = None
        made: PictureAttack
        if plan.kind == "text":
            notes = choose_notes(plan.labels, self._right, self._chosen, plan.seed)
            made = TextAttack(plan.labels, notes, self._chosen, preprocess, plan.severities)
        else:
            made = Corruptions(preprocess, plan.severities, plan.seed)
        quantise_ahead(session, lambda: self._images)
        sides = [classifier.embed_labels(self._watch.labels)]
        if notes is not None and _knows(session.facts, NOTE_LABEL):
            sides.append(_with_note_label(sides[0], classifier))
        self._watch.begin(lambda: 2 * len(self._images), 0)
        plain = self._plain_answers(sides)
        answers = self._changed_answers(sides, made, plain)
        good = self._pictures.good()
        plain, answers, right = plain[:, good], answers[:, :, good], self._right[good]
        if notes is None:
            figures = judge_variants(plain[0] == right, answers[0] == right, made.variants)
            return self._outcome(classifier, plan, figures, None)
        notes = Notes(notes.labels[good], notes.places[good])
        became, other = answers[0] == notes.labels, plain[0] != notes.labels
        figures = judge_variants(plain[0] == right, answers[0] == right, made.variants, became, other)
        largest = largest_note(made.variants)
        told = judge_notes(notes, became[largest], other, [label.name for label in plan.labels])
        if len(sides) > 1:
            told = _with_remedy(told, plain, answers[:, largest], right, became[largest] & other)
        return self._outcome(classifier, plan, figures, told)

    def _plain_answers(self, sides: Sequence[LabelFeatures]) -> Indices:
        """Return the answers to the pictures as they are, (n_sides, n) int64; their features come from the cache."""
        found = np.zeros((len(sides), len(self._images)), dtype=np.int64)
        for rows, features in self._pictures.embed(self._session):
            found[:, rows] = _answers(features, sides)
        return found

    def _changed_answers(self, sides: Sequence[LabelFeatures], made: PictureAttack, plain: Indices) -> Indices:
        """Return the answers to the changed pictures, (n_sides, n_variants, n) int64."""
        found = np.repeat(plain[:, None], len(made.variants), axis=1)
        views = (
            _View(row, variant, fitted)
            for row, changed in self._ahead(lambda row, image: self._changed(row, image, made))
            for variant, fitted in enumerate(changed)
            if fitted is not None  # else the answer is that to the picture as it is
        )
        for batch, features in self._encoded(views):
            rows, variants = [view.row for view in batch], [view.variant for view in batch]
            found[:, variants, rows] = _answers(features, sides)
        return found

    def _encoded(self, views: Iterator["_View"]) -> Iterator[tuple[list["_View"], Array]]:
        """Yield views of pictures with their features, batch by batch; nothing is looked up or kept in the cache."""
        session = self._session
        encoder = session.encoder
        encoder.build_image_tower()
        batches = Batches(encoder.encode_image, session.execution.batch_size_on(session.facts.device))
        running: deque[tuple[list[_View], Future[Array]]] = deque()
        with ThreadPoolExecutor(encoder.streams, "encode", initializer=encoder.enter_stream) as encoders:
            while batch := list(islice(views, batches.size)):
                running.append((batch, encoders.submit(batches.encode, [view.pixels for view in batch])))
                if len(running) > encoder.streams:
                    done, future = running.popleft()
                    yield done, future.result()
            for done, future in running:
                yield done, future.result()

    def _changed(self, row: int, image: ImageRef, made: PictureAttack) -> list[_Pixels | None]:
        """Return a picture's pixels, changed in each way; None where it stays as it is."""
        facts, execution = self._session.facts, self._session.execution
        picture = read_picture(image, facts, execution)
        changed = made.change(picture, self._chosen[row])
        return [None if each is picture else fit(each, facts.preprocess, execution.decode) for each in changed]

    # -----------------------------------------------------------------------------------------------------
    # Noise

    def by_noise(self, classifier: Classifier, plan: AttackPlan) -> AttackOutcome:
        """Measure answers to pictures with noise on them that is made up for the model."""
        labels = classifier.embed_labels(self._watch.labels)
        adversary = Adversary(self._session, labels, plan.seed)
        self._watch.begin(lambda: len(self._images), 0)
        facts, execution = self._session.facts, self._session.execution
        size = min(_MOST_GRADIENTS, execution.batch_size_on(facts.device))
        plain = np.zeros(len(self._images), dtype=bool)
        attacked = np.zeros((len(VARIANTS), len(self._images)), dtype=bool)
        read = self._ahead(lambda _, image: read_pixels(image, facts, execution), done=0)
        while batch := list(islice(read, size)):
            rows = [row for row, _ in batch]
            plain[rows], attacked[:, rows] = adversary.attack([pixels for _, pixels in batch], self._right[rows])
        good = self._pictures.good()
        plain, attacked = plain[good], attacked[:, good]
        figures = judge_variants(plain, attacked, VARIANTS, ~attacked, plain)
        return self._outcome(classifier, plan, figures, None)

    # -----------------------------------------------------------------------------------------------------

    def _ahead(self, read: Callable[[int, ImageRef], _T], done: int | None = None) -> Iterator[tuple[int, _T]]:
        """Yield what is read of each picture that can be, by threads ahead of the model.

        Args:
            read: called with a picture's index among the chosen ones, and where it is.
            done: pictures that count as done in the progress; None for all of them, which are gone through again.
        """
        failed = self._pictures.failed
        first = len(self._images) if done is None else done
        threads = self._session.execution.threads()
        left = enumerate(read_embedded(self._images))
        waiting: deque[tuple[int, Future[_T]]] = deque()
        with ThreadPoolExecutor(threads, thread_name_prefix="decode") as readers:

            def submit(most: int) -> None:
                for row, image in islice(left, most):
                    if row not in failed:
                        waiting.append((row, readers.submit(_read, read, row, image)))

            submit(_AHEAD * threads)
            while waiting:
                row, future = waiting.popleft()
                try:
                    found = future.result()
                except ImageError as exc:
                    failed[row] = str(exc)
                    self._watch.failed(self._images[row].path, str(exc))
                else:
                    yield row, found
                self._watch.images(first + row + 1, len(failed))
                submit(1)

    def _outcome(
        self, classifier: Classifier, plan: AttackPlan, figures: Judged, notes: NoteFigures | None
    ) -> AttackOutcome:
        plain, variants, faults = figures
        return AttackOutcome(
            kind=plan.kind,
            model=self._session.name,
            prompts=classifier.prompts.name,
            seed=plan.seed,
            images=len(self._images),
            chosen=len(self._images),
            measured=int(self._pictures.good().sum()),
            labels=tuple(label.name for label in plan.labels),
            plain=plain,
            variants=variants,
            faults=faults if plan.kind == "corrupt" else (),
            notes=notes,
            failed=self._pictures.failures(),
            problems=self._sample.problems,
        )


def _read(read: Callable[[int, ImageRef], _T], row: int, image: ImageRef) -> _T:
    if image.error is not None:
        raise ImageError(image.error)
    return read(row, image)


def _answers(features: Array, sides: Sequence[LabelFeatures]) -> Indices:
    """Return the best label of each picture by each set of labels, (n_sides, n) int64."""
    return np.stack([best_labels(*scores(features, side, DEFAULT_KIND)) for side in sides])


def _knows(facts: ModelFacts, text: str) -> bool:
    """Return whether a model may know the words of a text."""
    words = None if facts.words is None else vocabulary.read_words(Path(facts.words))
    return words is None or vocabulary.is_wholly_known(text, words)


def _with_note_label(labels: LabelFeatures, classifier: Classifier) -> LabelFeatures:
    """Return a classifier's labels with one more, for the note itself."""
    prompts = render(make_label(NOTE_LABEL), classifier.prompts)
    (text,) = embed_texts([prompts], classifier.session)
    return replace(labels, names=(*labels.names, NOTE_LABEL), features=np.vstack([labels.features, text.features]))


def _with_remedy(told: NoteFigures, plain: Indices, attacked: Indices, right: Indices, fallen: Flags) -> NoteFigures:
    """Add what one more label for the note does.

    Args:
        plain: (2, n) int64, the answers to pictures as they are, without and with that label.
        attacked: (2, n) int64, the same of the pictures with notes.
        fallen: (n,) bool, whether the written label became the answer.
    """
    was_right = plain[0] == right
    found = GroupShare(int((attacked[1] != attacked[0])[fallen].sum()), int(fallen.sum()))
    lost = GroupShare(int((plain[1] != right)[was_right].sum()), int(was_right.sum()))
    return replace(told, found=found, lost=lost)
