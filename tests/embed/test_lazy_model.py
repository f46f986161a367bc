"""A model that is known before it is opened: what happens where it changes meanwhile."""

import contextlib
import copy
import gc
import itertools
import shutil
import sqlite3
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipcls import Classifier, Execution, ModelSpec, load_encoder
from clipcls.embed.cache.store import Cache
from clipcls.embed.images import embed_images
from clipcls.embed.session import Session
from clipcls.errors import ModelError
from clipcls.models.checkpoint import Checkpoint, build_tower
from clipcls.models.encoder import Encoder
from clipcls.models.first_token import FirstTokenBlock, compute_first_token_only
from clipcls.models.runtime.conversions import stored_conversions
from clipcls.records import ImageRef, Prediction
from conftest import TINY_CONFIG, save_model, save_pictures
from tolerances import assert_as_exact

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = ["cat", "dog", "truck"]


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return save_model(tmp_path / "other", TINY_CONFIG, seed=1)


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setattr("clipcls.records.RACY_SECONDS", 0.0)
    return save_pictures(tmp_path / "pictures", 4)


def classifier(model: Path | str, cache: Path | None) -> Classifier:
    spec = ModelSpec(str(model), device="cpu", precision="fp32")
    return Classifier(Session(spec, Execution(cache_dir=cache)), LABELS)


def predicted(model: Path | str, pictures: list[Path], cache: Path | None) -> list[Prediction]:
    return list(classifier(model, cache).predict(pictures))


def weights(folder: Path) -> Path:
    return folder / "open_clip_model.safetensors"


def test_model_replaced_after_it_was_recalled_is_an_error_and_spoils_nothing(
    folder: Path, other: Path, pictures: list[Path], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    truth, others = predicted(folder, pictures, None), predicted(other, pictures, None)
    predicted(folder, pictures[:1], cache)
    started = classifier(folder, cache)
    _ = started.label_features
    shutil.copyfile(weights(folder), tmp_path / "kept")
    shutil.copyfile(weights(other), weights(folder))
    with pytest.raises(ModelError, match=r"has changed meanwhile. Run it again"):
        list(started.predict(pictures))
    again = predicted(folder, pictures, cache)
    np.testing.assert_allclose([p.similarity for p in again], [p.similarity for p in others], atol=1e-5)
    shutil.copyfile(tmp_path / "kept", weights(folder))
    back = predicted(folder, pictures, cache)
    np.testing.assert_allclose([p.similarity for p in back], [p.similarity for p in truth], atol=1e-5)


def test_model_replaced_while_it_is_opened_is_not_cached(
    folder: Path, other: Path, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    fingerprint = Encoder.fingerprint

    def replacing(encoder: Encoder, cache: Cache) -> bytes:
        # safetensors are mapped: another file in their place, as `clipcls train` saves, not other bytes in them
        shutil.copyfile(weights(other), tmp_path / "draft")
        (tmp_path / "draft").replace(weights(folder))
        return fingerprint(encoder, cache)

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "fingerprint", replacing)
        predicted(folder, pictures, cache)
    again, truth = predicted(folder, pictures, cache), predicted(other, pictures, None)
    np.testing.assert_allclose([p.similarity for p in again], [p.similarity for p in truth], atol=1e-5)


def test_model_by_a_relative_path_is_opened_from_another_folder(
    folder: Path, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    predicted("model", pictures[:1], tmp_path / "cache")
    started = classifier("model", tmp_path / "cache")
    _ = started.label_features
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert all(prediction.error is None for prediction in started.predict(pictures))


def test_model_isnt_opened_for_files_that_cant_be_read_or_are_known_by_content(
    folder: Path, pictures: list[Path], tmp_path: Path
) -> None:
    predicted(folder, pictures, tmp_path / "cache")
    shutil.copyfile(pictures[0], tmp_path / "copy.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    cache = Cache(tmp_path / "cache")
    session = Session(ModelSpec(str(folder), device="cpu", precision="fp32"), Execution(), cache)
    session._found._load = lambda _: pytest.fail("opened")
    images = [ImageRef(str(path)) for path in (tmp_path / "bad.png", tmp_path / "copy.png", *pictures)]
    batches = list(embed_images(images, session))
    cache.close()
    errors = [error for batch in batches for error in batch.errors]
    assert [error is None for error in errors] == [False, True, True, True, True, True]
    features = np.concatenate([batch.features for batch in batches])
    np.testing.assert_array_equal(features[0], features[1])


# ------------------------------------------------------------------------------------------- with the compiled runtime


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `auto` choose OpenVINO."""
    monkeypatch.setattr("clipcls.models.runtime.choice.is_installed", lambda: True)


@pytest.mark.usefixtures("compiled")
def test_compiled_model_replaced_between_and_during_runs(
    folder: Path, other: Path, pictures: list[Path], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    truth, others = predicted(folder, pictures, None), predicted(other, pictures, None)
    predicted(folder, pictures[:1], cache)
    started = classifier(folder, cache)
    assert started.session.facts.runtime == "openvino"
    _ = started.label_features
    shutil.copyfile(weights(folder), tmp_path / "kept")
    shutil.copyfile(weights(other), weights(folder))
    with pytest.raises(ModelError, match=r"has changed meanwhile. Run it again"):
        list(started.predict(pictures))
    again = predicted(folder, pictures, cache)
    np.testing.assert_allclose([p.similarity for p in again], [p.similarity for p in others], atol=1e-5)
    shutil.copyfile(tmp_path / "kept", weights(folder))
    back = predicted(folder, pictures, cache)
    np.testing.assert_allclose([p.similarity for p in back], [p.similarity for p in truth], atol=1e-5)
    assert len(stored_conversions(cache)) == 4


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("changed", [False, True])
def test_compiled_model_that_the_cache_has_forgotten_is_compared(
    folder: Path, other: Path, pictures: list[Path], tmp_path: Path, changed: bool
) -> None:
    truth = predicted(folder, pictures, None)
    predicted(folder, pictures[:1], tmp_path / "cache")
    started = classifier(folder, tmp_path / "cache")
    _ = started.session.facts
    with contextlib.closing(sqlite3.connect(tmp_path / "cache" / "clipcls.sqlite3")) as database, database:
        database.execute("DELETE FROM entry")
    if changed:
        shutil.copyfile(weights(other), weights(folder))
        with pytest.raises(ModelError, match=r"has changed meanwhile. Run it again"):
            list(started.predict(pictures))
    else:
        found = list(started.predict(pictures))
        np.testing.assert_allclose([p.similarity for p in found], [p.similarity for p in truth], atol=1e-5)


# ------------------------------------------------------------------------------------------- batches and streams


def test_embed_images_lets_go_of_a_batch_that_has_an_error(fake_encoder: Any, tmp_path: Path) -> None:
    paths = save_pictures(tmp_path / "pictures", 6)
    paths[2].write_bytes(b"no picture")
    kept: list[weakref.ref[Any]] = []
    encode = fake_encoder.encode_image

    def watching(pixels: Any) -> Any:
        kept.extend(weakref.ref(picture) for picture in pixels)
        return encode(pixels)

    fake_encoder.encode_image = watching
    cache = Cache(None)
    images = [ImageRef(str(path)) for path in paths]
    gc.disable()  # which would find it in the end, many batches later
    try:
        batches = embed_images(images, Session(fake_encoder, Execution(batch_size=3), cache))
        for _ in batches:
            assert [reference for reference in kept if reference() is not None] == []
    finally:
        gc.enable()
    assert len(kept) == 5


@pytest.mark.parametrize("streams", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_embed_images_keeps_order_over_streams(
    fake_encoder: Any, tmp_path: Path, streams: int, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_encoder.streams = streams
    encode, entered = fake_encoder.encode_image, []
    delays = itertools.cycle([0.02, 0.0, 0.01])

    def uneven(pixels: Any) -> Any:
        time.sleep(next(delays))
        return encode(pixels)

    monkeypatch.setattr(fake_encoder, "encode_image", uneven)
    monkeypatch.setattr(fake_encoder, "enter_stream", lambda: entered.append(threading.get_ident()))
    images = []
    for i in range(23):
        Image.new("RGB", (20, 10), (10 * i, 100, 100)).save(tmp_path / f"{i:02}.png")
        images.append(ImageRef(str(tmp_path / f"{i:02}.png")))
    (tmp_path / "07.png").write_bytes(b"no picture")
    cache = Cache(None)
    session = Session(fake_encoder, Execution(batch_size=batch_size, workers=2), cache)
    batches = list(embed_images(images, session))
    assert [image for batch in batches for image in batch.images] == images
    features = np.concatenate([batch.features for batch in batches])
    assert len(features) == 22 and (np.diff(features[:, 0] / features[:, 1]) > 0).all()
    assert 1 <= len(set(entered)) <= streams


def test_encoder_streams_share_the_cores_and_leave_the_rest_as_it_was(tiny_model: Path) -> None:
    import torch

    torch.set_num_threads(4)  # the fixture sets it back
    encoder = load_encoder(ModelSpec(str(tiny_model), device="cpu", precision="fp32"))
    encoder.build_image_tower()
    encoder.streams = 2
    with ThreadPoolExecutor(2, initializer=encoder.enter_stream) as pool:
        assert pool.submit(torch.get_num_threads).result() == 2
        with ThreadPoolExecutor(1) as others:
            assert others.submit(torch.get_num_threads).result() == 4
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize(
    "vision", [{}, {"ls_init_value": 0.1}, {"final_ln_after_pool": True}, {"no_ln_pre": True}], ids=str
)
def test_first_token_block_gives_the_tower_s_features(tmp_path: Path, vision: dict[str, Any]) -> None:
    import torch

    config = TINY_CONFIG | {"vision_cfg": TINY_CONFIG["vision_cfg"] | vision}
    encoder = load_encoder(ModelSpec(str(save_model(tmp_path / "model", config)), device="cpu", precision="fp32"))
    tower = build_tower(encoder.files, Checkpoint(encoder.files.weights), "visual")
    with torch.no_grad():
        for weight in tower.parameters():
            if weight.ndim == 1:
                weight.add_(torch.randn_like(weight), alpha=0.3)  # biases are zero at first, which would hide them
    inputs = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        whole, reference = tower(inputs), copy.deepcopy(tower).double()(inputs.double())
        compute_first_token_only(tower)
        assert type(tower.transformer.resblocks[-1]) is FirstTokenBlock
        assert_as_exact(tower(inputs), whole, reference)


@pytest.mark.parametrize("vision", [{"pool_type": "avg"}, {"attentional_pool": True}, {"output_tokens": True}], ids=str)
def test_first_token_block_leaves_towers_that_need_all(tmp_path: Path, vision: dict[str, Any]) -> None:
    config = TINY_CONFIG | {"vision_cfg": TINY_CONFIG["vision_cfg"] | vision}
    encoder = load_encoder(ModelSpec(str(save_model(tmp_path / "model", config)), device="cpu", precision="fp32"))
    tower = build_tower(encoder.files, Checkpoint(encoder.files.weights), "visual")
    compute_first_token_only(tower)
    assert type(tower.transformer.resblocks[-1]) is not FirstTokenBlock
