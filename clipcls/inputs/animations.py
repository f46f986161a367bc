"""Read how long the frames of animated GIF and WebP files are shown, from their headers."""

import os
from collections.abc import Iterator
from typing import BinaryIO

from clipcls.errors import ImageError
from clipcls.inputs.open_file import open_file, reading

ANIMATIONS = frozenset((".gif", ".webp"))

# as browsers do, for frames that say they are shown for a hundredth of a second or less
_SHORTEST, _USUAL = 10, 100


def is_animation(path: str) -> bool:
    """Tell whether a file name is one of a format that has animations."""
    return os.path.splitext(path)[1].lower() in ANIMATIONS  # noqa: PTH122


def frame_ends(path: str) -> list[int]:
    """Return when each frame of an animation ends, in milliseconds from its start.

    Returns:
        An empty list where the file isn't an animation, or can't be read; whoever decodes it says why.
    """
    try:
        with open_file(path) as file, reading():
            head = file.read(12)
            if head[:4] == b"GIF8":
                durations = list(_gif_durations(file))
            elif head[:4] == b"RIFF" and head[8:] == b"WEBP":
                durations = list(_webp_durations(file))
            else:
                return []
    except ImageError:
        return []
    ends = []
    end = 0
    for duration in durations:
        end += duration if duration > _SHORTEST else _USUAL
        ends.append(end)
    return ends if len(ends) > 1 else []


def _webp_durations(file: BinaryIO) -> Iterator[int]:
    while len(head := file.read(8)) == 8:
        size = int.from_bytes(head[4:], "little")
        start = file.tell()
        if head[:4] == b"ANMF":
            yield int.from_bytes(file.read(16)[12:15], "little")
        file.seek(start + size + size % 2)


def _gif_durations(file: BinaryIO) -> Iterator[int]:
    file.seek(10)
    _skip_colours(file, file.read(3)[:1])
    duration = 0
    while (kind := file.read(1)) in (b"!", b","):
        if kind == b"!":
            is_control = file.read(1) == b"\xf9"
            blocks = _sub_blocks(file)
            if is_control:
                duration = 10 * int.from_bytes(next(blocks, b"")[1:3], "little")
            for _ in blocks:
                pass
            continue
        _skip_colours(file, file.read(9)[8:])
        file.read(1)  # the size of the codes
        for _ in _sub_blocks(file):
            pass
        yield duration
        duration = 0


def _skip_colours(file: BinaryIO, flags: bytes) -> None:
    """Skip the colour table that the flags announce."""
    if flags and flags[0] & 0x80:
        file.seek(3 << ((flags[0] & 7) + 1), os.SEEK_CUR)


def _sub_blocks(file: BinaryIO) -> Iterator[bytes]:
    while (size := file.read(1)) not in (b"", b"\0"):
        yield file.read(size[0])
