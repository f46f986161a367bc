"""`clipcls predict --engine ray` beside the same job in one process, on a Ray of this machine alone.

    python tests/benchmarks/cluster.py --folder pictures
    python tests/benchmarks/cluster.py --parts workers,memory --model pictogram --images 1000 --rounds 1

The parts, each with a Markdown table:

- `overhead`: the plain engine, and one worker with the same number of threads (`--threads`, all cores by default);
- `workers`: one worker of one thread, and two of them;
- `memory`: of each of two workers, looked at every second, from the model's opening to the end;
- `tasks`: one worker that decodes and encodes, and pictures that Ray's tasks decode beside an actor that encodes them
  (`decoding_tasks.py`), on the same cores.

Every run is a process of its own, without a cache; the kinds take turns in each round, and medians count. "Whole" is
the time from a process's start to its end. To leave start-up out, either kind runs over a few pictures as well, a
hundred for each worker, which is one part of the job each: what all pictures take longer is the time of the others.
What the engine spends between parts, and at the end when one worker is done before the other, is in it; opening the
model and its first pictures aren't. Ray's own processes run on the same cores as the workers. OMP_NUM_THREADS and
`--workers` hold each process to its threads. Pictures are JPEGs of 500×375; weights are random unless there is a
`--model`. Rows are compared in the first round. Linux. Progress goes to standard error.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from corpora import corpus
from machine import describe, installed, load
from measuring import in_new_process
from peers import folder_for

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

from clipcls.records import Prediction  # noqa: E402
from clusters import Node  # noqa: E402
from killing import check_equal, rows_in  # noqa: E402

PARTS = ("overhead", "workers", "memory", "tasks")
LABELS = "cat,dog,truck"
FEW = 100  # pictures in the smallest part of a job


@dataclass(frozen=True, slots=True)
class Data:
    """What all runs share."""

    folder: Path
    model: str
    pictures: list[Path]

    def list_of(self, count: int) -> Path:
        """A file that names the first pictures."""
        path = self.folder / f"first-{count}.txt"
        path.write_text("".join(f"{picture}\n" for picture in self.pictures[:count]), encoding="utf-8")
        return path

    @property
    def output(self) -> Path:
        """Where the rows of a run go."""
        return self.folder / "rows"


@dataclass(frozen=True, slots=True)
class Kind:
    """A way to do the job.

    Attributes:
        threads: of each worker.
        workers: None for the plain engine.
        in_tasks: whether Ray's tasks decode.
    """

    name: str
    threads: int
    workers: int | None = None
    in_tasks: bool = False

    @property
    def few(self) -> int:
        """A part for each worker."""
        return FEW * (self.workers or 1)

    def command(self, data: Data, count: int) -> list[str]:
        """Label the first pictures."""
        listed = str(data.list_of(count))
        if self.in_tasks:
            script = str(Path(__file__).with_name("decoding_tasks.py"))
            return [sys.executable, script, data.model, listed, LABELS, str(self.threads), str(data.output)]
        spread = [] if self.workers is None else ["--engine", "ray", "--ray-workers", str(self.workers)]
        job = ["--files-from", listed, "--labels", LABELS, "--model", data.model, "--output-dir", str(data.output)]
        options = ["--workers", str(self.threads), "--device", "cpu", "--no-cache", "-q", *spread]
        return [sys.executable, "-m", "clipcls", "predict", *job, *options]

    def start(self, data: Data, count: int) -> "subprocess.Popen[bytes]":
        """Start a run, in a session of its own."""
        shutil.rmtree(data.output, ignore_errors=True)
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": str(self.threads),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        environment.pop("RAY_ADDRESS", None)
        return subprocess.Popen(self.command(data, count), env=environment, start_new_session=True)


@dataclass(slots=True)
class Times:
    """Seconds that runs of a kind took, over a few pictures and over all."""

    images: int
    few: list[float] = field(default_factory=list)
    all: list[float] = field(default_factory=list)

    def whole(self) -> float:
        """Images a second of whole processes."""
        return self.images / statistics.median(self.all)

    def steady(self, few: int) -> float:
        """Images a second with start-up left out."""
        more = statistics.median(self.all) - statistics.median(self.few)
        return (self.images - few) / more if more > 0 else float("nan")


def run(kind: Kind, data: Data, count: int, watch: Callable[[Node], None] | None = None) -> float:
    """Seconds of one run.

    Args:
        watch: called every second with the processes of the run.
    """
    start = time.perf_counter()
    process = kind.start(data, count)
    while watch is not None and process.poll() is None:
        watch(Node(process))
        time.sleep(1)
    code = process.wait()
    seconds = time.perf_counter() - start
    if code != 0:
        sys.exit(f"{kind.name}: exit code {code}")
    print(f"{kind.name}: {count:,} pictures in {seconds:.1f} s", file=sys.stderr, flush=True)
    return seconds


def race(kinds: Iterable[Kind], data: Data, rounds: int) -> dict[Kind, Times]:
    """Run kinds in turns; in the first round their rows have to be equal."""
    times = {kind: Times(len(data.pictures)) for kind in kinds}
    expected: list[Prediction] | None = None
    for number in range(rounds):
        for kind, found in times.items():
            found.few.append(run(kind, data, kind.few))
            found.all.append(run(kind, data, len(data.pictures)))
            if number == 0:
                rows = sorted(rows_in(data.output), key=lambda row: row.path)
                expected = expected or rows
                # several precisions never meet in one race: they follow from the processor
                check_equal(rows, expected, 5e-3, 0.01)
    return times


def report(times: dict[Kind, Times], rounds: int) -> None:
    """Print a table, whose last column compares with its first row."""
    first, base = next(iter(times.items()))
    print(f"| {rounds} rounds | images/s, whole | images/s, start-up left out | of the first |\n{'|---' * 4}|")
    for kind, found in times.items():
        steady, share = found.steady(kind.few), found.steady(kind.few) / base.steady(first.few)
        print(f"| {kind.name} | {found.whole():.1f} | {steady:.1f} | {share:.2f} |")
    for kind, found in times.items():
        few, all_ = (", ".join(f"{seconds:.1f}" for seconds in series) for series in (found.few, found.all))
        print(f"  \n{kind.name}: {kind.few} pictures in {few} s; {found.images:,} in {all_} s", end="")
    print("\n", flush=True)


def memory(data: Data) -> None:
    """Print the peaks of workers early and late in a run."""
    kind = Kind("two workers of one thread", 1, 2)
    # of each process: how many of the parts were done, and its MiB
    seen: dict[int, list[tuple[int, float]]] = {}

    def watch(node: Node) -> None:
        done = sum(1 for _ in data.output.glob("part-*"))
        for pid, name in node.processes():
            if "MapWorker" in name:
                seen.setdefault(pid, []).append((done, resident(pid)))

    run(kind, data, len(data.pictures), watch)
    parts = sum(1 for _ in data.output.glob("part-*"))
    print("| worker | MiB at most, first quarter | last quarter | times |\n|---|---|---|---|")
    for number, (_, samples) in enumerate(sorted(seen.items()), 1):
        early = max((mib for done, mib in samples if done < parts / 4), default=float("nan"))
        late = max((mib for done, mib in samples if done >= parts * 3 / 4), default=float("nan"))
        print(f"| {number} | {early:.0f} | {late:.0f} | {late / early:.2f} |")
    print(flush=True)


def resident(pid: int) -> float:
    """MiB of a process in memory, shared ones included; 0 where it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def prepare(folder: Path, arch: str, count: int) -> tuple[str, list[Path]]:
    """A model with random weights, and the pictures; in a process of its own, which imports torch."""
    from runners import make_setup

    return str(make_setup(folder, arch, "cpu").weights), corpus(folder, "small", count)


def measure(data: Data, options: argparse.Namespace) -> None:
    """Print the tables of the parts that are wanted."""
    threads = options.threads
    of = f"of {threads} threads" if threads > 1 else "of one thread"
    plain, one = Kind(f"one process {of}", threads), Kind(f"Ray, one worker {of}", threads, 1)
    alone, two = Kind("Ray, one worker of one thread", 1, 1), Kind("Ray, two workers of one thread", 1, 2)
    in_tasks = Kind(f"Ray, decoding in tasks, on as many cores as {threads}", threads, 1, in_tasks=True)
    races = {"overhead": (plain, one), "workers": (alone, two), "tasks": (one, in_tasks)}
    for part in options.parts:
        print(f"{part}:\n")
        if part == "memory":
            memory(data)
        else:
            report(race(races[part], data, options.rounds), options.rounds)


def part_names(text: str) -> list[str]:
    """The value of --parts."""
    names = text.split(",")
    if unknown := set(names) - set(PARTS):
        raise argparse.ArgumentTypeError(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    return names


def main() -> None:
    """Parse the command line, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=part_names, default=list(PARTS), help=f"of {','.join(PARTS)}; all")
    parser.add_argument("--images", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of overhead and tasks")
    parser.add_argument("--arch", default="ViT-B-32", help="an architecture of open_clip, for random weights")
    parser.add_argument("--model", help="whatever predict takes, instead")
    parser.add_argument("--folder", type=Path, help="keep pictures and weights here, and use those that are there")
    options = parser.parse_args()
    if options.images < 4 * FEW:
        parser.error(f"--images: {4 * FEW} at least")
    with folder_for(options.folder) as folder:
        weights, pictures = in_new_process(prepare, folder, options.arch, options.images)
        model = options.model or weights
        name = options.model or f"{options.arch}, random weights"
        versions = f"ray {installed('ray')}; {name}; {options.images:,} pictures; {load()}\n"
        print("  \n".join([*describe(None), versions]), flush=True)
        measure(Data(folder, model, pictures), options)


if __name__ == "__main__":
    main()
