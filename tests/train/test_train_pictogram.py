"""The embedded model: that it loads, and that it knows what is in the example pictures."""

from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image

import clipcls.models.pictogram
from clipcls.labels.vocabulary import read_words

FOLDER = Path(clipcls.models.pictogram.__file__).parent
FOLDERS = [Path(__file__).parents[2] / "examples" / name for name in ("images", "others")]
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


@pytest.mark.parametrize("name", ["open_clip_model.safetensors"])
def test_pictogram_is_small(name: str) -> None:
    assert (FOLDER / name).stat().st_size < 25_000_000
