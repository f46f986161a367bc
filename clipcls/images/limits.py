"""What a file may ask for in pixels, tiles and scans, looked at before it costs memory or time.

The functions raise `ImageError` where it is more.
"""

from typing import BinaryIO

from PIL import Image

from clipcls.errors import ImageError

#: Pillow's own limit, above which it speaks of a decompression bomb: 537 MB of RGB.
MAX_PIXELS = 178_956_970

# A tile of a TIFF is unpacked whole, however little of it the picture shows; up to here that is no matter.
_USUAL_TILE = 4096**2

# Of the largest picture; smaller ones may have more. Encoders make ten of them.
_MOST_SCANS = 12


def raise_pillows_limit(max_pixels: int) -> None:
    """Let Pillow decode pictures of as many pixels; its limit is one for the whole process."""
    limit = Image.MAX_IMAGE_PIXELS  # Pillow warns above it and refuses above twice as much
    if limit is not None and max_pixels > 2 * limit:
        Image.MAX_IMAGE_PIXELS = (max_pixels + 1) // 2


def require_fitting(image: Image.Image, max_pixels: int) -> None:
    """Look at a picture's size, and at that of a TIFF's tiles."""
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(f"{width:,} × {height:,} pixels, more than the limit of {max_pixels:,}")
    tags = getattr(image, "tag_v2", {})
    across, down = tags.get(322), tags.get(323)
    if isinstance(across, int) and isinstance(down, int) and across * down > max(max_pixels, _USUAL_TILE):
        raise ImageError(f"tiles of {across:,} × {down:,} pixels, more than the limit of {max_pixels:,}")


def require_few_scans(file: BinaryIO, image: Image.Image, max_pixels: int) -> None:
    """Every scan of a JPEG, of a dozen bytes perhaps, costs the time of going through all of its pixels.

    Args:
        file: where Pillow left it, behind the header of the first scan.
    """
    layers = getattr(image, "layers", 0)
    whole = bytes((0xFF, 0xDA, 0, 6 + 2 * layers, layers))  # a scan of all layers: in a plain JPEG the only one
    file.seek(max(0, file.tell() - 8 - 2 * layers))
    if file.read(len(whole)) == whole and not image.info.get("progressive"):
        return
    file.seek(0)
    scans, (width, height) = file.read().count(b"\xff\xda"), image.size
    if scans * width * height > _MOST_SCANS * max(max_pixels, MAX_PIXELS):
        raise ImageError(f"{scans:,} scans of {width:,} × {height:,} pixels, more than any picture needs")


def require_fitting_icons(file: BinaryIO, max_pixels: int) -> None:
    """Look at the sizes of the pictures in an icon, of which Pillow decodes one as soon as it opens the file."""
    file.seek(4)
    directory = file.read(16 * int.from_bytes(file.read(2), "little"))
    for entry in range(0, len(directory) - 15, 16):
        file.seek(int.from_bytes(directory[entry + 12 : entry + 16], "little"))
        head = file.read(24)
        if head.startswith(b"\x89PNG"):
            width, height = int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
        else:  # a bitmap, and as many rows of its mask
            width = int.from_bytes(head[4:8], "little", signed=True)
            height = int.from_bytes(head[8:12], "little", signed=True) // 2
        if abs(width * height) > max_pixels:
            raise ImageError(f"{abs(width):,} × {abs(height):,} pixels, more than the limit of {max_pixels:,}")
