"""Training that starts from a trained model: what is kept, what is written, what is refused."""

import copy
import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from huggingface_hub import constants
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from clipcls import Classifier
from clipcls.embed.session import Session
from clipcls.errors import ModelError, UsageError
from clipcls.images.fit import load_pixels
from clipcls.models.encoder import load_encoder
from clipcls.records import ModelSpec
from clipcls.train.data.table import Table
from clipcls.train.loop import TrainResult, train
from clipcls.train.settings import load_settings, write_settings
from clipcls.train.start_model import _with_hub_name, new_model, start_model
from clipcls.train.trainer import Trainer
from conftest import OPENAI_PREPROCESS, TINY_CONFIG, save_model, save_pictures
from tiny_models import SIGLIP_CONFIG, SIGLIP_PREPROCESS, save_tokenizer
from tolerances import assert_as_exact

pytestmark = pytest.mark.usefixtures("one_thread", "no_curves")

WEIGHTS = "open_clip_model.safetensors"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    pictures = save_pictures(tmp_path / "pictures", 4)
    rows = [{"image": str(path), "caption": f"a {name}"} for path, name in zip(pictures, "wxyz", strict=True)]
    path = tmp_path / "table.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def run(table: Path, model: Path | str, **given: Any) -> TrainResult:
    values = {"data": str(table), "model": str(model), "output": str(table.parent / "run"), "batch_size": 4}
    return train(load_settings(None, values | {"precision": "fp32", "device": "cpu", "epochs": 2.0} | given))


def test_fine_tuned_folder_gives_equal_features_in_predict_and_open_clip(table: Path, tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", SIGLIP_CONFIG, SIGLIP_PREPROCESS)
    save_tokenizer(base)
    model_folder = run(table, base, learning_rate=1e-3).model
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{model_folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{model_folder}")
    encoder = load_encoder(ModelSpec(str(model_folder), device="cpu", precision="fp32"))
    path = next((tmp_path / "pictures").iterdir())
    pixels = load_pixels(path, encoder.preprocess, "exact")
    theirs, tokens = transform(Image.open(path))[None], tokenizer(["a cat"])
    with torch.no_grad():
        image, text = model.eval().encode_image(theirs, normalize=True), model.encode_text(tokens, normalize=True)
        exact = copy.deepcopy(model).double()
        assert_as_exact(encoder.encode_image(pixels[None]), image, exact.encode_image(theirs.double(), normalize=True))
        assert_as_exact(encoder.encode_text(["a cat"]), text, exact.encode_text(tokens, normalize=True))
    assert encoder.logit_bias == pytest.approx(model.logit_bias.item())
    before, after = load_file(base / WEIGHTS), load_file(model_folder / WEIGHTS)
    assert before.keys() == after.keys()
    assert not torch.equal(
        before["visual.trunk.patch_embed.proj.weight"], after["visual.trunk.patch_embed.proj.weight"]
    )
    stated = json.loads((model_folder / "open_clip_config.json").read_text())["preprocess_cfg"]
    assert {key: stated[key] for key in SIGLIP_PREPROCESS} == SIGLIP_PREPROCESS


@pytest.mark.parametrize("custom_text", [False, True])
def test_start_model_has_the_weights_of_its_base(tmp_path: Path, custom_text: bool) -> None:
    base = save_model(tmp_path / "base", TINY_CONFIG | ({"custom_text": True} if custom_text else {}))
    settings = load_settings(None, {"data": "d.csv", "model": str(base), "output": "run"})
    state, stored = start_model(settings).model.state_dict(), load_file(base / WEIGHTS)
    assert state.keys() == stored.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in stored.items())


def test_start_model_clamps_the_scale(tiny_model: Path) -> None:
    values = {"data": "d.csv", "model": str(tiny_model), "output": "run", "max_scale": 10.0}
    assert start_model(load_settings(None, values)).model.logit_scale.item() == pytest.approx(math.log(10))


@pytest.mark.parametrize("words", [None, "blue\nsofa\n"])
def test_words_are_joined_with_those_of_the_base(table: Path, tmp_path: Path, words: str | None) -> None:
    base = save_model(tmp_path / "base", TINY_CONFIG)
    if words:
        (base / "words.txt").write_text(words, encoding="utf-8")
    written = run(table, base).model / "words.txt"
    assert written.exists() == (words is not None)
    if words:
        assert written.read_text(encoding="utf-8").split() == ["blue", "sofa", "w", "x", "y", "z"]


def test_new_model_takes_its_tokenizer_along(table: Path, tmp_path: Path) -> None:
    save_tokenizer(tmp_path / "words")
    text = TINY_CONFIG["text_cfg"] | {"vocab_size": 300, "hf_tokenizer_name": str(tmp_path / "words")}
    (tmp_path / "arch.json").write_text(json.dumps(TINY_CONFIG | {"text_cfg": text}), encoding="utf-8")
    values = {"data": str(table), "arch": str(tmp_path / "arch.json"), "output": str(tmp_path / "run")}
    settings = load_settings(None, values | {"epochs": 1, "batch_size": 4, "precision": "fp32", "device": "cpu"})
    tokens = new_model(settings).tokenizer(["a cat"])
    folder = train(settings).model
    (tmp_path / "words").rename(tmp_path / "gone")
    assert torch.equal(load_encoder(ModelSpec(str(folder))).tokenize(["a cat"]), tokens)


def drawing(kind: str, rng: random.Random) -> Image.Image:
    """A ring, bars or a cross, of any dark colour on any light one."""
    light, dark = (tuple(rng.randrange(low, low + 60) for _ in range(3)) for low in (196, 40))
    picture = Image.new("RGB", (64, 64), light)
    draw, x, y, r = ImageDraw.Draw(picture), rng.randrange(24, 40), rng.randrange(24, 40), rng.randrange(12, 22)
    if kind == "ring":
        draw.ellipse((x - r, y - r, x + r, y + r), outline=dark, width=4)
    elif kind == "bars":
        for middle in (y - 9, y, y + 9):
            draw.rectangle((x - r, middle - 2, x + r, middle + 2), fill=dark)
    else:
        draw.line((x - r, y - r, x + r, y + r), fill=dark, width=5)
        draw.line((x - r, y + r, x + r, y - r), fill=dark, width=5)
    return picture


def test_fine_tuning_on_class_folders_raises_held_out_accuracy(tmp_path: Path) -> None:
    kinds = ("ring", "bars", "cross")
    for split, count in (("train", 12), ("test", 12)):
        for kind in kinds:
            (tmp_path / split / kind).mkdir(parents=True)
            for number in range(count):
                picture = drawing(kind, random.Random(f"{split} {kind} {number}"))
                picture.save(tmp_path / split / kind / f"{number}.png")

    def accuracy(model: str) -> float:
        paths = sorted((tmp_path / "test").rglob("*.png"))
        answers = Classifier(Session(ModelSpec(model, device="cpu", precision="fp32")), kinds).predict(map(str, paths))
        return sum(answer.label == path.parent.name for answer, path in zip(answers, paths, strict=True)) / len(paths)

    before = accuracy("pictogram")
    options = {"epochs": 8, "batch_size": 18, "learning_rate": 3e-4}
    after = accuracy(str(run(tmp_path / "train", "pictogram", **options).model))
    assert before < 0.75
    assert after >= before + 0.2


def test_hub_name_of_a_text_tower_is_written_not_its_place_in_the_cache() -> None:
    text = {"hf_model_name": "/x/hub/models--org--some-bert/snapshots/0a1b"}
    _with_hub_name(text)
    assert text == {"hf_model_name": "org/some-bert"}


def test_training_refuses_models_it_cannot_train(table: Path, tmp_path: Path, tiny_model: Path) -> None:
    oblong = json.loads(json.dumps(TINY_CONFIG))
    oblong["vision_cfg"]["image_size"] = [32, 64]
    shutil.copytree(tiny_model, tmp_path / "coca")
    config = {"model_cfg": TINY_CONFIG | {"multimodal_cfg": {}}, "preprocess_cfg": OPENAI_PREPROCESS}
    (tmp_path / "coca" / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "w.pt").touch()
    cases: list[tuple[Path | str, type[Exception], str]] = [
        (save_model(tmp_path / "oblong", oblong), UsageError, "64×32 pictures"),
        (tmp_path / "coca", UsageError, "a CoCa model"),
        (tmp_path / "w.pt", UsageError, "bare weights file"),
        (tmp_path / "pictures", ModelError, "no open_clip_config"),
        ("ViT-Q-32", UsageError, "No model, folder or file"),
    ]
    for number, (model, error, message) in enumerate(cases):
        with pytest.raises(error, match=message):
            run(table, model, output=str(tmp_path / f"run{number}"))


def test_settings_of_new_models_are_refused_beside_a_model(tmp_path: Path) -> None:
    values: dict[str, Any] = {"data": "d.csv", "model": "photo", "output": "run"}
    with pytest.raises(UsageError, match="arch and model exclude each other"):
        load_settings(None, values | {"arch": "ViT-B-32"})
    with pytest.raises(UsageError, match="mean, std: only for a new model"):
        load_settings(None, values | {"mean": [0.5] * 3, "std": [0.5] * 3})
    settings = load_settings(None, values)
    assert settings.learning_rate == 1e-5
    write_settings(settings, tmp_path / "settings.yaml")
    read = load_settings(tmp_path / "settings.yaml", {})
    assert (read.model, read.arch, read.learning_rate) == ("photo", "", 1e-5)


@pytest.mark.parametrize("given", [{"model": "tiny"}, {"arch": "tiny.json"}])
def test_sigmoid_loss_gives_a_model_a_bias_that_predict_reads(
    table: Path, tmp_path: Path, given: dict[str, str]
) -> None:
    save_model(tmp_path / "tiny", TINY_CONFIG)
    (tmp_path / "tiny.json").write_text(json.dumps(TINY_CONFIG), encoding="utf-8")
    values = {key: str(tmp_path / name) for key, name in given.items()}
    values |= {"data": str(table), "output": str(tmp_path / "run"), "loss": "sigmoid", "device": "cpu"}
    settings = load_settings(None, values | {"epochs": 1, "batch_size": 4, "learning_rate": 0.5, "precision": "fp32"})
    encoder = load_encoder(ModelSpec(str(train(settings).model), device="cpu", precision="fp32"))
    assert encoder.logit_bias == pytest.approx(-10, abs=1)
    assert encoder.logit_bias != -10
    if "arch" in given:
        assert settings.initial_scale == 10


@pytest.mark.parametrize("bias", [None, -5.0])
def test_loss_is_sigmoid_for_a_model_with_a_bias(tmp_path: Path, bias: float | None) -> None:
    base = save_model(tmp_path / "base", TINY_CONFIG | ({} if bias is None else {"init_logit_bias": bias}))
    values = {"data": "d.csv", "model": str(base), "output": "run"}
    for loss, sigmoid in (("auto", bias is not None), ("contrastive", False), ("sigmoid", True)):
        settings = load_settings(None, values | {"loss": loss})
        assert Trainer(settings, start_model(settings), Table((), ())).sigmoid == sigmoid


ARCH = TINY_CONFIG | {"vision_cfg": TINY_CONFIG["vision_cfg"] | {"layers": 1}}


def with_vision(**given: Any) -> dict[str, Any]:
    return ARCH | {"vision_cfg": ARCH["vision_cfg"] | given}


def with_text(**given: Any) -> dict[str, Any]:
    return ARCH | {"text_cfg": ARCH["text_cfg"] | given}


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        (ARCH | {"text_cfg": None}, "text_cfg must be a JSON object, not None"),
        (ARCH | {"vision_cfg": "ViT"}, "vision_cfg must be a JSON object, not 'ViT'"),
        (ARCH | {"embed_dim": 0}, "embed_dim 0 isn't a number of features"),
        ({"vision_cfg": {}, "text_cfg": {}}, "the architecture lacks 'embed_dim'"),
        (ARCH | {"vision_cfg": {"layers": 1}}, "the architecture lacks 'image_size'"),
        (with_vision(image_size=[]), r"image_size \[\] isn't a number of pixels"),
        (with_vision(image_size="224"), "image_size '224' isn't a number of pixels"),
        (with_vision(image_size=[32, 64]), r"image_size \[32, 64\] isn't square"),
        (with_vision(patch_size=0), "open_clip can't build this architecture: integer division"),
        (with_vision(timm_model_name=3), "open_clip can't build this architecture"),
        (with_vision(patch_size=64), r"the tower of vision_cfg can't take a picture of image_size \("),
        (with_text(vocab_size=300), "the tower of text_cfg can't take its tokenizer's tokens; see vocab_size"),
        (ARCH | {"multimodal_cfg": {}}, "arch.json: a CoCa model, whose caption decoder can't be trained here"),
        ("[" * 100_000, "arch.json: isn't JSON"),
        ("{} {}", "arch.json: isn't JSON"),
    ],
)
def test_new_model_refuses_bad_architectures(tmp_path: Path, arch: Any, message: str) -> None:
    path = tmp_path / "arch.json"
    path.write_text(arch if isinstance(arch, str) else json.dumps(arch), encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        new_model(load_settings(None, {"data": "d.csv", "arch": str(path), "output": "run"}))


def test_new_model_says_shortly_that_there_is_no_file(tmp_path: Path) -> None:
    settings = load_settings(None, {"data": "d.csv", "arch": str(tmp_path / "gone.json"), "output": "run"})
    with pytest.raises(UsageError, match=r"gone\.json: can't be read: no such file or directory"):
        new_model(settings)


def test_new_model_refuses_open_clips_own_caption_decoders() -> None:
    with pytest.raises(UsageError, match="coca_ViT-B-32: a CoCa model"):
        new_model(load_settings(None, {"data": "d.csv", "arch": "coca_ViT-B-32", "output": "run"}))


def test_new_model_leaves_batch_norm_as_it_is_built(tmp_path: Path) -> None:
    vision = {"timm_model_name": "resnet10t", "timm_model_pretrained": False, "image_size": 32}
    (tmp_path / "arch.json").write_text(json.dumps(ARCH | {"vision_cfg": vision}), encoding="utf-8")
    settings = load_settings(None, {"data": "d.csv", "arch": str(tmp_path / "arch.json"), "output": "run"})
    model = new_model(settings).model
    seen = [value for name, value in model.state_dict().items() if name.endswith("num_batches_tracked")]
    assert seen
    assert not any(seen)


def test_new_model_with_a_tokenizer_that_the_hub_does_not_give_is_an_error_of_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipcls.models.hub.reachable", lambda: False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    text = TINY_CONFIG["text_cfg"] | {"hf_tokenizer_name": "someone/words"}
    (tmp_path / "arch.json").write_text(json.dumps(TINY_CONFIG | {"text_cfg": text}), encoding="utf-8")
    with pytest.raises(ModelError, match="can't be reached"):
        new_model(load_settings(None, {"data": "x", "output": "y", "arch": str(tmp_path / "arch.json")}))
