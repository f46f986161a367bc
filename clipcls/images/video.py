"""Decode the frames of a video that are shown at given times, in one pass.

Frames become 8-bit RGB by libswscale: with the matrix and the range that the file states; of a file that states no
matrix, BT.709's from 720 rows on, and BT.601's below, as players do. Primaries and transfer functions stay as they are,
so that HDR isn't tone-mapped. Pixels that aren't square become so, and a frame is turned as the file says.
"""

import heapq
from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipcls.errors import ImageError, TooLargeError
from clipcls.images.limits import MAX_PIXELS
from clipcls.inputs.video import opened, picture_stream, seconds_of, video_errors
from clipcls.records import Decode, FileStamp

Pixels = NDArray[np.uint8]

# times are rounded to milliseconds
_ROUNDING = Fraction(1, 2000)
# where a format has no index, so much is decoded rather than sought
_NEAR = 10
_FOR_EVER = Fraction(10**12)
# a frame is shown at least so long at a video's end
_SHOWN_AT_END = 1
# how far before a time to look for a keyframe, if the first one found is shown later; then twice as far
_STEP_BACK = 1
# packets in a row without a frame that don't mean damage: some codecs have such that are never shown
_MOST_LOST = 3
_DAMAGED = "the video is damaged here"
_HD_ROWS = 720
# FFmpeg's number (AVCOL_SPC_UNSPECIFIED) for a matrix that a file doesn't state
_UNSTATED = 2
_DISPLAY_MATRIX = 9  # numbers


class VideoReader:
    """Decodes frames of one video; times that rise are decoded in one pass, from keyframe to keyframe.

    Only a few frames are in memory. Use it on one thread at a time, and close it.

    Args:
        video: the path of the video.
        stamp: the video's, when it was listed.
        max_pixels: a video of larger frames is refused.
        threads: that FFmpeg decodes with.
        decode: `exact` converts colours with accurate rounding and a colour for each pixel; `fast` takes a tenth of
            that time, and is off by a grey level or two.

    Raises:
        ImageError: the video can't be opened, is refused, or has changed.
    """

    def __init__(
        self,
        video: str,
        stamp: FileStamp,
        max_pixels: int = MAX_PIXELS,
        threads: int = 1,
        decode: Decode = "fast",
    ) -> None:
        with ExitStack() as stack:
            self._container = stack.enter_context(opened(video))
            # not before, since PyAV may be missing
            from av.video.reformatter import VideoReformatter

            self._reformatter: Any = VideoReformatter()
            self._decode = decode
            require_unchanged(video, stamp)
            self._stream = picture_stream(self._container)
            self._codec = self._stream.codec_context
            if self._codec is None:
                raise ImageError("coded in a way that FFmpeg can't decode")
            _require_fitting(self._codec.width, self._codec.height, max_pixels)
            self._max_pixels = max_pixels
            self._codec.thread_type = "AUTO"
            self._codec.thread_count = threads
            self._shown: tuple[Fraction, Any] | None = None
            self._next: tuple[Fraction, Any] | None = None
            self._is_damaged = False  # between these two
            self._is_at_start = True
            self._gap: tuple[Fraction, Fraction] | None = None  # where nothing can be decoded
            self._converted: tuple[Any, Pixels] | None = None
            self._seek_to(0)  # reads the index of some formats
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Close the file."""
        self._stack.close()

    def frame_at(self, time: int) -> Pixels:
        """Return the frame that is shown at a time, upright, (height, width, 3).

        Args:
            time: in milliseconds from the video's start.

        Raises:
            ImageError: the video is damaged there, or ends before.
        """
        with video_errors():
            return self._frame_at(Fraction(time, 1000) + _ROUNDING)

    def _frame_at(self, moment: Fraction) -> Pixels:
        self._approach(moment)
        while self._next is not None and self._next[0] <= moment:
            if moment - self._next[0] <= 2 * _ROUNDING:  # no other can be shown
                return self._convert(self._next[1])
            self._step()
        shown = self._shown or self._next
        if shown is None:
            raise ImageError("no frame of the video can be decoded")
        start, frame = shown
        end = start + (frame.duration or 0) * self._stream.time_base
        if self._is_damaged and moment >= end:
            raise ImageError(_DAMAGED)
        if self._next is None and moment >= max(end, start + _SHOWN_AT_END) + _ROUNDING:
            raise ImageError(f"the video's pictures end after {float(end):g} seconds")
        return self._convert(frame)

    def _convert(self, frame: Any) -> Pixels:
        if self._converted is None or self._converted[0] is not frame:
            _require_fitting(frame.width, frame.height, self._max_pixels)
            self._converted = frame, self._upright(frame)
        return self._converted[1]

    def _upright(self, frame: Any) -> Pixels:
        """Convert a frame to RGB with square pixels, and turn it as its file says."""
        from av.video.reformatter import Interpolation

        way = Interpolation.BILINEAR
        if self._decode == "exact":
            way |= Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
        space = None if frame.colorspace != _UNSTATED else "ITU709" if frame.height >= _HD_ROWS else "ITU601"
        aspect = self._stream.sample_aspect_ratio or 1  # the width of a pixel by its height
        width = max(1, round(frame.width * aspect)) if Fraction(1, 4) <= aspect <= 4 else frame.width
        rgb = self._reformatter.reformat(frame, width, None, "rgb24", space, None, way, threads=1)
        pixels: Pixels = rgb.to_ndarray()
        a, b, c, d = _turn(frame)
        if abs(b) > abs(a):  # the first axis becomes the second
            pixels = pixels.swapaxes(0, 1)
            a, d = c, b
        return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])

    def _approach(self, moment: Fraction) -> None:
        """Go back to a keyframe if the moment has passed, or on to one if that skips frames."""
        if self._gap is not None and self._gap[0] <= moment < self._gap[1]:
            raise ImageError(_DAMAGED)
        earliest = self._shown or self._next
        if earliest is not None and moment < earliest[0]:
            if self._shown is not None or not self._is_at_start:
                self._seek(moment)
        elif self._next is not None and moment > self._next[0] and self._is_keyframe_between(self._next[0], moment):
            self._seek(moment)

    def _is_keyframe_between(self, position: Fraction, moment: Fraction) -> bool:
        index = self._stream.index_entries
        place = index.search_timestamp(self._time_stamp(moment)) if len(index) else -1
        if place < 0:
            return moment > position + _NEAR
        return bool(index[place].timestamp > self._time_stamp(position))

    def _seek(self, moment: Fraction) -> None:
        """Go to a keyframe that is shown at a moment or before.

        Raises:
            ImageError: nothing before the moment can be decoded.
        """
        back = Fraction(0)
        while True:
            target = max(Fraction(0), moment - back)
            self._seek_to(target)
            if not target or (self._next is not None and self._next[0] <= moment):
                return
            if back and self._is_damaged:
                # frames that are coded after a keyframe and shown before it have been looked for, too
                self._gap = moment, _FOR_EVER if self._next is None else self._next[0]
                raise ImageError(_DAMAGED)
            back = 2 * back or Fraction(_STEP_BACK)

    def _seek_to(self, target: Fraction | int) -> None:
        self._container.seek(self._time_stamp(target), stream=self._stream)
        self._frames = self._decoded()
        self._shown = self._next = self._converted = None
        self._is_at_start = not target
        self._step()

    def _time_stamp(self, seconds: Fraction | int) -> int:
        offset = Fraction(self._container.start_time or 0, 1_000_000)
        return int((seconds + offset) / self._stream.time_base)

    def _step(self) -> None:
        """Take the next frame for the one that is shown, and decode another."""
        self._shown = self._next
        self._is_damaged = False
        for frame in self._frames:
            if frame is None:
                self._is_damaged = True
            else:
                self._next = frame
                return
        self._next = None

    def _decoded(self) -> Iterator[tuple[Fraction, Any] | None]:
        """Yield frames from here on, with the times when they are shown; None where something can't be decoded."""
        import av

        packets = self._container.demux(self._stream)
        waiting: list[int] = []  # time stamps of packets whose frames haven't come
        is_first = True
        while True:
            try:
                packet = next(packets, None)
                if packet is not None and packet.size and packet.pts is not None:
                    heapq.heappush(waiting, packet.pts)
                frames = self._codec.decode(packet)
            except av.EOFError:
                return
            except av.FFmpegError:
                yield None
                if packet is None:
                    return
                continue
            for frame in frames:
                if frame.pts is None:
                    frame.pts = frame.dts or 0
                lost = _drop_until(waiting, frame.pts)
                # behind a keyframe that was sought may come frames that need those before it
                if frame.is_corrupt or (lost >= _MOST_LOST and not is_first):
                    yield None
                if not frame.is_corrupt:
                    is_first = False
                    yield seconds_of(self._container, frame.pts, self._stream.time_base), frame
            if packet is None:
                return


def _drop_until(waiting: list[int], stamp: int) -> int:
    """Take time stamps up to one from a heap, and return how many were earlier."""
    earlier = 0
    while waiting and waiting[0] <= stamp:
        earlier += heapq.heappop(waiting) < stamp
    return earlier


def require_unchanged(path: str, stamp: FileStamp) -> None:
    """Refuse a file that has changed since its frames were listed.

    Raises:
        ImageError: it has.
    """
    if FileStamp.at(path) != stamp:
        raise ImageError("the video has changed since it was listed")


def _require_fitting(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise TooLargeError(f"{width:,} × {height:,} pixels, more than the limit of {max_pixels:,}")


def _turn(frame: Any) -> tuple[int, int, int, int]:
    """Return the first two columns of the matrix that a frame is turned by: x' = a x + c y, y' = b x + d y."""
    for side_data in frame.side_data:
        if side_data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = np.frombuffer(bytes(side_data), np.int32, _DISPLAY_MATRIX)[:5].tolist()
            return a, b, c, d
    return 1, 0, 0, 1
