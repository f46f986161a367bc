"""Tell a picture by its first bytes."""

import os
import re
import stat

_SIGNATURES = {
    rb"\xff\xd8\xff": "JPEG",
    rb"\x89PNG\r\n\x1a\n": "PNG",
    rb"GIF8": "GIF",
    rb"RIFF....WEBP": "WEBP",
    rb"II[*+]\0|MM\0[*+]": "TIFF",
    rb"\x00\x00\x01\x00": "ICO",
}

#: How many bytes of a file's beginning tell its format.
HEAD_BYTES = 256

# The container of HEIC and of AVIF files names its content in a list of brands, of which some fit both.
_HEIC_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"))
_AVIF_BRANDS = frozenset((b"avif", b"avis"))
_SHARED_BRANDS = frozenset((b"mif1", b"mif2", b"msf1", b"miaf"))


def kind_of(head: bytes) -> str | None:
    """Return the format by a file's first bytes; None where they leave doubt."""
    if head[4:8] != b"ftyp":
        return next((name for start, name in _SIGNATURES.items() if re.match(start, head, re.DOTALL)), None)
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = (head[8:12], *(head[at : at + 4] for at in range(16, end - 3, 4)))  # the first one counts most
    for brand in brands:
        if brand in _HEIC_BRANDS or brand in _AVIF_BRANDS:
            return "HEIC" if brand in _HEIC_BRANDS else "AVIF"
    return "HEIC" if brands[0] in _SHARED_BRANDS else None


def looks_like_picture(path: str) -> bool:
    """Tell whether a file begins as a picture does; not if it can't be read, or is a device or a pipe."""
    try:
        status = os.stat(path)  # noqa: PTH116, the name stays as given
        if not stat.S_ISREG(status.st_mode) or not status.st_size:  # those in /proc have no size, and may block
            return False
        with open(path, "rb") as file:  # noqa: PTH123, the name stays as given
            return kind_of(file.read(HEAD_BYTES)) is not None
    except OSError:
        return False
