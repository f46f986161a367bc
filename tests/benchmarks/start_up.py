"""From the start of a process to its end, for one picture and for help, beside a bare `import torch, open_clip`.

    python tests/benchmarks/start_up.py --rounds 5

Every run is a whole process, and the runs of a round come one after another, so that a busy moment meets all of them.
The first round, which finds nothing in the page cache, isn't counted. Without `--model` the weights are random: speed
doesn't depend on their values.
"""

import argparse
import json
import os
import platform
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
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file

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

    def seconds(self) -> float:
        """The time of one process."""
        self.prepare()
        start = time.perf_counter()
        subprocess.run(self.command, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start


def save_picture(path: Path, seed: int) -> None:
    """A JPEG of 500×375 that differs with the seed."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    coarse.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=88)


def save_model(folder: Path, architecture: str) -> Path:
    """Random weights as a model folder."""
    folder.mkdir()
    model = open_clip.create_model(architecture)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    config = {
        "model_cfg": open_clip.get_model_config(architecture),
        "preprocess_cfg": open_clip.get_model_preprocess_cfg(model),
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def runs(folder: Path, model: Path) -> list[Run]:
    """All that is timed, the bare import first."""
    clipcls = (sys.executable, "-m", "clipcls")
    picture, cache = folder / "one.jpg", folder / "cache"
    predict = (*clipcls, "predict", str(picture), "--labels", "cat,dog,truck", "--model", str(model), "--quiet")
    cached = (*predict, "--cache-dir", str(cache))
    seeds = iter(range(1, sys.maxsize))
    save_picture(picture, 0)
    return [
        Run(BARE, (sys.executable, "-c", "import torch, open_clip")),
        Run("`predict`, one picture, `--no-cache`", (*predict, "--no-cache")),
        Run("`predict`, one picture, empty cache", cached, lambda: shutil.rmtree(cache, ignore_errors=True)),
        Run("`predict`, labels cached, a new picture", cached, lambda: save_picture(picture, next(seeds))),
        Run("`predict`, all cached", cached),
        Run("`clipcls --help`", (*clipcls, "--help")),
        Run("`clipcls --version`", (*clipcls, "--version")),
        Run("`clipcls predict --help`", (*clipcls, "predict", "--help")),
    ]


def processor() -> str:
    """The processor's name, where the system tells it."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def measure(kinds: list[Run], rounds: int) -> dict[str, list[float]]:
    """Seconds of each kind in the rounds that count."""
    seconds: dict[str, list[float]] = {kind.name: [] for kind in kinds}
    for number in range(rounds + 1):
        for kind in kinds:
            taken = kind.seconds()
            if number > 0:
                seconds[kind.name].append(taken)
        print(f"round {number} of {rounds} done", file=sys.stderr, flush=True)
    return seconds


def main() -> None:
    """Parse the command line, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", type=Path, help="a model folder instead of random weights")
    parser.add_argument("--arch", default="ViT-B-32", help="of the random weights")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        model = options.model or save_model(Path(name) / "model", options.arch)
        seconds = measure(runs(Path(name), model), options.rounds)
    bare = statistics.median(seconds[BARE])
    print(
        f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}, "
        f"open_clip {open_clip.__version__}; {options.model.name if options.model else options.arch}, "
        f"median of {options.rounds} (lowest to highest)\n"
    )
    print("| process | seconds | times the bare import |\n|---|---|---|")
    for kind, values in seconds.items():
        middle = statistics.median(values)
        print(f"| {kind} | {middle:.2f} ({min(values):.2f} to {max(values):.2f}) | {middle / bare:.2f} |")


if __name__ == "__main__":
    main()
