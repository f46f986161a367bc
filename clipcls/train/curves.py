"""The curves of a run as a picture, drawn from its metrics."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipcls.outputs.atomic import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Record = dict[str, Any]

# the curves of a long run have from this many to twice as many points
POINTS = 2000
# the share of a curve that each point of its smoothed form is the mean of
SMOOTHED = 0.04
# curves with fewer points show each of them
FEW = 30
# unlike the colours of the validation's curves
TRAINING = "0.25"


def draw_curves(metrics: Path, picture: Path) -> None:
    """Draw loss, learning rate, scale and validation figures over the steps; nothing before there is a step.

    Args:
        metrics: lines of JSON, `{"step", "steps", "loss", "learning_rate", "scale", …}` of a step or
            `{"step", "validation": {name: value}}`. One that was only half written is left out.
        picture: the PNG to write, 1200×800; it is there whole, or not at all.

    Raises:
        OSError: a file can't be read or written.
    """
    # imported here because a run that draws nothing needn't wait for it
    from matplotlib.figure import Figure

    steps, validations = read_metrics(metrics)
    if not steps:
        return
    # without pyplot, whose figures are global and belong to the main thread
    figure = Figure(figsize=(12, 8), dpi=100, layout="constrained")
    figure.suptitle(f"step {steps[-1]['step']:,} of {steps[-1]['steps']:,}")
    places: Any = [["loss", "validation" if validations else "loss"], ["learning rate", "scale"]]
    axes = figure.subplot_mosaic(places, height_ratios=[3, 2])
    for name, part in axes.items():
        _label(part, name, steps[-1]["step"])
    _draw_loss(axes["loss"], steps)
    _draw(axes["learning rate"], steps, "learning_rate")
    _draw(axes["scale"], steps, "scale")
    if validations:
        _draw_validations(axes["validation"], validations)
        # outside, where no curve can run through it
        figure.legend(handles=axes["validation"].lines, loc="outside lower center", ncols=4, frameon=False)
    write_atomically(picture, lambda file: figure.savefig(file, format="png"))


def read_metrics(metrics: Path) -> tuple[list[Record], list[Record]]:
    """Return the lines of steps, evenly thinned out where there are many, and those of validations.

    Raises:
        OSError: the file can't be read.
    """
    kept: list[bytes] = []
    validations: list[bytes] = []
    last = b""
    every, count = 1, 0
    with metrics.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break  # it is being written
            if b'"validation"' in line:
                validations.append(line)
                continue
            # lines that aren't drawn aren't parsed either, which would take longer than all the rest
            if count % every == 0:
                if len(kept) == 2 * POINTS:
                    del kept[1::2]
                    every *= 2
                kept.append(line)
            last = line
            count += 1
    if kept[-1:] != [last]:
        kept.append(last)
    return _parsed(kept, "loss"), _parsed(validations, "validation")


def _parsed(lines: Iterable[bytes], key: str) -> list[Record]:
    """Return the lines that are JSON and have the key."""
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and key in record:
            records.append(record)
    return records


def _draw_loss(axes: "Axes", steps: list[Record]) -> None:
    """Draw the loss of each step faintly, and its moving mean strongly."""
    where, losses = _column(steps, "step"), _column(steps, "loss")
    axes.plot(where, losses, color=TRAINING, alpha=0.3, linewidth=0.8, label="each step")
    mean = smooth(losses)
    axes.plot(where, mean, color=TRAINING, linewidth=2, marker=_marker(steps), label=f"mean: {mean[-1]:.4g}")
    axes.legend(loc="upper right")


def _draw(axes: "Axes", steps: list[Record], name: str) -> None:
    axes.plot(_column(steps, "step"), _column(steps, name), color=TRAINING, linewidth=2, marker=_marker(steps))


def _draw_validations(axes: "Axes", validations: list[Record]) -> None:
    """Draw a curve for each figure, labelled with its last value."""
    names = dict.fromkeys(name for record in validations for name in record["validation"])
    for name in names:
        found = [record for record in validations if name in record["validation"]]
        values = [record["validation"][name] for record in found]
        label = f"{name.replace('_', ' ')}: {values[-1]:.3f}"
        axes.plot(_column(found, "step"), values, linewidth=2, marker=_marker(found), label=label)
    # the axis begins at zero, with room for the curves at both ends
    axes.update_datalim([(0, 0)])
    axes.autoscale_view()


def _label(axes: "Axes", name: str, last: int) -> None:
    """Name the panel and its axis, which ends a little after the last step, so that the panels can be compared."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axes.set_title(name)
    axes.set_xlabel("step")
    axes.set_xlim(0, 1.02 * last)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(alpha=0.3)


def smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the moving mean, over what there is of its window at both ends.

    Args:
        values: (n,) float64.

    Returns:
        (n,) float64.
    """
    window = np.ones(2 * int(len(values) * SMOOTHED / 2) + 1)
    sums = np.convolve(values, window, mode="same")
    return sums / np.convolve(np.ones_like(values), window, mode="same")


def _column(records: list[Record], name: str) -> NDArray[np.float64]:
    return np.array([record[name] for record in records], dtype=np.float64)


def _marker(records: list[Record]) -> str:
    # a single point is no line
    return "o" if len(records) < FEW else ""
