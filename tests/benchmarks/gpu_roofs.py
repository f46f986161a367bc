"""How fast the parts of the work go alone: the forward pass, decoding, the copy to the device.

On a GPU a loop is timed with events around each pass, after some that don't count; the median counts, and
passes take turns with several inputs, so that none is read from the GPU's cache. What ends on the CPU is timed by its
clock. Weights and pictures are random, not zeros.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_plan import LARGE, SMALL, Figure, Plan, Result, require_time
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils.flop_counter import FlopCounterMode
from torchvision.io import ImageReadMode, decode_jpeg

from clipcls import ModelSpec
from clipcls.images.fit import load_pixels
from clipcls.models.encoder import Encoder, load_encoder
from clipcls.records import Preprocessing

WARM_UP, LEAST_PASSES, MOST_PASSES, INPUTS = 2, 3, 100, 4
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

#: What is timed; it takes the number of the pass.
Pass = Callable[[int], object]


def seconds_of(plan: Plan, work: Pass, on_device: bool = True) -> float:
    """Return the median time of a pass.

    Args:
        on_device: whether a pass returns before the device has done its work.
    """
    for number in range(WARM_UP if not plan.is_tiny else 1):
        work(number)
    one = _clocked(plan, work, 0)
    passes = int(min(max(plan.loop_seconds / one, LEAST_PASSES), MOST_PASSES))
    if plan.is_tiny or not on_device:
        return statistics.median(_clocked(plan, work, number) for number in range(passes))
    events = [[_timing_event() for _ in range(2)] for _ in range(passes)]
    for number, (begin, end) in enumerate(events):
        begin.record()
        work(number)
        end.record()
    torch.cuda.synchronize()
    return statistics.median(float(begin.elapsed_time(end)) / 1000 for begin, end in events)


def _timing_event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _clocked(plan: Plan, work: Pass, number: int) -> float:
    _wait(plan)
    start = time.perf_counter()
    work(number)
    _wait(plan)
    return time.perf_counter() - start


def _wait(plan: Plan) -> None:
    if not plan.is_tiny:
        torch.cuda.synchronize()


# ---------------------------------------------------------------------------------------------------------
# The forward pass


def forward(plan: Plan, until: float) -> Iterator[Result]:
    """Time image towers by themselves, and as clipcls calls them."""
    if not plan.is_tiny:
        yield ceilings(plan)
    for name in plan.families if not plan.is_tiny else plan.models:
        encoder = load_encoder(ModelSpec(str(plan.model(name)), device=plan.device))
        if name in plan.models:
            yield _tried(f"{name}, operations", partial(_operations, plan, name, encoder))
        for way, prepare in WAYS.items():
            if way == GRAPH and plan.is_tiny:
                continue
            for batch in plan.batches if name in plan.models and way != IN_STREAMS else (plan.usual_batch,):
                require_time(until, _title(name, way, batch))
                timed = partial(_timed, plan, name, way, batch, encoder, prepare)
                yield _tried(_title(name, way, batch), timed)
                if not plan.is_tiny:
                    torch.cuda.empty_cache()
        del encoder


def _tried(name: str, measure: Callable[[], Result]) -> Result:
    """Return what is measured, or the error of what can't be, so that the rest goes on."""
    try:
        return measure()
    except RuntimeError as exc:
        return Result(name, {"failed": f"{type(exc).__name__}: {exc}"[:500]}, ok=False)


def _timed(plan: Plan, name: str, way: str, batch: int, encoder: Encoder, prepare: "Prepare") -> Result:
    work, count, on_device = prepare(plan, encoder, batch)
    return speed(name, way, batch, count / seconds_of(plan, work, on_device), encoder.precision)


def _title(model: str, way: str, batch: int) -> str:
    return f"{model}, {way}, batch {batch}"


def speed(model: str, way: str, batch: int, images: float, precision: str) -> Result:
    """How many pictures a second a way of running a model takes."""
    figures: dict[str, Figure] = {
        "model": model,
        "way": way,
        "batch": batch,
        "precision": precision,
        "images_per_second": images,
    }
    return Result(_title(model, way, batch), figures)


def ceilings(plan: Plan) -> Result:
    """What the card does at most, as measured: a large product of matrices, and a copy within its memory."""
    figures: dict[str, Figure] = {}
    for dtype in (torch.bfloat16, torch.float16):
        matrix, other = (torch.randn(8192, 8192, device=plan.device, dtype=dtype) for _ in range(2))
        seconds = seconds_of(plan, partial(_product, matrix, other))
        figures[f"{str(dtype).removeprefix('torch.')} TFLOP/s"] = 2 * 8192**3 / seconds / 1e12
    data = torch.randint(0, 255, (2**30,), dtype=torch.uint8, device=plan.device)
    target = torch.empty_like(data)
    seconds = seconds_of(plan, lambda _: target.copy_(data))
    figures["TB/s, read and written"] = 2 * 2**30 / seconds / 1e12
    return Result("the card", figures)


def _product(matrix: Tensor, other: Tensor, _: int) -> Tensor:
    return matrix @ other


def _operations(plan: Plan, name: str, encoder: Encoder) -> Result:
    """Count a picture's multiplications and additions, with gradients on, since a fused kernel isn't counted."""
    (pixels,) = _inputs(plan, encoder, 1, torch.contiguous_format, count=1)
    with FlopCounterMode(display=False) as counter:
        encoder._visual(pixels)
    return Result(f"{name}, operations", {"model": name, "GFLOP_per_image": counter.get_total_flops() / 1e9})


def _inputs(plan: Plan, encoder: Encoder, batch: int, layout: torch.memory_format, count: int = INPUTS) -> list[Tensor]:
    """Return several batches on the device: (batch, 3, height, width)."""
    shape = (batch, 3, *encoder.preprocess.size)
    made = [torch.randn(shape, device=plan.device, dtype=DTYPES[encoder.precision]) for _ in range(count)]
    return [pixels.to(memory_format=layout) for pixels in made]


def _eager(plan: Plan, encoder: Encoder, batch: int) -> tuple[Pass, int, bool]:
    inputs = _inputs(plan, encoder, batch, torch.contiguous_format)
    return _tower_pass(encoder._visual, inputs), batch, True


def _channels_last(plan: Plan, encoder: Encoder, batch: int) -> tuple[Pass, int, bool]:
    inputs = _inputs(plan, encoder, batch, torch.channels_last)
    tower = encoder._visual.to(memory_format=torch.channels_last)
    return _tower_pass(tower, inputs), batch, True


def _tower_pass(tower: Callable[[Tensor], Tensor], inputs: list[Tensor]) -> Callable[[int], Tensor]:
    def run(number: int) -> Tensor:
        with torch.inference_mode():
            return tower(inputs[number % len(inputs)])

    return run


def _graph(plan: Plan, encoder: Encoder, batch: int) -> tuple[Pass, int, bool]:
    """Capture one pass; every replay reads the same input, where the next batch would be copied to."""
    (pixels,) = _inputs(plan, encoder, batch, torch.contiguous_format, count=1)
    run = _tower_pass(encoder._visual, [pixels])
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for number in range(WARM_UP):
            run(number)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = run(0)
    # the output's memory is the graph's, as long as somebody holds it
    return lambda _, kept=kept: graph.replay(), batch, True


def _as_called(plan: Plan, encoder: Encoder, batch: int) -> tuple[Pass, int, bool]:
    """From pixels in memory to features in memory, one batch after the other."""
    pixels = _pictures(encoder.preprocess, batch)
    return lambda _: encoder.encode_image(pixels), batch, False


def _in_streams(plan: Plan, encoder: Encoder, batch: int) -> tuple[Pass, int, bool]:
    """The same on as many threads as clipcls has, two batches each."""
    pixels = _pictures(encoder.preprocess, batch)
    encoder.build_image_tower()
    pool = ThreadPoolExecutor(encoder.streams, initializer=encoder.enter_stream)
    count = 2 * encoder.streams
    return lambda _: list(pool.map(encoder.encode_image, [pixels] * count)), batch * count, False


def _pictures(preprocess: Preprocessing, batch: int) -> list[np.ndarray[Any, Any]]:
    """Return pictures as decoding gives them, each in memory of its own."""
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (*preprocess.size, 3), dtype=np.uint8) for _ in range(batch)]


AS_CALLED = "as clipcls calls it"
IN_STREAMS = "as clipcls calls it, in its streams"
GRAPH = "CUDA graph"
#: Returns a pass, the pictures in it, and whether it returns before the device has done its work.
Prepare = Callable[[Plan, Encoder, int], tuple[Pass, int, bool]]
#: The one with channels last comes after those without, since it changes the tower.
WAYS: dict[str, Prepare] = {
    AS_CALLED: _as_called,
    IN_STREAMS: _in_streams,
    "eager": _eager,
    GRAPH: _graph,
    "channels last": _channels_last,
}


def compiled(plan: Plan, until: float) -> Iterator[Result]:
    """Time compiled towers, with how long compiling takes and how far their features are from the eager ones."""
    for name, batch in plan.compiled:
        require_time(until, _title(name, "torch.compile", batch))
        yield _tried(_title(name, "torch.compile", batch), partial(_compiled, plan, name, batch))


def _compiled(plan: Plan, name: str, batch: int) -> Result:
    encoder = load_encoder(ModelSpec(str(plan.model(name)), device=plan.device))
    inputs = _inputs(plan, encoder, batch, torch.contiguous_format)
    torch._dynamo.reset()
    eager = _tower_pass(encoder._visual, inputs)
    run = _tower_pass(torch.compile(encoder._visual, backend=plan.compiler, dynamic=False), inputs)
    start = time.perf_counter()
    found = run(0)
    _wait(plan)
    taken = time.perf_counter() - start
    cosine = float(nn.functional.cosine_similarity(found.float(), eager(0).float()).min())
    result = speed(name, "torch.compile", batch, batch / seconds_of(plan, run), encoder.precision)
    return Result(result.name, {**result.figures, "compiling, s": taken, "least cosine": cosine})


# ---------------------------------------------------------------------------------------------------------
# Decoding


def decoding(plan: Plan, until: float) -> Iterator[Result]:
    """Time the way from files to pixels: on processes, on threads, and by nvJPEG where there is a GPU."""
    preprocess = load_encoder(ModelSpec(str(plan.model(plan.models[0])), device="cpu")).preprocess
    cores = len(os.sched_getaffinity(0))
    numbers = sorted({1, max(1, cores // 2), cores, 2 * cores}) if not plan.is_tiny else [cores]

    def paths(kind: str, workers: int) -> list[Path]:
        each = 250 if kind == SMALL else 12
        return plan.first(kind, min(each * workers, plan.count(kind)))

    # processes are forked before this one has threads of its own, and before it uses the GPU
    for kind in (SMALL, LARGE):
        files = paths(kind, cores)
        yield _decoded(kind, "processes", cores, len(files) / _on_processes(plan, files, preprocess, cores))
    for kind in (SMALL, LARGE):
        for number in numbers:
            require_time(until, f"{kind}, {number} threads")
            files = paths(kind, number)
            yield _decoded(kind, "threads", number, len(files) / _on_threads(plan, files, preprocess, number))
    for kind, batch in ((SMALL, 64), (SMALL, 256), (LARGE, 32)) if not plan.is_tiny else ((SMALL, 4),):
        for fitted in (False, True):
            name = f"{kind}, a batch of {batch} by nvJPEG{' and fitted' if fitted else ''}"
            require_time(until, name)
            yield _tried(name, partial(_on_device, plan, kind, batch, preprocess if fitted else None))


def _decoded(kind: str, way: str, number: int, images: float) -> Result:
    figures: dict[str, Figure] = {"kind": kind, "way": way, "number": number, "images_per_second": images}
    return Result(f"{kind}, {number} {way}", figures)


def _on_threads(plan: Plan, paths: Sequence[Path], preprocess: Preprocessing, threads: int) -> float:
    """Return the seconds that threads take; pixels are let go at once."""
    with ThreadPoolExecutor(threads) as pool:

        def run(_: int) -> None:
            for _unused in pool.map(lambda path: load_pixels(path, preprocess).shape, paths):
                pass

        return _median_of_three(plan, run)


def _on_processes(plan: Plan, paths: Sequence[Path], preprocess: Preprocessing, processes: int) -> float:
    """Return the seconds that processes of one thread take, whose pixels stay where they are."""
    shares = [(paths[start::processes], preprocess) for start in range(processes)]
    with get_context("fork").Pool(processes) as pool:
        return _median_of_three(plan, lambda _: pool.map(_decode_share, shares, chunksize=1))


def _decode_share(share: tuple[Sequence[Path], Preprocessing]) -> None:
    torch.set_num_threads(1)
    for path in share[0]:
        load_pixels(path, share[1])


def _median_of_three(plan: Plan, run: Pass) -> float:
    run(0)
    return statistics.median(_on_the_clock(run) for _ in range(3 if not plan.is_tiny else 1))


def _on_the_clock(run: Pass) -> float:
    start = time.perf_counter()
    run(0)
    return time.perf_counter() - start


def _on_device(plan: Plan, kind: str, batch: int, fit_to: Preprocessing | None) -> Result:
    """Decode batches on the GPU, which are fitted to the model's input one by one, or not."""
    files = [torch.from_numpy(np.fromfile(path, np.uint8)) for path in plan.first(kind, batch)]

    def decode(_: int) -> object:
        pictures = decode_jpeg(files, mode=ImageReadMode.RGB, device=plan.device)
        if fit_to is None:
            return pictures
        return torch.stack([_fitted(picture, *fit_to.size) for picture in pictures])

    images = batch / seconds_of(plan, decode, on_device=False)
    by = "nvJPEG" if not plan.is_tiny else "torchvision on the CPU"
    return _decoded(kind, f"in a batch by {by}{' and fitted' if fit_to else ''}", batch, images)


def _fitted(picture: Tensor, height: int, width: int) -> Tensor:
    """Resize a picture, (3, any, any) uint8, over its shorter side, and cut its centre out."""
    scale = max(height / picture.shape[1], width / picture.shape[2])
    size = (max(height, round(picture.shape[1] * scale)), max(width, round(picture.shape[2] * scale)))
    resized = interpolate(picture[None].float(), size, mode="bicubic", antialias=True)[0]
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return resized[:, top : top + height, left : left + width].round().clamp(0, 255).to(torch.uint8)


# ---------------------------------------------------------------------------------------------------------
# The copy to the device


def copying(plan: Plan, until: float) -> Iterator[Result]:
    """Time what lies between decoding and the forward pass: the batch put together, and copied."""
    preprocess = load_encoder(ModelSpec(str(plan.model(plan.models[0])), device="cpu")).preprocess
    pictures = _pictures(preprocess, plan.usual_batch)
    shape, pin = (plan.usual_batch, *preprocess.size, 3), not plan.is_tiny
    pageable = torch.from_numpy(np.stack(pictures))
    pinned = torch.empty(shape, dtype=torch.uint8, pin_memory=pin)
    np.stack(pictures, out=pinned.numpy())

    def stack_into_new() -> Tensor:
        made = torch.empty(shape, dtype=torch.uint8, pin_memory=pin)
        np.stack(pictures, out=made.numpy())
        return made

    def copy(data: Tensor) -> Tensor:
        return data.to(plan.device, non_blocking=True, copy=True)

    ways: dict[str, Pass] = {
        "pageable": lambda _: pageable.to(plan.device, copy=True),
        "pinned": lambda _: copy(pinned),
        "pinned anew": lambda _: copy(stack_into_new()),
        "stacked and pinned": lambda _: copy(_stacked(pictures, pinned)),
        "stacked only": lambda _: _stacked(pictures, pinned),
    }
    for way, work in ways.items():
        # what puts a batch together waits for the copy out of it, or would write into it too early
        seconds = seconds_of(plan, work, on_device=way == "pinned")
        bytes_ = pageable.numel()
        figures: dict[str, Figure] = {
            "way": way,
            "images_per_second": plan.usual_batch / seconds,
            "GB/s": bytes_ / seconds / 1e9,
        }
        yield Result(f"{way}, batch {plan.usual_batch}", figures)


def _stacked(pictures: list[np.ndarray[Any, Any]], target: Tensor) -> Tensor:
    np.stack(pictures, out=target.numpy())
    return target
