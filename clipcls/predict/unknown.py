"""Tell pictures of none of the labels: those that look more like other words than like any label.

Source: NegLabel, Jiang et al. 2024, https://arxiv.org/abs/2403.20078; that words for kinds of a label have to be left
out, Ansari et al. 2025, https://arxiv.org/abs/2507.09795
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipcls.embed.session import Session
from clipcls.embed.texts import embed_texts
from clipcls.errors import NOTICE, UsageError
from clipcls.labels import vocabulary
from clipcls.labels.label_files import label_key
from clipcls.labels.other_words import load_wordnet
from clipcls.labels.prompts import render_first
from clipcls.predict.nearness import means_nearly
from clipcls.predict.ranking import Array, Unknown, similarities
from clipcls.records import Label, Prediction, PromptSet

logger = logging.getLogger(__name__)

# all other words together weigh as much as so many of them, so that their number doesn't matter; chosen on photographs,
# see examples/labels. Many labels are compared with more: each has something in common with any picture
_WORDS = 20
_WORDS_PER_LABEL = 0.5
# words to be embedded that are worth a message
_MANY = 500


def known_shares(
    image_features: Array, label_features: Array, word_features: Array | NDArray[np.float64], logit_scale: float
) -> Array:
    """Return how far each picture looks like some label rather than like other words, 0 to 1.

    It is the labels' part in a softmax among them and the words, of which each counts for less than one. NegLabel takes
    the mean of the parts in random groups of words instead; then a near word, such as *dog* for *cat*, weighs in one
    group only, and twice as many pictures of near things pass.

    Args:
        image_features: (n_images, embed_dim) float32, L2-normalised.
        label_features: (n_labels, embed_dim) float32, L2-normalised.
        word_features: (n_words, embed_dim), L2-normalised; at least one.
        logit_scale: the model's own, in log space.

    Returns:
        (n_images,) float32.
    """
    labels = np.exp(logit_scale) * similarities(image_features, label_features).astype(np.float64)
    words = np.exp(logit_scale) * (image_features.astype(np.float64) @ word_features.T.astype(np.float64, copy=False))
    highest = np.maximum(labels.max(axis=1), words.max(axis=1))[:, None]
    mass = np.exp(labels - highest).sum(axis=1)  # (n_images,)
    other = np.exp(words - highest).mean(axis=1)  # (n_images,)
    weight = max(_WORDS, _WORDS_PER_LABEL * labels.shape[1])
    known: Array = (mass / (mass + weight * other)).astype(np.float32)
    return known


def with_known(prediction: Prediction, known: float, unknown: Unknown) -> Prediction:
    """Return an answer with how far its picture is known; below the threshold it has no label."""
    # in float32, so that a share of 0.9 reaches a threshold of 0.9
    is_known = np.float32(known) >= np.float32(unknown.min_known)
    return replace(prediction, known=float(known), label=prediction.label if is_known else None)


def embed_other_words(
    unknown: Unknown,
    labels: Sequence[Label],
    label_features: Array,
    prompts: PromptSet,
    session: Session,
    report: Callable[[int, int], None] | None = None,
) -> Array:
    """Embed the words that the model knows and that can't mean a label.

    Each is filled into the first template only: there are thousands.

    Args:
        label_features: (n_labels, embed_dim) float32, L2-normalised.
        report: called with the numbers of words done and to do, not counting cached ones.

    Returns:
        (n_words, embed_dim) float32, L2-normalised.

    Raises:
        UsageError: no word is left.
    """
    wordnet = load_wordnet()
    given = wordnet.words if unknown.words is None else tuple(dict.fromkeys(unknown.words))
    facts = session.facts
    vocabulary_of_model = None if facts.words is None else vocabulary.read_words(Path(facts.words))
    words = [w for w in given if vocabulary_of_model is None or vocabulary.is_wholly_known(w, vocabulary_of_model)]
    filled = [(prompt,) for prompt in render_first(words, prompts)]
    embedded = embed_texts(filled, session, report=_announced(len(words), report)) if words else []
    features = np.stack([text.features for text in embedded]) if words else np.empty((0, facts.embed_dim), np.float32)
    relatives = wordnet.relatives(text for label in labels for text in label.texts)
    may_differ = np.array([label_key(word) not in relatives for word in words], dtype=np.bool_)
    other = features[may_differ & ~means_nearly(features, label_features)]
    if not len(other):
        raise UsageError(
            f"--unknown: no word is left to compare pictures with: of {len(given):,}, model {facts.name} knows "
            f"{len(words):,}, and these may all mean a label. Give others by --unknown-words FILE."
        )
    return other


def words_digest(unknown: Unknown) -> str:
    """Return the beginning of a hash of the words that pictures are compared with."""
    words = load_wordnet().words if unknown.words is None else unknown.words
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:12]


def _announced(count: int, report: Callable[[int, int], None] | None) -> Callable[[int, int], None]:
    """Return a report that first says what may take long."""
    is_first = True

    def announce(done: int, total: int) -> None:
        nonlocal is_first
        if is_first and total >= _MANY:
            logger.log(NOTICE, "--unknown: %s words for other things are embedded, once for this model", f"{count:,}")
        is_first = False
        if report is not None:
            report(done, total)

    return announce
