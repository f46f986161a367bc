"""Where in a picture the score of a label comes from."""

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from clipcls.embed.batches import Batches
from clipcls.embed.image_reader import read_pixels
from clipcls.embed.session import Session
from clipcls.errors import NOTICE, UsageError
from clipcls.models.runtime.compiled import CompiledEncoder
from clipcls.predict.classifier import Classifier
from clipcls.predict.ranking import Array, LabelFeatures, label_order, scores
from clipcls.predict.scores import ScoreKind
from clipcls.records import ImageRef, ScoredLabel

if TYPE_CHECKING:
    from clipcls.models.heat import AttendingTower

logger = logging.getLogger(__name__)

Method = Literal["auto", "gradient", "occlusion"]
Pixels = NDArray[np.uint8]

# with more labels than the first, the second number of them is drawn
_MOST_DRAWN, _FEWER_DRAWN = 6, 5
# each label costs a backward pass
_MOST_GRADIENTS = 100
# Of a picture's 8 × 8 cells, squares of 2 × 2 are hidden. Squares of one cell hide too little of a thing.
_GRID, _HIDDEN = 8, 2


@dataclass(frozen=True, slots=True)
class HeatSettings:
    """What a heat map shows.

    Attributes:
        method: `gradient` of the similarity by the tower's attention, `occlusion` of parts of the picture, or `auto`:
            the gradient where there is attention to the patches.
        against_others: each label's map minus the mean of the others'.
        weighted: times the label's score, so that a label that isn't there shows nothing.
        top_k: the number of labels to draw, the best ones; None for all, or 5 if they are more than 6.
    """

    method: Method = "auto"
    against_others: bool = False
    weighted: bool = True
    top_k: int | None = None


@dataclass(frozen=True, slots=True)
class HeatMap:
    """The maps of one picture.

    Attributes:
        path: of the picture.
        pixels: (height, width, 3), what the model saw.
        labels: those that have maps, best first.
        values: (n_labels, rows, columns) float32 in units of the logit: how much each part of `pixels` speaks for the
            label. All maps of a model have one scale.
    """

    path: str
    pixels: Pixels
    labels: tuple[ScoredLabel, ...]
    values: Array


class HeatMapper:
    """Makes the heat maps of pictures for the labels of a classifier.

    Args:
        classifier: its scores are what is explained.

    Raises:
        UsageError: there are too few or too many labels for the settings.
    """

    def __init__(self, classifier: Classifier, settings: HeatSettings) -> None:
        count = len(classifier.labels)
        if settings.against_others and count == 1:
            raise UsageError("--against others needs a second label.")
        self._classifier = classifier
        self._settings = settings
        drawn = settings.top_k or (count if count <= _MOST_DRAWN else _FEWER_DRAWN)
        self._drawn = min(drawn, count)

    @cached_property
    def _eye(self) -> "_Eye":
        return _choose(self._settings.method, self._classifier.session)

    @property
    def method(self) -> str:
        """What makes the maps, `gradient` or `occlusion`."""
        return self._eye.name

    def map_picture(self, image: ImageRef) -> HeatMap:
        """Return the heat map of a picture.

        Raises:
            ImageError: it can't be read.
            ModelError: the model can't be loaded.
            UsageError: the model has no attention to look at, or there are too many labels for it.
        """
        session, kind = self._classifier.session, self._classifier.scoring.score_kind
        labels, settings = self._classifier.label_features, self._settings
        if settings.against_others and self.method == "gradient" and len(labels.names) > _MOST_GRADIENTS:
            raise UsageError(
                f"--against others compares the maps of all {len(labels.names):,} labels, each of which takes a "
                f"backward pass: give at most {_MOST_GRADIENTS}, or use --method occlusion."
            )
        pixels = read_pixels(image, session.facts, session.execution)
        found = self._eye.look(pixels)
        (cosines,), (label_scores,) = scores(found.features[None], labels, kind)
        order = label_order(cosines, label_scores)[: self._drawn]
        directions = _directions(labels, kind) * np.float32(np.exp(labels.logit_scale))
        if settings.against_others:
            every = found.maps(directions)
            values = every[order] - (every.sum(axis=0) - every[order]) / (len(every) - 1)
        else:
            values = found.maps(directions[order])
        if settings.weighted:
            values = values * label_scores[order][:, None, None]
        drawn = tuple(ScoredLabel(labels.names[i], float(label_scores[i]), float(cosines[i])) for i in order)
        return HeatMap(image.path, pixels, drawn, values.astype(np.float32))


def _directions(labels: LabelFeatures, kind: ScoreKind) -> Array:
    """Return (n_labels, embed_dim), whose products with image features are what scores are computed from."""
    if labels.head is not None:
        return labels.head.weights
    if kind.has_background and labels.background is not None:
        return labels.features - labels.background
    return labels.features


# ---------------------------------------------------------------------------------------------------------
# The methods


class _PictureView(Protocol):
    """What is known of one picture.

    Attributes:
        features: (embed_dim,) float32, L2-normalised.
    """

    features: Array

    def maps(self, directions: Array) -> Array:
        """Return what each part of the picture adds to the product of its features with (n_labels, embed_dim).

        Returns:
            (n_labels, rows, columns) float32.
        """


class _Eye(Protocol):
    name: str

    def look(self, pixels: Pixels) -> _PictureView: ...


def _choose(method: Method, session: Session) -> _Eye:
    if method == "occlusion":
        return _Occlusion(session)
    from clipcls.models.heat import AttendingTower  # imports torch

    encoder = session.encoder
    if isinstance(encoder, CompiledEncoder):
        encoder = encoder.torch
    tower = AttendingTower.of(encoder)
    if tower is None and method == "gradient":
        raise UsageError(f"{session.name} has no attention to parts of a picture: use --method occlusion.")
    if tower is None:
        return _Occlusion(session)
    if session.facts.runtime != "torch":
        logger.log(NOTICE, "gradients are computed by torch; --method occlusion by %s", session.facts.runtime)
    return _Gradient(tower)


class _Gradient:
    name = "gradient"

    def __init__(self, tower: "AttendingTower") -> None:
        self._tower = tower

    def look(self, pixels: Pixels) -> _PictureView:
        return self._tower.look(pixels)


class _Occlusion:
    """Hides one square of a picture after the other.

    Source: Zeiler and Fergus 2014, section 4.2, https://arxiv.org/abs/1311.2901
    """

    name = "occlusion"

    def __init__(self, session: Session) -> None:
        encoder = session.encoder
        encoder.build_image_tower(at_once=True)
        self._batches = Batches(encoder.encode_image, session.execution.batch_size_on(session.facts.device))
        # the colour that the model takes for zero
        self._hidden = np.round(np.array(session.facts.preprocess.mean) * 255).astype(np.uint8)

    def look(self, pixels: Pixels) -> _PictureView:
        starts = [(row, column) for row in range(_GRID - _HIDDEN + 1) for column in range(_GRID - _HIDDEN + 1)]
        rows, columns = (np.linspace(0, side, _GRID + 1).round().astype(int) for side in pixels.shape[:2])
        variants = [pixels]
        for row, column in starts:
            variant = pixels.copy()
            variant[rows[row] : rows[row + _HIDDEN], columns[column] : columns[column + _HIDDEN]] = self._hidden
            variants.append(variant)
        return _Hidden(self._batches.encode(variants), starts)


class _Hidden:
    """The features of a picture, and of the same picture without some square of cells each."""

    def __init__(self, features: Array, starts: list[tuple[int, int]]) -> None:
        self.features = features[0]
        self._lost = features[0] - features[1:]
        self._starts = starts

    def maps(self, directions: Array) -> Array:
        """Return how far each label falls where a cell is hidden, as the mean over the squares that hide it."""
        falls = self._lost @ directions.T  # (n_squares, n_labels)
        total = np.zeros((len(directions), _GRID, _GRID), dtype=np.float32)
        count = np.zeros((_GRID, _GRID), dtype=np.float32)
        for (row, column), fall in zip(self._starts, falls, strict=True):
            square = (slice(row, row + _HIDDEN), slice(column, column + _HIDDEN))
            total[:, *square] += fall[:, None, None]
            count[square] += 1
        return total / count
