"""The embedded models: that they load, and that they know what is in the example pictures."""

from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image

import clipcls.models.pictogram
from clipcls import Classifier, ModelSpec, Scoring, Session, load_encoder
from clipcls.labels.vocabulary import read_words

FOLDER = Path(clipcls.models.pictogram.__file__).parent
PICTURES = Path(__file__).parents[2] / "examples"
FOLDERS = [PICTURES / name for name in ("images", "others")]
# What a file shows, in the words of the labels below.
SHOWN = {
    "black-cat": "cat",
    "cat": "cat",
    "cat-face": "cat",
    "grinning-cat": "cat",
    "dog": "dog",
    "dog-face": "dog",
    "guide-dog": "dog",
    "poodle": "dog",
    "articulated-lorry": "truck",
    "delivery-truck": "truck",
    "fire-engine": "truck",
    "pickup-truck": "truck",
    "rose": "flower",
}
LABELS = (
    "cat",
    "dog",
    "truck",
    "bicycle",
    "banana",
    "pizza",
    "flower",
    "house",
    "airplane",
    "elephant",
    "key",
)


@cache
def load() -> tuple[Any, Any, Any]:
    source = f"local-dir:{FOLDER}"
    model, _, preprocess = open_clip.create_model_and_transforms(source)
    return model.eval(), preprocess, open_clip.get_tokenizer(source)


def answers(paths: list[Path], labels: tuple[str, ...]) -> list[str]:
    model, preprocess, tokenizer = load()
    with torch.inference_mode():
        images = torch.stack([preprocess(on_white(path)) for path in paths])
        texts = tokenizer([f"a photo of a {label}" for label in labels])
        image_features = model.encode_image(images, normalize=True)
        similarities = image_features @ model.encode_text(texts, normalize=True).T
    assert torch.isfinite(similarities).all()
    return [labels[i] for i in similarities.argmax(1)]


def on_white(path: Path) -> Image.Image:
    picture = Image.open(path).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def pictures() -> list[Path]:
    return sorted(path for folder in FOLDERS for path in folder.iterdir() if path.suffix != ".txt")


def test_pictogram_knows_its_words() -> None:
    words = read_words(FOLDER)
    assert words is not None
    assert {*LABELS, "猫", "卡车"} <= words


def test_pictogram_answers_cat_dog_truck() -> None:
    labels = LABELS[:3]
    paths = [path for path in pictures() if SHOWN.get(path.stem) in labels]
    right = [SHOWN[path.stem] == answer for path, answer in zip(paths, answers(paths, labels), strict=True)]
    assert len(right) == 12
    assert sum(right) >= 11


def test_pictogram_answers_among_all_labels_of_the_examples() -> None:
    paths = pictures()
    truth = [SHOWN.get(path.stem, path.stem) for path in paths]
    assert set(truth) <= set(LABELS)
    right = [name == answer for name, answer in zip(truth, answers(paths, LABELS), strict=True)]
    assert sum(right) / len(right) >= 0.8


def test_pictogram_is_small() -> None:
    assert (FOLDER / "open_clip_model.safetensors").stat().st_size < 25_000_000


PHOTOS = {
    "cat": "猫",
    "coffee": "咖啡",
    "hat": "帽子",
    "pen": "笔",
    "rocket": "火箭",
    "shirt": "衬衫",
    "shoes": "鞋",
    "tulips": "花",
}


@pytest.mark.parametrize("chinese", [False, True])
def test_everyday_answers_what_the_photographs_show(chinese: bool) -> None:
    names = dict(zip(PHOTOS, PHOTOS, strict=True)) | {"tulips": "flower"} if not chinese else PHOTOS
    labels = [*names.values(), *(("狗", "卡车") if chinese else ("dog", "truck"))]
    with Session(ModelSpec("everyday", device="cpu")) as session:
        found = list(Classifier(session, labels).predict([str(PICTURES / "photos")]))
    assert {Path(one.path).stem: one.label for one in found} == names


def test_everyday_scores_a_label_by_itself() -> None:
    """What isn't in the picture stays below the threshold, and a picture of nothing that was asked for is unknown."""
    scoring = Scoring(multi_label=True)
    with Session(ModelSpec("everyday", device="cpu")) as session:
        classifier = Classifier(session, ["cat", "dog", "coffee", "cup", "clothing"], scoring=scoring)
        found = {Path(one.path).stem: one for one in classifier.predict([str(PICTURES / "photos")])}
    assert {entry.label for entry in found["coffee"].top} == {"coffee", "cup"}
    assert [entry.label for entry in found["cat"].top] == ["cat"]
    assert found["pen"].label is None and found["tulips"].label is None


def test_everyday_means_one_thing_by_two_names() -> None:
    """A word that it was taught answers as well as its sisters, in whatever prompt."""
    encoder = load_encoder(ModelSpec("everyday", device="cpu", precision="fp32"))
    pairs = [
        ("cat", "kitten"),
        ("dog", "puppy"),
        ("truck", "lorry"),
        ("car", "automobile"),
        ("dog", "a photo of a dog"),
    ]
    first, second = (encoder.encode_text(list(words)) for words in zip(*pairs, strict=True))
    assert ((first * second).sum(1) > 0.95).all()


def test_everyday_warns_of_what_it_cannot_know(caplog: pytest.LogCaptureFixture) -> None:
    with Session(ModelSpec("everyday", device="cpu")) as session:
        Classifier(session, ["rose", "tulip", "cat", "xylotomous"]).embed_labels()
    unknown, alike = caplog.messages
    assert "'xylotomous'" in unknown and "cat" not in unknown
    assert "'rose' and 'tulip'" in alike and "cat" not in alike
