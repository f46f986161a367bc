"""Whole runs of `clipcls predict` on a GPU: how fast they are, in too little memory, and two at a time."""

import time
from collections.abc import Iterator

import torch
from gpu_jobs import Job, compare_rows, finish_all, predict, watched_card
from gpu_plan import LARGE, MARGIN, SHARDS, SMALL, Figure, Plan, Result, require_time


def whole(plan: Plan, until: float) -> Iterator[Result]:
    """Time runs over all pictures of a kind, a process each; kinds and models take turns.

    Steady is the speed from the second batch's last row, or a tenth of the rows where that is later, to the last row:
    start-up isn't in it, and the batches that were decoded before the model was there hardly are.
    """
    cases = [(model, kind) for model in plan.models for kind in (SMALL, LARGE, SHARDS)]
    slowest = 0.0
    for number in range(plan.rounds):
        for model, kind in cases:
            if number > 0 and time.monotonic() + slowest > until:
                return
            require_time(until, f"{model}, {kind}")
            start = time.monotonic()
            yield _timed(plan, model, kind, number)
            slowest = max(slowest, time.monotonic() - start)


def _timed(plan: Plan, model: str, kind: str, number: int) -> Result:
    count, folder = plan.count(kind), plan.pictures(kind)
    inputs = [str(folder)] if kind != SHARDS else [str(path) for path in sorted(folder.iterdir())]
    with watched_card(plan) as card:
        ran = predict(plan, f"whole-{model}-{kind}-{number}", model, inputs, "-q").finish().require_success()
    rows = ran.rows.count(b"\n")
    if rows != count:
        raise RuntimeError(f"{model}, {kind}: {rows:,} rows for {count:,} pictures")
    begin, end, steadily = ran.window(max(2 * plan.usual_batch, count // 10))
    figures: dict[str, Figure] = {
        "model": model,
        "kind": kind,
        "images": count,
        "images_per_second": steadily / (end - begin) if steadily else None,
        "whole_images_per_second": count / ran.seconds,
        "seconds": ran.seconds,
        "first_row_s": ran.marks[0][0],
        "cores_busy": ran.processor / ran.seconds,
        "peak_mib": ran.peak,
        "gpu_busy": card.busy(ran.started + begin, ran.started + end),
        "gpu_mib": card.peak(),
    }
    if card.missing:
        figures["gpu_unknown"] = card.missing
    return Result(f"{model}, {kind}, round {number + 1}", figures)


# ---------------------------------------------------------------------------------------------------------
# Robustness


def memory(plan: Plan, until: float) -> Iterator[Result]:
    """Label pictures in batches that don't fit into what another process leaves of the GPU's memory.

    The rows have to be those of a run with batches of the usual size, in the same order, and the batches halved.
    """
    model, count = plan.models[0], min(2 * plan.too_large, plan.small.all)
    expected = _job(plan, "memory-plenty", model, count).finish().require_success()
    held = _all_but(plan.spare) if not plan.is_tiny else None
    found = _job(plan, "memory-short", model, count, "--batch-size", str(plan.too_large)).finish().require_success()
    halved = [line for line in found.messages.splitlines() if "out of memory at" in line]
    result = compare_rows(plan, f"batches of {plan.too_large:,}", found, expected, plan.limits["bf16"], MARGIN)
    figures = {**result.figures, "said": " / ".join(halved) or None}
    if held is not None:
        figures["GiB left"] = plan.spare / 2**30
    yield Result(result.name, figures, ok=result.ok and (plan.is_tiny or bool(halved)))


def _all_but(spare: int) -> torch.Tensor:
    """Take the GPU's memory but for some bytes, with one plain allocation."""
    free, _ = torch.cuda.mem_get_info()
    return torch.empty(max(0, free - spare), dtype=torch.uint8, device="cuda")


def sharing(plan: Plan, until: float) -> Iterator[Result]:
    """Run one process, then two at a time on the same GPU: the same rows, and what they do together."""
    model, count = plan.models[0], plan.small.all
    alone = _job(plan, "sharing-alone", model, count).finish().require_success()
    with watched_card(plan) as card:
        jobs = [_job(plan, f"sharing-{number}", model, count) for number in range(2)]
        both = [ran.require_success() for ran in finish_all(jobs)]
    skipped = max(2 * plan.usual_batch, count // 10)
    speeds = [rows / (end - begin) if rows else 0.0 for begin, end, rows in (run.window(skipped) for run in both)]
    begin, end, rows = alone.window(skipped)
    figures = {
        "alone_images_per_second": rows / (end - begin) if rows else None,
        "images_per_second": sum(speeds),
        "alone_s": alone.seconds,
        "both_s": max(run.seconds for run in both),
        "gpu_mib": card.peak(),
    }
    yield Result("two processes", figures)
    for number, run in enumerate(both, 1):
        name = f"two processes, rows of process {number}"
        yield compare_rows(plan, name, run, alone, plan.limits["bf16"], MARGIN)


def _job(plan: Plan, name: str, model: str, count: int, *options: str) -> Job:
    listed = plan.folder / f"{name}.txt"
    listed.write_text("".join(f"{path}\n" for path in plan.first(SMALL, count)), encoding="utf-8")
    return predict(plan, name, model, [], "--files-from", str(listed), "--format", "jsonl", *options)
