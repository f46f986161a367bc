"""Generated pictures for benchmarks, the same at every run.

They have the entropy of photographs: smooth shapes with a little noise. The corpora are `small` (JPEGs of 500×375),
`large` (JPEGs of 4000×3000), `png` (PNGs of 500×375) and `mix` (JPEGs of several sizes, PNG, WebP, greyscale, RGBA).
No picture has an EXIF orientation or a colour profile.
"""

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Size = tuple[int, int]

SMALL, LARGE = (500, 375), (4000, 3000)
NOISE, QUALITY = 6, 88


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of picture of the mix."""

    size: Size
    ending: str = ".jpg"
    mode: str = "RGB"


MIX = (
    Kind(SMALL),
    Kind((1024, 768)),
    Kind(SMALL, ".png"),
    Kind((375, 500), mode="L"),
    Kind((640, 480), ".webp"),
    Kind((1920, 1440)),
    Kind((400, 400), ".png", "RGBA"),
    Kind((240, 180)),
    Kind(SMALL, ".png", "L"),
    Kind((1200, 800), ".webp"),
)

TITLES = {
    "small": "JPEG 500×375",
    "large": "JPEG 4000×3000",
    "png": "PNG 500×375",
    "mix": "a mix of JPEG, PNG and WebP, 240×180 to 1920×1440, some grey or RGBA",
}


def corpus(folder: Path, name: str, count: int) -> list[Path]:
    """The pictures of a corpus, made unless they lie in the folder already."""
    made = folder / f"{name}-{count}"
    if not made.is_dir():
        # under another name until it is whole, so that what an interrupted run leaves is never taken for it
        making = Path(tempfile.mkdtemp(prefix="unfinished-", dir=folder))
        match name:
            case "large":
                make_large_pictures(making, count)
            case "mix":
                make_mix(making, MIX, count)
            case "png":
                make_mix(making, [Kind(SMALL, ".png")], count)
            case _:
                make_pictures(making, count, SMALL)
        making.rename(made)
    return sorted(made.iterdir())


def make_pictures(folder: Path, count: int, size: Size) -> list[Path]:
    """JPEGs of one size."""
    random = np.random.default_rng(0)
    paths = []
    for i in range(count):
        paths.append(folder / f"{i:05d}.jpg")
        _paint(random, size).save(paths[-1], quality=QUALITY)
    return paths


def make_mix(folder: Path, kinds: Iterable[Kind], count: int) -> None:
    """Pictures of the kinds in turn."""
    random = np.random.default_rng(0)
    for i, kind in enumerate(islice(cycle(kinds), count)):
        image = _paint(random, kind.size)
        if kind.mode == "RGBA":
            alpha = random.integers(0, 256, (24, 32), dtype=np.uint8)
            image.putalpha(Image.fromarray(alpha).resize(kind.size, Image.Resampling.BICUBIC))
        image.convert(kind.mode).save(folder / f"{i:05d}{kind.ending}", quality=QUALITY)


def make_large_pictures(folder: Path, count: int) -> None:
    """JPEGs of 4000×3000 as `make_pictures` would give them, but one noise serves all, since drawing it takes long."""
    random = np.random.default_rng(0)
    noise = random.standard_normal((LARGE[1], LARGE[0], 3), dtype=np.float32)
    noise = np.rint(noise * NOISE, out=noise).astype(np.int16)
    for i in range(count):
        pixels = _shapes(random, LARGE)
        pixels += np.roll(noise, tuple(random.integers(0, LARGE[1], 2)), axis=(0, 1))
        Image.fromarray(pixels.clip(0, 255, out=pixels).astype(np.uint8)).save(folder / f"{i:05d}.jpg", quality=QUALITY)


def _paint(random: np.random.Generator, size: Size) -> Image.Image:
    pixels = _shapes(random, size)
    noisy = pixels + random.normal(0, NOISE, pixels.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _shapes(random: np.random.Generator, size: Size) -> NDArray[np.int16]:
    coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    return np.array(coarse.resize(size, Image.Resampling.BICUBIC), dtype=np.int16)
