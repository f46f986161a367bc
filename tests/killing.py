"""Jobs that are killed at random moments and gone on with, and what has to be true of their output."""

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from clipcls.outputs.formats import format_for
from clipcls.outputs.read_back import read_predictions
from clipcls.outputs.vectors import FOLDER_FORMATS
from clipcls.records import Prediction


class Process(Protocol):
    """A run of `clipcls`, as `subprocess` and `multiprocessing` have it."""

    def kill(self) -> None: ...


Start = Callable[[], Any]


def rows_in(output: Path) -> list[Prediction]:
    """The predictions in a file, or in the part files of a folder."""
    files = sorted(output.glob("part-*")) if output.is_dir() else [output]
    found: list[Prediction] = []
    for path in files:
        with path.open("rb") as file:
            found += read_predictions(file, format_for(path), str(path))
    return found


def bytes_in(output: Path) -> int:
    """How far a job is, as its files show it, drafts included."""
    if output.is_dir():
        return sum(_size(path) for path in output.rglob("*") if not path.is_dir() and path.name != ".clipcls-run")
    return _size(output)


def kill_at_random(
    start: Start, is_running: Callable[[Any], bool], output: Path, whole: int, rng: random.Random
) -> bool:
    """Start a job and kill it once a random share of its bytes is written, or a moment later.

    Args:
        whole: bytes of the finished output.

    Returns:
        Whether it was still running.
    """
    before = bytes_in(output)
    goal = rng.uniform(before, whole)
    process = start()
    while is_running(process) and bytes_in(output) <= goal:
        time.sleep(0.0005)
    time.sleep(rng.uniform(0, 0.02))
    was_running = is_running(process)
    process.kill()
    return was_running


def check_equal(found: list[Prediction], expected: list[Prediction], tolerance: float, margin: float = 0.0) -> None:
    """The same images in the same order with the same errors and answers.

    Args:
        tolerance: of similarities.
        margin: where the best two similarities are nearer than this, or than both may be off, either label will do.

    Raises:
        AssertionError: they aren't.
    """
    assert [row.path for row in found] == [row.path for row in expected]
    assert [row.error for row in found] == [row.error for row in expected]
    for one, other in zip(found, expected, strict=True):
        if other.similarity is None or one.similarity is None:
            assert one.similarity == other.similarity
            continue
        assert abs(one.similarity - other.similarity) <= tolerance, (one, other)
        similarities = [entry.similarity for entry in other.top]
        near = len(similarities) > 1 and similarities[0] - similarities[1] <= max(margin, 2 * tolerance)
        assert one.label == other.label or near, (one, other)


def check_same_features(found: Path, expected: Path, tolerance: float) -> None:
    """The same pictures in the same order with the same errors and features.

    Args:
        found: a folder of features.
        expected: another one in the same format.

    Raises:
        AssertionError: they aren't.
    """
    (format,) = (one for one in FOLDER_FORMATS.values() if one.parts_in(expected))
    one, other = format.read(found), format.read(expected)
    assert list(one.keys) == list(other.keys)
    np.testing.assert_allclose(np.concatenate(one.blocks), np.concatenate(other.blocks), atol=tolerance)
    failures, expected_failures = (
        [row for part in format.parts_in(folder).values() for row in format.rows_of(part) if row[1] is not None]
        for folder in (found, expected)
    )
    assert failures == expected_failures


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
