"""The results of `peers.py` as a table for people and as JSON for programs."""

from dataclasses import asdict
from typing import Any

from corpora import TITLES
from records import CLIPCLS, CLIPCLS_INT8, FORWARD, OPEN_CLIP, ROOFS, TRANSFORMERS, TUNED, Key, Peak, Results, Timing

#: How many times the better of the peers as they come, and the tuned loop, clipcls is meant to be as fast; and which
#: part of the forward roof it is meant to reach. None: no such aim.
AIMS: dict[str, tuple[float, float, float | None]] = {"small": (4.8, 1.65, 0.8), "large": (11.0, 5.5, None)}
#: How many times the tuned loop clipcls in int8 is meant to be as fast.
INT8_AIMS = {"small": 2.1}


def best_of_each(timings: list[Timing]) -> dict[str, Timing]:
    """The fastest variant of each runner, among those that ran in all rounds; peers first, roofs last."""
    rounds = max(len(timing.seconds) for timing in timings)
    best: dict[str, Timing] = {}
    for timing in timings:
        name = timing.key.runner
        if len(timing.seconds) == rounds and (name not in best or timing.speed > best[name].speed):
            best[name] = timing
    return dict(sorted(best.items(), key=lambda item: item[0] in ROOFS))


def as_text(results: Results) -> list[str]:
    """Lines of Markdown: the machine, a table for each corpus, and the aims."""
    lines = ["  \n".join(results.machine)]
    for name, timings in results.timings.items():
        lines += ["", *table(name, timings, results.peaks[name])]
    if any(results.peaks.values()):
        lines += ["", "Peaks are of the process with the model, + those of a DataLoader's workers, which share pages."]
    compared = [line for name, found in results.timings.items() for line in aims(name, found)]
    return [*lines, *(["", *compared] if compared else [])]


def table(name: str, timings: list[Timing], peaks: dict[Key, Peak]) -> list[str]:
    """A Markdown table of a corpus."""
    best = best_of_each(timings)
    images, rounds = timings[0].images, max(len(timing.seconds) for timing in timings)
    head = ["", "images/s", "clipcls is"] + (["peak, MiB"] if peaks else [])
    rows = [head, ["---"] * len(head)]
    for timing in best.values():
        ratio = best[CLIPCLS].speed / timing.speed
        cells = [str(timing.key), f"{timing.speed:.1f}", f"{ratio:.2f} ×"]
        rows.append(cells + ([str(peaks.get(timing.key, ""))] if peaks else []))
    title = f"{images} pictures, {TITLES[name]}; medians of {rounds} interleaved rounds:"
    return [title, "", *(f"| {' | '.join(row)} |" for row in rows)]


def aims(name: str, timings: list[Timing]) -> list[str]:
    """How clipcls stands to what it is meant to reach."""
    speeds = {runner: timing.speed for runner, timing in best_of_each(timings).items()}
    as_they_come = max(
        (peer for peer in (TRANSFORMERS, OPEN_CLIP) if peer in speeds), key=speeds.__getitem__, default=""
    )
    compared = [
        (CLIPCLS, other, aim)
        for other, aim in zip((as_they_come, TUNED, FORWARD), AIMS.get(name, (None, None, None)), strict=True)
    ]
    lines = []
    for own, other, aim in [*compared, (CLIPCLS_INT8, TUNED, INT8_AIMS.get(name))]:
        if own in speeds and other in speeds:
            reached = speeds[own] / speeds[other]
            verdict = "" if aim is None else f" (aim {aim:g}: {'reached' if reached >= aim else 'missed'})"
            lines.append(f"- {name}: {own} is {reached:.2f} times {other}{verdict}")
    return lines


def as_json(results: Results) -> dict[str, Any]:
    """Every single timing."""
    corpora = {
        name: [_plain(timing, results.peaks[name]) for timing in found] for name, found in results.timings.items()
    }
    return {"machine": results.machine, "corpora": corpora}


def _plain(timing: Timing, peaks: dict[Key, Peak]) -> dict[str, Any]:
    peak = {"peak_mib": asdict(peaks[timing.key])} if timing.key in peaks else {}
    speed = {"images": timing.images, "seconds": timing.seconds, "images_per_second": timing.speed}
    return asdict(timing.key) | speed | peak
