"""PNGs: the colour that one declares transparent, and texts and profiles that Pillow refuses to unpack."""

import io
from typing import BinaryIO

from PIL import ImageFile

# chunks that unpack to what Pillow limits; of these, only texts of two names may say how the picture is turned
_TEXTS = (b"iCCP", b"iTXt", b"zTXt", b"tEXt")
_OF_ORIENTATION = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")
_SIGNATURE_BYTES = 8


def fit_transparent_colour(image: ImageFile.ImageFile) -> None:
    """Bring the colour that a PNG declares transparent to the depth that Pillow gives its pixels, 8 bits mostly.

    Source: PNG specification, third edition, 11.3.1.1: of a colour's two bytes, only the bits of a sample count.
    """
    colour = image.info.get("transparency")
    if image.format != "PNG" or not image.tile or isinstance(colour, bytes):
        return
    samples = image.tile[0][3]  # as they are in the file
    if isinstance(colour, tuple):
        wide = samples == "RGB;16B"  # Pillow keeps the high byte of each sample
        image.info["transparency"] = tuple(value >> 8 if wide else value & 255 for value in colour)
    elif isinstance(colour, int) and samples in ("L", "L;2", "L;4"):
        most = {"L": 255, "L;2": 3, "L;4": 15}[samples]
        image.info["transparency"] = (colour & most) * (255 // most)


def without_texts(file: BinaryIO, keep_orientation: bool) -> BinaryIO:
    """Return a copy of a PNG without its colour profile and its texts.

    Args:
        keep_orientation: keeps the texts that may hold its orientation.
    """
    file.seek(0)
    kept = [file.read(_SIGNATURE_BYTES)]
    while len(head := file.read(8)) == 8:
        body = file.read(int.from_bytes(head[:4], "big") + 4)  # its checksum follows
        if head[4:] not in _TEXTS or (keep_orientation and body.startswith(_OF_ORIENTATION)):
            kept += [head, body]
    return io.BytesIO(b"".join(kept))
