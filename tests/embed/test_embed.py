"""Texts and pictures to features: order, batches, threads, and what the cache saves."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipcls.embed.cache.entries import CachedText, text_key
from clipcls.embed.cache.store import Cache
from clipcls.embed.texts import TEXT_BATCH
from clipcls.inputs import contents
from clipcls.records import ImageRef
from conftest import embed_images, embed_texts

ROOT = Path(__file__).parents[2]


@pytest.fixture
def picture(tmp_path: Path) -> str:
    Image.new("RGB", (20, 10), (255, 0, 0)).save(tmp_path / "red.png")
    return str(tmp_path / "red.png")


@pytest.fixture
def greys(tmp_path: Path) -> list[ImageRef]:
    """Eleven pictures whose red grows, the fourth and the eighth of which can't be read."""
    images = []
    for i in range(11):
        path = tmp_path / f"{i}.png"
        Image.new("RGB", (400 if i % 3 == 0 else 20, 10), (20 * i, 100, 100)).save(path)
        images.append(ImageRef(str(path)))
    (tmp_path / "3.png").write_bytes(b"no picture")
    images[7] = ImageRef("7.png", error="no such file")
    return images


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith(("decode", "input"))}


def eventually(condition: Callable[[], bool]) -> bool:
    for _ in range(200):
        if condition():
            return True
        time.sleep(0.01)
    return False


# ------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("batch_size", [1, 2, 4, 11, 50])
@pytest.mark.parametrize("workers", [1, 3])
def test_embed_images_keeps_order_and_errors_in_place(
    fake_encoder: Any, greys: list[ImageRef], batch_size: int, workers: int
) -> None:
    batches = list(embed_images(greys, fake_encoder, batch_size=batch_size, workers=workers))
    assert [image for batch in batches for image in batch.images] == greys
    assert all(len(batch.images) > 0 for batch in batches)
    assert max(fake_encoder.batches) <= batch_size
    errors = [error for batch in batches for error in batch.errors]
    assert [i for i, error in enumerate(errors) if error is not None] == [3, 7]
    assert errors[7] == "no such file"
    for batch in batches:
        assert len(batch.features) == sum(error is None for error in batch.errors)
        assert batch.features.dtype == np.float32
    shares = np.concatenate([batch.features for batch in batches])
    assert (np.diff(shares[:, 0] / shares[:, 1]) > 0).all()
    np.testing.assert_allclose(np.linalg.norm(shares, axis=1), 1.0, atol=1e-6)


def test_embed_images_last_batch_is_partial(fake_encoder: Any, picture: str) -> None:
    batches = list(embed_images([ImageRef(picture)] * 10, fake_encoder, batch_size=4))
    assert [len(batch.images) for batch in batches] == fake_encoder.batches == [4, 4, 2]


def test_embed_images_of_nothing_is_nothing(fake_encoder: Any) -> None:
    assert list(embed_images([], fake_encoder)) == []


def test_embed_images_all_bad_needs_no_model(fake_encoder: Any) -> None:
    (batch,) = embed_images([ImageRef("x", error="gone")] * 3, fake_encoder)
    assert batch.features.shape == (0, 3) and batch.errors == ("gone",) * 3
    assert fake_encoder.batches == []


@pytest.mark.parametrize("batch_size", [1, 4])
def test_embed_images_decodes_ahead_but_not_far(
    fake_encoder: Any, picture: str, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = done = 0
    ahead = []
    open_file, encode = contents.open_file, fake_encoder.encode_image

    def counting(path: Any) -> Any:
        nonlocal decoded
        decoded += 1
        return open_file(path)

    def slow(batch: Any) -> Any:
        time.sleep(0.05)
        ahead.append(decoded - done)
        return encode(batch)

    monkeypatch.setattr(contents, "open_file", counting)
    fake_encoder.encode_image = slow
    images = (ImageRef(picture) for _ in range(20 * batch_size))
    for answered in embed_images(images, fake_encoder, batch_size=batch_size, workers=1):
        done += len(answered.images)
    assert done == 20 * batch_size
    assert 2 * batch_size <= max(ahead) <= 3 * batch_size


def test_embed_images_first_batch_comes_before_the_input_ends(fake_encoder: Any, picture: str) -> None:
    def endless() -> Iterator[ImageRef]:
        while True:
            yield ImageRef(picture)

    batches = embed_images(endless(), fake_encoder, batch_size=4)
    assert len(next(batches).images) == 4
    batches.close()


def test_embed_images_stalled_input_flushes_what_is_there(fake_encoder: Any, picture: str) -> None:
    go_on = threading.Event()

    def stalling() -> Iterator[ImageRef]:
        yield from [ImageRef(picture)] * 2
        go_on.wait(60)
        yield ImageRef(picture)

    batches = embed_images(stalling(), fake_encoder, batch_size=4)
    first = next(batches)
    answered_in_time = not go_on.is_set()
    go_on.set()
    assert answered_in_time and len(first.images) == 2
    assert [len(batch.images) for batch in batches] == [1]


def test_embed_images_stall_before_the_first_gives_no_empty_batch(fake_encoder: Any, picture: str) -> None:
    def late() -> Iterator[ImageRef]:
        time.sleep(0.3)
        yield ImageRef(picture)

    assert [len(batch.images) for batch in embed_images(late(), fake_encoder)] == [1]


def test_embed_images_closed_early_stops_its_threads(fake_encoder: Any, picture: str) -> None:
    before = threads()
    pulled = 0

    def endless() -> Iterator[ImageRef]:
        nonlocal pulled
        while True:
            pulled += 1
            yield ImageRef(picture)

    batches = embed_images(endless(), fake_encoder, batch_size=2)
    next(batches)
    assert threads() - before
    batches.close()
    assert eventually(lambda: not threads() - before)
    stopped_at = pulled
    time.sleep(0.05)
    assert pulled == stopped_at


def test_embed_images_run_to_the_end_leaves_no_threads(fake_encoder: Any, picture: str) -> None:
    before = threads()
    list(embed_images([ImageRef(picture)] * 5, fake_encoder, batch_size=2))
    assert eventually(lambda: not threads() - before)


def test_embed_images_model_error_is_raised_and_stops_its_threads(fake_encoder: Any, picture: str) -> None:
    before = threads()

    def broken(pixels: Any) -> Any:
        raise RuntimeError("out of memory")

    fake_encoder.encode_image = broken
    try:
        list(embed_images([ImageRef(picture)] * 50, fake_encoder, batch_size=2))
    except RuntimeError as exc:
        assert str(exc) == "out of memory"
    else:
        pytest.fail("no error")
    assert eventually(lambda: not threads() - before)


def test_embed_images_input_error_comes_after_the_images_before_it(fake_encoder: Any, picture: str) -> None:
    def breaking() -> Iterator[ImageRef]:
        yield from [ImageRef(picture)] * 3
        raise ValueError("the list breaks off")

    batches = embed_images(breaking(), fake_encoder, batch_size=2)
    answered = 0
    with pytest.raises(ValueError, match="breaks off"):
        for batch in batches:
            answered += len(batch.images)
    assert answered == 3


WAITING = """
import sys
import numpy as np
from clipcls.embed.execution import Execution
from clipcls.embed.images import embed_images
from clipcls.embed.session import Session
from clipcls.inputs.discover import discover
from clipcls.inputs.listing import Sources
from clipcls.records import ModelFacts, Preprocessing

class Encoder:
    preprocess = Preprocessing((8, 8), (0.5,) * 3, (0.5,) * 3)
    streams = 1
    def build_image_tower(self, at_once): pass
    def enter_stream(self): pass
    def facts(self, cache):
        return ModelFacts("m", b"", "cpu", "fp32", self.preprocess, 1.0, None, 8, 3)
    def encode_image(self, pixels):
        return np.ones((len(pixels), 3), np.float32) / np.sqrt(3)

for batch in embed_images(discover(Sources([], "-")), Session(Encoder(), Execution(batch_size=4))):
    print(batch.errors)
    break
sys.exit(4)
"""


def test_embed_images_process_can_end_while_a_pipe_is_waited_for(picture: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WAITING]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdin is not None and process.stderr is not None
        process.stdin.write(os.fsencode(picture) + b"\n")
        process.stdin.flush()
        code = process.wait(120)  # the pipe is still open; a busy machine may need a minute to import torch
        assert (code, process.stderr.read()) == (4, b"")


# ------------------------------------------------------------------------------------------- texts


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    opened = Cache(tmp_path / "cache")
    yield opened
    opened.close()


NINE = [(f"a photo of {i} red", f"{i} green") for i in range(9)]


def test_embed_texts_normalises_averages_and_normalises(fake_encoder: Any, cache: Cache) -> None:
    prompts = [("red", "blue", "a green one"), ("green",)]
    ensemble, single = embed_texts(prompts, fake_encoder, cache)
    mean = fake_encoder.encode_text(prompts[0]).astype(float).mean(axis=0)
    np.testing.assert_allclose(ensemble.features, mean / np.linalg.norm(mean), atol=1e-6)
    np.testing.assert_allclose(single.features, fake_encoder.encode_text(["green"])[0], atol=1e-6)
    assert ensemble.features.dtype == np.float32 and ensemble.features.shape == (3,)


def test_embed_texts_second_run_embeds_nothing(fake_encoder: Any, cache: Cache) -> None:
    first = embed_texts(NINE, fake_encoder, cache)
    fake_encoder.texts.clear()
    second = embed_texts(NINE[::-1], fake_encoder, cache)
    assert fake_encoder.texts == []
    for old, new in zip(first, second[::-1], strict=True):
        np.testing.assert_array_equal(old.features, new.features)


def test_embed_texts_one_new_among_nine_embeds_one(fake_encoder: Any, cache: Cache) -> None:
    embed_texts(NINE, fake_encoder, cache)
    fake_encoder.texts.clear()
    texts = embed_texts([*NINE[:4], ("blue", "my blue"), *NINE[4:]], fake_encoder, cache)
    assert fake_encoder.texts == ["blue", "my blue"]
    assert texts[4].features[2] > 0.9 and len(texts) == 10


def test_embed_texts_without_a_cache_embeds_each_time(fake_encoder: Any) -> None:
    for _ in range(2):
        embed_texts([("red",)], fake_encoder, Cache(None))
    assert fake_encoder.texts == ["red", "red"]


def test_embed_texts_equal_prompts_are_embedded_once(fake_encoder: Any, cache: Cache) -> None:
    first, _, third = embed_texts([("red",), ("blue",), ("red",)], fake_encoder, cache)
    assert sorted(fake_encoder.texts) == ["blue", "red"]
    np.testing.assert_array_equal(first.features, third.features)


@pytest.mark.parametrize("attribute", ["precision", "fingerprint"])
def test_embed_texts_another_model_or_precision_misses(fake_encoder: Any, cache: Cache, attribute: str) -> None:
    embed_texts([("red",)], fake_encoder, cache)
    setattr(fake_encoder, attribute, "bf16" if attribute == "precision" else lambda cache: b"other")
    embed_texts([("red",)], fake_encoder, cache)
    assert fake_encoder.texts == ["red", "red"]


@pytest.mark.parametrize("features", [[3.0, 0.0, 0.0], [1.0, 0.0], [np.nan] * 3, [0.0] * 3, [1.0, 0.0, 0.0, 0.0]])
def test_embed_texts_unsound_rows_are_embedded_again(fake_encoder: Any, cache: Cache, features: list[float]) -> None:
    key = text_key(b"fake", "fp32", ("red",))
    cache.put_texts({key: CachedText(np.array(features, np.float32))})
    (text,) = embed_texts([("red",)], fake_encoder, cache)
    np.testing.assert_allclose(text.features, fake_encoder.encode_text(["red"])[0], atol=1e-6)
    assert cache.get_texts([key])[key].features.shape == (3,)


def test_embed_texts_says_what_was_cut_also_from_the_cache(fake_encoder: Any, cache: Cache) -> None:
    long = "one two three four five six seven red"
    for _ in range(2):
        texts = embed_texts([("red", long), ("blue",)], fake_encoder, cache)
        assert [text.truncated for text in texts] == [(long,), ()]


def test_embed_texts_batches_are_bounded(fake_encoder: Any) -> None:
    sizes = []
    encode = fake_encoder.encode_text

    def counting(texts: list[str]) -> Any:
        sizes.append(len(texts))
        return encode(texts)

    fake_encoder.encode_text = counting
    prompts = [tuple(f"{label} {i} red" for i in range(7)) for label in range(30)]
    texts = embed_texts(prompts, fake_encoder, Cache(None))
    assert sum(sizes) == 210 and max(sizes) <= TEXT_BATCH
    assert len(texts) == 30


def test_embed_texts_keeps_what_is_done_when_interrupted(fake_encoder: Any, tmp_path: Path) -> None:
    prompts = [(f"prompt {i}",) for i in range(200)]

    def interrupt(done: int, total: int) -> None:
        assert total == 200
        if done >= 128:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_texts(prompts, fake_encoder, Cache(tmp_path), interrupt)
    assert len(fake_encoder.texts) == 128
    embed_texts(prompts, fake_encoder, Cache(tmp_path))
    assert fake_encoder.texts == [prompt for (prompt,) in prompts]
