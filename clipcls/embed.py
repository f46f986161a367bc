"""Texts and pictures to features: batched, ahead of the model, cached."""

import logging
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clipcls.cache import Cache, CachedText, text_key
from clipcls.errors import ImageError
from clipcls.images import MAX_PIXELS, load_pixels
from clipcls.records import Decode, ImageRef

if TYPE_CHECKING:
    from clipcls.encoder import Encoder

logger = logging.getLogger(__name__)

TEXT_BATCH = 64
# an input that stalls this long (a slow pipe) has what is there answered in a smaller batch
STALL_SECONDS = 0.1

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class ImageBatch:
    """Consecutive images, in input order.

    Attributes:
        features: (n_good, embed_dim) float32, L2-normalised, of the images without an error, in order.
        errors: for each image, why it has no features; None where it has.
    """

    images: tuple[ImageRef, ...]
    features: NDArray[np.float32]
    errors: tuple[str | None, ...]


def embed_texts(
    prompts: Sequence[tuple[str, ...]],
    encoder: "Encoder",
    cache: Cache,
    report: Callable[[int, int], None] | None = None,
) -> list[CachedText]:
    """The averaged embedding of each label's prompts: normalised, averaged, normalised again.

    The text tower is built only if some embedding isn't cached. What is done is cached as it goes, so that an
    interrupted run goes on where it was.

    Args:
        prompts: for each label, at least one.
        report: called with the number of labels done and of labels to do, as they are embedded.

    Source: prompt ensembling, Radford et al. 2021, section 3.1.4, https://arxiv.org/abs/2103.00020
    """
    fingerprint = encoder.fingerprint(cache)
    keys = [text_key(fingerprint, encoder.precision, label_prompts) for label_prompts in prompts]
    cached = {key: text for key, text in cache.get_texts(keys).items() if _is_sound(text, encoder.embed_dim)}
    # equal prompts, of a label and the background say, are embedded once
    missing = {key: label_prompts for key, label_prompts in zip(keys, prompts, strict=True) if key not in cached}
    logger.info("texts: %d of %d from the cache", len(keys) - sum(key in missing for key in keys), len(keys))
    done = 0
    for group in _groups(missing):
        new = dict(zip(group, _average_texts(list(group.values()), encoder), strict=True))
        cache.put_texts(new)
        cached |= new
        done += len(group)
        if report is not None:
            report(done, len(missing))
    return [cached[key] for key in keys]


def embed_images(
    images: Iterable[ImageRef],
    encoder: "Encoder",
    *,
    decode: Decode = "fast",
    batch_size: int = 32,
    workers: int = 2,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[ImageBatch]:
    """Features of images in input order, decoded on `workers` threads ahead of the model.

    At most three batches of preprocessed pictures are in memory, however many images there are. An image that
    can't be read becomes an error in its batch.
    """

    def load(image: ImageRef) -> Pixels:
        if image.error is not None:
            raise ImageError(image.error)
        return load_pixels(image.path, encoder.preprocess, decode, max_pixels)

    pending: list[tuple[ImageRef, Future[Pixels]]] = []
    for item in _decode_ahead(images, load, workers, look_ahead=2 * batch_size):
        if item is not None:
            pending.append(item)
        if len(pending) == batch_size or (item is None and pending):
            yield _encode(pending, encoder)
            pending = []
    if pending:
        yield _encode(pending, encoder)


def _groups(prompts: dict[bytes, tuple[str, ...]]) -> Iterator[dict[bytes, tuple[str, ...]]]:
    """The labels in groups of some TEXT_BATCH prompts or more."""
    group: dict[bytes, tuple[str, ...]] = {}
    count = 0
    for key, label_prompts in prompts.items():
        group[key] = label_prompts
        count += len(label_prompts)
        if count >= TEXT_BATCH:
            yield group
            group, count = {}, 0
    if group:
        yield group


def _average_texts(prompts: Sequence[tuple[str, ...]], encoder: "Encoder") -> list[CachedText]:
    flat = [prompt for label_prompts in prompts for prompt in label_prompts]
    features = np.concatenate(
        [encoder.encode_text(flat[start : start + TEXT_BATCH]) for start in range(0, len(flat), TEXT_BATCH)]
    )
    truncated = encoder.truncated(flat)
    texts = []
    end = 0
    for label_prompts in prompts:
        start, end = end, end + len(label_prompts)
        mean = features[start:end].mean(axis=0)
        cut = tuple(flat[i] for i in range(start, end) if truncated[i])
        texts.append(CachedText(mean / np.linalg.norm(mean), cut))
    return texts


def _is_sound(text: CachedText, embed_dim: int) -> bool:
    """SQLite has no checksums; a flipped byte in a vector shows in its length."""
    return text.features.shape == (embed_dim,) and bool(abs(np.linalg.norm(text.features) - 1.0) < 1e-3)


def _encode(pending: Sequence[tuple[ImageRef, Future[Pixels]]], encoder: "Encoder") -> ImageBatch:
    good: list[Pixels] = []
    errors: list[str | None] = []
    for _, future in pending:
        try:
            good.append(future.result())
            errors.append(None)
        except ImageError as exc:
            errors.append(str(exc))
    features = encoder.encode_image(np.stack(good)) if good else np.empty((0, encoder.embed_dim), dtype=np.float32)
    return ImageBatch(tuple(image for image, _ in pending), features, tuple(errors))


def _decode_ahead(
    images: Iterable[ImageRef], load: Callable[[ImageRef], Pixels], workers: int, look_ahead: int
) -> Iterator[tuple[ImageRef, Future[Pixels]] | None]:
    """Images with the futures of their pixels, in order; None whenever the input has stalled.

    A thread of its own reads the input, since reading a pipe blocks.
    """
    ready: queue.SimpleQueue[tuple[ImageRef, Future[Pixels]] | BaseException | None] = queue.SimpleQueue()
    free = threading.Semaphore(look_ahead)
    stopped = threading.Event()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")

    def read_input() -> None:
        try:
            for image in images:
                free.acquire()
                if stopped.is_set():
                    return
                ready.put((image, pool.submit(load, image)))
            ready.put(None)
        except BaseException as exc:  # noqa: BLE001 - raised again where the results are read
            ready.put(exc)

    threading.Thread(target=read_input, name="input", daemon=True).start()
    try:
        while True:
            try:
                item = ready.get(timeout=STALL_SECONDS)
            except queue.Empty:
                yield None
                continue
            if item is None:
                # what was handed out last may still be decoding
                pool.shutdown(wait=False)
                return
            if isinstance(item, BaseException):
                # what came before it is answered first
                yield None
                raise item
            yield item
            free.release()
    except BaseException:
        # GeneratorExit too: nobody will ask for what is left
        stopped.set()
        free.release()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
