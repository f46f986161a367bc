"""Read frames of videos on the threads that ask for them, in the order in which they were announced."""

import hashlib
import threading
from collections import deque
from dataclasses import dataclass
from typing import Final

from clipcls.embed.execution import Execution
from clipcls.errors import ImageError
from clipcls.images.frames import FrameReader, open_frames
from clipcls.images.video import Pixels
from clipcls.records import Frame

# that decode one video; each holds frames in memory
_MOST_THREADS = 16


@dataclass(slots=True, eq=False)
class AnnouncedFrame:
    """A frame that will be read; `read` it once, on any thread."""

    frame: Frame
    _video: "_OpenVideo"
    _found: "Pixels | ImageError | None" = None

    def read(self) -> Pixels:
        """Return the frame, (height, width, 3); whoever waits for an earlier one of the video gets it first.

        Raises:
            ImageError: it can't be decoded.
        """
        found = self._video.read(self)
        if isinstance(found, ImageError):
            raise found
        return found


class FrameQueue:
    """The frames that are read ahead. Each video is decoded in one pass, although many threads ask for its frames."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._video: _OpenVideo | None = None

    def announce(self, frame: Frame) -> AnnouncedFrame:
        """Take a frame for one that will be read after those before it."""
        if self._video is None or (self._video.path, self._video.first.stamp) != (frame.video, frame.stamp):
            self.close()
            self._video = _OpenVideo(frame, self._execution)
        announced = AnnouncedFrame(frame, self._video)
        self._video.waiting.append(announced)
        return announced

    def close(self) -> None:
        """Have the last video closed, once its announced frames are read."""
        if self._video is not None:
            self._video.end()
            self._video = None


class _OpenVideo:
    """A video, opened for the first of its frames that is read.

    Attributes:
        first: its first frame.
        waiting: frames that aren't read yet, in order.
    """

    def __init__(self, first: Frame, execution: Execution) -> None:
        self.path: Final = first.video
        self.first: Final = first
        self.waiting: Final[deque[AnnouncedFrame]] = deque()
        self._execution = execution
        self._reader: FrameReader | None = None
        self._lock = threading.Lock()
        self._has_ended = False

    def read(self, announced: AnnouncedFrame) -> Pixels | ImageError:
        """Return a frame, or why it can't be decoded; read those before it for the threads that wait for them."""
        with self._lock:
            while announced._found is None:
                earliest = self.waiting.popleft()
                earliest._found = self._decode(earliest.frame)
            found, announced._found = announced._found, None
        self._close_if_done()
        return found

    def end(self) -> None:
        """Close the video once its frames are read."""
        self._has_ended = True
        self._close_if_done()

    def _close_if_done(self) -> None:
        # whoever has the lock meanwhile comes here afterwards
        if self._has_ended and not self.waiting and self._lock.acquire(blocking=False):
            try:
                if self._reader is not None and not self.waiting:
                    self._reader.close()
                    self._reader = None
            finally:
                self._lock.release()

    def _decode(self, frame: Frame) -> Pixels | ImageError:
        try:
            if self._reader is None:
                how = self._execution
                threads = min(how.threads(), _MOST_THREADS)
                self._reader = open_frames(self.first, how.max_pixels, threads, how.decode)
            return self._reader.frame_at(frame.time)
        except ImageError as exc:
            return exc


def pixels_digest(pixels: Pixels) -> bytes:
    """Return the SHA-256 of a frame's size and pixels, which stands for its content in the cache."""
    return hashlib.sha256(f"frame {pixels.shape}".encode() + pixels.tobytes()).digest()
