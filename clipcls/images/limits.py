"""Refuse files with too many pixels, too large tiles or too many scans before they cost memory or time.

The `require_` functions raise `TooLargeError` for such a file.
"""

import os
import re
from typing import BinaryIO

import numpy as np
from PIL import Image

from clipcls.errors import TooLargeError

#: Pillow's own limit, above which it warns of a decompression bomb: 537 MB of RGB.
MAX_PIXELS = 178_956_970

# A tile of a TIFF is unpacked whole, however little of it the picture shows; up to this size that is harmless.
_USUAL_TILE = 4096**2

# Scans that the largest picture may have; smaller ones may have more. Encoders make ten of them.
_MOST_SCANS = 12

# The marker that begins a scan, as a native 16-bit number, and the length of a scan's shortest header.
_SCAN = np.frombuffer(b"\xff\xda", np.uint16)[0]
_SCAN_BYTES = 10
# A marker that begins a segment, and isn't a byte of a scan's data or the end of a part of one.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
_BEGINS_SCAN, _END = 0xDA, 0xD9


def raise_pillows_limit(max_pixels: int) -> None:
    """Let Pillow decode pictures of up to `max_pixels`; its limit holds for the whole process."""
    limit = Image.MAX_IMAGE_PIXELS  # Pillow warns above it and refuses above twice as much
    if limit is not None and max_pixels > 2 * limit:
        Image.MAX_IMAGE_PIXELS = (max_pixels + 1) // 2


def require_fitting(image: Image.Image, max_pixels: int) -> None:
    """Refuse a picture, or a TIFF's tiles, with too many pixels."""
    width, height = image.size
    if width * height > max_pixels:
        raise TooLargeError(f"{width:,} × {height:,} pixels, more than the limit of {max_pixels:,}")
    tags = getattr(image, "tag_v2", {})
    across, down = tags.get(322), tags.get(323)
    if isinstance(across, int) and isinstance(down, int) and across * down > max(max_pixels, _USUAL_TILE):
        raise TooLargeError(f"tiles of {across:,} × {down:,} pixels, more than the limit of {max_pixels:,}")


def require_few_scans(file: BinaryIO, image: Image.Image, max_pixels: int) -> None:
    """Refuse a JPEG with too many scans: each, though it may have a dozen bytes, costs a pass over all pixels.

    Args:
        file: the file at the position where Pillow left it, behind the header of the first scan.
    """
    layers = getattr(image, "layers", 0)
    whole = bytes((0xFF, 0xDA, 0, 6 + 2 * layers, layers))  # a scan of all layers: in a plain JPEG the only one
    file.seek(max(0, file.tell() - 8 - 2 * layers))
    if file.read(len(whole)) == whole and not image.info.get("progressive"):
        return
    width, height = image.size
    most = _MOST_SCANS * max(max_pixels, MAX_PIXELS)
    file.seek(0, os.SEEK_END)
    if file.tell() // _SCAN_BYTES * width * height <= most:
        return
    file.seek(0)
    data = file.read()
    if _count_markers(data) * width * height <= most:  # at most so many, with what lies behind the picture
        return
    usual = most // (width * height)
    if _count_scans(data, usual + 1) > usual:
        raise TooLargeError(f"more than {usual:,} scans of {width:,} × {height:,} pixels, which no picture needs")


def _count_markers(data: bytes) -> int:
    """Count the markers of scans, at even and at odd places; `bytes.count` takes five times as long."""
    values = np.frombuffer(data, np.uint8)
    pairs = (values[start : start + (len(values) - start) // 2 * 2].view(np.uint16) for start in (0, 1))
    return sum(int(np.count_nonzero(pair == _SCAN)) for pair in pairs)


def _count_scans(data: bytes, most: int) -> int:
    """Count the scans up to the picture's end, behind which cameras put films; no further than `most`."""
    scans, place = 0, 2
    while scans < most and (found := _MARKER.search(data, place)):
        marker, place = found[0][1], found.end()
        if marker == _END:
            break
        scans += marker == _BEGINS_SCAN
        place += int.from_bytes(data[place : place + 2], "big")  # a segment's length counts its own two bytes
    return scans


def require_fitting_icons(file: BinaryIO, max_pixels: int) -> None:
    """Refuse an icon with a picture of too many pixels, since Pillow decodes one as soon as it opens the file."""
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
            raise TooLargeError(f"{abs(width):,} × {abs(height):,} pixels, more than the limit of {max_pixels:,}")
