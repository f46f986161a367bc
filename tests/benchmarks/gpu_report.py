"""The results of `gpu.py` as lines, as tables for people and as JSON for programs; imports nothing heavy."""

import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpu_plan import LARGE, SHARDS, SMALL, Figure, Result

TITLES = {SMALL: "small JPEGs", LARGE: "large JPEGs", SHARDS: "small JPEGs in shards"}
#: What part of the slower of decoding and forward pass a whole run is meant to reach.
AIM = 0.8


@dataclass(slots=True)
class Part:
    """What is known of a part so far.

    Attributes:
        seconds: that it took; None while it runs.
        error: why it ended early; None if it didn't.
    """

    results: list[Result] = field(default_factory=list)
    seconds: float | None = None
    error: str | None = None


@dataclass(slots=True)
class Report:
    """All that is known, written to a file with each result."""

    machine: list[str]
    path: Path | None
    parts: dict[str, Part] = field(default_factory=dict)

    def write(self) -> None:
        """Write the file anew; a kill leaves the last one."""
        if self.path is not None:
            draft = self.path.with_name(f".{self.path.name}.unfinished")
            draft.write_text(json.dumps(self.as_json(), indent=1) + "\n", encoding="utf-8")
            draft.replace(self.path)

    @property
    def failed(self) -> list[str]:
        """What ended early, and what isn't as it should be."""
        errors = [f"{name}: {part.error}" for name, part in self.parts.items() if part.error]
        checks = [f"{name}: {as_line(result)}" for name, result in self._results() if result.ok is False]
        return errors + checks

    def as_json(self) -> dict[str, Any]:
        """Every single result, and what comes of them."""
        parts = {name: asdict(part) for name, part in self.parts.items()}
        return {"machine": self.machine, "whole_runs": self.whole_runs(), "failed": self.failed, "parts": parts}

    def as_text(self) -> list[str]:
        """Lines of Markdown: the machine, a table for each part, and what failed."""
        checked = [f"| {name} | {as_line(result)} |" for name, result in self._results() if result.ok is not None]
        lines = ["  \n".join(self.machine)]
        if checked:
            lines += ["", "| part | checked |", "|---|---|", *checked]
        lines += self._forward_table() + self._decoding_table() + self._whole_table()
        return [*lines, "", *([f"FAILED: {line}" for line in self.failed] or ["Nothing failed."])]

    def whole_runs(self) -> list[dict[str, Figure]]:
        """Medians of the rounds, with the roofs of each kind and model."""
        found = []
        cases = dict.fromkeys((r.figures["model"], r.figures["kind"]) for r in self._of("whole"))
        for model, kind in cases:
            rounds = [r.figures for r in self._of("whole") if (r.figures["model"], r.figures["kind"]) == (model, kind)]
            names = [name for name in rounds[0] if name not in ("model", "kind", "gpu_unknown")]
            figures = {name: _median(one[name] for one in rounds) for name in names}
            forward = self._best(("forward", "compile"), model=model)
            decode = self._best(("decoding",), kind=SMALL if kind == SHARDS else kind, way="threads")
            roofs = [roof for roof in (forward, decode) if roof]
            speed = figures["images_per_second"]
            share = speed / min(roofs) if isinstance(speed, float) and len(roofs) == 2 else None
            roofed = {"forward_roof": forward, "decode_roof": decode, "share_of_lower_roof": share}
            found.append({"model": model, "kind": kind, "rounds": len(rounds), **figures, **roofed})
        return found

    def _results(self) -> Iterable[tuple[str, Result]]:
        return ((name, result) for name, part in self.parts.items() for result in part.results)

    def _of(self, *names: str) -> list[Result]:
        """The results of parts that are of one way of doing something."""
        results = [result for name, result in self._results() if name in names]
        return [result for result in results if "images_per_second" in result.figures]

    def _best(self, parts: tuple[str, ...], **wanted: Figure) -> float | None:
        """The highest speed among the results with these figures."""
        found = [r.figures for r in self._of(*parts) if all(r.figures.get(key) == wanted[key] for key in wanted)]
        return max((float(figures["images_per_second"] or 0) for figures in found), default=None)

    def _forward_table(self) -> list[str]:
        results = self._of("forward", "compile")
        if not results:
            return []
        batches = sorted({int(r.figures["batch"] or 0) for r in results})
        speeds: dict[tuple[Figure, Figure, Figure], dict[int, float]] = {}
        for result in results:
            model, way, precision, batch, speed = (
                result.figures[name] for name in ("model", "way", "precision", "batch", "images_per_second")
            )
            speeds.setdefault((model, way, precision), {})[int(batch or 0)] = float(speed or 0)
        head = ["forward, images/s", *(f"batch {batch}" for batch in batches)]
        rows = [
            [f"{model} {precision}, {way}", *(_whole_number(row.get(batch)) for batch in batches)]
            for (model, way, precision), row in sorted(speeds.items(), key=lambda item: str(item[0][0]))
        ]
        return _table(head, rows)

    def _decoding_table(self) -> list[str]:
        rows = [
            [result.name, _whole_number(result.figures["images_per_second"])]
            for part in ("decoding", "copying")
            for result in self._of(part)
        ]
        return _table(["decoding, and the way to the device", "images/s"], rows) if rows else []

    def _whole_table(self) -> list[str]:
        columns = {
            "images/s": "images_per_second",
            "with start-up": "whole_images_per_second",
            "first row, s": "first_row_s",
            "forward roof": "forward_roof",
            "decode roof": "decode_roof",
            "of the lower roof": "share_of_lower_roof",
            "cores busy": "cores_busy",
            "GPU busy": "gpu_busy",
            "GPU MiB": "gpu_mib",
            "rounds": "rounds",
        }
        rows = [
            [
                f"{run['model']}, {run['images']:,.0f} {TITLES[str(run['kind'])]}",
                *map(_short, map(run.get, columns.values())),
            ]
            for run in self.whole_runs()
        ]
        if not rows:
            return []
        return [*_table(["clipcls predict", *columns], rows), "", f"Aim: {AIM} of the lower roof."]


def as_line(result: Result) -> str:
    """A result for people."""
    figures = ", ".join(f"{name} {_short(value)}" for name, value in result.figures.items() if value not in (None, ""))
    verdict = {True: " - as it should be", False: " - NOT AS IT SHOULD BE", None: ""}[result.ok]
    return f"{result.name}: {figures}{verdict}"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["", *(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])]


def _whole_number(value: Figure) -> str:
    return "" if value is None else f"{float(value):,.0f}"


def _short(value: Figure) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _median(values: Iterable[Figure]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return statistics.median(known) if known else None
