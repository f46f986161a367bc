"""Find the pictures of a pool that queries mean: exact, by brute force, in NumPy."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clipcls.embed.images import embed_images
from clipcls.embed.session import Session
from clipcls.embed.texts import embed_texts, truncated_message
from clipcls.errors import UsageError
from clipcls.inputs.discover import discover, image_on_web, is_frame, is_web
from clipcls.labels import vocabulary
from clipcls.labels.label_sets import load_label_set
from clipcls.labels.prompts import render
from clipcls.predict.nearness import MAY_MEAN_THE_SAME
from clipcls.predict.pool import Exact, Indices, PicturePool
from clipcls.predict.query import Query, parse_query
from clipcls.predict.ranking import Array, reaches
from clipcls.records import Hit, ImageRef, Label, PromptSet

logger = logging.getLogger(__name__)

#: The label set whose words texts are compared with.
BACKGROUND = "everyday"
# float32 products of unit vectors, divided by a distance from the mean, are nearer than this to the exact ones
_ROUNDING = 5e-5
# queries of one text whose products are computed together hold so many numbers
_MOST_PRODUCTS = 2**26


def search(
    queries: Sequence[str | Query],
    pool: PicturePool,
    session: Session,
    *,
    top_k: int = 10,
    threshold: float | None = None,
    prompts: PromptSet | None = None,
    pictures: Mapping[str, Array] | None = None,
) -> Iterator[tuple[Query, list[Hit]]]:
    """Find the pictures that queries mean, the best first; equally good ones stay in the pool's order.

    A text ranks pictures by their cosine with it. Its score is the softmax of that cosine against those with everyday
    words that mean something else: 0.5 where the text is as likely as all of them together.

    A picture, or terms that are joined, rank pictures by their score: the cosine of picture and query, both without
    the mean, which for pictures is the pool's, for texts that of everyday words. 0 is no nearer than the pool's
    average, 1 the same. Terms are divided by how far each spreads the pool: a picture would outweigh a text otherwise.

    Args:
        queries: as they are typed, see `parse_query`, or parsed.
        top_k: the most hits of a query.
        threshold: the lowest score of a hit.
        prompts: what texts are filled into; None to take them as they are.
        pictures: features of (embed_dim,) float32 by the names that queries' pictures have; None to read these.

    Raises:
        ModelError: the model can't be loaded.
        UsageError: the pool is empty, a query is none, or its picture can't be read.
    """
    if not len(pool):
        raise UsageError("There is no picture to search in.")
    parsed = [parse_query(query) if isinstance(query, str) else query for query in queries]
    embedded = _Embedded.of(parsed, session, prompts, pictures)
    for query, ranking in _rankings(parsed, pool, embedded):
        yield query, _hits(query, ranking, pool, top_k, threshold)


def _hits(query: Query, ranking: "_Ranking", pool: PicturePool, top_k: int, threshold: float | None) -> list[Hit]:
    size = top_k
    while True:
        best, values = ranking.best(size)
        scores, similarities = ranking.describe(best, values)
        good = np.flatnonzero(reaches(scores.astype(np.float32), threshold))[:top_k]
        # a text's scores don't fall with its cosines, so that some further down may reach the threshold
        if len(good) == top_k or len(best) == len(pool) or ranking.falls:
            return [
                Hit(query.text, pool.paths[best[i]], float(scores[i]), float(similarities[i])) for i in good.tolist()
            ]
        size *= 8


# ---------------------------------------------------------------------------------------------------------
# Features of queries


@dataclass(frozen=True)
class _Embedded:
    """The features of all that queries name, and of the words that texts are compared with.

    Attributes:
        texts: (embed_dim,) float64 of each text.
        pictures: the same of each picture.
        words: (n_words, embed_dim) float64.
        scale: the factor from cosines to logits.
    """

    texts: dict[str, Exact]
    pictures: dict[str, Exact]
    words: Exact
    scale: float

    @classmethod
    def of(
        cls,
        queries: Sequence[Query],
        session: Session,
        prompts: PromptSet | None,
        known_pictures: Mapping[str, Array] | None,
    ) -> "_Embedded":
        terms = [term for query in queries for term in query.terms]
        facts = session.facts
        known = None if facts.words is None else vocabulary.read_words(Path(facts.words))
        texts = list(dict.fromkeys(term.value for term in terms if not term.is_picture))
        words = list(load_label_set(BACKGROUND).labels) if texts else []
        if known is not None:
            unknown = [text for text in texts if not vocabulary.is_known(text, known)]
            if unknown:
                logger.warning("%s", vocabulary.unknown_message(facts.name, unknown))
            words = [word for word in words if vocabulary.is_known(word, known)]
        features = _embed_texts([*texts, *words], session, prompts)
        names = list(dict.fromkeys(term.value for term in terms if term.is_picture))
        if known_pictures is None:
            pictures = dict(zip(names, _embed_pictures(names, session), strict=True))
        else:
            pictures = {name: known_pictures[name].astype(np.float64) for name in names}
        return cls(
            dict(zip(texts, features, strict=False)),
            pictures,
            features[len(texts) :],
            float(np.exp(facts.logit_scale)),
        )

    def share(self, text: Exact, cosines: Exact, rows: Exact) -> Exact:
        """Return the softmax of pictures' cosines with a text against those with words that mean something else.

        Args:
            text: (embed_dim,).
            cosines: (n,), of pictures and text.
            rows: (n, embed_dim), of the pictures.
        """
        mean = self.words.mean(axis=0)
        other = self.words[_unit(self.words - mean) @ _unit(text - mean) < MAY_MEAN_THE_SAME]
        against = self.scale * (rows @ other.T - cosines[:, None])  # (n, n_words)
        highest = np.maximum(against.max(axis=1, initial=-np.inf), 0.0)
        total = np.exp(against - highest[:, None]).sum(axis=1)
        shares: Exact = np.exp(-highest) / (np.exp(-highest) + total)
        return shares


def _embed_texts(texts: Sequence[str], session: Session, prompts: PromptSet | None) -> Exact:
    filled = [(text,) if prompts is None else render(Label(text, (text,)), prompts) for text in texts]
    embedded = embed_texts(filled, session, strict=session.execution.strict_prompts)
    cut = dict.fromkeys(prompt for text in embedded for prompt in text.truncated)
    if cut:
        logger.warning("%s", truncated_message(list(cut), session.facts.context_length))
    features = [text.features for text in embedded]
    return np.stack(features).astype(np.float64) if features else np.empty((0, session.facts.embed_dim))


def _picture(name: str, session: Session) -> ImageRef:
    if is_web(name):
        return image_on_web(name, session.execution.web is not None)
    return next(discover([name])) if is_frame(name) else ImageRef(name)


def _embed_pictures(names: Sequence[str], session: Session) -> Iterator[Exact]:
    images = [_picture(name, session) for name in names]
    for batch in embed_images(images, session):
        for image, error in zip(batch.images, batch.errors, strict=True):
            if error is not None:
                raise UsageError(f"The query's picture {image.path} can't be read: {error}.")
        yield from batch.features.astype(np.float64)


def _unit(vectors: Exact) -> Exact:
    """Return vectors at unit length; one of length 0 as it is."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: Exact = vectors / np.where(lengths == 0, 1.0, lengths)
    return unit


# ---------------------------------------------------------------------------------------------------------
# Ranking


class _Ranking(ABC):
    """How one query ranks the pool.

    Attributes:
        nearly: what pictures are ranked by, but for rounding, (n_pictures,) float32.
        falls: whether scores fall with what pictures are ranked by.
    """

    nearly: Array
    falls: bool

    @abstractmethod
    def exactly(self, indices: Indices) -> Exact:
        """Return what pictures are ranked by, (n,)."""

    @abstractmethod
    def describe(self, indices: Indices, values: Exact) -> tuple[Exact, Exact]:
        """Return the scores of pictures, and their cosines with the query."""

    def best(self, size: int) -> tuple[Indices, Exact]:
        """Return the best pictures in order, and what they are ranked by."""
        size = min(size, len(self.nearly))
        place = len(self.nearly) - size
        lowest = np.partition(self.nearly, place)[place]
        candidates = np.flatnonzero(self.nearly >= lowest - np.float32(2 * _ROUNDING))
        values = self.exactly(candidates)
        order = np.argsort(-values, kind="stable")[:size]
        return candidates[order], values[order]


class _TextRanking(_Ranking):
    """Ranks by the cosine with one text."""

    falls = False

    def __init__(self, text: Exact, nearly: Array, pool: PicturePool, embedded: _Embedded) -> None:
        self._text, self._pool, self._embedded = text, pool, embedded
        self.nearly = nearly

    def exactly(self, indices: Indices) -> Exact:
        return self._pool.rows(indices) @ self._text

    def describe(self, indices: Indices, values: Exact) -> tuple[Exact, Exact]:
        return self._embedded.share(self._text, values, self._pool.rows(indices)), values


class _JoinedRanking(_Ranking):
    """Ranks by the cosine with joined terms, after the mean has been taken off."""

    falls = True

    def __init__(self, query: Query, pool: PicturePool, embedded: _Embedded) -> None:
        self._pool = pool
        of_pictures, of_texts = pool.mean, embedded.words.mean(axis=0) if len(embedded.words) else 0.0
        plain = [(embedded.pictures if term.is_picture else embedded.texts)[term.value] for term in query.terms]
        directions = np.stack(
            [
                _unit(features - (of_pictures if term.is_picture else of_texts))
                for term, features in zip(query.terms, plain, strict=True)
            ]
        )
        weights = np.array([term.weight for term in query.terms])
        self._plain = _unit(weights @ np.stack(plain))
        # (n_terms, n_pictures)
        nearly = (pool.products(directions) - (directions @ pool.mean)[:, None].astype(np.float32)) / pool.distances
        spreads = nearly.std(axis=1, dtype=np.float64)
        joined = (weights / np.where(spreads == 0, 1.0, spreads)) @ directions
        self._direction = _unit(joined)
        factors = weights / np.where(spreads == 0, 1.0, spreads) / max(float(np.linalg.norm(joined)), 1e-12)
        self.nearly = factors.astype(np.float32) @ nearly

    def exactly(self, indices: Indices) -> Exact:
        return self._pool.centred(indices) @ self._direction

    def describe(self, indices: Indices, values: Exact) -> tuple[Exact, Exact]:
        return values, self._pool.rows(indices) @ self._plain


def _rankings(queries: Sequence[Query], pool: PicturePool, embedded: _Embedded) -> Iterator[tuple[Query, _Ranking]]:
    """Yield how each query ranks the pool; single texts are multiplied together, as many as memory takes."""
    together = max(1, _MOST_PRODUCTS // len(pool))
    for start in range(0, len(queries), together):
        group = queries[start : start + together]
        texts = [embedded.texts[query.terms[0].value] for query in group if query.is_text]
        products = iter(pool.products(np.stack(texts)) if texts else ())
        for query in group:
            if query.is_text:
                yield query, _TextRanking(embedded.texts[query.terms[0].value], next(products), pool, embedded)
            else:
                yield query, _JoinedRanking(query, pool, embedded)
