"""Jobs that are killed with SIGKILL at random moments, gone on with until they end, and compared with unbroken ones.

    python tests/benchmarks/killed.py
    python tests/benchmarks/killed.py --rounds 5 --precision bf16 --images 4000

For each format: an unbroken run, then a run that is killed `--rounds` times, once a random share of its output is
written or a moment later, and each time resumed; some of its pictures are damaged. Paths, order, errors and labels
have to be the same, similarities as near as the precision allows. Weights are random.
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

from conftest import TINY_CONFIG, save_model, save_pictures  # noqa: E402
from killing import check_equal, kill_at_random, rows_in  # noqa: E402

# similarities, and how near the best two may be where labels differ
TOLERANCES = {"fp32": (1e-5, 0.0), "bf16": (5e-3, 0.01)}


def command(folder: Path, precision: str, target: list[str]) -> list[str]:
    """A job that keeps nothing but its output."""
    common = ["--labels", "cat,dog,truck,house", "--top-k", "2", "--no-cache", "--batch-size", "8", "-q"]
    model = ["--model", str(folder / "model"), "--precision", precision]
    return [sys.executable, "-m", "clipcls", "predict", str(folder / "pictures"), *common, *model, *target]


def run(folder: Path, kind: str, precision: str, rounds: int, rng: random.Random) -> str:
    """One format; returns a line of the table."""

    def target(name: str) -> tuple[Path, list[str]]:
        path = folder / f"{name}-{kind}-{precision}"
        if kind == "parquet":
            return path, ["--output-dir", str(path)]
        return path.with_suffix(f".{kind}"), ["--output", str(path.with_suffix(f".{kind}"))]

    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    whole, options = target("whole")
    subprocess.run(command(folder, precision, options), env=environment, check=False)
    size = sum(path.stat().st_size for path in (whole.glob("part-*") if whole.is_dir() else [whole]))
    broken, options = target("broken")
    resumed = [*command(folder, precision, options), "--resume"]
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
    rows = rows_in(broken)
    check_equal(rows, rows_in(whole), *TOLERANCES[precision])
    bad = sum(row.error is not None for row in rows)
    return f"| {kind} | {precision} | {len(rows)} | {bad} | {killed} of {rounds} | {time.monotonic() - start:.0f} s |"


def main() -> None:
    """Print a Markdown table; an assertion fails where an output differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--precision", default="fp32", choices=TOLERANCES)
    parser.add_argument("--format", default="jsonl,csv,parquet")
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
