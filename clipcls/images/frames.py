"""Open a video or an animation, whichever a file is by its name, to decode frames of it."""

from typing import Protocol

from clipcls.images.animation import AnimationReader
from clipcls.images.limits import MAX_PIXELS
from clipcls.images.video import Pixels, VideoReader
from clipcls.inputs.animations import is_animation
from clipcls.records import Decode, Frame


class FrameReader(Protocol):
    """Decodes frames of one file, on one thread at a time; quick where times rise."""

    def frame_at(self, time: int) -> Pixels:
        """Return the frame that is shown at a time in milliseconds, upright, (height, width, 3).

        Raises:
            ImageError: it can't be decoded.
        """

    def close(self) -> None:
        """Close the file."""


def open_frames(first: Frame, max_pixels: int = MAX_PIXELS, threads: int = 1, decode: Decode = "fast") -> FrameReader:
    """Open the file that a frame is in, and others with it.

    Args:
        max_pixels: a file with larger frames is refused.
        threads: that FFmpeg decodes with.
        decode: see `clipcls.images.video.VideoReader`.

    Raises:
        ImageError: the file can't be opened, is refused, or has changed.
    """
    if is_animation(first.video):
        return AnimationReader(first.video, first.stamp, max_pixels)
    return VideoReader(first.video, first.stamp, max_pixels, threads, decode)


def read_frame(frame: Frame, max_pixels: int = MAX_PIXELS, decode: Decode = "fast") -> Pixels:
    """Decode a single frame, (height, width, 3).

    Raises:
        ImageError: it can't be decoded.
    """
    reader = open_frames(frame, max_pixels, decode=decode)
    try:
        return reader.frame_at(frame.time)
    finally:
        reader.close()
