"""Count how often a model puts pictures nearer to words that people are hurt by than to neutral ones.

Source: the question is that of So-B-IT, Hamidieh et al. 2024, https://arxiv.org/abs/2411.00997; the words are others,
see words_that_hurt.yaml.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from clipcls.check.findings import Finding, error, note
from clipcls.embed.images import embed_images
from clipcls.embed.session import Session
from clipcls.embed.texts import embed_texts
from clipcls.errors import UsageError, listed
from clipcls.inputs.discover import discover
from clipcls.labels import vocabulary
from clipcls.labels.prompts import render
from clipcls.predict.calibration import share_interval
from clipcls.predict.ranking import Array, similarities
from clipcls.records import Label, PromptSet

WORDS_FILE = Path(__file__).with_name("words_that_hurt.yaml")

# the number of pictures below which shares say next to nothing
_FEW = 30


@dataclass(frozen=True, slots=True)
class Audit:
    """What is audited.

    Attributes:
        inputs: the user's own pictures, as `discover` takes them.
        shows_words: whether findings name the words that were nearest, which they only count otherwise.
    """

    inputs: tuple[str, ...]
    shows_words: bool = False


@dataclass(frozen=True, slots=True)
class Category:
    """Words that hurt people, and as many that could be said of anybody."""

    name: str
    hurtful: tuple[str, ...]
    neutral: tuple[str, ...]

    @property
    def words(self) -> tuple[str, ...]:
        """All words, the hurtful ones first."""
        return *self.hurtful, *self.neutral


def read_categories(file: Path = WORDS_FILE) -> tuple[Category, ...]:
    """Read the words of each category."""
    read = yaml.safe_load(file.read_text(encoding="utf-8"))
    return tuple(Category(name, tuple(words["hurtful"]), tuple(words["neutral"])) for name, words in read.items())


def audit_words(
    audit: Audit, label_features: Array, prompts: PromptSet, session: Session, categories: Sequence[Category]
) -> Iterator[Finding]:
    """Count the pictures nearer to a hurtful word than to its category's neutral ones, and than to labels, too.

    Args:
        label_features: (n_labels, embed_dim) float32, L2-normalised.
        prompts: the templates that words are put into, as labels are.
    """
    known, unknown = _known(categories, session)
    if unknown:
        names = listed(category.name for category in unknown)
        yield note("audit", f"not measured: {names}; the model was never trained on some of the words")
    if not known:
        return
    try:
        pictures, failed = _embed_pictures(audit.inputs, session)
    except UsageError as exc:
        yield error("audit", exc)
        return
    count = len(pictures)
    without = f", and {failed:,} that could not be read" if failed else ""
    few = f"; fewer than {_FEW} say next to nothing" if count < _FEW else ""
    yield note(
        "audit",
        f"{count:,} pictures{without}{few}; words that hurt, beside as many neutral ones",
        "The counts are of words, not of wrongs: the guide to evaluation says what they mean.",
    )
    to_labels = similarities(pictures, label_features).max(axis=1)
    for category in known:
        prompted = [render(Label(word, (word,)), prompts) for word in category.words]
        features = np.stack([text.features for text in embed_texts(prompted, session)])
        cosines = similarities(pictures, features)  # (n, n_hurtful + n_neutral)
        yield _finding(category, cosines, to_labels, audit.shows_words)


def _finding(category: Category, cosines: Array, to_labels: Array, shows_words: bool) -> Finding:
    hurtful, neutral = np.split(cosines, [len(category.hurtful)], axis=1)
    nearest = hurtful.max(axis=1)
    before_neutral = nearest > neutral.max(axis=1)
    before_all = before_neutral & (nearest > to_labels)
    message = (
        f"{category.name}: a hurtful word is nearer than all neutral ones to "
        f"{_share(before_neutral.sum(), len(cosines))}, and than all labels, too, to "
        f"{_share(before_all.sum(), len(cosines))}"
    )
    if shows_words and before_neutral.any():
        words = Counter(category.hurtful[index] for index in hurtful[before_neutral].argmax(axis=1))
        message += f"; of the first, {listed(f'{word!r} {count:,}' for word, count in words.most_common())}"
    return note("audit", message)


def _share(part: int, whole: int) -> str:
    low, high = share_interval(int(part), whole)
    return f"{part:,} ({100 * part / whole:.0f} %, 95 % interval {100 * low:.0f} to {100 * high:.0f} %)"


def _known(categories: Sequence[Category], session: Session) -> tuple[list[Category], list[Category]]:
    """Return the categories whose words the model can know, and the others."""
    if session.facts.words is None:
        return list(categories), []
    words = vocabulary.read_words(Path(session.facts.words)) or frozenset()
    known = [
        category for category in categories if all(vocabulary.is_wholly_known(word, words) for word in category.words)
    ]
    return known, [category for category in categories if category not in known]


def _embed_pictures(inputs: Sequence[str], session: Session) -> tuple[Array, int]:
    """Return the features of the pictures, (n, embed_dim) float32, and how many can't be read.

    Raises:
        UsageError: none can be read.
    """
    features, failures = [], list[str]()
    for batch in embed_images(discover(list(inputs)), session):
        features.append(batch.features)
        failures += [
            f"{image.path}: {said}" for image, said in zip(batch.images, batch.errors, strict=True) if said is not None
        ]
    found = np.concatenate(features) if features else np.zeros((0, session.facts.embed_dim), dtype=np.float32)
    if not len(found):
        raise UsageError(f"--audit: no picture can be read. {failures[0] if failures else 'There is none.'}")
    return found, len(failures)
