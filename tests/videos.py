"""Small videos for tests, made with PyAV."""

import struct
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
CODECS = {".webm": "libvpx-vp9", ".avi": "mpeg4"}

Pixels = NDArray[np.uint8]

# the first two columns of a matrix in an MP4's header: x' = a x + c y, y' = b x + d y
MATRICES = {"right": (0, 1, -1, 0), "over": (-1, 0, 0, -1), "left": (0, -1, 1, 0), "mirrored": (-1, 0, 0, 1)}


def plain(colour: str, size: tuple[int, int] = (32, 32)) -> Pixels:
    """A picture of one colour."""
    return np.full((size[1], size[0], 3), COLOURS[colour], dtype=np.uint8)


def cut(seconds: Sequence[tuple[str, float]], rate: int = 10) -> list[Pixels]:
    """Frames of some colours, each for a time."""
    return [plain(colour) for colour, length in seconds for _ in range(round(length * rate))]


def write_video(
    path: Path,
    frames: Iterable[Pixels],
    rate: int = 10,
    times: Sequence[float] | None = None,
    codec: str | None = None,
    pixels: str = "yuv420p",
    sound: float = 0.0,
    **options: str,
) -> Path:
    """Write a video.

    Args:
        times: when each frame is shown, in seconds; evenly by default.
        sound: the length of silence in it, in seconds.
        options: of the encoder; `g` is the distance of keyframes.
    """
    import av

    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec or CODECS.get(path.suffix, "libx264"), rate=rate, options=options)
        stream.pix_fmt = pixels
        stream.codec_context.time_base = base = Fraction(1, rate) if times is None else Fraction(1, 1000)
        silence: Any = container.add_stream("aac", rate=8000) if sound else None
        for place, pixel in enumerate(frames):
            if not place:
                stream.height, stream.width = pixel.shape[:2]
            frame = av.VideoFrame.from_ndarray(pixel, format="rgb24")
            frame.pts = place if times is None else round(times[place] * 1000)
            frame.time_base = base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound:
            for start, end in pairwise(range(0, round(sound * 8000), 1024)):
                piece = av.AudioFrame.from_ndarray(np.zeros((1, end - start), np.float32), "fltp", "mono")
                piece.sample_rate, piece.pts = 8000, start
                container.mux(silence.encode(piece))
            container.mux(silence.encode(None))
    return path


def turn(path: Path, how: str) -> Path:
    """Have an MP4's header say that it is shown turned."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 44
    a, b, c, d = (65536 * number for number in MATRICES[how])
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path
