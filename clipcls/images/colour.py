"""Convert every mode of Pillow's to 8 bits, grey or RGB."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipcls.errors import ImageError


def to_eight_bits(image: Image.Image, transparency: bool = False) -> Image.Image:
    """Convert any mode to L or RGB, with transparency laid on white, or kept as RGBA if `transparency` is set."""
    if image.mode.startswith("I;16"):
        return _from_sixteen_bits(image)
    if image.mode in ("I", "F"):
        return _from_range(image)
    if image.has_transparency_data:
        return image.convert("RGBA") if transparency else _on_white(image)
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _on_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(rgba, mask=rgba)
    return white


def _from_sixteen_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey by its type's full range (65535 is white), which keeps a picture's brightness."""
    tags = getattr(image, "tag_v2", {})  # TIFF's, and unknown to Pillow: 12 bits in 16, and 0 for white
    full = 4095 if tags.get(258) == (12,) else 65535
    values = np.asarray(image).astype(np.uint32)
    grey = ((values * 255 + full // 2) // full).clip(0, 255).astype(np.uint8)
    if tags.get(262) == 0:
        grey = 255 - grey
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey[values == key] = 255
    return Image.fromarray(grey)


# above it, an integer is an unsigned one of 32 bits
_LARGEST_SIGNED = 2**31 - 1


def _unsigned(image: Image.Image) -> Image.Image | NDArray[np.uint32]:
    """Return the pixels of a TIFF of unsigned 32-bit integers as such, which Pillow gives as signed ones."""
    tags = getattr(image, "tag_v2", {})
    if image.mode == "I" and tags.get(258) == (32,) and tags.get(339, (1,)) == (1,):
        return np.array(image, np.int32).view(np.uint32)
    return image


def _from_range(image: Image.Image) -> Image.Image:
    """Convert 32-bit integers and floats to grey.

    Their types don't say what white is. PNM files of more than 8 bits are known to reach 65535; for others,
    values within 0 to 1 (floats), 0 to 255 or 0 to 65535 (integers) are taken as such, integers above the largest
    signed one within 0 to 4294967295, and all else is stretched from its own smallest to its own largest value.
    Infinities count as the ends of that range, NaN as its lower end.
    """
    with np.errstate(invalid="ignore"):  # converting some NaNs would warn
        values = np.array(_unsigned(image), np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        raise ImageError("no pixel holds a finite number")
    low, high = values.min(where=finite, initial=np.inf), values.max(where=finite, initial=-np.inf)
    if image.format == "PPM" and image.mode == "I":
        low, high = 0.0, 65535.0
    elif low >= 0:
        limits = [1.0, 255.0] if image.mode == "F" else [255.0, 65535.0]
        if image.mode == "I" and high > _LARGEST_SIGNED:
            limits.append(2.0**32 - 1)
        within = [limit for limit in limits if high <= limit]
        low, high = (0.0, within[0]) if within else (low, high)
    np.nan_to_num(values, copy=False, nan=low, posinf=high, neginf=low)
    values -= low
    values *= 255.0 / (high - low) if high > low else 0.0
    grey = values.round(out=values).clip(0, 255, out=values).astype(np.uint8)
    return Image.fromarray(255 - grey if getattr(image, "tag_v2", {}).get(262) == 0 else grey)
