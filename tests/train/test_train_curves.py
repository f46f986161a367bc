"""The picture of a run's curves."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipcls.train.curves import POINTS, draw_curves, read_metrics, smooth

BLUE = (31, 119, 180)  # of the first validation curve; training curves are grey


def step_line(step: int, steps: int) -> str:
    record = {"step": step, "steps": steps, "loss": 4.0 / step, "learning_rate": 1e-3, "scale": 14.0 + step / steps}
    return json.dumps(record) + "\n"


def write_metrics(path: Path, steps: int, **validation: float) -> Path:
    """The metrics of a run, with one validation in its middle and one at its end."""
    with path.open("w", encoding="utf-8") as file:
        for step in range(1, steps + 1):
            file.write(step_line(step, steps))
            if validation and step in (steps // 2, steps):
                file.write(json.dumps({"step": step, "validation": validation}) + "\n")
    return path


def pixels(picture: Path) -> np.ndarray[Any, Any]:
    with Image.open(picture) as opened:
        assert opened.format == "PNG"
        return np.array(opened.convert("RGB"))


@pytest.mark.parametrize("steps", [1, 3, 3 * POINTS])
def test_draw_curves_draws_validations_where_there_are_some(tmp_path: Path, steps: int) -> None:
    plain, coloured = tmp_path / "plain.png", tmp_path / "coloured.png"
    draw_curves(write_metrics(tmp_path / "a.jsonl", steps), plain)
    draw_curves(write_metrics(tmp_path / "b.jsonl", steps, zero_shot_accuracy=0.5), coloured)
    assert pixels(plain).shape == pixels(coloured).shape == (800, 1200, 3)
    assert not (pixels(plain) == BLUE).all(axis=2).any()
    assert (pixels(coloured) == BLUE).all(axis=2).any()


def test_draw_curves_draws_validations_that_differ_in_their_figures(tmp_path: Path) -> None:
    metrics = write_metrics(tmp_path / "metrics.jsonl", 4, zero_shot_accuracy=0.5)
    with metrics.open("a", encoding="utf-8") as file:
        file.write('{"step": 4, "validation": {"text_to_image_recall@1": 0.25}}\n')
    draw_curves(metrics, tmp_path / "curves.png")
    assert pixels(tmp_path / "curves.png").shape == (800, 1200, 3)


def test_draw_curves_draws_nothing_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "validation": {"zero_shot_accuracy": 0.1}}\n{"st')
    draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_draw_curves_works_in_a_thread(tmp_path: Path) -> None:
    metrics = write_metrics(tmp_path / "metrics.jsonl", 5)
    thread = threading.Thread(target=draw_curves, args=(metrics, tmp_path / "thread.png"))
    thread.start()
    draw_curves(metrics, tmp_path / "main.png")
    thread.join()
    assert (pixels(tmp_path / "thread.png") == pixels(tmp_path / "main.png")).all()


def test_read_metrics_leaves_out_half_written_lines(tmp_path: Path) -> None:
    metrics = write_metrics(tmp_path / "metrics.jsonl", 3, zero_shot_accuracy=0.5)
    with metrics.open("a", encoding="utf-8") as file:
        file.write('\0\0\n[]\n{"step": 4}\n' + step_line(4, 4)[:-1])
    steps, validations = read_metrics(metrics)
    assert [record["step"] for record in steps] == [1, 2, 3]
    assert [record["step"] for record in validations] == [1, 3]


@pytest.mark.parametrize("count", [2 * POINTS, 2 * POINTS + 1, 9 * POINTS + 5])
def test_read_metrics_thins_out_evenly_and_keeps_both_ends(tmp_path: Path, count: int) -> None:
    steps, validations = read_metrics(write_metrics(tmp_path / "metrics.jsonl", count, zero_shot_accuracy=0.5))
    where = [record["step"] for record in steps]
    assert POINTS <= len(where) <= 2 * POINTS + 1
    assert (where[0], where[-1]) == (1, count)
    assert len(set(np.diff(where[:-1]))) == 1
    assert [record["step"] for record in validations] == [count // 2, count]


def test_smooth_is_the_mean_of_the_neighbours() -> None:
    values = np.random.default_rng(0).normal(size=200)
    reach = 4  # 4 % of 200 points are 8: four on either side
    expected = [values[max(0, i - reach) : i + reach + 1].mean() for i in range(200)]
    np.testing.assert_allclose(smooth(values), expected)


@pytest.mark.parametrize("count", [1, 2, 10])
def test_smooth_leaves_few_points_as_they_are(count: int) -> None:
    values = np.arange(count) ** 2.0
    np.testing.assert_allclose(smooth(values), values)
