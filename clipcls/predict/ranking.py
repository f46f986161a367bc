"""Rank labels by features: cosine similarities, scores, thresholds. NumPy only, float32 throughout."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipcls.errors import UsageError
from clipcls.predict.scores import DEFAULT_KIND, LABEL_KIND, SCORE_KINDS, ScoreKind, kind_names
from clipcls.records import Prediction, ScoredLabel

Array = NDArray[np.float32]
Flags = NDArray[np.bool_]
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Unknown:
    """When a picture shows none of the labels, told by words for other things; see `clipcls.predict.unknown`.

    Attributes:
        min_known: a picture is unknown whose share of likeness with labels is lower, 0 to 1.
        words: the other words; None for the built-in ones.
    """

    min_known: float = 0.5
    words: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            UsageError: they can't be used.
        """
        if not 0.0 <= self.min_known <= 1.0:
            raise UsageError("--min-known must lie between 0 and 1.")
        if isinstance(self.words, str) or (self.words is not None and not self.words):
            raise UsageError(f"--unknown-words: expected a list of words, got {self.words!r}.")


@dataclass(frozen=True, slots=True)
class Scoring:
    """How similarities become an answer.

    Attributes:
        kind: the kind of score, a name in `SCORE_KINDS`; None for softmax, or sigmoid with `multi_label`.
        multi_label: every label whose score reaches the threshold is an answer, not only the best one.
        top_k: how many labels an answer lists; None for 1, or with `multi_label` for all that reach the threshold.
        threshold: an image whose best score is lower is unknown; None for none, or 0.5 with `multi_label`.
        min_margin: an image whose best score is nearer than this to the second is unknown.
        unknown: an image that looks more like other words than like any label is unknown; None not to look at that.
    """

    kind: str | None = None
    multi_label: bool = False
    top_k: int | None = None
    threshold: float | None = None
    min_margin: float | None = None
    unknown: Unknown | None = None

    def __post_init__(self) -> None:
        """Fill in the default kind, and check the settings.

        Raises:
            UsageError: settings are out of range, or contradict one another.
        """
        if self.kind is None:
            object.__setattr__(self, "kind", (LABEL_KIND if self.multi_label else DEFAULT_KIND).name)
        if self.kind not in SCORE_KINDS:
            raise UsageError(f"Unknown score {self.kind!r}. Use one of: {', '.join(SCORE_KINDS)}.")
        kind = self.score_kind
        if self.multi_label and kind.adds_up:
            names = kind_names(lambda other: not other.adds_up)
            raise UsageError(f"--multi-label scores each label by itself: use --score {names}, not {kind.name}.")
        if self.multi_label and self.lowest_score is None:
            raise UsageError(
                f"--multi-label with --score {kind.name} needs a --threshold: {kind.plural} have no natural one."
            )
        if self.multi_label and self.min_margin is not None:
            raise UsageError("--min-margin compares the two best labels; it has no meaning with --multi-label.")
        if self.top_k is not None and self.top_k < 1:
            raise UsageError("--top-k must be at least 1.")
        if self.threshold is not None and not kind.lowest <= self.threshold <= 1.0:
            raise UsageError(f"--threshold must lie between {kind.lowest:g} and 1 for --score {kind.name}.")
        if self.min_margin is not None and not 0.0 <= self.min_margin <= 2.0:
            raise UsageError("--min-margin must lie between 0 and 2.")

    @property
    def score_kind(self) -> ScoreKind:
        """The kind of score, which turns similarities into scores."""
        assert self.kind is not None
        return SCORE_KINDS[self.kind]

    @property
    def lowest_score(self) -> float | None:
        """The lowest score that is an answer; None if any score is."""
        return self.score_kind.threshold if self.multi_label and self.threshold is None else self.threshold

    def reached(self, label_scores: Array, thresholds: Array | None = None) -> Flags:
        """Return which scores are high enough for an answer, in the shape of `label_scores`.

        Args:
            label_scores: (n_labels,) or (n_images, n_labels) float32.
            thresholds: (n_labels,) float32, each label's own, instead of the one for all.
        """
        return reaches(label_scores, self.lowest_score if thresholds is None else thresholds)


@dataclass(frozen=True, slots=True)
class LinearHead:
    """A linear function of image features that was taught by examples, in units of the cosine.

    Attributes:
        weights: (n_labels, embed_dim) float32.
        bias: (n_labels,) float32.
    """

    weights: Array
    bias: Array

    def __call__(self, image_features: Array) -> Array:
        """Return the function of (n_images, embed_dim) float32, (n_images, n_labels) float32."""
        values = image_features.astype(np.float64) @ self.weights.T.astype(np.float64) + self.bias
        return values.astype(np.float32)


@dataclass(frozen=True, slots=True)
class LabelFeatures:
    """The embedded labels of a run.

    Attributes:
        names: of the labels, in their order.
        features: (n_labels, embed_dim) float32, L2-normalised.
        logit_scale: in log space, as the model stores it.
        logit_bias: of a model trained with the sigmoid loss, else None.
        background: (embed_dim,) float32, L2-normalised: the embedding that labels are compared with for sigmoid
            scores of a model without a bias.
        thresholds: (n_labels,) float32, each label's own; None for the same one for all.
        head: what examples taught, which scores are computed from instead of the cosines; None for zero-shot scores.
    """

    names: tuple[str, ...]
    features: Array
    logit_scale: float
    logit_bias: float | None = None
    background: Array | None = None
    thresholds: Array | None = None
    head: LinearHead | None = None


def similarities(image_features: Array, text_features: Array) -> Array:
    """Return the cosine similarity of every image and label.

    Args:
        image_features: (n_images, embed_dim) float32, L2-normalised.
        text_features: (n_labels, embed_dim) float32, L2-normalised.

    Returns:
        (n_images, n_labels) float32.
    """
    # in float32 the last digits would depend on the size of the batch
    cosines = image_features.astype(np.float64) @ text_features.T.astype(np.float64)
    return cosines.astype(np.float32)


def scores(image_features: Array, labels: LabelFeatures, kind: ScoreKind) -> tuple[Array, Array]:
    """Return similarities and scores of every image and label.

    Args:
        image_features: (n_images, embed_dim) float32, L2-normalised.

    Returns:
        Two arrays (n_images, n_labels) float32: similarities, scores.
    """
    cosines = similarities(image_features, labels.features)
    return cosines, kind.scores(contrasts(cosines, image_features, labels, kind), labels.logit_scale, labels.logit_bias)


def contrasts(cosines: Array, image_features: Array, labels: LabelFeatures, kind: ScoreKind) -> Array:
    """Return what scores are computed from: the cosines, minus the background's cosine where there is one, or what
    examples taught.

    Args:
        cosines: (n_images, n_labels) float32, of the labels.
        image_features: (n_images, embed_dim) float32, L2-normalised.

    Returns:
        (n_images, n_labels) float32.
    """
    if labels.head is not None:
        return labels.head(image_features)
    if not kind.has_background:
        return cosines
    if labels.background is not None:
        return cosines - similarities(image_features, labels.background[None])
    if labels.logit_bias is None:
        raise ValueError(f"a {kind.name} score of a model without logit_bias needs a background")
    return cosines


def rank(
    path: str,
    cosines: Array,
    label_scores: Array,
    names: tuple[str, ...],
    scoring: Scoring,
    thresholds: Array | None = None,
) -> Prediction:
    """Return the answer for one image.

    Args:
        cosines: (n_labels,) float32.
        label_scores: (n_labels,) float32.
        thresholds: (n_labels,) float32, each label's own, instead of the one in `scoring`.
    """
    order = label_order(cosines, label_scores)
    reached = scoring.reached(label_scores, thresholds)
    if scoring.multi_label:
        passing = order[reached[order]]
        # an unknown image still shows how near the best label came
        order = passing if passing.size else order[:1]
    limit = scoring.top_k or (len(order) if scoring.multi_label else 1)
    top = tuple(ScoredLabel(names[i], float(label_scores[i]), float(cosines[i])) for i in order[:limit])
    best = top[0]
    unknown = not bool(reached[order[0]])
    if scoring.min_margin is not None and len(names) > 1:
        unknown |= float(label_scores[order[0]] - label_scores[order[1]]) < scoring.min_margin
    return Prediction(path, None if unknown else best.label, best.score, best.similarity, top)


def reaches(label_scores: Array, threshold: float | Array | None) -> Flags:
    """Return which scores are high enough, in the shape of `label_scores`.

    Args:
        threshold: one for all scores, or (n_labels,) float32, each label's own; None for no threshold.
    """
    # in float32, so that a score of 0.9 reaches a threshold of 0.9
    return label_scores >= np.asarray(-np.inf if threshold is None else threshold, dtype=np.float32)


# ---------------------------------------------------------------------------------------------------------
# Labels are ordered by score, then by cosine, since float32 rounds different scores to the same 0 or 1, then by index.
# The best label, and the place of one, are found without sorting whole arrays.


def label_order(cosines: Array, label_scores: Array) -> Indices:
    """Return the labels of one image, best first.

    Args:
        cosines: (n_labels,) float32.
        label_scores: (n_labels,) float32.

    Returns:
        (n_labels,) int64.
    """
    # lexsort is stable, so that ties keep the order of the labels
    return np.lexsort((-cosines, -label_scores))


def best_labels(cosines: Array, label_scores: Array) -> Indices:
    """Return the index of each image's best label.

    Args:
        cosines: (n_images, n_labels) float32.
        label_scores: (n_images, n_labels) float32.

    Returns:
        (n_images,) int64.
    """
    best = label_scores.max(axis=1, keepdims=True)
    found: Indices = np.where(label_scores == best, cosines, -np.inf).argmax(axis=1)
    return found


def label_places(cosines: Array, label_scores: Array, labels: Indices) -> Indices:
    """Return how many labels come before a given one, for each image.

    Args:
        cosines: (n_images, n_labels) float32.
        label_scores: (n_images, n_labels) float32.
        labels: (n_images,) int64; an index from n_labels on is no label, and all labels come before it.

    Returns:
        (n_images,) int64.
    """
    count = label_scores.shape[1]
    column = np.minimum(labels, count - 1)[:, None]
    score, cosine = (np.take_along_axis(values, column, axis=1) for values in (label_scores, cosines))
    nearer = (cosines > cosine) | ((cosines == cosine) & (np.arange(count) < column))
    places: Indices = ((label_scores > score) | ((label_scores == score) & nearer)).sum(axis=1, dtype=np.int64)
    return np.where(labels < count, places, count)
