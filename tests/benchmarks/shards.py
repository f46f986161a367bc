"""`clipcls predict` over tar shards beside the same pictures in a folder: throughput, and memory for few and for all.

    python tests/benchmarks/shards.py --images 100000 --rounds 3

The pictures are JPEGs of 64×64 pixels and the model is a tiny one with random weights, so that what counts is how
pictures are found, read and decoded. Nothing is cached. Every run is a process of its own; the kinds take turns, so
that whatever else the machine does meets all of them. What a run over few pictures takes, start-up mostly, is taken
off what those over all take.
"""

import argparse
import io
import statistics
import sys
import tarfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from machine import describe, load
from training import Cost, run_process, scratch_folder

SIDE = 64


def make(folder: Path, count: int, per_shard: int) -> None:
    """Pictures in a folder and in plain and compressed shards, and a model; in a process that may become large."""
    sys.path[:0] = [str(Path(__file__).parent.parent)]
    from corpora import make_pictures

    from conftest import TINY_CONFIG, save_model

    save_model(folder / "model", TINY_CONFIG)
    for kind in ("pictures", "few", "plain", "gz"):
        (folder / kind).mkdir()
    paths = make_pictures(folder / "pictures", count, (SIDE, SIDE))
    for path in paths[:per_shard]:
        (folder / "few" / path.name).hardlink_to(path)
    for start in range(0, count, per_shard):
        name = f"{start // per_shard:03d}"
        with (
            tarfile.open(folder / "plain" / f"{name}.tar", "w") as plain,
            tarfile.open(folder / "gz" / f"{name}.tar.gz", "w:gz", compresslevel=1) as compressed,
        ):
            for path in paths[start : start + per_shard]:
                add(plain, path)
                add(compressed, path)


def add(archive: tarfile.TarFile, path: Path) -> None:
    """A picture with the text that WebDataset's samples have."""
    text = f"picture {path.stem}".encode()
    for name, content in ((path.name, path.read_bytes()), (f"{path.stem}.txt", text)):
        header = tarfile.TarInfo(name)
        header.size = len(content)
        archive.addfile(header, io.BytesIO(content))


def predict(folder: Path, inputs: str, count: int, batch_size: int) -> Cost:
    """What one run over so many pictures takes."""
    output = folder / "labels.tsv"
    command = [sys.executable, "-m", "clipcls", "predict", inputs, "--labels", "cat,dog,truck", "--no-cache", "-q"]
    options = ["--model", str(folder / "model"), "--device", "cpu", "--batch-size", str(batch_size)]
    cost = run_process([*command, *options, "--output", str(output)], folder)
    with output.open("rb") as rows:
        written = sum(1 for _ in rows)
    if written != count:
        sys.exit(f"{inputs}: {written:,} rows for {count:,} pictures")
    return cost


def measure(folder: Path, count: int, options: argparse.Namespace) -> None:
    """Print a line for each run, the ratios and the peaks."""
    kinds = {"folder": "pictures", "shards": "plain/*.tar", "shards.gz": "gz/*.tar.gz"}
    first = {"folder": "few", "shards": "plain/000.tar", "shards.gz": "gz/000.tar.gz"}
    costs: dict[str, list[Cost]] = {kind: [] for kind in kinds}
    few: dict[str, list[Cost]] = {kind: [] for kind in kinds}
    print(f"| round | kind | seconds | processor | images/s | peak MiB |\n{'|---' * 6}|", flush=True)
    for number in range(options.rounds):
        for kind, inputs in kinds.items():
            few[kind].append(predict(folder, first[kind], options.per_shard, options.batch_size))
            cost = predict(folder, inputs, count, options.batch_size)
            costs[kind].append(cost)
            print(
                f"| {number + 1} | {kind} | {cost.seconds:.1f} | {cost.processor:.1f} | {count / cost.seconds:.0f} "
                f"| {cost.peak:.0f} |",
                flush=True,
            )
    report(costs, few, count, options.per_shard)


def median(costs: list[Cost], name: str) -> float:
    """The median of one of the costs."""
    return statistics.median(getattr(cost, name) for cost in costs)


def report(costs: dict[str, list[Cost]], few: dict[str, list[Cost]], count: int, few_count: int) -> None:
    """Print how the kinds compare."""
    for name, unit in (("seconds", "s"), ("processor", "core second")):
        taken = {kind: median(found, name) - median(few[kind], name) for kind, found in costs.items()}
        if min(taken.values()) <= 0:
            print(f"images/{unit}: the machine does too much else to tell")
            continue
        shown = ", ".join(f"{kind} {(count - few_count) / more:.0f}" for kind, more in taken.items())
        ratios = ", ".join(f"{kind} {taken['folder'] / more:.2f}" for kind, more in taken.items() if kind != "folder")
        print(f"images/{unit}: {shown}; of the folder's: {ratios}")
    for kind, found in costs.items():
        small, large = median(few[kind], "peak"), median(found, "peak")
        print(f"{kind}: peak {small:.0f} MiB for {few_count:,} pictures, {large:.0f} MiB for {count:,}")


def main() -> None:
    """Parse the command line, make the data, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000, help="100,000 at most")
    parser.add_argument("--per-shard", type=int, default=10_000, help="which is what few pictures are")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()
    if not options.per_shard < options.images <= 100_000:
        sys.exit("--images: more than a shard holds, and 100,000 at most")
    print("  \n".join([*describe(None), f"{options.images:,} pictures of {SIDE}×{SIDE}; {load()}\n"]))
    with scratch_folder() as folder:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            pool.submit(make, folder, options.images, options.per_shard).result()
        measure(folder, options.images, options)


if __name__ == "__main__":
    main()
