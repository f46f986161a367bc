"""The compiled runtime computes what torch does, and leaves to torch what it can't compute."""

import hashlib
import logging
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from clipcls.embed.batches import Batches
from clipcls.errors import NOTICE, ModelError, OutOfMemoryError, UsageError
from clipcls.models.encoder import Encoder, load_encoder
from clipcls.models.runtime.choice import choose_runtime
from clipcls.models.runtime.compiled import CompiledEncoder
from clipcls.models.runtime.conversions import Conversions
from clipcls.models.runtime.engine import CompiledTower, openvino
from clipcls.models.runtime.pixels import normalised_pixels
from clipcls.records import ModelSpec, Precision
from conftest import TINY_CONFIG, save_model
from tiny_models import COCA_CONFIG, RESNET_CONFIG, SIGLIP_CONFIG, SIGLIP_PREPROCESS, change, save_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

TEXT = TINY_CONFIG["text_cfg"]
TIMM = {"timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear", "image_size": 32}
# timm's small tower with SigLIP's pooling
ATTENTION_POOL = TIMM | {"timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none", "image_size": 160}
# a tokenizer whose end isn't its greatest token, as that of MetaCLIP's worldwide models
OWN_END = {"context_length": 77, "hf_tokenizer_name": "own", "pool_type": "eos", "eos_id": 1, "vocab_size": 300}
FAMILIES: dict[str, dict[str, Any]] = {
    # of the usual context length, so that texts are cut to several lengths
    "ViT": TINY_CONFIG | {"text_cfg": TEXT | {"context_length": 77}},
    "ResNet": RESNET_CONFIG | {"text_cfg": TEXT | {"vocab_size": 49408}},
    "timm": TINY_CONFIG | {"vision_cfg": TIMM},
    "SigLIP": SIGLIP_CONFIG | {"embed_dim": 96, "vision_cfg": ATTENTION_POOL},
    "CoCa": COCA_CONFIG,
    "own end": TINY_CONFIG | {"custom_text": True, "text_cfg": TEXT | OWN_END},
}
TEXTS = [
    "a photo of a cat",
    "",
    "red",
    "the quick brown fox jumps over the lazy dog",
    "dog " * 100,
    "12 % of 345 €: 猫",
]


def file_sha256(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def pictures(count: int, size: tuple[int, int] = (32, 32), seed: int = 5) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3), dtype=np.uint8)


class Model:
    """A model folder, with torch's encoders of it, and a folder for its conversions."""

    def __init__(self, folder: Path, cache: Path, limit: int = 2**30) -> None:
        self.folder = folder
        self.cache = cache
        self.limit = limit

    def torch(self, precision: Precision = "fp32") -> Encoder:
        return load_encoder(ModelSpec(str(self.folder), device="cpu", precision=precision))

    def conversions(self) -> Conversions:
        return Conversions(self.cache / "openvino", self.limit, self.torch().fingerprint(file_sha256), file_sha256)

    def compiled(self, precision: Precision = "fp32", load: Callable[[], Encoder] | None = None) -> CompiledEncoder:
        facts = self.torch(precision).facts(file_sha256)
        return CompiledEncoder(facts, self.conversions(), load or (lambda: self.torch(precision)), threads=2)

    def converted(self, precision: Precision = "fp32") -> CompiledEncoder:
        """What a later run has, which finds both towers converted."""
        return self.compiled(precision, lambda: cast("Encoder", pytest.fail("opened with torch")))


@pytest.fixture
def tiny(tiny_model: Path, tmp_path: Path) -> Model:
    return Model(tiny_model, tmp_path / "cache")


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    """Makes each family's model once, whatever the order of the tests."""
    return cache(lambda name: _family(name, tmp_path_factory.mktemp("family")))


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, families: Callable[[str], Model]) -> Model:
    """A model with both towers converted, in fp32 and in bf16."""
    return families(request.param)


def _family(name: str, folder: Path) -> Model:
    save_model(folder / "model", FAMILIES[name], SIGLIP_PREPROCESS if name == "SigLIP" else None)
    if name in ("SigLIP", "own end"):
        save_tokenizer(folder / "model")
    model = Model(folder / "model", folder / "cache")
    for precision in ("fp32", "bf16"):
        lines = model.compiled(precision).describe().values()
        assert [line.rpartition(",")[0] for line in lines] == [f"OpenVINO, {precision}"] * 2
    return model


def error(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """1 - cosine, in the mean."""
    return float(1.0 - (found * expected).sum(axis=1).mean())


# ------------------------------------------------------------------------------------------- the same features


def test_fp32_features_equal_those_of_torch(family: Model) -> None:
    reference, compiled = family.torch(), family.converted()
    for count in (1, 3, 17):
        pixels = pictures(count, reference.preprocess.size)
        found = compiled.encode_image(list(pixels))
        assert found.shape == (count, reference.embed_dim) and found.dtype == np.float32
        assert np.abs(found - reference.encode_image(pixels)).max() <= 1e-5
    together = reference.encode_text(TEXTS)
    if family.compiled()._tokenizer is None:
        compiled = family.compiled()  # such a tokenizer is torch's to open
    assert np.abs(compiled.encode_text(TEXTS) - together).max() <= 1e-5
    for text, expected in zip(TEXTS, together, strict=True):
        assert np.abs(compiled.encode_text([text])[0] - expected).max() <= 1e-5, text
    assert compiled.truncated(TEXTS) == reference.truncated(TEXTS)


def test_bf16_features_are_as_near_as_those_of_torch(family: Model) -> None:
    reference, own, compiled = family.torch(), family.torch("bf16"), family.compiled("bf16")
    pixels = pictures(16, reference.preprocess.size)
    exact = reference.encode_image(pixels)
    assert error(compiled.encode_image(pixels), exact) <= max(2 * error(own.encode_image(pixels), exact), 5e-5)
    exact = reference.encode_text(TEXTS)
    assert error(compiled.encode_text(TEXTS), exact) <= max(2 * error(own.encode_text(TEXTS), exact), 5e-5)


def test_signals_come_through_once_models_are_gone(tiny_model: Path, tmp_path: Path) -> None:
    """Deleted in the order in which they were compiled, OpenVINO's models leave a signal stack that is gone."""
    Model(tiny_model, tmp_path / "cache").compiled().encode_text(["a cat"])
    path = next((tmp_path / "cache").rglob("tower.xml"))
    models = [CompiledTower(path, "fp32", 1, 1) for _ in range(3)]
    while models:
        del models[0]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_model_of_fp16_weights_and_no_texts_at_all(tiny_model: Path, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "a model, 猫", TINY_CONFIG)
    change(folder, lambda state: state.update({name: tensor.half() for name, tensor in state.items()}))
    model = Model(folder, tmp_path / "a cache, 犬")
    reference, compiled = model.torch(), model.compiled()
    assert np.abs(compiled.encode_image(pictures(2)) - reference.encode_image(pictures(2))).max() <= 1e-5
    assert np.abs(compiled.encode_text(TEXTS) - reference.encode_text(TEXTS)).max() <= 1e-5
    assert compiled.encode_text([]).shape == (0, 32)


def test_normalised_pixels_are_those_of_torch_bit_for_bit(tiny: Model) -> None:
    encoder = tiny.torch()
    shades = np.arange(256, dtype=np.uint8).repeat(12).reshape(1, 32, 32, 3)
    found = normalised_pixels(shades, encoder.preprocess)
    np.testing.assert_array_equal(found, encoder._prepared_one_by_one(shades).numpy())


def test_threads_share_a_tower(tiny: Model) -> None:
    compiled = tiny.compiled()
    compiled.build_image_tower()
    batches = [pictures(1 + i % 5, seed=i) for i in range(60)]
    with ThreadPoolExecutor(8, initializer=compiled.enter_stream) as pool:
        found = list(pool.map(compiled.encode_image, batches))
    for features, batch in zip(found, batches, strict=True):
        assert np.abs(features - compiled.encode_image(batch)).max() <= 1e-6


# ------------------------------------------------------------------------------------------- what torch computes


class Unknown(nn.Module):
    """A tower with an operation that OpenVINO doesn't know."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.tower(pixels)
        return features + torch.special.bessel_j0(features)


class Counting(Unknown):
    """A tower that adds up the batch in Python, which a trace takes for a constant."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.tower(pixels)
        return features + 0.1 * int(pixels.shape[0])


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[Unknown]], None]:
    """Lets encoders wrap their image towers."""
    build = Encoder.build

    def wrap(kind: type[Unknown]) -> None:
        def wrapped(encoder: Encoder, tower: Any, precision: Any) -> nn.Module:
            return kind(build(encoder, tower, precision)) if tower == "visual" else build(encoder, tower, precision)

        monkeypatch.setattr(Encoder, "build", wrapped)

    return wrap


def notices(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= NOTICE]


@pytest.mark.parametrize(("kind", "why"), [(Unknown, "bessel"), (Counting, "differ from torch's by")])
def test_tower_that_cannot_be_converted_is_left_to_torch(
    tiny: Model,
    builds: Callable[[type[Unknown]], None],
    kind: type[Unknown],
    why: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(NOTICE)
    builds(kind)
    expected = tiny.torch().encode_image(pictures(3))
    np.testing.assert_array_equal(tiny.compiled().encode_image(pictures(3)), expected)
    told = [line for line in notices(caplog) if "stays with torch" in line]
    assert len(told) == 1 and why in told[0] and str(tiny.folder) in told[0]
    # remembered, and said only with -v
    caplog.clear()
    monkeypatch.setattr("clipcls.models.runtime.convert._write", lambda *_: pytest.fail("tried again"))
    with caplog.at_level(logging.INFO, "clipcls"):
        again = tiny.compiled()
        again.build_image_tower()
        np.testing.assert_array_equal(again.encode_image(pictures(3)), expected)
    assert notices(caplog) == [] and why in caplog.text
    assert logging.getLogger().level == NOTICE  # OpenVINO silences it
    again.enter_stream()
    assert tiny.conversions().find("text", "fp32") is None  # the other tower by itself


def test_one_batch_gets_all_threads_and_many_batches_a_share_each(
    families: Callable[[str], Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    build = CompiledTower.__init__

    def noted(self: CompiledTower, path: Path, precision: Precision, threads: int, streams: int) -> None:
        made.append(streams)
        build(self, path, precision, threads, streams)

    encoder = families("ViT").compiled()
    monkeypatch.setattr(CompiledTower, "__init__", noted)
    features = []
    for at_once in (True, True, False, True):
        encoder.build_image_tower(at_once)
        features.append(encoder.encode_image(pictures(3)))
    assert made == [1, 2] and encoder.streams == 2
    assert max(np.abs(found - features[0]).max() for found in features) <= 1e-5


def test_tower_that_cannot_be_converted_is_described(tiny: Model, builds: Callable[[type[Unknown]], None]) -> None:
    builds(Unknown)
    visual, text = tiny.compiled().describe().values()
    assert visual.startswith("torch, since ") and "bessel" in visual
    assert text.startswith("OpenVINO, fp32, ")


def test_tower_that_loses_too_much_in_bf16_is_computed_in_fp32(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipcls.models.runtime.convert._BF16_FACTOR", 0.0)
    monkeypatch.setattr("clipcls.models.runtime.convert._BF16_ERROR", 0.0)
    visual, text = tiny.compiled("bf16").describe().values()
    assert visual.startswith("OpenVINO, fp32, ") and text.startswith("OpenVINO, fp32, ")
    found = tiny.converted("bf16").encode_image(pictures(3))
    assert np.abs(found - tiny.torch().encode_image(pictures(3))).max() <= 1e-5


def test_features_that_are_not_numbers_are_an_error(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = change(save_model(tmp_path / "model", TINY_CONFIG), lambda state: state["visual.proj"].fill_(float("nan")))
    with pytest.raises(ModelError, match="aren't numbers"):
        Model(folder, tmp_path / "cache").compiled().encode_image(pictures(2))
    compiled = Model(tiny_model, tmp_path / "cache").compiled()
    compiled.build_image_tower()
    overflow = np.full((2, 32), np.inf, np.float32)
    assert compiled._visual is not None
    monkeypatch.setattr(compiled._visual._own, "request", SimpleNamespace(infer=lambda *_, **__: [overflow]), False)
    with pytest.raises(ModelError, match="aren't numbers"), np.errstate(invalid="ignore"):
        compiled.encode_image(pictures(2))


# ------------------------------------------------------------------------------------------- memory and other errors


class Small:
    """A request of a machine with memory for four pictures at once."""

    def __init__(self, request: Any, message: str) -> None:
        self.request = request
        self.message = message

    def infer(self, inputs: Sequence[NDArray[Any]], **options: Any) -> Any:
        if len(inputs[0]) > 4:
            raise RuntimeError(self.message)
        return self.request.infer(inputs, **options)


def with_memory_for_four(encoder: CompiledEncoder, message: str) -> CompiledEncoder:
    tower = encoder._visual
    assert tower is not None
    tower._own.request = Small(tower._compiled.create_infer_request(), message)
    return encoder


def test_batch_that_the_memory_does_not_hold_is_halved(tiny: Model, caplog: pytest.LogCaptureFixture) -> None:
    encoder = with_memory_for_four(tiny.compiled(), "Exception from src/inference:\nstd::bad_alloc")
    with pytest.raises(OutOfMemoryError, match="--batch-size 1"):
        encoder.encode_image(pictures(5))
    batches = Batches(encoder.encode_image, 16)
    found = batches.encode(pictures(17))
    assert np.abs(found - tiny.torch().encode_image(pictures(17))).max() <= 1e-5
    assert batches.size == 4 and "out of memory at 16 in a batch" in caplog.text


def test_pixels_that_the_memory_does_not_hold_are_halved_too(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, pixels = tiny.compiled(), pictures(17)
    encoder.build_image_tower()
    empty = np.empty

    def small(shape: Any, *args: Any, **options: Any) -> Any:
        if shape[0] > 4:
            raise MemoryError
        return empty(shape, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr("clipcls.models.runtime.pixels.np.empty", small)
        found = Batches(encoder.encode_image, 16).encode(pixels)
    assert np.abs(found - encoder.encode_image(pixels)).max() <= 1e-5


def test_other_errors_of_openvino_name_the_way_out(tiny: Model, tmp_path: Path) -> None:
    encoder = with_memory_for_four(tiny.compiled(), "Exception from src/inference:\nno such kernel")
    with pytest.raises(ModelError, match=r"can't compute the features: no such kernel. Try --runtime torch") as caught:
        encoder.encode_image(pictures(5))
    assert not isinstance(caught.value, OutOfMemoryError)
    encoder = tiny.converted()
    encoder._conversions = tiny.conversions()
    path = encoder._of("visual").path
    assert path is not None
    path.write_text("<net/>")
    with pytest.raises(ModelError, match=r"tower.xml: OpenVINO can't compile it.*Try --runtime torch"):
        encoder.encode_image(pictures(1))


def test_openvino_sends_no_telemetry() -> None:
    import sys

    openvino()
    assert sys.modules["openvino_telemetry"] is None


# ------------------------------------------------------------------------------------------- the choice


@pytest.mark.parametrize(
    ("asked", "device", "can_keep", "installed", "expected"),
    [
        ("auto", "cpu", True, True, "openvino"),
        ("auto", "cuda", True, True, "torch"),
        ("auto", "mps", True, True, "torch"),
        ("auto", "cpu", False, True, "torch"),
        ("auto", "cpu", True, False, "torch"),
        ("torch", "cpu", True, True, "torch"),
        ("openvino", "cpu", True, True, "openvino"),
    ],
)
def test_runtime_by_device_cache_and_what_is_installed(
    asked: str, device: str, can_keep: bool, installed: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipcls.models.runtime.choice.is_installed", lambda: installed)
    assert choose_runtime(ModelSpec("m", runtime=asked), device, can_keep) == expected


@pytest.mark.parametrize(
    ("runtime", "precision", "device", "can_keep", "installed", "message"),
    [
        ("tensorrt", "auto", "cpu", True, True, "--runtime tensorrt: use auto, torch or openvino"),
        ("openvino", "auto", "cuda", True, True, "--runtime openvino is for CPUs"),
        ("openvino", "auto", "cpu", False, True, "--runtime openvino keeps the converted model in the cache"),
        (
            "openvino",
            "auto",
            "cpu",
            True,
            False,
            r"--runtime openvino needs OpenVINO: pip install 'clipcls\[openvino\]",
        ),
        ("torch", "int8", "cpu", True, True, "leave --runtime torch out"),
        ("auto", "int8", "cuda", True, True, "--precision int8 is for CPUs"),
        ("auto", "int8", "cpu", False, True, "--precision int8 keeps the converted model in the cache"),
        ("auto", "int8", "cpu", True, False, "--precision int8 needs OpenVINO"),
    ],
)
def test_runtime_that_cannot_be_had_is_refused(
    runtime: str,
    precision: str,
    device: str,
    can_keep: bool,
    installed: bool,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("clipcls.models.runtime.choice.is_installed", lambda: installed)
    with pytest.raises(UsageError, match=message):
        choose_runtime(ModelSpec("m", runtime=runtime, precision=precision), device, can_keep)
