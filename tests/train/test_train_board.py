"""TensorBoard's event files, read back by TensorBoard itself."""

import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clipcls.errors import UsageError
from clipcls.train.history import Board


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: (step, value) of each curve."""
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def write_steps(folder: Path, done: int, last: int, loss: float) -> None:
    board = Board(folder, done)
    for step in range(done + 1, last + 1):
        board.write(step, {"train/loss": loss})
    board.close()


def test_board_writes_what_tensorboard_reads(tmp_path: Path) -> None:
    board = Board(tmp_path / "new" / "board", 0)
    board.write(1, {"train/loss": 4.5, "train/learning_rate": 1e-5})
    board.write(2, {"train/loss": 4.25})
    board.write(2, {"validation/text_to_image_recall@1": 0.5})
    board.close()
    shown = curves(tmp_path / "new" / "board")
    assert shown["train/loss"] == [(1, 4.5), (2, 4.25)]
    assert shown["train/learning_rate"] == [(1, pytest.approx(1e-5))]
    assert shown["validation/text_to_image_recall@1"] == [(2, 0.5)]


def test_board_hides_what_a_killed_run_wrote_after_its_checkpoint(tmp_path: Path) -> None:
    write_steps(tmp_path, 0, 5, loss=1.0)
    write_steps(tmp_path, 3, 6, loss=2.0)
    assert curves(tmp_path)["train/loss"] == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0), (6, 2.0)]


def test_board_names_the_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError, match=r"pip install 'clipcls\[tensorboard\]'"):
        Board(tmp_path, 0)
