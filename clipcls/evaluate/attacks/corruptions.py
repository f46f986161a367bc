"""Spoils pictures as cameras, light and files do, at five severities.

Strengths are told for a picture of 256 pixels on the shorter side, to which larger pictures are scaled down first, so
that pictures of all sizes are spoilt alike.

Source of the idea and of some strengths: Hendrycks and Dietterich 2019, https://arxiv.org/abs/1903.12261
"""

import io
import math
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageFilter

from clipcls.evaluate.attacks.pictures import Variant, checked_severities
from clipcls.images.geometry import Picture, as_image
from clipcls.images.pillow_errors import pillow_errors
from clipcls.records import Preprocessing

MOST = 5

_SIDE = 256
# a model's input and a little more, which is what a larger one is scaled down to instead
_INPUTS = 8 / 7
_GAMMA = 2.2
_LUMA = (0.299, 0.587, 0.114)


def _blurred(image: Image.Image, strength: float, random: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(strength * min(image.size) / _SIDE))


def _noisy(image: Image.Image, strength: float, random: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image, dtype=np.float32)
    return _image(pixels + random.standard_normal(pixels.shape, dtype=np.float32) * np.float32(255 * strength))


def _compressed(image: Image.Image, strength: float, random: np.random.Generator) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=round(strength))
    with Image.open(file) as found:
        return found.convert("RGB")


def _exposed(image: Image.Image, strength: float, random: np.random.Generator) -> Image.Image:
    factor = 2 ** (strength / _GAMMA)
    return image.point([min(255, round(value * factor)) for value in range(256)] * 3)


def _greyed(image: Image.Image, strength: float, random: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image, dtype=np.float32)
    grey = (pixels @ np.array(_LUMA, dtype=np.float32))[:, :, None]
    return _image(pixels + np.float32(strength) * (grey - pixels))


def _turned(image: Image.Image, strength: float, random: np.random.Generator) -> Image.Image:
    """Turn a picture about its middle; beyond its edges, it is mirrored."""
    angle = strength * random.choice((-1.0, 1.0))
    width, height = image.size
    reach = math.sin(math.radians(strength))
    across, down = math.ceil(height * reach / 2) + 1, math.ceil(width * reach / 2) + 1
    wide = np.pad(np.asarray(image), ((down, down), (across, across), (0, 0)), mode="symmetric")
    turned = Image.fromarray(wide).rotate(angle, Image.Resampling.BICUBIC)
    return turned.crop((across, down, across + width, down + height))


def _cropped(image: Image.Image, strength: float, random: np.random.Generator) -> Image.Image:
    width, height = (max(1, round(side * strength)) for side in image.size)
    left, top = (random.integers(whole - part + 1) for whole, part in zip(image.size, (width, height), strict=True))
    return image.crop((int(left), int(top), int(left) + width, int(top) + height))


def _coarse(image: Image.Image, strength: float, random: np.random.Generator) -> Image.Image:
    scale = min(1.0, strength / min(image.size))
    return image.resize(_scaled(image.size, scale), Image.Resampling.BICUBIC)


_Corruption = Callable[[Image.Image, float, np.random.Generator], Image.Image]

#: What spoils a picture, its strengths by severity, and how they are told.
CORRUPTIONS: dict[str, tuple[_Corruption, tuple[float, ...], str]] = {
    "blur": (_blurred, (1, 2, 3, 4.5, 6), "{:g} pixels"),
    "noise": (_noisy, (0.04, 0.08, 0.12, 0.18, 0.26), "deviation {:.0%}"),
    "JPEG": (_compressed, (50, 30, 18, 10, 6), "quality {:g}"),
    "dark": (_exposed, (-1, -2, -3, -4, -5), "{:+g} stops"),
    "bright": (_exposed, (0.6, 1.2, 1.8, 2.4, 3), "{:+g} stops"),
    "grey": (_greyed, (0.2, 0.4, 0.6, 0.8, 1), "{:.0%}"),
    "rotate": (_turned, (5, 10, 15, 22, 30), "{:g}°"),
    "crop": (_cropped, (0.9, 0.8, 0.7, 0.6, 0.5), "{:.0%} of each side"),
    "low resolution": (_coarse, (128, 96, 64, 48, 32), "{:g} pixels"),
}


class Corruptions:
    """Spoils each picture in all ways.

    Args:
        severities: 0 to 5; None for all but 0.
    """

    def __init__(self, preprocess: Preprocessing, severities: tuple[int, ...] | None, seed: int) -> None:
        chosen = checked_severities(severities, MOST, "corrupt")
        self.variants = tuple(
            Variant(name, severity, words.format(strengths[severity - 1]) if severity else "unchanged")
            for name, (_, strengths, words) in CORRUPTIONS.items()
            for severity in chosen
        )
        self._side = max(_SIDE, math.ceil(min(preprocess.size) * _INPUTS))
        self._seed = seed

    def change(self, picture: Picture, place: int) -> Iterator[Picture]:
        """Yield the picture, spoilt in each way."""
        small = _scaled_down(picture, self._side)
        for variant in self.variants:
            if variant.severity == 0:
                yield picture
                continue
            spoil, strengths, _ = CORRUPTIONS[variant.name]
            # the same chance for all severities
            random = np.random.default_rng((self._seed, place, list(CORRUPTIONS).index(variant.name)))
            with pillow_errors("image"):
                spoilt = spoil(small, strengths[variant.severity - 1], random)
            yield Picture(spoilt, picture.size, spoilt.size)


def _scaled_down(picture: Picture, side: int) -> Image.Image:
    """Return a picture in RGB, its shorter side no longer than `side`."""
    (width, height), (left, top) = picture.extent, picture.origin
    image = as_image(picture.image)
    size = _scaled(picture.extent, min(1.0, side / min(width, height)))
    box = (left, top, min(left + width, image.width), min(top + height, image.height))
    with pillow_errors("image"):
        return image.convert("RGB").resize(size, Image.Resampling.BICUBIC, box, 3.0)


def _scaled(size: tuple[float, float], scale: float) -> tuple[int, int]:
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _image(pixels: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Image.Image:
    return Image.fromarray(np.clip(pixels.round(), 0, 255).astype(np.uint8))
