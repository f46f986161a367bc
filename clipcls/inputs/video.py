"""List the frames of videos and animations, without decoding any: `clipcls.images.frames` does that.

A frame's path is the video's with a media fragment (W3C, Media Fragments URI 1.0): `clip.mp4#t=12.5` is the frame that
is shown 12.5 seconds after the video's start, `clip.mp4#t=3,8.5` what is shown from 3 to 8.5 seconds.

PyAV, which brings FFmpeg's libraries, is an optional package (extra `video`), and imported inside functions.
"""

import itertools
import math
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from clipcls.errors import ImageError, UsageError, reason
from clipcls.inputs.animations import frame_ends, is_animation
from clipcls.inputs.open_file import open_file
from clipcls.records import FileStamp, Frame, ImageRef

#: Extensions of videos.
VIDEOS = frozenset((".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v"))

# part of the decoder's name; raise it whenever a frame's pixels come out differently
_VERSION = 1
# formats that are opened, in FFmpeg's names; a list of addresses, whatever its name, isn't
_FORMATS = "mov,matroska,avi,mpeg,mpegts,flv,asf,ogg"
_FRAGMENT = re.compile(r"(.+)#t=(?:npt:)?(\d+(?:\.\d+)?)(?:,(\d+(?:\.\d+)?))?", re.DOTALL)
# a video that ends so much before its own header says is cut off; sound or subtitles may end a little later
_CUT_OFF = 1000
_MICROSECONDS = Fraction(1, 1_000_000)


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which frames of a video are taken.

    Attributes:
        kind: `fps`: some every second; `frames`: some evenly in time, each amid its share; `keyframes`: those that are
            coded without others, of an animation all.
        amount: how many, for `fps` and `frames`.
    """

    kind: Literal["fps", "frames", "keyframes"] = "fps"
    amount: float = 1.0

    def __post_init__(self) -> None:
        """Check the amount.

        Raises:
            UsageError: it is out of range.
        """
        if self.kind == "fps" and not 0 < self.amount <= 1000:
            raise UsageError("--fps must be above 0, and at most 1000.")
        if self.kind == "frames" and self.amount < 1:
            raise UsageError("--frames must be at least 1.")

    @property
    def settings(self) -> dict[str, Any]:
        """What a run's record says of it, by the name of the option."""
        return {f"--{self.kind}": True if self.kind == "keyframes" else self.amount}


def is_video(path: str) -> bool:
    """Tell whether a file name is a video's."""
    return os.path.splitext(path)[1].lower() in VIDEOS  # noqa: PTH122


def frame_path(video: str, start: int, end: int | None = None) -> str:
    """Return the path of a frame, or of a part of a video; times are in milliseconds."""
    return f"{video}#t={_seconds(start)}" + ("" if end is None else f",{_seconds(end)}")


def split_path(path: str) -> tuple[str, int, int | None] | None:
    """Return the video, the start and the end of a path that `frame_path` may have made; None for any other."""
    found = _FRAGMENT.fullmatch(path)
    if found is None or not (is_video(found[1]) or is_animation(found[1])):
        return None
    start, end = (None if text is None else round(float(text) * 1000) for text in found.group(2, 3))
    assert start is not None
    return found[1], start, end


def _seconds(milliseconds: int) -> str:
    whole, rest = divmod(milliseconds, 1000)
    return f"{whole}.{rest:03}".rstrip("0").rstrip(".")


def list_frames(
    video: str, sampling: Sampling | None = None, start: int = 0, end: int | None = None
) -> Iterator[ImageRef]:
    """List frames of a video in order of time; a fault of the video becomes an image with its name and an error.

    Only the video's header and its end are read, and for keyframes all of it, though nothing is decoded. Of a video
    that is cut off, the frames before that are listed, then the error. A GIF or WebP file that isn't animated is a
    picture.

    Args:
        sampling: None for a frame a second.
        start: the earliest time, in milliseconds.
        end: the time to stop before; None for the video's end.
    """
    try:
        contents = _contents(video, sampling or Sampling())
        if contents is not None and start >= contents.end:
            raise ImageError(f"its pictures end after {_seconds(contents.end)} seconds")
    except ImageError as exc:
        yield ImageRef(frame_path(video, start, end) if start else video, str(exc))
        return
    if contents is None:
        yield ImageRef(video)
        return
    last = contents.end if end is None else min(contents.end, end)
    inside = (time for time in contents.times if start <= time < last)
    for time, until in itertools.pairwise(itertools.chain(inside, [last])):
        frame = Frame(video, time, until, contents.stamp, contents.decoder)
        yield ImageRef(frame_path(video, time), content=frame)
    if contents.said is not None and (end is None or end > contents.end):
        said = _seconds(contents.said)
        yield ImageRef(video, f"cut off after {_seconds(contents.end)} of its {said} seconds")


@dataclass(frozen=True, slots=True)
class _Contents:
    """The frames that are taken of a video; times are in milliseconds.

    Attributes:
        times: rise.
        end: of the pictures.
        said: where the header says that the file ends, if it is cut off.
    """

    stamp: FileStamp
    decoder: str
    times: Iterable[int]
    end: int
    said: int | None = None


def _contents(video: str, sampling: Sampling) -> _Contents | None:
    """Look at a video or an animation; return None where what may be an animation is a single picture.

    Raises:
        ImageError: it can't be read.
    """
    stamp = FileStamp.at(video)
    if is_animation(video):
        ends = frame_ends(video)
        if stamp is None or not ends:
            return None
        times = [0, *ends[:-1]] if sampling.kind == "keyframes" else _times(sampling, ends[-1])
        return _Contents(stamp, decoder_name(video), times, ends[-1])
    with opened(video) as container:
        stream = picture_stream(container)
        end, said = _end(container, stream)
        times = _keyframes(container, stream) if sampling.kind == "keyframes" else _times(sampling, end)
    assert stamp is not None  # since it was opened
    return _Contents(stamp, decoder_name(video), times, end, said)


def frame_at(video: str, time: int) -> ImageRef:
    """Return the frame of a video that is shown at a time, in milliseconds."""
    path = frame_path(video, time)
    stamp = FileStamp.at(video)
    try:
        decoder = decoder_name(video)
    except ImageError as exc:
        return ImageRef(path, str(exc))
    return ImageRef(path, content=None if stamp is None else Frame(video, time, time, stamp, decoder))


def require_whole(images: Iterable[ImageRef]) -> Iterator[ImageRef]:
    """Yield images; of a video an error instead of its frames, for what works on whole files only."""
    for video, group in itertools.groupby(images, lambda image: getattr(image.content, "video", None)):
        if video is None:
            yield from group
        else:
            yield ImageRef(video, "a video, and only pictures are compared")


# ---------------------------------------------------------------------------------------------------------
# What FFmpeg knows of a file


def decoder_name(video: str) -> str:
    """Return what decodes a video or an animation, with its version.

    Raises:
        ImageError: it isn't installed.
    """
    if is_animation(video):
        import PIL

        return f"pillow {PIL.__version__} {_VERSION}"
    return f"av {_av().__version__} {_VERSION}"


@contextmanager
def opened(video: str) -> Iterator[Any]:
    """Open a video as PyAV's `InputContainer`, and translate PyAV's errors.

    Raises:
        ImageError: PyAV isn't installed, or the file can't be read.
    """
    av = _av()
    with open_file(video) as file:  # says what is wrong with a path, and doesn't wait for a FIFO
        if not os.fstat(file.fileno()).st_size:
            raise ImageError("empty file")
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    # with a scheme, since a colon in the name would end one
    with video_errors(), av.open(f"file:{video}", options=options, metadata_errors="replace") as container:
        yield container


@contextmanager
def video_errors() -> Iterator[None]:
    """Translate PyAV's errors into `ImageError`."""
    av = _av()
    try:
        yield
    except UnicodeEncodeError as exc:
        raise ImageError("a name that isn't UTF-8, by which a video can't be opened") from exc
    except av.FFmpegError as exc:
        raise ImageError("no video, or a damaged one") from exc
    except OSError as exc:
        raise ImageError(f"can't be read: {reason(exc)}") from exc
    except MemoryError as exc:
        raise ImageError("not enough memory to decode it") from exc


def picture_stream(container: Any) -> Any:
    """Return the stream of an open video that is shown: not a cover.

    Raises:
        ImageError: there is none.
    """
    av = _av()
    covers = av.stream.Disposition.attached_pic
    shown = [stream for stream in container.streams.video if not stream.disposition & covers]
    if not shown:
        raise ImageError("no pictures in it, only sound or other data" if container.streams else "nothing in it")
    return shown[0]


def seconds_of(container: Any, time: int, time_base: Fraction) -> Fraction:
    """Return a time stamp of an open video as seconds from its start."""
    return time * time_base - (container.start_time or 0) * _MICROSECONDS


def _av() -> Any:
    try:
        import av
    except ImportError as exc:
        raise ImageError("a video needs the package av: pip install 'clipcls[video]'") from exc
    return av


def _times(sampling: Sampling, end: int) -> Iterator[int]:
    """Yield times before the end, in milliseconds."""
    amount = Fraction(sampling.amount)
    if sampling.kind == "frames":
        return (math.floor(end * (2 * place + 1) / (2 * amount)) for place in range(int(amount)))
    times = (round(1000 * place / amount) for place in itertools.count())
    return itertools.takewhile(lambda time: time < end, times)


def _end(container: Any, stream: Any) -> tuple[int, int | None]:
    """Return where the pictures of an open video end; and where it should end, if it is cut off before.

    A header's word isn't enough: sound may go on longer, and the file may be cut off.
    """
    said = None if container.duration is None else math.floor(container.duration / 1000)
    pictures, all_streams = _last(container, stream, said)
    if said and pictures <= 0:
        pictures, all_streams = _last(container, stream, None)
    if pictures <= 0:
        raise ImageError("no pictures in it")
    is_cut_off = said is not None and all_streams < said - _CUT_OFF
    return pictures, said if is_cut_off else None


def _last(container: Any, stream: Any, near: int | None) -> tuple[int, int]:
    """Return the end of the last picture, and of the last packet of any stream, in milliseconds; 0 where none is found.

    Args:
        near: read from the last keyframe before it; None to read the whole file.
    """
    av = _av()
    ends = {True: 0, False: 0}
    try:
        container.seek((near or 0) * 1000 + (container.start_time or 0))
        for packet in container.demux():
            if packet.pts is None or packet.is_corrupt or not packet.size:
                continue
            end = seconds_of(container, packet.pts + max(packet.duration or 0, 1), packet.time_base)
            is_picture = packet.stream_index == stream.index
            ends[is_picture] = max(ends[is_picture], math.ceil(end * 1000))
    except (av.FFmpegError, OSError):
        pass  # what was found until then counts
    return ends[True], max(ends.values())


def _keyframes(container: Any, stream: Any) -> list[int]:
    """Return the times of the frames of an open video that are coded without others, in milliseconds."""
    av = _av()
    found = set()
    try:
        container.seek(0)
        # all packets, since FFmpeg gives wrong times where it is told to skip some of an MP4
        for packet in container.demux(stream):
            if packet.is_keyframe and packet.pts is not None and not packet.is_corrupt:
                found.add(max(0, round(seconds_of(container, packet.pts, packet.time_base) * 1000)))
    except (av.FFmpegError, OSError):
        pass
    return sorted(found)
