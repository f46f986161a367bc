"""Numbers against open_clip on the same weights: fp32, exact decoding."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from clipcls import Classifier, Execution, ModelSpec, load_encoder
from clipcls.embed.cache.store import Cache
from clipcls.embed.session import Session
from clipcls.errors import ModelError, UsageError
from clipcls.models.catalog import EMBEDDED
from clipcls.models.checkpoint import Checkpoint, build_tower
from clipcls.models.device import choose_device, choose_precision
from clipcls.models.encoder import Encoder
from clipcls.models.locate import locate
from clipcls.predict.ranking import Scoring
from clipcls.records import ImageRef
from conftest import TINY_CONFIG, embed_images, embed_texts, save_model
from tiny_models import CLASSNAMES, RESNET_CONFIG, SIGLIP_CONFIG, SIGLIP_PREPROCESS, save_tokenizer
from tolerances import assert_as_exact


def file_sha256(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Upright 8-bit RGB and grey pictures of awkward sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(3)
    paths = []
    for i, (width, height, mode) in enumerate([(500, 375, "RGB"), (231, 640, "RGB"), (64, 48, "RGB"), (300, 300, "L")]):
        noise = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        picture = noise.resize((width, height), Image.Resampling.BICUBIC).convert(mode)
        paths.append(folder / f"{i}.{'jpg' if i % 2 else 'png'}")
        picture.save(paths[-1])
    return paths


@pytest.fixture(
    scope="module", params=["ViT-B-32", "ViT-B-32-quickgelu", "RN50", "coca_ViT-B-32", "siglip", "pictogram"]
)
def model_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if request.param == "pictogram":
        yield EMBEDDED / "pictogram"
        return
    folder = tmp_path_factory.mktemp("equality")
    yield save_equality_model(folder / request.param, request.param)
    shutil.rmtree(folder)  # half a GB


def save_equality_model(folder: Path, name: str) -> Path:
    if name == "siglip":
        save_model(folder, SIGLIP_CONFIG, SIGLIP_PREPROCESS)
        save_tokenizer(folder)
        return folder
    config = open_clip.get_model_config(name)
    if name != "ViT-B-32":
        # of the same family, for time's sake; a ResNet's layers are a list
        for tower in ("text_cfg", "multimodal_cfg", *(["vision_cfg"] if name != "RN50" else [])):
            config.get(tower, {})["layers"] = 3
    return save_model(folder, config)


def test_features_and_probabilities_equal_open_clips(model_folder: Path, pictures: list[Path]) -> None:
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{model_folder}")
    model.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{model_folder}")
    with torch.no_grad():
        text_reference = open_clip.build_zero_shot_classifier(
            model, tokenizer, CLASSNAMES, open_clip.SIMPLE_IMAGENET_TEMPLATES
        )
        inputs = torch.stack([transform(Image.open(path)) for path in pictures])
        image_reference = model.encode_image(inputs, normalize=True)
        logits = model.logit_scale.exp() * image_reference @ text_reference
        if getattr(model, "logit_bias", None) is not None:
            logits = logits + model.logit_bias
        softmax, sigmoid = logits.softmax(dim=-1).numpy(), logits.sigmoid().numpy()
        tokens = tokenizer(CLASSNAMES)
        text_features = model.encode_text(tokens, normalize=True)
        exact = model.double()
        exact_images = exact.encode_image(inputs.double(), normalize=True)
        exact_texts = exact.encode_text(tokens, normalize=True)

    classifier = Classifier(
        Session(ModelSpec(str(model_folder), device="cpu", precision="fp32"), Execution(decode="exact")),
        CLASSNAMES,
        "openai-imagenet-7",
        Scoring(top_k=2),
    )
    (batch,) = embed_images([ImageRef(str(path)) for path in pictures], classifier.session.encoder, decode="exact")
    assert_as_exact(batch.features, image_reference, exact_images, "images")
    assert_as_exact(classifier.session.encoder.encode_text(CLASSNAMES), text_features, exact_texts, "texts")
    assert np.abs(classifier.label_features.features - text_reference.T.numpy()).max() <= 1e-5
    for prediction, expected in zip(classifier.predict(pictures), softmax, strict=True):
        found = {entry.label: entry.score for entry in prediction.top}
        assert np.abs(np.array([found[name] for name in CLASSNAMES]) - expected).max() <= 1e-5

    if classifier.session.encoder.logit_bias is not None:
        scoring = Scoring(kind="sigmoid", multi_label=True, threshold=0.0)
        classifier = Classifier(classifier.session, CLASSNAMES, "openai-imagenet-7", scoring)
        for prediction, expected in zip(classifier.predict(pictures), sigmoid, strict=True):
            found = {entry.label: entry.score for entry in prediction.top}
            assert np.abs(np.array([found[name] for name in CLASSNAMES]) - expected).max() <= 1e-5


@pytest.mark.parametrize("config", [TINY_CONFIG, RESNET_CONFIG], ids=["ViT", "ResNet"])
def test_weights_equal_open_clips_own_loading(tmp_path: Path, config: dict[str, Any]) -> None:
    """Buffers that no file holds, such as the causal mask, included: they are computed, not left unset."""
    folder = save_model(tmp_path / "model", config)
    reference = open_clip.create_model(f"local-dir:{folder}").eval()
    files = locate(ModelSpec(str(folder)))
    visual, text = (build_tower(files, Checkpoint(files.weights), tower) for tower in ("visual", "text"))
    expected = dict(reference.visual.state_dict())
    found = visual.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not visual.training and not text.training
    flat = {**dict(reference.named_parameters()), **dict(reference.named_buffers())}
    for name, tensor in {**dict(text.named_parameters()), **dict(text.named_buffers())}.items():
        assert torch.equal(tensor, flat[name]), name
    assert "attn_mask" in dict(text.named_buffers())


def test_weights_without_the_bias_of_their_configuration_are_refused(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", TINY_CONFIG)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["init_logit_bias"] = -10
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="logit_bias"):
        load_encoder(ModelSpec(str(folder), device="cpu"))


def test_features_do_not_depend_on_the_batch(model_folder: Path, pictures: list[Path]) -> None:
    encoder = load_encoder(ModelSpec(str(model_folder), device="cpu", precision="fp32"))
    images = [ImageRef(str(path)) for path in pictures]
    single = np.concatenate([batch.features for batch in embed_images(images, encoder, batch_size=1)])
    (together,) = embed_images(images, encoder, batch_size=64)
    assert np.abs(single - together.features).max() <= 1e-5


def test_bf16_stays_near_fp32(model_folder: Path, pictures: list[Path]) -> None:
    images = [ImageRef(str(path)) for path in pictures]
    features = []
    for precision in ("fp32", "bf16"):
        encoder = load_encoder(ModelSpec(str(model_folder), device="cpu", precision=precision))
        (batch,) = embed_images(images, encoder)
        texts = encoder.encode_text([f"a photo of a {name}" for name in CLASSNAMES])
        features.append(batch.features @ texts.T)
    assert np.abs(features[0] - features[1]).max() <= 2e-2


def test_activation_comes_from_the_configuration(tmp_path: Path, pictures: list[Path]) -> None:
    """The same weights load into both; only the configuration tells the features apart."""
    plain = save_model(tmp_path / "plain", TINY_CONFIG)
    quick = save_model(tmp_path / "quick", TINY_CONFIG | {"quick_gelu": True})
    features = []
    for folder in (plain, quick):
        encoder = load_encoder(ModelSpec(str(folder), device="cpu", precision="fp32"))
        (batch,) = embed_images([ImageRef(str(pictures[0]))], encoder)
        features.append(batch.features)
    assert np.abs(features[0] - features[1]).max() > 1e-4


def test_towers_are_built_only_when_used(tiny_model: Path, pictures: list[Path]) -> None:
    encoder = load_encoder(ModelSpec(str(tiny_model), device="cpu", precision="fp32"))
    list(embed_images([ImageRef(str(pictures[0]))], encoder))
    assert "_visual" in vars(encoder)
    assert "_text" not in vars(encoder)


def test_cached_texts_need_no_text_tower(tiny_model: Path, tmp_path: Path) -> None:
    spec = ModelSpec(str(tiny_model), device="cpu", precision="fp32")
    prompts = [("a photo of a cat",), ("a photo of a dog", "a drawing of a dog")]
    first = embed_texts(prompts, load_encoder(spec), Cache(tmp_path))
    encoder = load_encoder(spec)
    second = embed_texts(prompts, encoder, Cache(tmp_path))
    assert "_text" not in vars(encoder)
    for one, other in zip(first, second, strict=True):
        assert (one.features == other.features).all()


def test_other_weights_have_another_fingerprint(tmp_path: Path) -> None:
    fingerprints = set()
    for seed, config in [(0, TINY_CONFIG), (1, TINY_CONFIG), (0, TINY_CONFIG | {"quick_gelu": True})]:
        folder = save_model(tmp_path / f"{seed}{len(config)}", config, seed=seed)
        encoder = load_encoder(ModelSpec(str(folder), device="cpu"))
        fingerprints.add(encoder.fingerprint(file_sha256))
    assert len(fingerprints) == 3


def test_fingerprint_changes_with_the_tokenizer(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "siglip", SIGLIP_CONFIG, SIGLIP_PREPROCESS)
    save_tokenizer(folder)
    spec = ModelSpec(str(folder), device="cpu")
    before = load_encoder(spec).fingerprint(file_sha256)
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + " ")
    assert load_encoder(spec).fingerprint(file_sha256) != before


def test_truncated_tells_which_prompts_are_too_long(tiny_model: Path) -> None:
    encoder = load_encoder(ModelSpec(str(tiny_model), device="cpu"))
    fits, too_long = "cat " * 14, "cat " * 15
    assert encoder.truncated([fits, too_long]) == [False, True]


def test_truncated_counts_the_tokens_of_a_hugging_face_tokenizer(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "siglip", SIGLIP_CONFIG, SIGLIP_PREPROCESS)
    save_tokenizer(folder)
    encoder = load_encoder(ModelSpec(str(folder), device="cpu"))
    assert encoder.truncated(["a photo of a cat", "dog " * 100]) == [False, True]


def test_missing_transformers_is_an_error_that_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    folder = save_model(tmp_path / "siglip", SIGLIP_CONFIG, SIGLIP_PREPROCESS)
    save_tokenizer(folder)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match=r"clipcls\[siglip\]"):
        load_encoder(ModelSpec(str(folder), device="cpu")).encode_text(["a cat"])


def test_weights_that_do_not_fit_are_an_error(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", TINY_CONFIG)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["width"] = 128
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="don't fit"):
        load_encoder(ModelSpec(str(folder), device="cpu")).encode_image(np.zeros((1, 32, 32, 3), np.uint8))


@pytest.mark.parametrize("cut", [0, 7, 5000])
def test_truncated_weights_are_an_error(tiny_model: Path, tmp_path: Path, cut: int) -> None:
    for name in ("open_clip_config.json", "open_clip_model.safetensors"):
        (tmp_path / name).write_bytes((tiny_model / name).read_bytes())
    weights = tmp_path / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:cut])
    with pytest.raises(ModelError, match="open_clip_model"):
        load_encoder(ModelSpec(str(tmp_path), device="cpu"))


class _RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code ran",))


def test_pickled_code_is_refused(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "open_clip_config.json").write_bytes((tiny_model / "open_clip_config.json").read_bytes())
    torch.save({"logit_scale": torch.ones([]), "visual.x": _RunsCode()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="refused"):
        load_encoder(ModelSpec(str(tmp_path), device="cpu"))
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("form", ["new", "old", "wrapped"])
def test_bin_and_safetensors_give_equal_features(tiny_model: Path, tmp_path: Path, form: str) -> None:
    from safetensors.torch import load_file

    state: dict[str, Any] = load_file(tiny_model / "open_clip_model.safetensors")
    if form == "wrapped":
        state = {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}
    (tmp_path / "open_clip_config.json").write_bytes((tiny_model / "open_clip_config.json").read_bytes())
    torch.save(state, tmp_path / "open_clip_pytorch_model.bin", _use_new_zipfile_serialization=form != "old")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    one, other = (
        load_encoder(ModelSpec(str(folder), device="cpu", precision="fp32")) for folder in (tiny_model, tmp_path)
    )
    # where weights lie in memory may change the order of sums
    assert np.abs(one.encode_image(pixels) - other.encode_image(pixels)).max() <= 1e-5
    assert np.abs(one.encode_text(["a cat"]) - other.encode_text(["a cat"])).max() <= 1e-5


def test_weights_without_a_temperature_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(tiny_model / "open_clip_model.safetensors")
    del state["logit_scale"]
    save_file(state, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_bytes((tiny_model / "open_clip_config.json").read_bytes())
    with pytest.raises(ModelError, match="temperature"):
        load_encoder(ModelSpec(str(tmp_path), device="cpu"))


def test_features_that_are_not_numbers_are_an_error(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_model(tmp_path / "model", TINY_CONFIG)
    state = load_file(folder / "open_clip_model.safetensors")
    state["visual.proj"][:] = float("nan")
    save_file(state, folder / "open_clip_model.safetensors")
    encoder = load_encoder(ModelSpec(str(folder), device="cpu"))
    with pytest.raises(ModelError, match="aren't numbers"):
        encoder.encode_image(np.zeros((1, 32, 32, 3), np.uint8))


@pytest.mark.parametrize(("device", "message"), [("cuda:99", "no such device"), ("toaster", "use auto")])
def test_choose_device_refuses_what_is_not_there(device: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        choose_device(device)


def test_choose_precision_refuses_fp16_on_a_cpu() -> None:
    with pytest.raises(UsageError, match="needs a GPU"):
        choose_precision("fp16", torch.device("cpu"))


def test_encoder_reports_the_models_settings(tiny_model: Path) -> None:
    encoder: Encoder = load_encoder(ModelSpec(str(tiny_model), device="cpu", precision="fp32"))
    assert (encoder.embed_dim, encoder.context_length, encoder.logit_bias) == (32, 16, None)
    assert encoder.logit_scale == pytest.approx(np.log(1 / 0.07))
    assert encoder.preprocess.size == (32, 32)
    assert encoder.tokenize(["a cat"]).shape == (1, 16)


def test_facts_have_no_fingerprint_once_the_weights_change(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", TINY_CONFIG)
    encoder = load_encoder(ModelSpec(str(folder), device="cpu"))
    (folder / "notes.txt").write_text("a file beside them")
    assert encoder.facts(file_sha256).fingerprint
    weights = folder / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes())
    assert not encoder.facts(file_sha256).fingerprint
