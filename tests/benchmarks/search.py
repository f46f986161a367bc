"""`clipcls search` and `clipcls embed` as whole processes, a query in a million vectors, and rclip beside them.

    python tests/benchmarks/search.py --output search.json
    python tests/benchmarks/search.py --rclip /path/to/bin/rclip

Weights are random, of rclip's architecture: speed doesn't depend on their values. The pictures that are searched are
cached with random features, so that nothing opens them; those that are indexed are JPEGs of 500×375. The runs of a
round come one after another, so that a busy moment meets all of them; the first round isn't counted. rclip gets the
same weights as ONNX files, made as its own converter makes them (needs the package onnx), and a database with the same
features.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from corpora import corpus
from machine import describe, installed, load
from measuring import in_new_process
from peers import folder_for
from rclip_files import ARCH, fill_database, save_onnx
from runners import save_weights
from start_up import Run, measure, save_picture

from clipcls import Execution, ModelSpec, Session
from clipcls.embed.cache.entries import CachedImage
from clipcls.embed.image_reader import image_space
from clipcls.embed.texts import embed_texts
from clipcls.predict.pool import PicturePool
from clipcls.predict.query import parse_query
from clipcls.predict.search import search
from clipcls.records import FileStamp

ROOT = Path(__file__).parents[2]
CLIPCLS = (sys.executable, "-m", "clipcls")
TEXT = "a red car"
FORMATS = ("npy", "npz", "parquet")
#: Seconds that a process is meant to take at most.
AIMS = {"cached text, folder": 2.5, **{f"cached text, .{name}": 1.0 for name in FORMATS}}
#: Seconds that a query is meant to take at most with the better of the two types.
VECTORS_AIM = 1.0
DIM = 512

Timings = dict[str, list[tuple[float, float]]]


def main() -> None:
    """Parse the command line, measure, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=100_000, help="that are searched")
    parser.add_argument("--vectors", type=int, default=1_000_000, help="that are mapped from a file; 0 for none")
    parser.add_argument("--images", type=int, default=500, help="JPEGs that are indexed; 0 for none")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rclip", type=Path, help="the command rclip, to compare with it")
    parser.add_argument("--folder", type=Path, help="keep what is made here, and use what is there")
    parser.add_argument("--output", type=Path, help="write all single timings to this file")
    options = parser.parse_args()
    machine = [*describe(None), load(), f"OpenVINO {installed('openvino')}; random weights of {ARCH}"]
    print("  \n".join(machine), flush=True)
    results: dict[str, Any] = {"machine": machine}
    with folder_for(options.folder) as folder:
        in_new_process(prepare_model, folder, options.rclip is not None)
        if options.pictures:
            results["searches"] = searches(folder, options.pictures, options.rounds, options.rclip)
        if options.vectors:
            results["vectors"] = in_new_process(vectors, folder, options.vectors, options.rounds)
            print("\n".join(vectors_table(results["vectors"])), flush=True)
        if options.images:
            results["indexing"] = indexing(folder, options.images, options.rounds, options.rclip)
    if options.output:
        options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def prepare_model(folder: Path, with_onnx: bool) -> None:
    """Write the weights, and what rclip reads in their place."""
    if not (folder / "model" / "open_clip_config.json").exists():
        save_weights(folder / "model", ARCH)
    if with_onnx:
        save_onnx(folder / "rclip", folder / "model")


def session(folder: Path) -> Session:
    """The model with a cache of its own."""
    return Session(ModelSpec(str(folder / "model"), device="cpu"), Execution(cache_dir=folder / "cache"))


def unit_vectors(count: int) -> Iterator[np.ndarray[Any, np.dtype[np.float32]]]:
    """Random vectors of length 1, a thousand at a time, the same at every run."""
    random = np.random.default_rng(0)
    for start in range(0, count, 1000):
        found = random.standard_normal((min(1000, count - start), DIM), dtype=np.float32)
        yield found / np.linalg.norm(found, axis=1, keepdims=True)


def table(timings: Timings, against: dict[str, str]) -> list[str]:
    """Medians of whole processes, and how many times as long what rclip does takes."""
    lines = ["", "| process | seconds | aim | rclip takes |", "|---|---|---|---|"]
    middle = {name: statistics.median(end for _, end in values) for name, values in timings.items()}
    for name, values in timings.items():
        ends = [end for _, end in values]
        aim = f"{AIMS[name]:g}: {'reached' if middle[name] <= AIMS[name] else 'missed'}" if name in AIMS else ""
        other = against.get(name)
        ratio = f"{middle[other] / middle[name]:.2f} ×" if other in middle else ""
        lines.append(f"| {name} | {middle[name]:.2f} ({min(ends):.2f} to {max(ends):.2f}) | {aim} | {ratio} |")
    return lines


def rclip_command(rclip: Path, data: Path, folder: Path) -> tuple[str, ...]:
    """How to run rclip with a data folder of its own in a folder of pictures."""
    return ("env", "--chdir", str(folder), f"RCLIP_DATADIR={data}", str(rclip.absolute()))


# ---------------------------------------------------------------------------------------------------------
# Many cached pictures


def make_pool(folder: Path, count: int, rclip: Path | None) -> None:
    """Tiny files in folders of a thousand, their features in the cache, and in files that `embed` writes."""
    picture = min((ROOT / "examples" / "images").glob("*.png"), key=lambda path: path.stat().st_size).read_bytes()
    paths = [folder / "pool" / f"{number // 1000:04d}" / f"{number:07d}.png" for number in range(count)]
    past = time.time() - 1000  # a file that has just changed isn't known by its times
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture)
        os.utime(path, (past, past))
    time.sleep(3)
    with session(folder) as opened:
        space = image_space(opened.facts, opened.execution.decode)
        rows = (row for block in unit_vectors(count) for row in block)
        entries = (
            CachedImage(str(path), FileStamp.at(str(path)), hashlib.sha256(path.name.encode()).digest(), row)
            for path, row in zip(paths, rows, strict=True)
        )
        while batch := [entry for _, entry in zip(range(1000), entries, strict=False)]:
            opened.cache.put_images(batch, space)
        assert not opened.cache.find_images(["nothing"], [None], space)[0]
    if rclip is not None:
        command = rclip_command(rclip, folder / "rclip", folder / "pool")
        fill_database(command, folder / "rclip", paths, np.concatenate(list(unit_vectors(count))))


def searches(folder: Path, count: int, rounds: int, rclip: Path | None) -> Timings:
    """Searches in the pool as whole processes."""
    pool, query, picture = folder / "pool", folder / "query.txt", folder / "new.jpg"
    if not (folder / "features.parquet").exists():
        in_new_process(make_pool, folder, count, rclip)
        for name in FORMATS:
            command = [*CLIPCLS, "embed", str(pool), "-o", str(folder / f"features.{name}"), *_common(folder)]
            subprocess.run(command, check=True)
    seeds = iter(range(time.time_ns(), sys.maxsize))
    cached = (*CLIPCLS, "search", *_common(folder), TEXT)
    by_file = (*CLIPCLS, "search", *_common(folder), "--queries", str(query))
    stored = ("--features", str(folder / "features.npy"))

    def write_query() -> None:
        query.write_text(f"a red car at bus stop {next(seeds)}\n", encoding="utf-8")

    def write_picture() -> None:
        save_picture(picture, next(seeds) % 2**32)

    kinds = [
        Run("cached text, folder", (*cached, str(pool))),
        Run("new text, folder", (*by_file, str(pool)), write_query),
        Run("new picture, folder", (*cached[:-1], str(picture), str(pool)), write_picture),
        *(Run(f"cached text, .{name}", (*cached, "--features", str(folder / f"features.{name}"))) for name in FORMATS),
        Run("new text, .npy", (*by_file, *stored), write_query),
        Run("new picture, .npy", (*cached[:-1], str(picture), *stored), write_picture),
    ]
    against = {}
    if rclip is not None:
        command = rclip_command(rclip, folder / "rclip", pool)
        kinds.append(Run("rclip, text", (*command, TEXT)))
        kinds.append(Run("rclip --no-indexing, text", (*command, "--no-indexing", TEXT)))
        kinds.append(Run("rclip --no-indexing, picture", (*command, "--no-indexing", str(picture))))
        against = {f"{what}, folder": "rclip, text" for what in ("cached text", "new text")}
        against |= {f"cached text, .{name}": "rclip --no-indexing, text" for name in FORMATS}
        against |= {"new text, .npy": "rclip --no-indexing, text", "new picture, .npy": "rclip --no-indexing, picture"}
    for kind in kinds:
        kind.seconds()  # converts towers, and caches the words that texts are compared with
    for kind in kinds[0], kinds[3]:
        assert "torch" not in _modules(kind.command), f"{kind.name} imports torch"
    timings = measure(kinds, rounds)
    print(f"\nSearches in {count:,} cached pictures; medians of {rounds} rounds; no torch where the text is cached")
    print("\n".join(table(timings, against)), flush=True)
    return timings


def _common(folder: Path) -> tuple[str, ...]:
    return ("--model", str(folder / "model"), "--cache-dir", str(folder / "cache"), "--device", "cpu", "--quiet")


def _modules(command: tuple[str, ...]) -> set[str]:
    """The modules that a Python process imports."""
    shown = subprocess.run(
        [command[0], "-X", "importtime", *command[1:]], check=True, capture_output=True, text=True
    ).stderr
    return {line.rpartition("|")[2].strip() for line in shown.splitlines()}


# ---------------------------------------------------------------------------------------------------------
# Many vectors


def vectors(folder: Path, count: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Queries in arrays that are mapped from files, and whether the order is that of brute force in float64."""
    found: dict[str, dict[str, Any]] = {}
    arrays = {dtype: _mapped(folder / f"vectors-{count}-{dtype}.npy", dtype, count) for dtype in ("float32", "float16")}
    with session(folder) as opened:
        query = parse_query(TEXT)
        (embedded,) = embed_texts([(TEXT,)], opened)
        for dtype, array in arrays.items():
            array.sum()  # into the page cache
            best = _brute_force(array, embedded.features.astype(np.float64))
            pool = PicturePool([str(number) for number in range(count)], (array,))
            ((_, hits),) = search([query], pool, opened)
            found[dtype] = {"exact": [int(hit.path) for hit in hits] == best, "seconds": [], "peak_mib": []}
        for _ in range(rounds):
            for dtype, array in arrays.items():
                pool = PicturePool(range(count), (array,))  # type: ignore[arg-type]
                with _anonymous_memory() as samples:
                    start = time.perf_counter()
                    list(search([query], pool, opened))
                    found[dtype]["seconds"].append(time.perf_counter() - start)
                found[dtype]["peak_mib"].append(max(samples) - samples[0])
    return found


def vectors_table(found: dict[str, dict[str, Any]]) -> list[str]:
    """Medians, and how they stand to the aim."""
    middle = {dtype: statistics.median(values["seconds"]) for dtype, values in found.items()}
    rounds = len(found["float32"]["seconds"])
    lines = [f"\nOne text in mapped vectors of {DIM} numbers; medians of {rounds} rounds", ""]
    lines += ["| type | seconds | more memory besides the file, MiB | order as in float64 |", "|---|---|---|---|"]
    for dtype, values in found.items():
        exact = "yes" if values["exact"] else "NO"
        lines.append(f"| {dtype} | {middle[dtype]:.2f} | {max(values['peak_mib']):.0f} | {exact} |")
    verdict = "reached" if min(middle.values()) <= VECTORS_AIM else "missed"
    return [*lines, f"\naim for the better one {VECTORS_AIM:g} s: {verdict}"]


def _mapped(path: Path, dtype: str, count: int) -> Any:
    if not path.exists():
        array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(count, DIM))
        for number, block in enumerate(unit_vectors(count)):
            array[1000 * number : 1000 * number + len(block)] = block
        array.flush()
    return np.load(path, mmap_mode="r")


def _brute_force(array: Any, query: Any) -> list[int]:
    step = 50_000
    cosines = np.concatenate([array[i : i + step].astype(np.float64) @ query for i in range(0, len(array), step)])
    return [int(index) for index in np.argsort(-cosines, kind="stable")[:10]]


@contextmanager
def _anonymous_memory() -> Iterator[list[float]]:
    """Samples of the process' memory in MiB, files that are mapped left out; Linux only."""
    samples = [_anonymous_mib()]
    done = threading.Event()

    def sample() -> None:
        while not done.wait(0.005):
            samples.append(_anonymous_mib())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


def _anonymous_mib() -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon:"))


# ---------------------------------------------------------------------------------------------------------
# Indexing


def indexing(folder: Path, count: int, rounds: int, rclip: Path | None) -> dict[str, Any]:
    """Pictures that aren't known yet: `clipcls embed`, and a first search, which is what rclip indexes for."""
    pictures = in_new_process(corpus, folder, "small", count)[0].parent
    other, cache, known, output = (folder / name for name in ("new.jpg", "index-cache", "index-known", "index.npy"))
    common = ("--model", str(folder / "model"), "--cache-dir", str(cache), "--device", "cpu", "--quiet")

    def embed(precision: str, inputs: Path) -> tuple[str, ...]:
        return (*CLIPCLS, "embed", str(inputs), "-o", str(output), *common, "--precision", precision)

    def first_search(precision: str, inputs: Path) -> tuple[str, ...]:
        return (*CLIPCLS, "search", TEXT, str(inputs), *common, "--precision", precision)

    def forget_all() -> None:
        shutil.rmtree(cache, ignore_errors=True)

    def forget_pictures() -> None:
        forget_all()
        shutil.copytree(known, cache, copy_function=os.link, ignore=shutil.ignore_patterns("*.sqlite3*"))
        for path in known.glob("*.sqlite3*"):
            shutil.copy2(path, cache)

    forget_all()
    save_picture(other, 0)
    for precision in ("fp32", "auto"):
        subprocess.run(first_search(precision, other), check=True, stdout=subprocess.DEVNULL)
        subprocess.run(embed(precision, other), check=True)
    auto = json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))["precision"]
    shutil.rmtree(known, ignore_errors=True)
    cache.rename(known)
    kinds = [
        Run(f"embed, {auto}", embed("auto", pictures), forget_pictures),
        Run(f"search, {auto}", first_search("auto", pictures), forget_pictures),
        Run("search, fp32", first_search("fp32", pictures), forget_pictures),
        Run(f"embed, {auto}, cache without the model", embed("auto", pictures), forget_all),
    ]
    against = {}
    if rclip is not None:
        data = folder / "rclip-index"
        if not data.exists():
            # all but the database
            shutil.copytree(folder / "rclip", data, copy_function=os.link, ignore=shutil.ignore_patterns("*.sqlite3*"))
        command = (*rclip_command(rclip, data, pictures), TEXT)
        against = {kind.name: "rclip, fp32" for kind in kinds}
        kinds.append(Run("rclip, fp32", command, lambda: (data / "db.sqlite3").unlink(missing_ok=True)))
    timings = measure(kinds, rounds)
    print(
        f"\nIndexing of {count:,} JPEGs of 500×375; medians of {rounds} rounds; models are converted already, but where"
    )
    print("it says otherwise; a search, as rclip's, embeds its text as well")
    print("\n".join(table(timings, against)), flush=True)
    return {"images": count, "seconds": timings}


if __name__ == "__main__":
    main()
