"""Decode the frames of animated GIF and WebP files that are shown at given times."""

from bisect import bisect_right
from contextlib import ExitStack

import numpy as np

from clipcls.errors import ImageError
from clipcls.images.colour import to_eight_bits
from clipcls.images.formats import open_header
from clipcls.images.limits import MAX_PIXELS, require_fitting
from clipcls.images.pillow_errors import pillow_errors, silence_pillow
from clipcls.images.video import Pixels, require_unchanged
from clipcls.inputs.animations import frame_ends
from clipcls.inputs.open_file import open_file
from clipcls.inputs.signatures import HEAD_BYTES, kind_of
from clipcls.records import FileStamp


class AnimationReader:
    """Decodes frames of one animation; see `clipcls.images.video.VideoReader`, which has the same methods.

    Raises:
        ImageError: the file can't be opened, is refused, or has changed.
    """

    def __init__(self, path: str, stamp: FileStamp, max_pixels: int = MAX_PIXELS) -> None:
        silence_pillow()
        with ExitStack() as stack:
            file = stack.enter_context(open_file(path))
            require_unchanged(path, stamp)
            self._ends = frame_ends(path)
            with pillow_errors("file"):
                kind = kind_of(file.read(HEAD_BYTES))
                file.seek(0)
                self._image = open_header(file, kind, max_pixels)
            require_fitting(self._image, max_pixels)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Close the file."""
        self._stack.close()

    def frame_at(self, time: int) -> Pixels:
        """Return the frame that is shown at a time, (height, width, 3)."""
        place = bisect_right(self._ends, time)
        if place == len(self._ends):
            raise ImageError(f"the animation ends after {self._ends[-1] / 1000 if self._ends else 0:g} seconds")
        with pillow_errors(self._image.format or "image"):
            self._image.seek(place)
            return np.asarray(to_eight_bits(self._image).convert("RGB"))
