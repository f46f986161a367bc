"""Measure a pictogram model on the rendered pictures, in a trained style and in those kept for evaluation.

    python evaluate.py run/model data

DATA is the folder that render.py filled. The prompts are the label itself, which stands in for every phrasing;
`--template` chooses another. Each figure is a share of right answers in percent.
"""

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from PIL import Image
from torch.nn import functional

from clipcls.records import Preprocessing
from clipcls.train.data.augment import HELD_OUT_EVERY, Augmentation
from clipcls.train.data.pictures import decode_rgba

EVERYDAY = Path(__file__).with_name("everyday.json")
STYLES = ("noto", "twemoji", "openmoji")  # the first was trained on
BATCH = 256
ROUNDS = 4  # augmentations of each picture
CHOICES = 3


@dataclass(frozen=True, slots=True)
class Style:
    """The pictures of one style, in the order of the concepts.

    Attributes:
        paths: one per concept.
        codes: of the concepts.
        names: by language, one per concept; empty where there is none.
    """

    paths: list[Path]
    codes: list[str]
    names: dict[str, list[str]]


class Model:
    """A model folder, loaded by open_clip."""

    def __init__(self, folder: Path, templates: Sequence[str]) -> None:
        source = f"local-dir:{folder}"
        model, _, preprocess = open_clip.create_model_and_transforms(source)
        self.model: Any = model.eval()
        self.preprocess: Any = preprocess
        self.tokenizer = open_clip.get_tokenizer(source)
        self.templates = templates

    @torch.inference_mode()
    def encode_text(self, labels: Sequence[str]) -> torch.Tensor:
        """`(n_labels, embed_dim) float32`, L2-normalised, averaged over the templates."""
        total = torch.zeros(())
        for template in self.templates:
            tokens = self.tokenizer([template.replace("{}", label) for label in labels])
            parts = [self.model.encode_text(part, normalize=True) for part in tokens.split(BATCH)]
            total = total + torch.cat(parts)
        return functional.normalize(total, dim=-1)

    @torch.inference_mode()
    def encode_paths(self, paths: Sequence[Path]) -> torch.Tensor:
        """`(n_images, embed_dim) float32`, L2-normalised, of clean pictures on white."""
        images = torch.stack([self.preprocess(on_white(path)) for path in paths])
        return torch.cat([self.model.encode_image(part, normalize=True) for part in images.split(BATCH)])

    @torch.inference_mode()
    def encode_augmented(self, paths: Sequence[Path], name: str, number: int) -> torch.Tensor:
        """The same of augmented pictures, by a seed that no training uses."""
        side = self.model.visual.image_size
        side = side[0] if isinstance(side, tuple) else side
        stored = (round(side * 1.25),) * 2
        canvas = Preprocessing(stored, (0, 0, 0), (1, 1, 1), resize_mode="longest", fill_color=255)
        pictures = torch.stack([decode_rgba(path, canvas) for path in paths])
        seed = HELD_OUT_EVERY * number + HELD_OUT_EVERY - 1  # never one that training uses
        images = Augmentation(name, side)(pictures, 1.0, seed)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (self.model.visual.image_mean, self.model.visual.image_std))
        features: torch.Tensor = self.model.encode_image((images - mean) / std, normalize=True)
        return features


def on_white(path: Path) -> Image.Image:
    """A picture without its transparency."""
    picture = Image.open(path).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def read_style(folder: Path, name: str) -> Style:
    """The pictures of a style, from the table it is in."""
    tables = [(folder / f"{table}.jsonl").read_text(encoding="utf-8") for table in ("train", "heldout")]
    rows = [json.loads(line) for table in tables for line in table.splitlines()]
    rows = [row for row in rows if row["style"] == name]
    names = {language: [row["names"].get(language, "") for row in rows] for language in ("en", "zh")}
    return Style([folder / row["image"] for row in rows], [row["code"] for row in rows], names)


def percent(right: torch.Tensor) -> float:
    """The share of True, in percent."""
    return float(right.float().mean() * 100)


def all_names(features: torch.Tensor, texts: torch.Tensor, names: list[str]) -> tuple[float, float]:
    """Top-1 and top-5 over all names; a concept that shares its name with another counts for either."""
    top = (features @ texts.T).topk(5).indices.tolist()
    first = [names[best[0]] == name for best, name in zip(top, names, strict=True) if name]
    five = [name in [names[i] for i in best] for best, name in zip(top, names, strict=True) if name]
    return percent(torch.tensor(first)), percent(torch.tensor(five))


def random_choices(features: torch.Tensor, texts: torch.Tensor, names: list[str]) -> float:
    """The right name against two others drawn at random."""
    rng = random.Random(0)
    right = []
    for index, name in enumerate(names):
        others = [i for i in rng.sample(range(len(names)), 8) if names[i] and names[i] != name][: CHOICES - 1]
        scores = features[index] @ texts[[index, *others]].T
        right.append(bool(scores.argmax() == 0))
    return percent(torch.tensor([hit for hit, name in zip(right, names, strict=True) if name]))


def everyday(style: Style, language: str) -> tuple[list[str], list[Path], torch.Tensor]:
    """The twenty words, and their pictures with the right word of each."""
    entries = json.loads(EVERYDAY.read_text(encoding="utf-8"))
    by_code = dict(zip(style.codes, style.paths, strict=True))
    paths, right = [], []
    for number, entry in enumerate(entries):
        for sign in entry["signs"].split():
            code = "-".join(f"{ord(c):x}" for c in sign)
            if code in by_code:
                paths.append(by_code[code])
                right.append(number)
    return [entry[language] for entry in entries], paths, torch.tensor(right)


def measure(model: Model, style: Style, language: str) -> dict[str, float]:
    """All figures of a style in a language."""
    names = style.names[language]
    features, texts = model.encode_paths(style.paths), model.encode_text(names).clone()
    texts[[i for i, name in enumerate(names) if not name]] = 0
    first, five = all_names(features, texts, names)
    words, paths, right = everyday(style, language)
    labels = model.encode_text(words)
    figures = {
        "all names, top-1": first,
        "all names, top-5": five,
        "random three-way": random_choices(features, texts, names),
        f"20 words ({len(paths)} pictures)": percent((model.encode_paths(paths) @ labels.T).argmax(1) == right),
    }
    for name in ("light", "heavy"):
        hits = [(model.encode_augmented(paths, name, n) @ labels.T).argmax(1) == right for n in range(ROUNDS)]
        figures[f"20 words, {name} augmentation"] = percent(torch.cat(hits))
    return figures


def main() -> None:
    """Parse the command line, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--styles", nargs="+", default=STYLES)
    parser.add_argument("--template", action="append", help="prompt in both languages; repeat to average")
    options = parser.parse_args()
    model = Model(options.model, options.template or ["{}"])
    print("| style | prompts | figure | % |\n|---|---|---|---|")
    for name in options.styles:
        style = read_style(options.data, name)
        for language in ("en", "zh"):
            for figure, value in measure(model, style, language).items():
                print(f"| {name} | {language} | {figure} | {value:.1f} |")


if __name__ == "__main__":
    main()
