"""`clipcls predict` over few and many images: peak memory, and the time of runs that find everything in the cache.

    python tests/benchmarks/many_images.py --images 2000 20000 --large 24

Every run is a process of its own with a cache of its own; one image in a hundred can't be read. The large images are
12 megapixels each. With `--model` another model than the embedded `pictogram`.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from corpora import LARGE, make_pictures
from machine import describe, load
from training import scratch_folder

TINY = (96, 72)


def predict(folder: Path, cache: Path, model: str, labels: str) -> tuple[float, float]:
    """Seconds and peak MiB of one process; its rows go to a file."""
    output = folder.parent / "labels.tsv"
    command = [sys.executable, "-m", "clipcls", "predict", str(folder), "--labels", labels, "--model", model, "-q"]
    start = time.perf_counter()
    process = subprocess.Popen([*command, "--cache-dir", str(cache), "--output", str(output)])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 1):  # 1: some images can't be read
        sys.exit(f"{' '.join(command)} failed")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def make_folder(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """Images of one size, one in a hundred cut short."""
    folder.mkdir()
    for path in make_pictures(folder, count, size)[50::100]:
        path.write_bytes(path.read_bytes()[:200])
    return folder


def report(name: str, seconds: float, peak: float, images: int) -> None:
    print(f"| {name} | {seconds:.2f} | {images / seconds:.0f} | {peak:.0f} |", flush=True)


def measure(scratch: Path, model: str, counts: Sequence[int], large: int) -> None:
    """Print a table of runs, and how the peaks compare."""
    print("| | seconds | images/s | peak MiB |\n|---|---|---|---|")
    peaks = []
    for count in counts:
        folder, cache = make_folder(scratch / str(count), count, TINY), scratch / f"cache-{count}"
        time.sleep(2.5)  # a file that has just changed isn't known by its times
        for name, labels in (
            ("nothing cached", "cat,dog,truck"),
            ("all cached", "cat,dog,truck"),
            ("three new labels", "cow,horse,sheep"),
        ):
            seconds, peak = predict(folder, cache, model, labels)
            report(f"{count:,} images, {name}", seconds, peak, count)
            if name == "nothing cached":
                peaks.append(peak)
        shutil.rmtree(folder)
    for count in (large // 4, large) if large else ():
        seconds, peak = predict(make_folder(scratch / f"large-{count}", count, LARGE), scratch / "l", model, "cat,dog")
        report(f"{count} of 12 megapixels, nothing cached", seconds, peak, count)
    times = peaks[-1] / peaks[0]
    print(f"\nwith nothing cached, {counts[-1]:,} images take {times:.2f} times the memory of {counts[0]:,}")


def main() -> None:
    """Parse the command line, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[2000, 20000])
    parser.add_argument("--large", type=int, default=24, help="images of 12 megapixels; 0 for none")
    parser.add_argument("--model", default="pictogram")
    options = parser.parse_args()
    print("  \n".join([*describe(None), f"model {options.model}; {load()}\n"]))
    with scratch_folder() as scratch:
        measure(scratch, options.model, options.images, options.large)


if __name__ == "__main__":
    main()
