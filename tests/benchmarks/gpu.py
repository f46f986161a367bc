"""Whether an NVIDIA GPU computes what the CPU does, and how fast clipcls is on it, in one command of 8 minutes.

    python tests/benchmarks/gpu.py --output gpu.json
    python tests/benchmarks/gpu.py --parts features,forward,decoding,whole --minutes 5 --output gpu.json

The parts, in this order:

- `features`: of five families, randomly initialised, on the GPU in fp32 (without TF32), bf16 and fp16 beside those of
  the CPU in fp32;
- `predictions`: the same through the command line;
- `forward`: the image towers alone: eager, as a CUDA graph, with channels last, and as clipcls calls them; the card's
  own ceilings for comparison;
- `decoding`: files to pixels on threads and on processes, and by nvJPEG (torchvision's, in batches);
- `copying`: of batches to the device;
- `whole`: `clipcls predict` over 20,000 small and 2,000 12-megapixel JPEGs and over tar shards, with the share of the
  slower of decoding and forward pass that it reaches;
- `memory`: batches that don't fit into what is left of the GPU's memory: halved, and the rows still in order;
- `sharing`: two processes on one GPU;
- `training`: a run that is killed and resumed; a step's loss and gradient beside the CPU's;
- `compile`: towers through `torch.compile`, last, since compiling takes long.

Each part is a process of its own. A part that fails or takes too long is reported, and the others go on. Each result is
printed (on standard error) and written to the JSON file as soon as it is there; tables come at the end. The exit code
is 1 if something failed or isn't as it should be.

What the figures are: the median of passes or rounds, after some that don't count, and the GPU waited for; see the
modules `gpu_roofs` and `gpu_whole`. Pictures are a few hundred, each with many names, and in the page cache, so that no
disk is measured; nothing is answered from clipcls' own cache. The roof of the forward pass is the best of all ways and
batch sizes, that of decoding the best number of threads. GPU busy is the driver's share of time in which anything ran.
Weights are random: speed doesn't depend on their values.

It runs from a checkout, without an installation. Beside PyTorch, torchvision, timm, transformers, Pillow, safetensors,
huggingface_hub, matplotlib, fsspec, PyYAML, rich and pytest it needs, of clipcls' requirements, open_clip_torch (with
ftfy and wcwidth), typer, pydantic (with pydantic_core, annotated-types and typing-inspection), platformdirs,
braceexpand and httpcore2 (with truststore); simplejpeg for the speed that users have; nvidia-ml-py for the GPU's memory
and how busy it is. On a machine without a network they can be brought as wheels, and named by PYTHONPATH:

    pip install --no-index --no-deps --target /tmp/site wheels/*.whl
    PYTHONPATH=/tmp/site python tests/benchmarks/gpu.py --full --output gpu.json

Without CUDA, or with --tiny, it runs in a tiny form as a test of itself: small models and few pictures, with the CPU in
place of the GPU. Those figures mean nothing.
"""

import argparse
import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from gpu_plan import Plan, Result, full_plan, tiny_plan
from gpu_report import Part, Report, as_line
from machine import describe, load
from peers import folder_for

ROOT = Path(__file__).parents[2]

PREPARE = "prepare"


@dataclass(frozen=True, slots=True)
class Kind:
    """A part that there is.

    Attributes:
        module, function: what yields its results.
        seconds: after which it begins nothing more.
    """

    module: str
    function: str
    seconds: float


PARTS = {
    PREPARE: Kind("gpu_data", "prepare", 90),
    "features": Kind("gpu_equality", "features", 60),
    "predictions": Kind("gpu_equality", "predictions", 40),
    "forward": Kind("gpu_roofs", "forward", 60),
    "decoding": Kind("gpu_roofs", "decoding", 50),
    "copying": Kind("gpu_roofs", "copying", 10),
    "whole": Kind("gpu_whole", "whole", 130),
    "memory": Kind("gpu_whole", "memory", 40),
    "sharing": Kind("gpu_whole", "sharing", 30),
    "training": Kind("gpu_equality", "training", 60),
    "compile": Kind("gpu_roofs", "compiled", 60),
}
#: Seconds that a part may take to end what it has begun.
GRACE = 40
#: What all parts import, once: processes are forked off one that has done so.
IMPORTS = [
    *("torch", "torchvision", "open_clip", "transformers", "matplotlib.backends.backend_agg"),
    *(
        "clipcls.predict.run",
        "clipcls.predict.classifier",
        "clipcls.models.encoder",
        "clipcls.train.loop",
        "clipcls.cli",
    ),
]
FORKS = get_context("forkserver")


# ---------------------------------------------------------------------------------------------------------
# A part, in its process


def _work(kind: Kind, plan: Plan, until: float, sender: "Connection[Result | str, Any]") -> None:
    """Send a part's results as they come, and its error."""
    os.setsid()
    # what libraries print isn't a result
    os.dup2(2, 1)
    try:
        for result in getattr(import_module(kind.module), kind.function)(plan, until):
            sender.send(result)
    except BaseException as exc:  # noqa: BLE001 - whatever it is, it is reported, and the other parts go on
        traceback.print_exc()
        sender.send(f"{type(exc).__name__}: {exc}"[:2000])
    sender.close()


def run_part(kind: Kind, plan: Plan, until: float, limit: float) -> Iterator[Result | str]:
    """Yield a part's results, and its error if it has one.

    Args:
        until: when it begins nothing more, on the clock of `time.monotonic`.
        limit: when it is killed.
    """
    receiver, sender = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=_work, args=(kind, plan, until, sender))
    process.start()
    sender.close()
    try:
        while receiver.poll(max(0.0, limit - time.monotonic())):
            try:
                yield receiver.recv()
            except EOFError:
                process.join()
                if process.exitcode:
                    yield f"ended with exit code {process.exitcode}"
                return
        yield "took too long, and was ended"
    finally:
        # with whatever it has started
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.kill()
        process.join()
        receiver.close()


# ---------------------------------------------------------------------------------------------------------
# All of them


def look_at_gpu(sender: "Connection[Any, Any]") -> None:
    """Send what the GPU is called, its memory, and the precisions it has; None without CUDA."""
    import torch

    if not torch.cuda.is_available():
        sender.send(None)
        return
    properties = torch.cuda.get_device_properties(0)
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    name = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    sender.send((name, ("fp32", "bf16", "fp16") if bf16 else ("fp32", "fp16")))


def _gpu() -> tuple[str, tuple[str, ...]] | None:
    receiver, sender = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=look_at_gpu, args=(sender,))
    process.start()
    sender.close()
    found: tuple[str, tuple[str, ...]] | None = receiver.recv()
    process.join()
    return found


def measure(parts: list[str], plan: Plan, report: Report, end: float) -> None:
    """Run parts, one after the other, and report each result at once."""
    for name in [PREPARE, *parts]:
        part = report.parts[name] = Part()
        start = time.monotonic()
        # the tiny form is a test, which leaves nothing out
        until = min(start + PARTS[name].seconds, end) if not plan.is_tiny else end
        found: Iterable[Result | str] = ["no time was left"]
        if name != PREPARE and report.parts[PREPARE].error:
            found = ["there are no models and pictures"]
        elif start < end:
            found = run_part(PARTS[name], plan, until, min(until + GRACE, end))
        for result in found:
            if isinstance(result, str):
                part.error = result
                print(f"{name}: FAILED: {result}", file=sys.stderr, flush=True)
            else:
                part.results.append(result)
                print(f"{name}: {as_line(result)}", file=sys.stderr, flush=True)
            report.write()
        part.seconds = time.monotonic() - start
        print(f"{name}: {part.seconds:.1f} s", file=sys.stderr, flush=True)
        report.write()


def part_names(text: str) -> list[str]:
    """The value of --parts, in the order of all parts."""
    names = text.split(",")
    known = [name for name in PARTS if name != PREPARE]
    if unknown := set(names) - set(known):
        raise argparse.ArgumentTypeError(f"no part {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return [name for name in known if name in names]


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [name for name in PARTS if name != PREPARE]
    parser.add_argument("--parts", type=part_names, default=every, help=f"of {','.join(every)}; all")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which everything is ended")
    parser.add_argument("--output", type=Path, help="write all results to this JSON file")
    parser.add_argument("--folder", type=Path, help="keep models and pictures here, and use those that are there")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--tiny", action="store_true", help="as without CUDA, even if there is a GPU")
    form.add_argument("--full", action="store_true", help="stop where there is no CUDA, instead of the tiny form")
    return parser.parse_args()


def main() -> None:
    """Parse the command line, measure, print the tables."""
    options = parse_arguments()
    end = time.monotonic() + 60 * options.minutes
    before = load()
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    # with the last, whether there is CUDA can be asked for without starting it, which no fork may inherit
    os.environ |= {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    FORKS.set_forkserver_preload(IMPORTS)
    with folder_for(options.folder) as folder:
        gpu = None if options.tiny else _gpu()
        if gpu is None and options.full:
            sys.exit("no CUDA here, or a torch without it")
        plan = tiny_plan(folder) if gpu is None else full_plan(folder, gpu[1])
        form = ["the tiny form, whose figures mean nothing"] if gpu is None else []
        report = Report([*describe(gpu and gpu[0]), *form, before], options.output)
        report.write()
        measure(options.parts, plan, report, end)
    print("\n".join(report.as_text()), flush=True)
    if report.failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
