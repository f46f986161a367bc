"""Videos made from known pictures: labels of frames, borders of segments, memory by length, and frames a second.

    python tests/benchmarks/video.py
    python tests/benchmarks/video.py --minutes 1 60 --seconds 60

Videos are made with PyAV from the photographs of the examples, and classified by the embedded model. Memory and speed
are those of whole processes of `clipcls predict`, without a cache.
"""

import argparse
import csv
import itertools
import json
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from training import Cost, run_process, scratch_folder

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
LABELS = "cat,coffee,hat,pen,rocket,shirt,shoes,tulips"
MODEL = "everyday"
FORMATS = {
    "H.264": ("h264.mp4", "libx264", "yuv420p"),
    "H.264, 10 bit": ("ten.mkv", "libx264", "yuv420p10le"),
    "HEVC": ("hevc.mov", "libx265", "yuv420p"),
    "VP9": ("vp9.webm", "libvpx-vp9", "yuv420p"),
    "MPEG-4": ("mpeg4.avi", "mpeg4", "yuv420p"),
}
RATE = 25
SIZE = (320, 320)

Pixels = NDArray[np.uint8]


def write_video(path: Path, frames: Iterator[Pixels], codec: str, pixels: str = "yuv420p", **options: str) -> None:
    """Write frames, RATE of them a second."""
    import av

    options = {"x265-params": "log-level=none"} | options if codec == "libx265" else options
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=RATE, options=options)
        stream.pix_fmt = pixels
        stream.bit_rate = 8_000_000
        stream.codec_context.time_base = Fraction(1, RATE)
        for place, pixel in enumerate(frames):
            if not place:
                stream.height, stream.width = pixel.shape[:2]
            frame = av.VideoFrame.from_ndarray(pixel, format="rgb24")
            frame.pts, frame.time_base = place, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def photographs(size: tuple[int, int]) -> dict[str, Image.Image]:
    """The examples' photographs, cut to a size."""
    return {path.stem: ImageOps.fit(Image.open(path).convert("RGB"), size) for path in sorted(PHOTOS.glob("*.jpg"))}


def predict(folder: Path, *arguments: str | Path) -> tuple[list[dict[str, str]], Cost]:
    """The rows of a run, and what it cost."""
    command = [sys.executable, "-m", "clipcls", "predict", *map(str, arguments), "--labels", LABELS, "--model", MODEL]
    cost = run_process([*command, "--no-cache", "-q", "-o", "out.csv"], folder)
    with (folder / "out.csv").open(newline="") as file:
        return list(csv.DictReader(file)), cost


def compare_labels(folder: Path) -> Iterator[dict[str, Any]]:
    """How many frames have their photograph's label, by format."""
    pictures = photographs(SIZE)
    for name, picture in pictures.items():
        picture.save(folder / f"{name}.png")
    rows, _ = predict(folder, *(folder / f"{name}.png" for name in pictures))
    labels = [row["label"] for row in rows]
    for name, (file, codec, pixels) in FORMATS.items():
        frames = (np.asarray(picture) for picture in pictures.values() for _ in range(2 * RATE))
        write_video(folder / file, frames, codec, pixels)
        rows, _ = predict(folder, file, "--fps", "5")
        same = sum(row["label"] == labels[place // 10] for place, row in enumerate(rows))
        yield {"format": name, "frames": len(rows), "with their photograph's label": same, "expected": 10 * len(labels)}


def compare_borders(folder: Path) -> Iterator[dict[str, Any]]:
    """How far the borders of segments are from the cuts, in steps of sampling."""
    pictures = photographs(SIZE)
    rows, _ = predict(folder, *(folder / f"{name}.png" for name in pictures))
    labels = dict(zip(pictures, (row["label"] for row in rows), strict=True))
    random = np.random.default_rng(5)
    names = [name for _ in range(4) for name in random.permutation(list(pictures)).tolist()]
    lengths = random.integers(2 * RATE, 9 * RATE, len(names)).tolist()
    frames = (np.asarray(pictures[name]) for name, count in zip(names, lengths, strict=True) for _ in range(count))
    write_video(folder / "cuts.mp4", frames, "libx264")
    ends = [end / RATE for end in itertools.accumulate(lengths)]
    told = [labels[name] for name in names]
    cuts = [end for end, one, other in zip(ends, told, told[1:], strict=False) if one != other]
    for fps in (1, 2, 5):
        rows, _ = predict(folder, "cuts.mp4", "--fps", str(fps), "--per", "segment")
        borders = [float(row["path"].rpartition("#t=")[2].split(",")[0]) for row in rows][1:]
        if len(borders) != len(cuts):
            yield {"fps": fps, "cuts": len(cuts), "borders": len(borders)}
            continue
        far = max(abs(one - other) * fps for one, other in zip(borders, cuts, strict=True))
        yield {"fps": fps, "cuts": len(cuts), "borders": len(borders), "furthest, in steps": round(far, 3)}


def measure_memory(folder: Path, minutes: list[int]) -> Iterator[dict[str, Any]]:
    """The peak of a process by the length of its video."""
    small = np.random.default_rng(2).integers(0, 256, (50, 48, 64, 3), dtype=np.uint8)
    for length in minutes:
        count = length * 60 * RATE
        path = folder / f"{length}.mp4"
        write_video(
            path, (small[place // RATE % 50] for place in range(count)), "libx264", preset="ultrafast", crf="23"
        )
        for per in ("frame", "segment"):
            rows, cost = predict(folder, path, "--per", per)
            peak = {"minutes": length, "per": per, "rows": len(rows), "peak MiB": round(cost.peak)}
            yield peak | {"seconds": round(cost.seconds, 1)}


def measure_speed(folder: Path, seconds: int) -> Iterator[dict[str, Any]]:
    """Frames of the video a second: decoded alone, and by whole runs."""
    import av

    wide = ImageOps.fit(Image.open(PHOTOS / "cat.jpg").convert("RGB"), (1600, 900))
    offsets = (place % 300 for place in range(seconds * RATE))
    frames = (np.asarray(wide.crop((x, x // 2, x + 1280, x // 2 + 720))) for x in offsets)
    path = folder / "hd.mp4"
    write_video(path, frames, "libx264", preset="veryfast")
    total = seconds * RATE
    for _ in range(2):
        start = time.perf_counter()
        with av.open(str(path)) as container:
            container.streams.video[0].thread_type = "AUTO"
            assert sum(1 for _ in container.decode(video=0)) == total
        yield {"1280×720": "decoded alone", "frames/s": round(total / (time.perf_counter() - start))}
        for options in (["--fps", "1"], ["--fps", "5"], ["--keyframes"]):
            _, nothing = predict(folder, folder / "cat.png")
            rows, cost = predict(folder, path, *options)
            took = cost.seconds - nothing.seconds  # without the start of the process
            yield {
                " ".join(options): "",
                "rows": len(rows),
                "frames/s": round(total / took),
                "rows/s": len(rows) / took,
            }


def main() -> None:
    """Parse the command line, make the videos, print the figures as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, nargs="*", default=[1, 10, 60], help="lengths to measure memory by")
    parser.add_argument("--seconds", type=int, default=60, help="length of the video to measure speed by")
    options = parser.parse_args()
    with scratch_folder() as folder:
        steps = (
            compare_labels(folder),
            compare_borders(folder),
            measure_speed(folder, options.seconds),
            measure_memory(folder, options.minutes),
        )
        for step in steps:
            for line in step:
                print(json.dumps(line, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
