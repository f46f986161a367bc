"""Answer with one model: what the server does, without HTTP."""

import asyncio
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from clipcls.embed.image_reader import Features
from clipcls.embed.images import ImageBatch
from clipcls.embed.session import Session
from clipcls.embed.texts import embed_texts, truncated_message
from clipcls.errors import ImageError, UsageError
from clipcls.inputs.contents import open_content
from clipcls.labels.label_files import make_label, refuse_duplicates
from clipcls.labels.prompts import builtin_names, load_prompt_set, render, templates_set
from clipcls.outputs.vectors.vector_format import StoredVectors
from clipcls.predict.classifier import Classifier, default_prompts
from clipcls.predict.pool import PicturePool, stored_pool
from clipcls.predict.query import Query, Term
from clipcls.predict.ranking import Scoring, Unknown
from clipcls.predict.search import search
from clipcls.predict.taught import Taught
from clipcls.records import Address, Hit, ImageRef, Label, Prediction, PromptSet
from clipcls.serve.batcher import Batcher
from clipcls.serve.classifiers import ClassifierStore, ReadyClassifier, collected_warnings
from clipcls.serve.problems import RequestError, not_ready
from clipcls.serve.requests import MOST_PICTURES, PredictRequest, SearchRequest

#: Prompts of one request: of each label or text, as many as there are templates.
MOST_PROMPTS = 100_000
# threads that embed up to so many prompts, and those that embed more: many don't keep few waiting, nor known labels
_FEW_PROMPTS = 1000
_FEW_THREADS = 4
_MANY_THREADS = 2
_ANSWER_THREADS = 4
_FETCH_THREADS = 16
# bytes of a picture that is fetched, and of all fetched ones that haven't been read
_MOST_FETCHED_BYTES = 2**26
_MOST_HELD_BYTES = 2**30

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """What a server answers with, besides its model.

    Attributes:
        labels: of requests that name none, or what examples taught; None to require labels.
        prompts: of requests that name none; None for the model's own.
        features: those of pictures to search in, and the name of their file.
        most_waiting: pictures that may wait at once.
    """

    labels: tuple[Label, ...] | Taught | None = None
    prompts: PromptSet | None = None
    features: tuple[StoredVectors, str] | None = None
    most_waiting: int = 512


@dataclass(frozen=True, slots=True)
class EmbeddedPictures:
    """A request's pictures with their features.

    Attributes:
        batch: the pictures, with the errors of those that can't be read.
        errors: these errors themselves, by place.
    """

    batch: ImageBatch
    errors: dict[int, ImageError]


class Service:
    """A model that is open, and all that requests share. `warm_up` is called before anything else.

    Attributes:
        is_ready: whether `warm_up` is done.
        prompts: of requests that name none; None before `warm_up`.
        pool: the pictures to search in, if there are any.
    """

    def __init__(self, session: Session, settings: ServiceSettings) -> None:
        self.session = session
        self.settings = settings
        self.is_ready = False
        self.batch_sizes: Callable[[int], None] = lambda _: None
        self._classifiers = ClassifierStore()
        self._few = ThreadPoolExecutor(_FEW_THREADS, "few-texts")
        self._many = ThreadPoolExecutor(_MANY_THREADS, "many-texts")
        self._answerers = ThreadPoolExecutor(_ANSWER_THREADS, "answer")
        self._fetchers = ThreadPoolExecutor(_FETCH_THREADS, "fetch")
        self._held_bytes = 0
        self._batcher: Batcher | None = None
        self.pool: PicturePool | None = None
        self.prompts: PromptSet | None = None

    def warm_up(self) -> None:
        """Open the model, the features to search in and the default labels, and compute once.

        Raises:
            ModelError: the model can't be loaded.
            UsageError: labels, prompts or features can't be used.
        """
        settings = self.settings
        self.prompts = settings.prompts or default_prompts(self.session)
        if settings.features is not None:
            self.pool = stored_pool(*settings.features, self.session)
        if settings.labels is not None:
            self._ready_classifier(PredictRequest.model_validate({}))
        self._batcher = Batcher(self.session, settings.most_waiting, lambda size: self.batch_sizes(size))
        # both towers are built and have computed, whatever the cache has, before threads share them
        self.session.encoder.encode_text(["a photo"])
        self.session.encoder.encode_image(np.zeros((1, *self.session.facts.preprocess.size, 3), np.uint8))
        self.is_ready = True

    def close(self) -> None:
        """End the threads; the session is its owner's to close."""
        self.is_ready = False
        for pool in (self._few, self._many, self._answerers, self._fetchers):
            pool.shutdown(wait=False, cancel_futures=True)
        if self._batcher is not None:
            self._batcher.close()

    @property
    def waiting(self) -> int:
        """The number of pictures that haven't been answered."""
        return 0 if self._batcher is None else self._batcher.waiting

    @property
    def most_pictures(self) -> int:
        """The most pictures of one request: more than may wait at once would be told to come again for ever."""
        return min(MOST_PICTURES, self.settings.most_waiting)

    def refuse_many(self, count: int, param: str) -> None:
        """Refuse a request that has too many pictures.

        Raises:
            RequestError: it has.
        """
        if count > self.most_pictures:
            message = f"{param}: {count:,} pictures; a request may have {self.most_pictures}."
            raise RequestError(422, message, param)

    @property
    def may_fetch(self) -> bool:
        """Whether addresses are fetched."""
        return self.session.execution.web is not None

    async def embed(self, images: Sequence[ImageRef]) -> EmbeddedPictures:
        """Embed a request's pictures; one that can't be read is an error in the result.

        Raises:
            QueueFullError: too many wait.
            RequestError: there are none, or too many.
        """
        if not images:
            raise RequestError(422, "images: no picture. Give images, or upload files.", "images")
        self.refuse_many(len(images), "images")
        if self._batcher is None:
            raise not_ready()
        fetched = [0] * len(images)
        try:
            there = await asyncio.gather(*(self._fetched(place, image, fetched) for place, image in enumerate(images)))
            if self._held_bytes > _MOST_HELD_BYTES:
                raise RequestError(503, "Too many bytes wait.", retry_after=1)
            answers = self._batcher.submit([image for image in there if image.error is None])
            results = iter(await asyncio.gather(*map(asyncio.wrap_future, answers), return_exceptions=True))
        finally:
            self._held_bytes -= sum(fetched)
        features: list[Features] = []
        errors: dict[int, ImageError] = {}
        for place, image in enumerate(there):
            result = next(results) if image.error is None else ImageError(image.error)
            if isinstance(result, ImageError):
                errors[place] = result
            elif isinstance(result, BaseException):
                raise result
            else:
                features.append(result)
        stacked = np.stack(features) if features else np.empty((0, self.session.facts.embed_dim), np.float32)
        said = tuple(str(errors[place]) if place in errors else None for place in range(len(images)))
        return EmbeddedPictures(ImageBatch(tuple(images), stacked, said), errors)

    async def predict(
        self, asked: PredictRequest, embedded: EmbeddedPictures
    ) -> tuple[list[Prediction], tuple[str, ...]]:
        """Return the answers to a request's pictures, and warnings of its labels.

        Raises:
            UsageError: labels or settings can't be used.
        """
        key, scoring = _key(asked), _scoring(asked)
        ready = self._classifiers.kept(key)
        threads = self._answerers
        if ready is None or asked.explain:
            threads = self._threads_for_labels(asked)
        if ready is None:
            ready = await self._on(threads, partial(self._ready_classifier, asked))
        made = ready

        def answer() -> tuple[list[Prediction], tuple[str, ...]]:
            with collected_warnings():
                return made.classifier.with_scoring(scoring, asked.explain).answer(embedded.batch), made.warnings

        return await self._on(threads, answer)

    async def embed_texts(self, texts: Sequence[str], prompts: PromptSet | None) -> tuple[list[Features], str | None]:
        """Return the features of texts, and what to say of those of which the model sees only the beginning."""
        threads = self._threads_for(len(texts) * (1 if prompts is None else len(prompts.templates)), "texts")
        filled = [(text,) if prompts is None else render(Label(text, (text,)), prompts) for text in texts]
        embedded = await self._on(threads, partial(embed_texts, filled, self.session))
        cut = list(dict.fromkeys(prompt for text in embedded for prompt in text.truncated))
        message = truncated_message(cut, self.session.facts.context_length) if cut else None
        return [text.features for text in embedded], message

    async def count_tokens(self, texts: Sequence[str]) -> int:
        """Return how many tokens texts have, their starts and ends included."""
        return sum(await self._on(self._few, partial(self.session.encoder.token_counts, texts)))

    async def search(
        self, asked: SearchRequest, embedded: EmbeddedPictures | None
    ) -> tuple[list[Hit], tuple[str, ...]]:
        """Return the pictures that a text and a picture find together, or one of them alone, and warnings.

        Raises:
            RequestError: there is nothing to search in.
            UsageError: the query can't be used.
        """
        pool = self.pool
        if pool is None:
            raise RequestError(404, "This server has no features to search in (--features).")
        # not what is typed in a shell: a path would be read from this machine
        terms = [] if asked.query is None else [Term(asked.query)]
        pictures = {}
        if embedded is not None:
            pictures = {
                image.path: row for image, row in zip(embedded.batch.images, embedded.batch.features, strict=True)
            }
            terms += [Term(name, is_picture=True) for name in pictures]
        if not terms:
            raise RequestError(422, "query: nothing to look for. Give query, or a picture.", "query")
        query = Query(asked.query or "", tuple(terms))
        prompts = self.prompt_set(asked.prompts, asked.template)

        def find() -> tuple[list[Hit], tuple[str, ...]]:
            with collected_warnings() as warnings:
                found = search(
                    [query],
                    pool,
                    self.session,
                    top_k=asked.top_k,
                    threshold=asked.threshold,
                    prompts=prompts,
                    pictures=pictures,
                )
                return next(found)[1], tuple(warnings)

        return await self._on(self._few, find)

    def prompt_set(self, name: str | None, templates: Sequence[str] | None) -> PromptSet | None:
        """Return the prompts that a request names; None where it names none.

        Raises:
            UsageError: both are given, or there is no such set; files of this machine aren't read.
        """
        if templates is not None:
            if name is not None:
                raise UsageError("Give --prompts or --template, not both.")
            with _naming("--template"):
                return templates_set(templates)
        if name is None:
            return None
        if name not in builtin_names():
            raise UsageError(f"--prompts: no such set. Use one of: {', '.join(builtin_names())}; or give --template.")
        return load_prompt_set(name)

    def _ready_classifier(self, asked: PredictRequest) -> ReadyClassifier:
        return self._classifiers.get(_key(asked), partial(self._classifier, asked))

    def _threads_for_labels(self, asked: PredictRequest) -> ThreadPoolExecutor:
        """Return the threads that embed a request's labels.

        Raises:
            RequestError: they are too many.
        """
        default = self.settings.labels
        own = () if default is None else default.labels if isinstance(default, Taught) else default
        given = self.prompt_set(asked.prompts, asked.template)
        prompts = given or self.prompts
        count = len(own if asked.labels is None else asked.labels) * (1 if prompts is None else len(prompts.templates))
        if asked.labels is None and given is None:  # however many the server was given
            return self._many if asked.unknown or count > _FEW_PROMPTS else self._few
        return self._many if asked.unknown else self._threads_for(count, "labels")

    def _threads_for(self, prompts: int, param: str) -> ThreadPoolExecutor:
        """Return the threads that embed so many prompts.

        Raises:
            RequestError: they are too many.
        """
        if prompts > MOST_PROMPTS:
            message = f"{param}: {prompts:,} prompts, with all templates; a request may have {MOST_PROMPTS:,}."
            raise RequestError(422, message, param)
        return self._few if prompts <= _FEW_PROMPTS else self._many

    def _classifier(self, asked: PredictRequest) -> Classifier:
        default = self.settings.labels
        if asked.labels is None and default is None:
            raise UsageError("--labels: none are given, and this server has none of its own.")
        scoring = _scoring(asked)
        labels: Sequence[Label] | Taught = default or ()
        if asked.labels is not None:
            with _naming("--labels"):
                labels = [make_label(label) for label in asked.labels]
                refuse_duplicates(labels)
        prompts = self.prompt_set(asked.prompts, asked.template)
        if prompts is None and not isinstance(labels, Taught):
            prompts = self.prompts
        # thresholds and counts are each request's, see `Classifier.with_scoring`
        kept = Scoring(scoring.kind, unknown=scoring.unknown)
        return Classifier(self.session, labels, prompts, kept, background=asked.background)

    async def _fetched(self, place: int, image: ImageRef, sizes: list[int]) -> ImageRef:
        """Return a picture with its content, which threads of their own fetch: others mustn't wait for slow servers."""
        if not isinstance(image.content, Address):
            return image
        execution = self.session.execution

        def fetch() -> ImageRef:
            if self._held_bytes > _MOST_HELD_BYTES:
                return ImageRef(image.path, "too many bytes wait")
            try:
                with open_content(image, min(execution.max_bytes, _MOST_FETCHED_BYTES), execution.web) as opened:
                    return ImageRef(image.path, content=opened.file.read())
            except ImageError as exc:
                return ImageRef(image.path, str(exc))

        found = await self._on(self._fetchers, fetch)
        if isinstance(found.content, bytes):
            sizes[place] = len(found.content)
            self._held_bytes += sizes[place]
        return found

    async def _on(self, threads: ThreadPoolExecutor, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(threads, work)


@contextmanager
def _naming(option: str) -> Iterator[None]:
    """Have errors that name no option name this one, so that the answer says which field is wrong."""
    try:
        yield
    except UsageError as exc:
        if "--" in str(exc):
            raise
        raise UsageError(f"{option}: {exc}") from exc


def _scoring(asked: PredictRequest) -> Scoring:
    if asked.min_known is not None and not asked.unknown:
        raise UsageError("--min-known is for --unknown.")
    unknown = None
    if asked.unknown:
        unknown = Unknown() if asked.min_known is None else Unknown(asked.min_known)
    with _naming("--score"):
        return Scoring(asked.score, asked.multi_label, asked.top_k, asked.threshold, asked.min_margin, unknown)


def _key(asked: PredictRequest) -> Hashable:
    """Return all that the embedded labels depend on."""
    labels, templates = asked.labels and tuple(asked.labels), asked.template and tuple(asked.template)
    return labels, templates, asked.prompts, asked.background, _scoring(asked).kind, asked.unknown
