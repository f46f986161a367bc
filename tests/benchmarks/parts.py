"""A job in parts, each a process of its own, beside the same job in one process.

    python tests/benchmarks/parts.py --images 5000 --parts 16 --at-once 4

Pictures are tiny PNGs, and a first run computes their features, which all others take from the cache. The merged parts
have to be the unbroken run byte for byte, a part that is missing has to be named, and one that was killed has to be
refused until it has gone on. Times are whole processes', start-up included. Linux. Progress goes to standard error.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from machine import describe

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

from conftest import save_pictures  # noqa: E402

CLIPCLS = (sys.executable, "-m", "clipcls")


def run(*arguments: str) -> tuple[float, subprocess.CompletedProcess[str]]:
    """Run the command line; return seconds and outcome."""
    start = time.perf_counter()
    done = subprocess.run([*CLIPCLS, *arguments], capture_output=True, text=True, check=False)
    return time.perf_counter() - start, done


def require(is_so: bool, said: str) -> None:
    """Stop where something isn't as promised."""
    if not is_so:
        sys.exit(f"parts.py: {said}")


def kill_early(arguments: list[str], output: Path) -> None:
    """Begin a run, and kill it once it has written a row, unless it is done by then."""
    process = subprocess.Popen([*CLIPCLS, *arguments], stderr=subprocess.DEVNULL)
    while process.poll() is None and not (output.exists() and output.stat().st_size):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()


def measure(folder: Path, images: int, parts: int, at_once: int, model: str) -> None:
    """Run the job both ways, and print the times."""
    print("making pictures", file=sys.stderr)
    save_pictures(folder / "pictures", images, (8, 8))
    (folder / "parts").mkdir()
    job = ["predict", str(folder / "pictures"), "--labels", "cat,dog,truck", "--model", model, "--top-k", "2", "-q"]
    job += ["--cache-dir", str(folder / "cache")]
    whole, merged = folder / "whole.jsonl", folder / "merged.jsonl"

    def part(number: int) -> list[str]:
        return [*job, "--part", f"{number}/{parts}", "-o", str(folder / "parts" / f"{number}.jsonl")]

    first, done = run(*job, "-o", str(whole))
    require(done.returncode == 0, done.stderr)
    cached, done = run(*job, "-o", str(whole))
    print("running the parts", file=sys.stderr)
    start = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        outcomes = list(pool.map(lambda number: run(*part(number)), range(1, parts + 1)))
    all_parts = time.perf_counter() - start
    require(all(done.returncode == 0 for _, done in outcomes), str([done.stderr for _, done in outcomes]))
    merging, done = run("merge", str(folder / "parts"), "-o", str(merged))
    require(done.returncode == 0 and merged.read_bytes() == whole.read_bytes(), f"merged isn't whole {done.stderr}")
    rows = [sum(1 for _ in (folder / "parts" / f"{n}.jsonl").open()) for n in range(1, parts + 1)]
    require(sum(rows) == images, "a picture is missing or double")

    killed = folder / "parts" / "2.jsonl"
    kill_early(part(2), killed)
    _, refused = run("merge", str(folder / "parts"), "-o", str(merged))
    was_cut = sum(1 for _ in killed.open("rb")) < rows[1]
    require(refused.returncode == 2 or not was_cut, "a part that was killed was merged")
    run(*part(2), "--resume")
    run("merge", str(folder / "parts"), "-o", str(merged))
    require(merged.read_bytes() == whole.read_bytes(), "merged isn't whole after a part was killed")
    (folder / "parts" / f"{parts}.jsonl").unlink()
    _, missing = run("merge", str(folder / "parts"), "-o", str(merged))
    require(missing.returncode == 2 and f"part {parts} is missing" in missing.stderr, "no part is missed")

    print(f"\n{images:,} pictures, {parts} parts of {min(rows):,} to {max(rows):,}, {at_once} at once")
    print(f"{describe(None)[0]}\n")
    print("| | s |\n|---|---|")
    for what, seconds in (
        ("one process, nothing cached", first),
        ("one process, all cached", cached),
        (f"{parts} processes, all cached", all_parts),
        ("merge", merging),
    ):
        print(f"| {what} | {seconds:.1f} |")
    print(f"\nMerged equals unbroken, byte for byte. {missing.stderr.strip()}")
    if was_cut:
        print(f"A killed part: {refused.stderr.strip()}")


def main() -> None:
    """Parse the options, and measure in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--parts", type=int, default=16)
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--model", default="pictogram")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), given.images, given.parts, given.at_once, given.model)


if __name__ == "__main__":
    main()
