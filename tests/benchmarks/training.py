"""Images per second and peak memory of `clipcls train` beside open_clip's own trainer, on the same pictures.

    python tests/benchmarks/training.py --rounds 3

Both train the same architecture from random weights, in processes of their own that take turns. In each round either
runs twice, for a few steps and for more: what the second run takes longer is the time of the additional steps, without
start-up, warm-up and the saving at the end. clipcls keeps no decoded pictures here, since open_clip doesn't either. The
peak is that of the largest process; open_clip's workers are processes and come on top. Where other programs run at the
same time, only the time of the cores says something, with OMP_WAIT_POLICY=PASSIVE, so that waiting isn't counted.

open_clip's trainer needs the packages pandas, webdataset and braceexpand.
"""

import argparse
import csv
import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from itertools import cycle, islice
from pathlib import Path

NEEDED = ("open_clip_train", "pandas", "webdataset", "braceexpand")
OPEN_CLIP_PRECISIONS = {"fp32": "fp32", "bf16": "amp_bf16"}
OPEN_CLIP, CLIPCLS = "open_clip_train.main", "clipcls train"


@dataclass(frozen=True, slots=True)
class Cost:
    """What a process took.

    Attributes:
        seconds: from its start to its end.
        processor: seconds that all cores worked, which other programs on the machine disturb less.
        peak: of its memory, in MiB.
    """

    seconds: float
    processor: float
    peak: float


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder that is removed in the end."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder).resolve()


def pictures_and_precision(folder: Path, count: int, size: tuple[int, int]) -> tuple[list[Path], str]:
    """Write pictures, and find out what `auto` is on this processor.

    This runs in a process of its own, which imports torch: Linux counts the memory that a parent has when it starts
    a child among the child's peak, so that the parent has to stay small.
    """
    import torch
    from corpora import make_pictures

    from clipcls.models.device import choose_precision

    return make_pictures(folder, count, size), choose_precision("auto", torch.device("cpu"))


def prepare(folder: Path, count: int, size: tuple[int, int]) -> tuple[list[Path], str]:
    """The same, from a process that has to stay small."""
    with ProcessPoolExecutor(1) as pool:
        return pool.submit(pictures_and_precision, folder, count, size).result()


def write_table(path: Path, pictures: list[Path], rows: int, more_words: int = 0) -> None:
    """A table that names the pictures again and again, each time with another caption."""
    end = " indeed" * more_words
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", "caption"])
        table.writerows(
            (picture, f"a photo of thing number {n}{end}") for n, picture in enumerate(islice(cycle(pictures), rows))
        )


def clipcls_command(folder: Path, table: Path, options: argparse.Namespace, precision: str) -> list[str]:
    """One epoch of the table with clipcls."""
    settings = {
        "data": str(table),
        "arch": options.arch,
        "output": str(folder / "output"),
        "epochs": 1,
        "batch_size": options.batch_size,
        "precision": precision,
        "device": options.device,
        "workers": options.workers,
        "cache_mb": 0,
        "augment": options.augment,
        "save_minutes": 0,
    }
    (folder / "settings.yaml").write_text(json.dumps(settings), encoding="utf-8")
    return [sys.executable, "-m", "clipcls", "train", "--config", str(folder / "settings.yaml")]


def open_clip_command(folder: Path, table: Path, options: argparse.Namespace, precision: str) -> list[str]:
    """One epoch of the table with open_clip's trainer; the gradients are clipped as clipcls does by default."""
    given = {
        "train-data": table,
        "dataset-type": "csv",
        "csv-separator": ",",
        "csv-img-key": "image",
        "csv-caption-key": "caption",
        "model": options.arch,
        "batch-size": options.batch_size,
        "precision": OPEN_CLIP_PRECISIONS[precision],
        "device": options.device,
        "workers": options.workers,
        "epochs": 1,
        "grad-clip-norm": 1.0,
        "logs": folder / "output",
    }
    arguments = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    return [sys.executable, "-m", OPEN_CLIP, *arguments]


COMMANDS = {CLIPCLS: clipcls_command, OPEN_CLIP: open_clip_command}


def run_process(command: list[str], folder: Path) -> Cost:
    """Run a command in a folder, to its end.

    Raises:
        SystemExit: it fails; its last words are the message.
    """
    log = folder / "log"
    start = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{log.read_text(errors='replace')[-2000:]}")
    return Cost(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def run_trainer(name: str, table: Path, options: argparse.Namespace, precision: str) -> Cost:
    """Train for an epoch of a table; what was written is removed at once."""
    folder = table.parent / "run"
    folder.mkdir()
    cost = run_process(COMMANDS[name](folder, table, options, precision), folder)
    shutil.rmtree(folder)
    return cost


def measure(tables: tuple[Path, Path], options: argparse.Namespace, precision: str) -> None:
    """Print a line for each round, and the medians."""
    costs: dict[str, list[Cost]] = {name: [] for name in COMMANDS}
    images = (options.steps - options.warm_up) * options.batch_size
    for number in range(options.rounds):
        for name in COMMANDS:
            few, many = (run_trainer(name, table, options, precision) for table in tables)
            cost = Cost((many.seconds - few.seconds) / images, (many.processor - few.processor) / images, many.peak)
            costs[name].append(cost)
            print(f"{precision}, round {number + 1}: {line(name, cost)}", flush=True)
    medians = {name: median(values) for name, values in costs.items()}
    for name, cost in medians.items():
        faster = medians[OPEN_CLIP].seconds / cost.seconds
        lighter = medians[OPEN_CLIP].processor / cost.processor
        print(f"{precision}, median:  {line(name, cost)}; open_clip / {name}: {faster:.2f}, of core time {lighter:.2f}")


def median(costs: list[Cost]) -> Cost:
    """Of each figure by itself."""
    return Cost(*(statistics.median(figures) for figures in zip(*map(astuple, costs), strict=True)))


def line(name: str, cost: Cost) -> str:
    """The cost of an image, for people."""
    speed = f"{1 / cost.seconds:7.2f} images/s, {1000 * cost.processor:6.0f} ms of a core each"
    return f"{name:20} {speed}, peak {cost.peak:5.0f} MiB"


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="ViT-B-32")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--images", type=int, default=320, help="different pictures")
    parser.add_argument("--width", type=int, default=500)
    parser.add_argument("--height", type=int, default=375)
    parser.add_argument("--warm-up", type=int, default=2, help="steps of the short run")
    parser.add_argument("--steps", type=int, default=8, help="steps of the long run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", nargs="+", choices=OPEN_CLIP_PRECISIONS, help="fp32, and bf16 if there is")
    parser.add_argument("--augment", default="light", help="clipcls'; open_clip's is a random crop")
    parser.add_argument("--more-words", type=int, default=0, help="than five in each caption; 70 fill CLIP's context")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def main() -> None:
    """Parse the command line, make the data, print the results."""
    options = parse_arguments()
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"no {', '.join(missing)}: pip install open_clip_torch pandas webdataset braceexpand")
    with scratch_folder() as folder:
        pictures, best = prepare(folder, options.images, (options.width, options.height))
        tables = (folder / "few.csv", folder / "many.csv")
        for table, steps in zip(tables, (options.warm_up, options.steps), strict=True):
            write_table(table, pictures, steps * options.batch_size, options.more_words)
        print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {options.arch}")
        print(f"batches of {options.batch_size}, JPEGs of {options.width}×{options.height}, augment {options.augment}")
        for precision in options.precision or dict.fromkeys(["fp32", best]):
            measure(tables, options, precision)


if __name__ == "__main__":
    main()
