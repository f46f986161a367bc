"""What a run tells of itself: metrics, validations and the best model, signals."""

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clipcls.errors import ModelError, StoppedError, UsageError
from clipcls.train import loop
from clipcls.train.checkpoint import resumed_settings
from clipcls.train.curves import draw_curves
from clipcls.train.loop import TrainResult, train
from clipcls.train.settings import load_settings
from clipcls.train.validation import Validation
from conftest import TINY_CONFIG
from shell import Started

pytestmark = pytest.mark.usefixtures("one_thread", "no_curves")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of eight pictures each."""
    for name in ("red", "blue"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        for number in range(8):
            Image.new("RGB", (20, 20), name).save(tmp_path / "classes" / name / f"{number}.png")
    (tmp_path / "arch.json").write_text(json.dumps(TINY_CONFIG), encoding="utf-8")
    return tmp_path


def run(folder: Path, **given: Any) -> TrainResult:
    values = {"data": str(folder / "classes"), "arch": str(folder / "arch.json"), "output": str(folder / "run")}
    options = {"batch_size": 8, "epochs": 4.0, "precision": "fp32", "device": "cpu", "workers": 1}
    return train(load_settings(None, values | options | given))


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_validation_is_noted_each_epoch_and_at_the_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipcls.train.history.draw_curves", draw_curves)
    classes = str(folder / "classes")
    result = run(folder, validation=classes, zero_shot=classes, epochs=3.5, validate_epochs=1.0)
    noted = [line for line in lines(folder) if "validation" in line]
    assert [line["step"] for line in noted] == [2, 4, 6, 7]
    last = noted[-1]["validation"]
    assert last == Validation(load_settings(folder / "run" / "settings.yaml", {})).measure(result.model)
    assert "text_to_image_recall@10" in last
    assert result.best == folder / "run" / "best"
    assert result.best_validation is not None
    assert result.best_validation.figures == max(
        (line["validation"] for line in noted), key=lambda figures: float(figures["zero_shot_accuracy"])
    )
    assert (folder / "run" / "curves.png").stat().st_size > 1000


def scripted(monkeypatch: pytest.MonkeyPatch, figures: list[float]) -> None:
    """Validations whose accuracies are given."""
    coming = iter(figures)
    monkeypatch.setattr(Validation, "measure", lambda self, model: {"zero_shot_accuracy": next(coming)})


def test_best_model_is_kept_beside_the_last(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    scripted(monkeypatch, [0.5, 0.75, 0.75, 0.25])
    plain = loop.copy_model
    monkeypatch.setattr(loop, "copy_model", lambda *args: kept.append(lines(folder)[-1]["step"]) or plain(*args))
    result = run(folder, zero_shot=str(folder / "classes"))
    assert kept == [2, 4]
    assert result.best is not None
    weights = "open_clip_model.safetensors"
    assert (result.best / weights).read_bytes() != (result.model / weights).read_bytes()
    assert sorted(path.name for path in result.best.iterdir()) == sorted(path.name for path in result.model.iterdir())


def test_best_model_outlives_a_resumed_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [0.5, 0.9, 0.7, 0.8])
    values = {"data": str(folder / "classes"), "arch": str(folder / "arch.json"), "output": str(folder / "run")}
    options = {"batch_size": 8, "epochs": 4.0, "precision": "fp32", "device": "cpu"}
    settings = load_settings(None, values | options | {"zero_shot": str(folder / "classes")})
    first = train(settings, asked_to_stop=lambda: len(lines(folder)) >= 5)
    assert not first.finished
    assert first.last_step.step == 4
    weights = first.best / "open_clip_model.safetensors" if first.best else folder
    best = weights.read_bytes()
    second = train(resumed_settings(folder / "run", None, {}), resume=True)
    assert second.finished
    assert [line["validation"]["zero_shot_accuracy"] for line in lines(folder) if "validation" in line] == [
        0.5,
        0.9,
        0.7,
        0.8,
    ]
    assert weights.read_bytes() == best


def test_validation_that_was_interrupted_is_made_up_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [0.5, 0.9, 0.9, 0.1, 0.2])
    plain, copies = loop.copy_model, [0]

    def die_at_the_second(*args: Path) -> None:
        copies[0] += 1
        if copies[0] == 2:
            raise KeyboardInterrupt
        plain(*args)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "copy_model", die_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            run(folder, zero_shot=str(folder / "classes"))
    stale = (folder / "run" / "best" / "open_clip_model.safetensors").read_bytes()
    result = train(resumed_settings(folder / "run", None, {}), resume=True)
    noted = [line["validation"]["zero_shot_accuracy"] for line in lines(folder) if "validation" in line]
    assert noted == [0.5, 0.9, 0.1, 0.2]
    assert result.best is not None
    assert (result.best / "open_clip_model.safetensors").read_bytes() != stale


def test_resume_refuses_changed_validation_data(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [0.5, 0.9, 0.7])
    with pytest.raises(StopIteration):
        run(folder, zero_shot=str(folder / "classes"))
    with pytest.raises(UsageError, match=r"validation: .*classes doesn't hold the rows any more"):
        train(resumed_settings(folder / "run", None, {"validation": str(folder / "classes")}), resume=True)
    (folder / "classes" / "red" / "0.png").unlink()
    with pytest.raises(UsageError, match=r"doesn't hold the rows any more"):
        train(resumed_settings(folder / "run", None, {}), resume=True)


def test_what_is_left_out_is_said_while_the_run_goes_on(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "classes" / "red" / "0.png").write_bytes(b"no picture")
    run(folder)
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith("1 rows or pictures left out so far; the first: ")
    assert len(said) == 1


def test_out_of_memory_names_what_helps(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    with monkeypatch.context() as patched:
        patched.setattr("clipcls.train.towers.Towers.forward", fail)
        with pytest.raises(StoppedError, match="out of memory after step 0: take a smaller --batch-size"):
            run(folder)
    assert run(folder, accumulate=2).finished  # what is left of the run that failed isn't in the way


def test_validation_that_fails_leaves_a_checkpoint_of_its_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Validation, model: Path) -> dict[str, float]:
        raise ModelError("features that aren't numbers")

    with monkeypatch.context() as patched:
        patched.setattr(Validation, "measure", fail)
        with pytest.raises(ModelError):
            run(folder, zero_shot=str(folder / "classes"))
    result = train(resumed_settings(folder / "run", None, {}), resume=True)
    assert [line["step"] for line in lines(folder) if "loss" in line] == list(range(1, 9))
    assert [line["step"] for line in lines(folder) if "validation" in line] == [2, 4, 6, 8]
    assert result.best is not None
    assert result.best.is_dir()


def test_validation_data_are_read_before_anything_is_trained(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"zero_shot: .*gone doesn't exist"):
        run(folder, zero_shot=str(folder / "gone"))


def test_tensorboard_shows_the_same_figures(folder: Path) -> None:
    run(folder, zero_shot=str(folder / "classes"), tensorboard=True)
    events = EventAccumulator(str(folder / "run" / "tensorboard")).Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert losses == pytest.approx([line["loss"] for line in lines(folder) if "loss" in line])
    assert [event.step for event in events.Scalars("validation/zero_shot_accuracy")] == [2, 4, 6, 8]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_the_step_and_the_run_goes_on(
    folder: Path, number: signal.Signals, start: Callable[..., Started], clipcls: Callable[..., Any]
) -> None:
    given = ("train", "classes", "--arch", "arch.json", "--output", "run", "--device", "cpu", "--batch-size", "8")
    process = start(*given, "--epochs", "5000", "--set", "save_minutes=0")
    deadline = time.monotonic() + 90
    metrics = folder / "run" / "metrics.jsonl"
    while not (metrics.exists() and len(lines(folder)) >= 3) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    errors = process.communicate()[1].decode()
    assert process.wait() == 128 + number
    step = len(lines(folder))
    assert f"step {step} of 10000 is saved; go on with: clipcls train --resume run" in errors
    assert "Traceback" not in errors
    refused = clipcls("train", "--resume", folder / "run", "--epochs", "1")
    assert b"epochs was 5000.0 and is 1.0" in refused.stderr


def test_signal_ends_a_run_whose_data_stall(folder: Path, start: Callable[..., Started]) -> None:
    given = ("--arch", "arch.json", "--output", "run", "--device", "cpu", "--batch-size", "8", "--set", "samples=100")
    # its streams aren't pipes, which `sleep` would hold open
    process = start("train", "pipe:touch asked; sleep 60", *given, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (folder / "asked").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)  # it waits for the pipe
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM


def test_set_gives_any_setting_of_the_config(folder: Path, clipcls: Callable[..., Any]) -> None:
    given = ("train", "classes", "--arch", "arch.json", "--output", "run", "--device", "cpu", "--epochs", "1")
    done = clipcls(*given, "--batch-size", "8", "--set", "warmup=0.5", "--set", "templates=['a {}']")
    assert done.returncode == 0, done.stderr
    settings = load_settings(folder / "run" / "settings.yaml", {})
    assert (settings.warmup, settings.templates) == (0.5, ("a {}",))
    for wrong, message in (("warmup", "expected NAME=VALUE"), ("warmpu=1", "--set: unknown setting warmpu; there are")):
        refused = clipcls(*given, "--set", wrong)
        assert refused.returncode == 2
        assert message in refused.stderr.decode()
