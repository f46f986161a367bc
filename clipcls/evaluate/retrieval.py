"""Measure how well pictures find their captions, and captions their pictures.

The recall at K is the share of queries with a right answer among the K nearest: of a picture any of its captions, of a
caption its picture, as in CLIP_benchmark's `zeroshot_retrieval`.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clipcls.embed.cache.database import default_folder
from clipcls.embed.execution import Execution
from clipcls.embed.prepare import quantise_ahead
from clipcls.embed.session import Session
from clipcls.embed.texts import embed_texts, truncated_message
from clipcls.embed.watch import Watch
from clipcls.errors import UsageError, shortened
from clipcls.evaluate import metrics
from clipcls.evaluate.evaluate import session_titles
from clipcls.evaluate.groups import Grouping, groupings
from clipcls.evaluate.metrics import Estimate, Statistic, Values
from clipcls.evaluate.pictures import Pictures
from clipcls.evaluate.ranked_groups import by_chance, group_figures
from clipcls.evaluate.results import as_unicode, estimate_record, failure_record
from clipcls.inputs.labelled.captions import caption_key
from clipcls.inputs.labelled.examples import Truth
from clipcls.labels import vocabulary
from clipcls.labels.prompts import render
from clipcls.predict.ranking import Array, Flags, Indices, similarities
from clipcls.records import ImageRef, Label, ModelSpec, PromptSet

logger = logging.getLogger(__name__)

#: The K of the recalls.
RECALLS = (1, 5, 10)
#: By which results are compared.
MEAN_RECALL_AT_1 = "mean recall@1"
TEXT_TO_IMAGE, IMAGE_TO_TEXT = "text to image", "image to text"
MEDIAN_RANK = "median rank"

# cosines that are in memory at once: 64 MB in float64, 32 MB in float32
COSINES_AT_ONCE = 2**23


# ---------------------------------------------------------------------------------------------------------
# Ranks


def ranks(queries: Array, candidates: Array, matches: Indices) -> Indices:
    """Count the candidates before each query's first right one: the nearer ones, and of equally near ones those above.

    Args:
        queries: (n_queries, embed_dim) float32, L2-normalised.
        candidates: (n_candidates, embed_dim) float32, L2-normalised.
        matches: (n_matches, 2) int64, a query and a candidate that is right for it; each query has one at least.

    Returns:
        (n_queries,) int64.
    """
    ordered = matches[np.lexsort((matches[:, 1], matches[:, 0]))]
    found = np.empty(len(queries), dtype=np.int64)
    for part in blocks(len(queries), len(candidates)):
        first, last = np.searchsorted(ordered[:, 0], (part.start, part.stop))
        own, right = ordered[first:last].T
        found[part] = _ranks(similarities(queries[part], candidates), own - part.start, right)
    return found


def blocks(queries: int, candidates: int) -> Iterator[slice]:
    """Yield the queries that are compared with all candidates at once."""
    size = max(1, COSINES_AT_ONCE // candidates)
    return (slice(start, start + size) for start in range(0, queries, size))


def _ranks(cosines: Array, queries: Indices, right: Indices) -> Indices:
    """Rank the candidates of some queries.

    Args:
        cosines: (n_queries, n_candidates) float32.
        queries: (n_matches,) int64, sorted.
        right: (n_matches,) int64, the candidate that is right for each.
    """
    of_right = cosines[queries, right]
    starts = np.flatnonzero(np.diff(queries, prepend=-1))
    highest = np.maximum.reduceat(of_right, starts)
    count = cosines.shape[1]
    first = np.minimum.reduceat(np.where(of_right == highest[queries], right, count), starts)
    above = np.count_nonzero(cosines > highest[:, None], axis=1)
    before = (cosines == highest[:, None]) & (np.arange(count) < first[:, None])
    placed: Indices = above + np.count_nonzero(before, axis=1)
    return placed


# ---------------------------------------------------------------------------------------------------------
# Pictures and captions


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pictures with captions.

    Attributes:
        images: each picture once.
        captions: of the first picture, then of the second, and so on; equal ones stay apart.
        owners: (n_captions,) int64, the index of each caption's picture.
        problems: a message for each row of the data that is left out.
        group_columns: the columns of groups that were asked for.
        groups: each picture's cells in them.
    """

    images: tuple[ImageRef, ...]
    captions: tuple[str, ...]
    owners: Indices
    problems: tuple[str, ...] = ()
    group_columns: tuple[str, ...] = ()
    groups: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def of(cls, truth: Truth) -> "Pairs":
        """Gather the captions of each picture, which may stand in several rows; its groups are those of the first."""
        found: dict[ImageRef, list[str]] = {}
        groups: dict[ImageRef, tuple[str, ...]] = {}
        problems = list(truth.problems)
        for example in truth.examples:
            found.setdefault(example.image, []).extend(example.captions)
            if groups.setdefault(example.image, example.groups) != example.groups:
                problems.append(f"{example.image.path}: of another group in a later row, where the first counts")
        counts = [len(captions) for captions in found.values()]
        captions = tuple(caption for own in found.values() for caption in own)
        owners = np.repeat(np.arange(len(found)), counts)
        return cls(tuple(found), captions, owners, tuple(problems), truth.group_columns, tuple(groups.values()))

    def matches(self, good: Flags) -> Indices:
        """Return the index of each caption and of its picture among those of good pictures, (n, 2) int64.

        Args:
            good: (n_images,) bool.
        """
        owners = (np.cumsum(good) - 1)[self.owners[good[self.owners]]]
        return np.stack([np.arange(len(owners)), owners], axis=1)

    def groupings(self, good: Flags) -> tuple[Grouping, ...]:
        """Return the groups of good pictures, by each column of groups."""
        return groupings(self.group_columns, [self.groups[image] for image in np.flatnonzero(good)])

    def shared(self, good: Flags) -> dict[str, int]:
        """Return the captions that several good pictures have, but for case and spacing, with how many they are."""
        pictures: dict[str, set[int]] = {}
        for caption, owner in zip(self.captions, self.owners.tolist(), strict=True):
            if good[owner]:
                pictures.setdefault(caption_key(caption), set()).add(owner)
        return {caption: len(owners) for caption, owners in pictures.items() if len(owners) > 1}


# ---------------------------------------------------------------------------------------------------------
# The run


@dataclass(frozen=True, slots=True)
class RetrievalPlan:
    """What is measured: each model with each way to present captions.

    Attributes:
        prompts: templates around each caption, whose embeddings are averaged; None for the caption as it is.
    """

    models: "tuple[ModelSpec | Callable[[], Any], ...]"
    prompts: tuple[PromptSet | None, ...] = (None,)
    execution: Execution = field(default_factory=lambda: Execution(cache_dir=default_folder()))


@dataclass(frozen=True, slots=True)
class RetrievalResult:
    """The figures of one model with one way to present captions.

    Attributes:
        prompts: the name of the prompt set; None for captions as they are.
        figures: by name; results are compared by the first, MEAN_RECALL_AT_1.
        difference: of that figure to the best result's.
    """

    model: str
    prompts: str | None
    figures: Mapping[str, Estimate]
    difference: Estimate


@dataclass(frozen=True, slots=True)
class RetrievalOutcome:
    """A measurement.

    Attributes:
        images: the number of pictures in the data; `captions` is that of captions.
        measured_images: the number of pictures in the figures; `measured_captions` is that of captions.
        results: one for each model with each prompt set.
        best: the index of the result with the highest first figure; of equal ones the first.
        omitted: why a figure is missing, by its name.
        failed: path and error of each picture that couldn't be read.
        shared: captions that several measured pictures have, with how many they are.
        problems: see `Pairs`.
        by_chance: what figures of groups would be if pictures were found at random, by name.
    """

    images: int
    captions: int
    measured_images: int
    measured_captions: int
    results: tuple[RetrievalResult, ...]
    best: int
    omitted: Mapping[str, str]
    failed: tuple[tuple[str, str], ...]
    shared: Mapping[str, int]
    problems: tuple[str, ...]
    by_chance: Mapping[str, float] = field(default_factory=dict)


def measure_retrieval(pairs: Pairs, plan: RetrievalPlan, watch: Watch | None = None) -> RetrievalOutcome:
    """Run each model over pictures and captions.

    Both are embedded once for each model, or taken from the cache. A picture that can't be read is left out for all
    models alike, with its captions.

    Raises:
        ModelError: a model can't be loaded.
        UsageError: a prompt is over the context length, if that is refused, or fewer than two pictures can be read.
    """
    watch = watch or Watch()
    pictures = Pictures(pairs.images, watch)
    with Session(plan.models[0], plan.execution) as first:
        sessions = [first, *(first.beside(model) for model in plan.models[1:])]
        for session in sessions:
            quantise_ahead(session, lambda: pairs.images)
            _report_unknown(pairs.captions, session)
        # before the first picture, so that errors of models and prompts come early
        texts = [
            [_embed_captions(pairs.captions, session, prompts, watch) for prompts in plan.prompts]
            for session in sessions
        ]
        watch.begin(lambda: len(sessions) * len(pairs.images), 0)
        images = [_embed_pictures(pictures, session) for session in sessions]
        titles = session_titles(sessions)
    good = pictures.good()
    if good.sum() < 2:
        raise UsageError("Only one picture can be read, so there is nothing to tell it from.")
    matches = pairs.matches(good)
    omitted = _omitted(int(good.sum()), len(matches))
    chosen, grouped = good[pairs.owners], pairs.groupings(good)
    figures = [
        _figures(features[good], own[chosen], matches, omitted, grouped)
        for features, of_model in zip(images, texts, strict=True)
        for own in of_model
    ]
    names = [(title, None if prompts is None else prompts.name) for title in titles for prompts in plan.prompts]
    headlines = [found[MEAN_RECALL_AT_1] for found in figures]
    best = int(np.argmax([headline.value for headline in headlines]))
    return RetrievalOutcome(
        images=len(good),
        captions=len(pairs.captions),
        measured_images=int(good.sum()),
        measured_captions=len(matches),
        results=tuple(
            RetrievalResult(model, prompts, found, metrics.difference(headline, headlines[best]))
            for (model, prompts), found, headline in zip(names, figures, headlines, strict=True)
        ),
        best=best,
        omitted=omitted,
        failed=pictures.failures(),
        shared=pairs.shared(good),
        problems=pairs.problems,
        by_chance={name: value for grouping in grouped for name, value in by_chance(grouping).items()},
    )


def _report_unknown(captions: Sequence[str], session: Session) -> None:
    """Warn of captions without a word that the model was trained on, where it tells its words."""
    facts = session.facts
    words = None if facts.words is None else vocabulary.read_words(Path(facts.words))
    unknown = [] if words is None else [text for text in captions if not vocabulary.is_known(text, words)]
    if unknown:
        logger.warning(
            "model %s was never trained on a word of %s of the %s captions, such as %r",
            facts.name,
            f"{len(unknown):,}",
            f"{len(captions):,}",
            shortened(unknown[0]),
        )


def _embed_captions(captions: Sequence[str], session: Session, prompts: PromptSet | None, watch: Watch) -> Array:
    """Return the features of captions, (n_captions, embed_dim) float32, with a warning of those that are cut."""
    rendered = [(text,) if prompts is None else render(Label(text, (text,)), prompts) for text in captions]
    texts = embed_texts(rendered, session, strict=session.execution.strict_prompts, report=watch.labels)
    cut = dict.fromkeys(prompt for text in texts for prompt in text.truncated)
    if cut:
        logger.warning("%s", truncated_message(list(cut), session.facts.context_length))
    return np.stack([text.features for text in texts])


def _embed_pictures(pictures: Pictures, session: Session) -> Array:
    """Return the features of pictures, (n_images, embed_dim) float32; those of unreadable ones are 0."""
    found = np.zeros((pictures.count, session.facts.embed_dim), dtype=np.float32)
    for rows, features in pictures.embed(session):
        found[rows] = features
    return found


# ---------------------------------------------------------------------------------------------------------
# Figures


def _omitted(images: int, captions: int) -> dict[str, str]:
    """Return the recalls that are 1 whatever a model does, and why they say nothing, by name."""
    counts = {TEXT_TO_IMAGE: (images, "pictures"), IMAGE_TO_TEXT: (captions, "captions")}
    return {
        f"{way} recall@{k}": f"among {count} {candidates} it is always 1"
        for way, (count, candidates) in counts.items()
        for k in RECALLS
        if k >= count
    }


def _figures(
    images: Array, texts: Array, matches: Indices, omitted: Mapping[str, str], grouped: Sequence[Grouping]
) -> dict[str, Estimate]:
    """Return recalls and median ranks; resampled are pictures, each with all of its captions.

    Captions of one picture are seldom found independently of one another, so that resampling captions would give
    intervals that are too narrow.

    Args:
        images: (n_images, embed_dim) float32, L2-normalised.
        texts: (n_captions, embed_dim) float32, L2-normalised.
        matches: (n_captions, 2) int64, see `Pairs.matches`.
        grouped: the pictures' groups, whose shares among what each text finds are measured.
    """
    owners, count = matches[:, 1], len(images)
    of_texts, of_images = ranks(texts, images, matches), ranks(images, texts, matches[:, ::-1])
    per_picture = np.bincount(owners, minlength=count)

    def recall_of_texts(k: int) -> Statistic:
        return metrics.ratio(np.bincount(owners, of_texts < k, count), per_picture)

    def recall_of_images(k: int) -> Statistic:
        return metrics.mean(of_images < k)

    text_to_image, image_to_text = recall_of_texts(1), recall_of_images(1)
    statistics: dict[str, Statistic] = {
        MEAN_RECALL_AT_1: lambda weights: (text_to_image(weights) + image_to_text(weights)) / 2
    }
    statistics |= {f"{TEXT_TO_IMAGE} recall@{k}": recall_of_texts(k) for k in RECALLS}
    statistics |= {f"{IMAGE_TO_TEXT} recall@{k}": recall_of_images(k) for k in RECALLS}
    statistics[f"{TEXT_TO_IMAGE} {MEDIAN_RANK}"] = metrics.median(of_texts + 1, owners)
    statistics[f"{IMAGE_TO_TEXT} {MEDIAN_RANK}"] = metrics.median(of_images + 1, np.arange(count))
    for name, values in _group_values(images, texts, grouped).items():
        statistics[name] = metrics.ratio(np.bincount(owners, values, count), per_picture)
    return metrics.bootstrap({name: made for name, made in statistics.items() if name not in omitted}, count)


def _group_values(images: Array, texts: Array, grouped: Sequence[Grouping]) -> dict[str, Values]:
    """Return the figures of groups of each text's search, (n_texts,) float64, by name."""
    found: dict[str, list[Values]] = {}
    for part in blocks(len(texts), len(images)) if grouped else ():
        ranked = np.argsort(-similarities(texts[part], images), axis=1, kind="stable")
        for grouping in grouped:
            for name, values in group_figures(ranked, grouping).items():
                found.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in found.items()}


def retrieval_record(outcome: RetrievalOutcome) -> dict[str, Any]:
    """Return a measurement in JSON's types."""
    return {
        "images": outcome.images,
        "captions": outcome.captions,
        "measured_images": outcome.measured_images,
        "measured_captions": outcome.measured_captions,
        "failed": [failure_record(path, error) for path, error in outcome.failed],
        "shared_captions": dict(outcome.shared),
        "problems": [as_unicode(message) for message in outcome.problems],
        "omitted": dict(outcome.omitted),
        "results": [
            {
                "model": result.model,
                "prompts": result.prompts,
                "figures": {name: estimate_record(estimate) for name, estimate in result.figures.items()},
                "difference_to_best": estimate_record(result.difference),
            }
            for result in outcome.results
        ],
        "best": outcome.best,
        **({"figures_by_chance": dict(outcome.by_chance)} if outcome.by_chance else {}),
    }
