"""What a job over a cluster costs the machine that it is started on, however fast the workers are.

    python tests/benchmarks/planning.py
    python tests/benchmarks/planning.py --paths 100000 --parts 200

Prints a Markdown table: planning paths and shards, planning them again for a run that is gone on with, counting the
rows of part files that are there, and handing parts without work in them to two workers of a Ray of this machine. Every
line is a process of its own; memory is what it takes on top of its imports, and of itself alone, without Ray's
processes.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from machine import describe, load
from measuring import in_new_process
from training import scratch_folder

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

PER_FILE = 10_000
WORKERS = 100


def resident() -> float:
    """MiB that this process had in memory at most."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def listed(paths: int, shards: int) -> Iterator[Any]:
    """What a listing gives."""
    from clipcls.records import Container, ImageRef

    for number in range(paths):
        yield ImageRef(f"/data/pictures/{number // 1000:06d}/{number:09d}.jpg")
    for number in range(shards):
        yield ImageRef(f"/data/shards/{number:06d}.tar", content=Container("shard"))


def plan(path: Path, paths: int, shards: int, again: bool) -> tuple[float, float, int]:
    """Seconds, MiB and parts of a plan that is made and written."""
    from clipcls.distributed.plan import Plan

    before, start = resident(), time.perf_counter()
    made = Plan(path, goes_on=again)
    made.extend(listed(paths, shards), WORKERS)
    made.write()
    return time.perf_counter() - start, resident() - before, len(made.parts)


def count(folder: Path, files: int) -> tuple[float, float, int]:
    """Seconds and MiB of counting the rows of part files, and how many files."""
    from clipcls.outputs.formats import PARTS_FORMAT
    from clipcls.outputs.part_files import part_name
    from clipcls.outputs.sinks import published
    from clipcls.records import Prediction, ScoredLabel

    top = (ScoredLabel("cat", 0.9, 0.3),)
    for number in range(files):
        with published(folder / part_name(number, PARTS_FORMAT), PARTS_FORMAT, early=False) as sink:
            for row in range(PER_FILE):
                sink.write(Prediction(f"/data/{row:09d}.jpg", "cat", row / PER_FILE, 0.3, top, index=row))
    before, start = resident(), time.perf_counter()
    for path in sorted(folder.glob("part-*")):
        PARTS_FORMAT.tally(path)
    return time.perf_counter() - start, resident() - before, files


def hand_out(parts: int) -> tuple[float, float, int]:
    """Seconds and MiB of Ray's own work, as `Cluster` has it done, and how many parts."""
    import ray
    import ray.data

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False

    class Worker:
        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            return batch

    def run(count: int) -> None:
        rows = [{"part": f'{{"part":{number},"shard":"/data/shards/{number}.tar"}}'} for number in range(count)]
        actors = ray.data.ActorPoolStrategy(size=2, max_tasks_in_flight_per_actor=2)
        data = ray.data.from_items(rows, override_num_blocks=count)
        assert sum(1 for _ in data.map_batches(Worker, batch_size=1, compute=actors, num_cpus=1).iter_rows()) == count

    run(2)
    before, start = resident(), time.perf_counter()
    run(parts)
    return time.perf_counter() - start, resident() - before, parts


def show(name: str, items: int, found: tuple[float, float, int]) -> None:
    """Print a line."""
    seconds, mib, parts = found
    each = f"{max(0, mib) * 2**20 / items:,.0f}"
    print(f"| {name} | {parts:,} | {seconds:.1f} | {items / seconds:,.0f} | {mib:.0f} | {each} |", flush=True)


def main() -> None:
    """Parse the command line, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paths", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--files", type=int, default=200, help=f"of {PER_FILE:,} rows")
    parser.add_argument("--parts", type=int, default=5_000, help="without work in them")
    options = parser.parse_args()
    print("  \n".join([*describe(None), f"{load()}\n"]))
    print(f"| | parts | seconds | items/s | MiB | bytes an item |\n{'|---' * 6}|", flush=True)
    with scratch_folder() as folder:
        for name, paths, shards in (("paths", options.paths, 0), ("shards", 0, options.shards)):
            for what, again in (("planned", False), ("planned again", True)):
                found = in_new_process(plan, folder / name, paths, shards, again)
                show(f"{paths + shards:,} {name} {what}", paths + shards, found)
        found = in_new_process(count, folder, options.files)
        show(f"{options.files:,} part files of {PER_FILE:,} rows counted", options.files, found)
    show("parts without work, through Ray", options.parts, in_new_process(hand_out, options.parts))


if __name__ == "__main__":
    main()
