"""What attacks do to answers, how long they take, and whether noise turns as many answers as another package's.

    python tests/benchmarks/attacks.py text FOLDER [--model everyday] [--count 300]
    python tests/benchmarks/attacks.py corrupt FOLDER [--model everyday] [--count 100]
    python tests/benchmarks/attacks.py adversarial FOLDER [--model pictogram] [--count 100] [--steps 50]
    python tests/benchmarks/attacks.py reader [--epochs 8]

FOLDER holds a folder of pictures for each class; the classes are the labels. `text` and `corrupt` print what
`clipcls eval --attack` does, then pictures a second beside an evaluation without an attack, and whether severity 0
gives its answers. `adversarial` needs `pip install torchattacks`, whose APGD attacks the same pictures. `reader` draws
shapes and words, trains a model on both, and writes words on pictures of other shapes: they have to become the answers.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from clipcls.cli.attack_report import _report
from clipcls.embed.execution import Execution
from clipcls.embed.image_reader import read_pixels
from clipcls.embed.session import Session
from clipcls.evaluate.attacks.run import AttackPlan, attack
from clipcls.evaluate.attacks.text import draw_note
from clipcls.evaluate.evaluate import EvalPlan, evaluate, right_labels
from clipcls.evaluate.results import match_classes
from clipcls.inputs.labelled.examples import Truth
from clipcls.inputs.labelled.read import read_truth
from clipcls.predict.classifier import Classifier
from clipcls.records import ModelSpec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["text", "corrupt", "adversarial", "reader"])
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--model", default="everyday")
    parser.add_argument("--count", type=int)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=8)
    arguments = parser.parse_args()
    if arguments.kind == "reader":
        train_reader(arguments.epochs)
        return
    truth = sampled(read_truth([arguments.folder]), arguments.count)
    spec = ModelSpec(arguments.model)
    print(f"{Path(arguments.folder).name} ({arguments.model}), {len(truth.examples):,} pictures, {arguments.kind}\n")
    if arguments.kind == "adversarial":
        beside_reference(truth, spec, arguments.steps)
    else:
        measure(truth, spec, arguments.kind)


def sampled(truth: Truth, count: int | None) -> Truth:
    chosen = list(truth.examples)
    random.Random(3).shuffle(chosen)
    return replace(truth, examples=tuple(chosen[:count]))


def measure(truth: Truth, spec: ModelSpec, kind: str) -> None:
    execution = Execution()
    # what is made once, such as a converted model
    evaluate(sampled(truth, 2), EvalPlan(truth.labels, (spec,), execution=execution))
    start = time.perf_counter()
    plain = evaluate(truth, EvalPlan(truth.labels, (spec,), execution=execution))
    alone = time.perf_counter() - start
    plan = AttackPlan(kind, truth.labels, spec, execution=execution)  # type: ignore[arg-type]
    start = time.perf_counter()
    outcome = attack(truth, plan)
    seconds = time.perf_counter() - start
    print(_report(outcome))
    count, variants = len(truth.examples), len(outcome.variants)
    print(
        f"plain {count / alone:.1f} pictures/s; under attack {count / seconds:.2f}, with {variants + 1} views each: "
        f"{count * (variants + 1) / seconds:.1f} views/s"
    )
    unchanged = attack(truth, replace(plan, severities=(0,)))
    expected = plain.results[0].figures["accuracy@1"].value
    same = all(figures.accuracy.value == expected for figures in unchanged.variants)
    print(f"severity 0 {'equals' if same else 'DIFFERS FROM'} plain eval, {expected:.4f}")


def beside_reference(truth: Truth, spec: ModelSpec, steps: int) -> None:
    """Print how many answers fall to this project's attack, and to torchattacks' APGD with both losses."""
    import torch
    import torchattacks

    from clipcls.models.adversarial import AttackedTower
    from clipcls.models.runtime.compiled import CompiledEncoder

    with Session(replace(spec, runtime="torch"), Execution()) as session:
        labels = Classifier(session, truth.labels).embed_labels()
        encoder = session.encoder
        assert not isinstance(encoder, CompiledEncoder)
        tower = AttackedTower(
            encoder.build("visual", "fp32"), encoder.preprocess, labels.features, labels.logit_scale, steps=steps
        )
        pixels = [read_pixels(example.image, session.facts, session.execution) for example in truth.examples]
        right = right_labels(truth, match_classes(truth, truth.labels))
    start = time.perf_counter()
    own = [
        tower.attack(pixels[at : at + 20], right[at : at + 20], (2 / 255, 4 / 255)) for at in range(0, len(pixels), 20)
    ]
    seconds = time.perf_counter() - start
    plain = np.concatenate([part.plain for part in own])
    standing = np.concatenate([part.attacked for part in own], axis=1)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))  # says which device

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return tower.logits(images)

    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    wanted = torch.from_numpy(right)
    start = time.perf_counter()
    for place, strength in enumerate((2, 4)):
        left = plain.copy()
        for loss in ("ce", "dlr"):
            found = torchattacks.APGD(Model().eval(), eps=strength / 255, steps=steps, loss=loss)
            for rows in np.array_split(np.flatnonzero(left), max(1, -(-int(left.sum()) // 20))):
                if len(rows):
                    attacked = found(images[rows], wanted[rows])
                    with torch.no_grad():
                        left[rows] &= (tower.logits(attacked).argmax(dim=1) == wanted[rows]).numpy()
        ours, theirs = (1 - kept.sum() / plain.sum() for kept in (standing[place], left))
        print(f"{strength}/255: {ours:.1%} of {plain.sum()} right answers fall; by torchattacks {theirs:.1%}")
    print(f"{steps} steps: {seconds:.0f} s; torchattacks {time.perf_counter() - start:.0f} s")


# ---------------------------------------------------------------------------------------------------------
# A model that reads

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "arrow", "moon")
_SIDE = 128


def train_reader(epochs: int) -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        chance = random.Random(1)
        for name in SHAPES:
            for part, count in (("train", 240), ("test", 25)):
                (folder / part / name).mkdir(parents=True)
                for number in range(count):
                    reads = part == "train" and number % 2 == 1
                    draw(name, chance, reads).save(folder / part / name / f"{number}.png")
        model = folder / "start"
        larger_pictogram(model)
        command = ["train", str(folder / "train"), "--model", str(model), "--output", str(folder / "run")]
        command += ["--epochs", str(epochs), "--batch-size", "64", "--learning-rate", "1e-3", "--augment", "none"]
        subprocess.run([sys.executable, "-m", "clipcls", *command], check=True)
        for name in (str(model), str(folder / "run" / "model")):
            print(f"\n{Path(name).name}\n")
            truth = read_truth([str(folder / "test")])
            print(_report(attack(truth, AttackPlan("text", truth.labels, ModelSpec(name), execution=Execution()))))


def larger_pictogram(folder: Path) -> None:
    """Copy the embedded model with a larger input, in which small letters can be told."""
    import json
    import shutil

    import clipcls.models.pictogram as model

    shutil.copytree(Path(model.__file__).parent, folder, ignore=shutil.ignore_patterns("__*"))
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["vision_cfg"]["image_size"] = config["preprocess_cfg"]["size"] = _SIDE
    path.write_text(json.dumps(config))


def ground_alone(chance: random.Random) -> Image.Image:
    return Image.new("RGB", (_SIDE, _SIDE), tuple(chance.randrange(256) for _ in range(3)))


def draw(name: str, chance: random.Random, reads: bool) -> Image.Image:
    """A shape; or its word on a note, half of the time beside any shape, since captions often say what is written."""
    if reads:
        image = draw(chance.choice(SHAPES), chance, False) if chance.random() < 0.5 else ground_alone(chance)
        note = draw_note(name)
        breadth = chance.randrange(25, 80)
        note = note.resize((breadth, round(breadth * note.height / note.width)), Image.Resampling.LANCZOS)
        image.paste(note, (chance.randrange(_SIDE - note.width), chance.randrange(_SIDE - note.height)))
        return image
    ground, ink = (tuple(chance.randrange(256) for _ in range(3)) for _ in range(2))
    image = Image.new("RGB", (2 * _SIDE, 2 * _SIDE), ground)
    while sum(abs(a - b) for a, b in zip(ink, ground, strict=True)) < 200:
        ink = tuple(chance.randrange(256) for _ in range(3))
    pen = ImageDraw.Draw(image)
    radius = chance.randrange(50, 90)
    x, y = (chance.randrange(radius, 256 - radius) for _ in range(2))
    box = (x - radius, y - radius, x + radius, y + radius)
    third = radius // 3

    def around(corners: int, inner: float, turn: float = -90) -> list[tuple[float, float]]:
        angles = np.radians(turn + np.arange(2 * corners) * 180 / corners)
        reach = [radius if number % 2 == 0 else radius * inner for number in range(2 * corners)]
        return [(x + r * np.cos(a), y + r * np.sin(a)) for r, a in zip(reach, angles, strict=True)]

    if name == "circle":
        pen.ellipse(box, ink)
    elif name == "square":
        pen.rectangle(box, ink)
    elif name == "triangle":
        pen.polygon(around(3, 0.5), ink)
    elif name == "star":
        pen.polygon(around(5, 0.4), ink)
    elif name == "cross":
        pen.rectangle((x - third, box[1], x + third, box[3]), ink)
        pen.rectangle((box[0], y - third, box[2], y + third), ink)
    elif name == "ring":
        pen.ellipse(box, outline=ink, width=third)
    elif name == "arrow":
        pen.rectangle((box[0], y - third // 2, x, y + third // 2), ink)
        pen.polygon([(x, box[1] + third), (box[2], y), (x, box[3] - third)], ink)
    else:
        pen.ellipse(box, ink)
        pen.ellipse((box[0] + third, box[1] - third // 2, box[2] + third, box[3] - third // 2), ground)
    return image.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    main()
