"""Jobs that are killed with SIGKILL at random moments, gone on with until they end, and compared with unbroken ones.

    python tests/benchmarks/killed.py
    python tests/benchmarks/killed.py --rounds 5 --precision bf16 --images 4000

For each format of `predict` and of the folders of `embed`: an unbroken run, then a run that is killed `--rounds` times,
once a random share of its output is written or a moment later, and each time resumed; some of its pictures are damaged.
Paths, order, errors and labels have to be the same, similarities and features as near as the precision allows. Weights
are random.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

from clipcls.outputs.vectors import read_vectors  # noqa: E402
from conftest import TINY_CONFIG, save_model, save_pictures  # noqa: E402
from killing import bytes_in, check_equal, check_same_features, kill_at_random, rows_in  # noqa: E402

# similarities, and how near the best two may be where labels differ
TOLERANCES = {"fp32": (1e-5, 0.0), "bf16": (5e-3, 0.01)}


# `clipcls` with parts of features that are so small that there are several
SMALL_PARTS = """
from clipcls.cli import main
from clipcls.outputs.vectors import write
write.PART_ROWS = 100
main()
"""


def command(folder: Path, precision: str, target: list[str], embeds: bool) -> list[str]:
    """A job that keeps nothing but its output."""
    common = [str(folder / "pictures"), "--no-cache", "--batch-size", "8", "-q"]
    model = ["--model", str(folder / "model"), "--precision", precision]
    if embeds:
        return [sys.executable, "-c", SMALL_PARTS, "embed", *common, *model, *target]
    labels = ["--labels", "cat,dog,truck,house", "--top-k", "2"]
    return [sys.executable, "-m", "clipcls", "predict", *common, *labels, *model, *target]


def run(folder: Path, kind: str, precision: str, rounds: int, rng: random.Random) -> str:
    """One format; returns a line of the table."""

    def target(name: str) -> tuple[Path, list[str]]:
        path = folder / f"{name}-{kind}-{precision}"
        if embeds:
            return path, ["--output-dir", str(path), "--format", kind.removeprefix("embed-")]
        if kind == "parquet":
            return path, ["--output-dir", str(path)]
        return path.with_suffix(f".{kind}"), ["--output", str(path.with_suffix(f".{kind}"))]

    embeds = kind.startswith("embed-")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    whole, options = target("whole")
    subprocess.run(command(folder, precision, options, embeds), env=environment, check=False)
    size = bytes_in(whole)
    broken, options = target("broken")
    resumed = [*command(folder, precision, options, embeds), "--resume"]
    killed = 0
    start = time.monotonic()
    for number in range(rounds):
        # each part of the output sees some of the kills
        goal = size * (number + 1) / rounds
        killed += kill_at_random(
            lambda: subprocess.Popen(resumed, env=environment), lambda process: process.poll() is None, broken,
            int(goal), rng,
        )  # fmt: skip
        print(f"{kind} {precision}: kill {number + 1} of {rounds}", file=sys.stderr)
    done = subprocess.run(resumed, env=environment, check=False)
    assert done.returncode == 1, done
    if embeds:
        check_same_features(broken, whole, TOLERANCES[precision][0])
        found = read_vectors(broken)
        bad, count = found.failed, len(found.keys) + found.failed
    else:
        rows = rows_in(broken)
        check_equal(rows, rows_in(whole), *TOLERANCES[precision])
        bad, count = sum(row.error is not None for row in rows), len(rows)
    return f"| {kind} | {precision} | {count} | {bad} | {killed} of {rounds} | {time.monotonic() - start:.0f} s |"


def main() -> None:
    """Print a Markdown table; an assertion fails where an output differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--precision", default="fp32", choices=TOLERANCES)
    parser.add_argument("--format", default="jsonl,csv,parquet,embed-parquet,embed-npy")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_model(folder / "model", TINY_CONFIG)
        for number, path in enumerate(save_pictures(folder / "pictures", options.images)):
            if number % 50 == 7:
                path.write_bytes(path.read_bytes()[:200])
        print("| format | precision | images | bad ones | killed while running | time |\n|---|---|---|---|---|---|")
        for kind in options.format.split(","):
            print(run(folder, kind, options.precision, options.rounds, random.Random(options.seed)), flush=True)


if __name__ == "__main__":
    main()
