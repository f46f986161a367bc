"""How well `clipcls duplicates` tells copies from frames of a burst and from other pictures, and how long it takes.

    python tests/benchmarks/duplicates.py PHOTOGRAPHS --scenes 60 --different 1000

PHOTOGRAPHS is a folder of at least that many photographs. Of each of the first ones, an original is made with copies
(COPIES) and with what isn't a copy (OTHERS): what a second frame of a burst would show, the mirror image, and so on.
The rest stay as they are: different pictures. All are searched at once, by each model and from each cosine on.

    python tests/benchmarks/duplicates.py --vectors 100000

measures how long the nearest of random vectors are looked for.
"""

import argparse
import io
import random
import resource
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from machine import describe, load
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from training import scratch_folder

from clipcls.embed.execution import Execution
from clipcls.embed.session import Session
from clipcls.inputs.listing import Sources
from clipcls.predict.duplicates import MOST_COMPARED, find_duplicates
from clipcls.predict.neighbours import near_pairs
from clipcls.records import Duplicate, Likeness

Picture = Image.Image
Random = np.random.Generator

MODELS = ("pictogram", "everyday")
COMPARED = (0.5, 0.7, 0.8, 0.9)
OF_SCENE = (0.85, 0.9, 0.95)
# of a photograph's sides, what the original shows: beside it is what other frames show
_FRAME = 0.84


def crop(image: Picture, share: float, chance: Random) -> Picture:
    """A part of a picture, anywhere in it."""
    width, height = round(image.width * share), round(image.height * share)
    left, top = int(chance.integers(image.width - width + 1)), int(chance.integers(image.height - height + 1))
    return image.crop((left, top, left + width, top + height))


def resize(image: Picture, share: float) -> Picture:
    """A smaller picture."""
    return image.resize((max(1, round(image.width * share)), max(1, round(image.height * share))))


def encode(image: Picture, quality: int = 85, orientation: int = 1, format: str = "JPEG") -> bytes:
    """A picture's file."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = io.BytesIO()
    image.save(content, format, quality=quality, exif=exif.tobytes())
    return content.getvalue()


def frame(photograph: Picture, turn: float = 0.0, zoom: float = 1.0, shift: tuple[float, float] = (0, 0)) -> Picture:
    """What a camera sees of a photograph."""
    turned = photograph.rotate(turn, Image.Resampling.BICUBIC) if turn else photograph
    x, y = photograph.width * (0.5 + shift[0]), photograph.height * (0.5 + shift[1])
    across, down = photograph.width * _FRAME * zoom / 2, photograph.height * _FRAME * zoom / 2
    size = (round(photograph.width * _FRAME), round(photograph.height * _FRAME))
    box = (x - across, y - down, x + across, y + down)
    return turned.transform(size, Image.Transform.EXTENT, box, Image.Resampling.BICUBIC)


def with_noise(image: Picture, chance: Random) -> Picture:
    """A picture with a sensor's noise."""
    pixels = np.asarray(image, dtype=np.float32)
    return Image.fromarray((pixels + chance.normal(0, 3, pixels.shape)).clip(0, 255).astype(np.uint8))


def with_movement(image: Picture, chance: Random) -> Picture | None:
    """A picture in which a part of a fifth of the sides is elsewhere; None where that doesn't show."""
    width, height = image.width // 5, image.height // 5
    for _ in range(50):
        x, y = int(chance.integers(width, image.width - 2 * width)), int(chance.integers(height, 3 * height))
        moved = image.copy()
        moved.paste(image.crop((x, y, x + width, y + height)), (x + width // 3, y - height // 3))
        changed = np.abs(np.asarray(moved, dtype=np.float32) - np.asarray(image, dtype=np.float32)).mean(axis=2) > 25
        if changed.mean() > 0.012:
            return moved
    return None


def with_text(image: Picture) -> Picture:
    """A picture with a greeting."""
    written = image.copy()
    size = max(8, image.width // 12)
    place = (image.width * 0.1, image.height * 0.8)
    ImageDraw.Draw(written).text(place, "Happy birthday!", "white", font_size=size, stroke_width=2, stroke_fill="black")
    return written


def in_grey(image: Picture) -> Picture | None:
    """A picture in grey; None where it hardly had any colour."""
    pixels = np.asarray(image, dtype=np.int16)
    return image.convert("L") if np.ptp(pixels, axis=2).mean() > 12 else None


def one_sided(chance: Random, low: float, high: float) -> float:
    """A number between two limits, or its negative."""
    return float(chance.choice([-1, 1]) * chance.uniform(low, high))


def shift(chance: Random) -> tuple[float, float]:
    """One to four hundredths of the sides, in any direction."""
    return one_sided(chance, 0.01, 0.04), one_sided(chance, 0.01, 0.04)


def burst(photograph: Picture, chance: Random) -> Picture:
    """The next frame of a burst: turned, shifted, nearer or farther, lighter or darker, with other noise."""
    seen = frame(photograph, one_sided(chance, 0.5, 3), chance.uniform(0.97, 1.03), shift(chance))
    return with_noise(ImageEnhance.Brightness(seen).enhance(chance.uniform(0.95, 1.05)), chance)


COPIES: dict[str, Callable[[Picture, Random], bytes]] = {
    "JPEG 30": lambda original, _: encode(original, 30),
    "WebP 60": lambda original, _: encode(original, 60, format="WEBP"),
    "a quarter of the size": lambda original, _: encode(resize(original, 0.25)),
    "crop of 90 %": lambda original, chance: encode(crop(original, 0.9, chance)),
    "turned, with the flag": lambda original, _: encode(original.transpose(Image.Transpose.ROTATE_90), 85, 6),
    "sent: crop, half the size, JPEG 50": lambda original, chance: encode(resize(crop(original, 0.9, chance), 0.5), 50),
}


def moved_burst(photograph: Picture, chance: Random) -> Picture | None:
    """The next frame of a burst: shifted, with other noise, and with something moved."""
    moved = with_movement(photograph, chance)
    return None if moved is None else with_noise(frame(moved, shift=shift(chance)), chance)


def on_tripod(original: Picture, chance: Random) -> Picture | None:
    """The same picture with other noise, and with something moved."""
    moved = with_movement(original, chance)
    return None if moved is None else with_noise(moved, chance)


OTHERS: dict[str, Callable[[Picture, Picture, Random], Picture | None]] = {
    "burst": lambda photograph, _, chance: burst(photograph, chance),
    "burst, something moved": lambda photograph, _, chance: moved_burst(photograph, chance),
    "tripod, something moved": lambda _, original, chance: on_tripod(original, chance),
    "other exposure": lambda _, original, chance: ImageEnhance.Brightness(original).enhance(
        chance.choice([0.85, 1.15])
    ),
    "mirrored": lambda _, original, __: ImageOps.mirror(original),
    "grey": lambda _, original, __: in_grey(original),
    "with a text": lambda _, original, __: with_text(original),
}
SHOTS = ("burst", "burst, something moved", "tripod, something moved")


def make(photographs: Sequence[Path], scenes: int, folder: Path) -> None:
    """Write the pictures, one folder a scene; of the different ones, one a folder."""
    for number, path in enumerate(photographs):
        place = folder / f"{number:05}"
        place.mkdir()
        if number >= scenes:
            (place / f"different{path.suffix.lower()}").write_bytes(path.read_bytes())
            continue
        chance = np.random.default_rng(number)
        photograph = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        original = frame(photograph)
        (place / "original.jpg").write_bytes(encode(original, 92))
        for name, copy in COPIES.items():
            (place / f"{name}.jpg").write_bytes(copy(original, chance))
        for name, other in OTHERS.items():
            made = other(photograph, original, chance)
            if made is not None:
                (place / f"{name}.jpg").write_bytes(encode(made, 88))


def groups_of(rows: Sequence[Duplicate]) -> list[list[Path]]:
    """The paths of each group, the one to keep first."""
    groups: dict[int, list[Path]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(Path(row.path))
    return list(groups.values())


def search(folder: Path, model: str, kind: Likeness, threshold: float, cache: Path) -> tuple[list[list[Path]], float]:
    """The groups, and the seconds that the search took."""
    with Session(model, Execution(cache_dir=cache)) as session:
        start = time.perf_counter()
        report = find_duplicates(Sources([str(folder)]), session, kind, threshold)
        return groups_of(report.rows), time.perf_counter() - start


def false_groups(groups: Sequence[Sequence[Path]]) -> list[list[Path]]:
    """Those with pictures of two scenes."""
    return [list(group) for group in groups if len({path.parent for path in group}) > 1]


def report_copies(folder: Path, scenes: int, cache: Path) -> None:
    """Print what is found from each cosine on."""
    header = " | ".join(COPIES)
    print(f"| model | cosine | seconds | precision | {header} | different together |")
    print("|" + "---|" * (len(COPIES) + 5))
    for model in MODELS:
        search(folder, model, "picture", 1.0, cache)  # fills the cache
        for threshold in COMPARED:
            groups, seconds = search(folder, model, "picture", threshold, cache)
            with_original = [[path.stem for path in group] for group in groups]
            found = Counter(name for group in with_original if "original" in group for name in group)
            good = bad = 0
            for keep, *others in groups:
                copies = {"original", *COPIES}
                right = [path.parent == keep.parent and {path.stem, keep.stem} <= copies for path in others]
                good, bad = good + sum(right), bad + len(right) - sum(right)
                for path in (path for path, is_right in zip(others, right, strict=True) if not is_right):
                    print(f"<!-- wrong: {path.parent.name}/{path.stem}, kept {keep.parent.name}/{keep.stem} -->")
            recalls = " | ".join(f"{found[name] / scenes:.3f}" for name in COPIES)
            false = len(false_groups(groups))
            print(f"| {model} | {threshold} | {seconds:.0f} | {good / max(good + bad, 1):.4f} | {recalls} | {false} |")


def report_scenes(folder: Path, cache: Path) -> None:
    """Print how many frames are in one group with their original, from each cosine on."""
    print(f"\n| model | cosine | {' | '.join(SHOTS)} | different together |\n" + "|" + "---|" * (len(SHOTS) + 3))
    for model in MODELS:
        for threshold in OF_SCENE:
            groups, _ = search(folder, model, "scene", threshold, cache)
            stems = [[path.stem for path in group] for group in groups]
            found = Counter(stem for group in stems if "original" in group for stem in group)
            made = {name: len(list(folder.glob(f"*/{name}.jpg"))) for name in SHOTS}
            recalls = " | ".join(f"{found[name] / made[name]:.3f}" for name in SHOTS)
            print(f"| {model} | {threshold} | {recalls} | {len(false_groups(groups))} |")


def measure_vectors(count: int) -> None:
    """Print how long the nearest of random vectors are looked for, a tenth of which have a near one."""
    chance = np.random.default_rng(0)
    features = chance.standard_normal((count, 512), dtype=np.float32)
    near = count // 10
    features[-near:] = features[:near] + 0.1 * chance.standard_normal((near, 512), dtype=np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    start = time.perf_counter()
    pairs = near_pairs(features, 0.7, MOST_COMPARED)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{count:,} vectors of 512: {len(pairs.first):,} pairs of {near:,} in {seconds:.0f} s, peak {peak:.0f} MiB")


def main() -> None:
    """Parse the command line, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path, nargs="*", help="folders of photographs")
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--different", type=int, default=1000)
    parser.add_argument("--vectors", type=int, default=0)
    options = parser.parse_args()
    print("  \n".join([*describe(None), f"{load()}\n"]), flush=True)
    if options.vectors:
        measure_vectors(options.vectors)
    if not options.photographs:
        return
    found = sorted(
        path for folder in options.photographs for path in folder.rglob("*") if path.suffix in (".jpg", ".png")
    )
    random.Random(0).shuffle(found)
    with scratch_folder() as scratch:
        folder = scratch / "pictures"
        folder.mkdir()
        make(found[: options.scenes + options.different], options.scenes, folder)
        report_copies(folder, options.scenes, scratch / "cache")
        report_scenes(folder, scratch / "cache")


if __name__ == "__main__":
    main()
