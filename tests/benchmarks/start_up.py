"""From the start of a process to its end, for one picture and for help, beside a bare `import torch, open_clip`.

    python tests/benchmarks/start_up.py --rounds 5

Every run is a whole process, and the runs of a round come one after another, so that a busy moment meets all of them.
The first round, which finds nothing in the page cache, isn't counted. Without `--model` the weights are random: speed
doesn't depend on their values.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from machine import describe, load
from PIL import Image
from runners import save_weights

BARE = "`import torch, open_clip`"


@dataclass(frozen=True, slots=True)
class Run:
    """One kind of process.

    Attributes:
        prepare: what is laid ready before the clock starts.
    """

    name: str
    command: tuple[str, ...]
    prepare: Callable[[], object] = lambda: None

    def seconds(self) -> tuple[float, float]:
        """From the start of a process to its first line, or its end if it prints none, and to its end."""
        self.prepare()
        start = time.perf_counter()
        with subprocess.Popen(self.command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            first = time.perf_counter() - start
            process.stdout.read()
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, self.command)
        return first, time.perf_counter() - start


def save_picture(path: Path, seed: int) -> None:
    """A JPEG of 500×375 that differs with the seed."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    coarse.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=88)


def runs(folder: Path, model: Path) -> list[Run]:
    """All that is timed, the bare import first."""
    clipcls = (sys.executable, "-m", "clipcls")
    picture, labels, cache = folder / "one.jpg", folder / "labels.txt", folder / "cache"
    predict = (*clipcls, "predict", str(picture), "--labels-file", str(labels), "--model", str(model), "--quiet")
    cached = (*predict, "--cache-dir", str(cache))
    by_torch = (*cached, "--runtime", "torch")
    seeds = iter(range(1, sys.maxsize))

    def save_new_picture() -> None:
        save_picture(picture, next(seeds))

    def save_both() -> None:
        save_new_picture()
        labels.write_text(f"cat\ndog\nbus line {next(seeds)}\n", encoding="utf-8")

    save_both()
    return [
        Run(BARE, (sys.executable, "-c", "import torch, open_clip")),
        Run("`predict`, one picture, `--no-cache`", (*predict, "--no-cache")),
        Run("`predict`, one picture, empty cache", cached, lambda: shutil.rmtree(cache, ignore_errors=True)),
        Run("`predict`, new labels, a new picture", cached, save_both),
        Run("`predict`, labels cached, a new picture", cached, save_new_picture),
        Run("`predict`, all cached", cached),
        Run("`predict`, labels cached, a new picture, `--runtime torch`", by_torch, save_new_picture),
        Run("`clipcls --help`", (*clipcls, "--help")),
        Run("`clipcls --version`", (*clipcls, "--version")),
        Run("`clipcls predict --help`", (*clipcls, "predict", "--help")),
    ]


def measure(kinds: list[Run], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """What each kind took in the rounds that count."""
    seconds: dict[str, list[tuple[float, float]]] = {kind.name: [] for kind in kinds}
    for number in range(rounds + 1):
        for kind in kinds:
            taken = kind.seconds()
            if number > 0:
                seconds[kind.name].append(taken)
        print(f"round {number} of {rounds} done", file=sys.stderr, flush=True)
    return seconds


def table(seconds: dict[str, list[tuple[float, float]]]) -> list[str]:
    """Medians, and how many times the bare import's whole process they are."""
    lines = [
        "| process | first line, s | times the bare import | end, s | times the bare import |",
        "|---|---|---|---|---|",
    ]
    bare = statistics.median(end for _, end in seconds[BARE])
    for kind, values in seconds.items():
        cells = [kind]
        for times in zip(*values, strict=True):
            middle = statistics.median(times)
            cells += [f"{middle:.2f} ({min(times):.2f} to {max(times):.2f})", f"{middle / bare:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Parse the command line, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", type=Path, help="a model folder instead of random weights")
    parser.add_argument("--arch", default="ViT-B-32", help="of the random weights")
    options = parser.parse_args()
    before = load()
    with tempfile.TemporaryDirectory() as name:
        if options.model is None:
            save_weights(Path(name) / "model", options.arch)
        seconds = measure(runs(Path(name), options.model or Path(name) / "model"), options.rounds)
    weights = options.model.name if options.model else f"random weights of {options.arch}"
    print("\n".join([*describe(gpu=None), before]))
    print(f"{weights}; median of {options.rounds} rounds (lowest to highest)\n")
    print("\n".join(table(seconds)))


if __name__ == "__main__":
    main()
