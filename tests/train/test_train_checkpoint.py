"""Runs that are killed and go on: the same losses, the same weights, and what is refused."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from clipcls.errors import StoppedError, UsageError
from clipcls.train.checkpoint import CHECKPOINT_NAME, resumed_settings
from clipcls.train.hooks import Hooks
from clipcls.train.loop import TrainWatch, train
from clipcls.train.settings import load_settings
from clipcls.train.trainer import StepFigures
from conftest import TINY_CONFIG, save_pictures
from recipe import Pictogram

pytestmark = pytest.mark.usefixtures("one_thread", "no_curves")

STEPS = 9
RECIPE = Pictogram(curriculum=0, proxy_weight=0.5, spread=False)
# dropout, so that the random states count
ARCH = TINY_CONFIG | {"vision_cfg": TINY_CONFIG["vision_cfg"] | {"patch_dropout": 0.5}}


class KilledError(BaseException):
    """In place of a signal, within the process."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures = save_pictures(tmp_path / "pictures", 12)
    rows = [{"image": f"pictures/{path.name}", "captions": [f"a {path.stem}", path.stem]} for path in pictures]
    (tmp_path / "table.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "arch.json").write_text(json.dumps(ARCH), encoding="utf-8")
    (tmp_path / "config.yaml").write_text(
        "data: table.jsonl\narch: arch.json\noutput: run\nepochs: 3\nbatch_size: 4\nprecision: fp32\ndevice: cpu\n"
        "save_minutes: 1e-9\ntemplates: ['a photo of {}', '{}']\n",
        encoding="utf-8",
    )
    return tmp_path


def begin(
    folder: Path,
    output: str,
    report: Callable[[StepFigures], None] = lambda figures: None,
    hooks: Hooks | None = RECIPE,
    **given: Any,
) -> None:
    train(
        load_settings(folder / "config.yaml", {"output": str(folder / output), **given}),
        TrainWatch(report),
        hooks=hooks,
    )


def stop_at(step: int) -> Callable[[StepFigures], None]:
    def report(figures: StepFigures) -> None:
        if figures.step == step:
            raise KilledError

    return report


def die_at(folder: Path, step: int) -> None:
    """In a process of its own."""
    torch.set_num_threads(1)
    begin(folder, "run", lambda figures: os.kill(os.getpid(), signal.SIGKILL) if figures.step == step else None)


def resume(folder: Path, **given: Any) -> None:
    train(resumed_settings(folder / "run", None, given), resume=True, hooks=RECIPE)


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["loss"] for line in lines]


def test_resumed_run_equals_an_unbroken_one_after_sigkill(folder: Path, forks: Any) -> None:
    begin(folder, "whole")
    process = forks.Process(target=die_at, args=(folder, 5))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert len(losses(folder / "run")) == 5
    resume(folder)
    assert losses(folder / "run") == losses(folder / "whole")
    assert len(losses(folder / "run")) == STEPS
    name = "model/open_clip_model.safetensors"
    whole, resumed = load_file(folder / "whole" / name), load_file(folder / "run" / name)
    assert all(torch.equal(tensor, resumed[key]) for key, tensor in whole.items())


def test_resume_cuts_the_metrics_back_to_the_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(folder, "whole")
    with pytest.raises(KilledError):
        begin(folder, "run", stop_at(4))
    with (folder / "run" / "metrics.jsonl").open("a", encoding="utf-8") as metrics:
        metrics.write('{"step": 5, "loss": 9}\n{"step": 6, "lo')
    (folder / "run" / ".model-abc").mkdir()
    resume(folder, workers=1)
    assert losses(folder / "run") == losses(folder / "whole")
    assert sorted(path.name for path in (folder / "run").iterdir()) == [
        CHECKPOINT_NAME,
        "curves.png",
        "metrics.jsonl",
        "model",
        "settings.yaml",
    ]


def test_resume_refuses_changed_settings_by_name(folder: Path) -> None:
    with pytest.raises(KilledError):
        begin(folder, "run", stop_at(2))
    message = "learning_rate was 0.001 and is 0.01; templates was .* and is .'x {}'.$"
    with pytest.raises(UsageError, match=message):
        resume(folder, learning_rate=0.01, templates=["x {}"])
    with pytest.raises(UsageError, match="output: elsewhere isn't the run that is resumed"):
        resume(folder, output="elsewhere")
    settings = folder / "run" / "settings.yaml"
    text = settings.read_text(encoding="utf-8")
    settings.write_text(text.replace("seed: 0", "seed: 1"), encoding="utf-8")
    with pytest.raises(UsageError, match="seed was 0 and is 1"):
        resume(folder)
    settings.write_text(text, encoding="utf-8")
    resumed = resumed_settings(folder / "run", folder / "config.yaml", {})
    train(resumed, resume=True, hooks=RECIPE)  # the same config again is no change
    with pytest.raises(UsageError, match=r"the run is finished; its model is .*run/model"):
        resume(folder)


def test_resume_refuses_changed_data(folder: Path) -> None:
    with pytest.raises(KilledError):
        begin(folder, "run", stop_at(2))
    table = folder / "table.jsonl"
    table.write_text(table.read_text(encoding="utf-8").replace('"a 003"', '"b 003"'), encoding="utf-8")
    with pytest.raises(UsageError, match=r"data: .*table\.jsonl doesn't hold the rows any more"):
        resume(folder)


def test_resume_refuses_what_is_no_run(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"no settings\.yaml in it"):
        resume(folder)
    with pytest.raises(KilledError):
        begin(folder, "run", stop_at(1), save_minutes=0.0)
    with pytest.raises(UsageError, match=r"no checkpoint\.pt in it yet"):
        resume(folder)
    (folder / "run" / CHECKPOINT_NAME).write_bytes(b"PK nothing")
    with pytest.raises(UsageError, match=r"checkpoint\.pt: not a checkpoint that can be read"):
        resume(folder)


def test_checkpoint_that_cannot_be_written_leaves_the_last_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KilledError):
        begin(folder, "run", stop_at(3))
    last = (folder / "run" / CHECKPOINT_NAME).read_bytes()

    def full(content: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full)
        with pytest.raises(StoppedError, match=r"the checkpoint can't be written: .*No space left"):
            resume(folder)
    assert (folder / "run" / CHECKPOINT_NAME).read_bytes() == last
    resume(folder)
    assert len(losses(folder / "run")) == STEPS


def test_command_resumes(folder: Path, clipcls: Callable[..., Any]) -> None:
    with pytest.raises(KilledError):
        begin(folder, "run", stop_at(4), hooks=None)
    refused = clipcls("train", "--resume", folder / "run", "--seed", "3")
    assert refused.returncode == 2
    assert refused.stderr.decode().strip() == ("clipcls: error: a resumed run keeps its settings: seed was 0 and is 3")
    done = clipcls("train", "--resume", folder / "run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().strip() == str(folder / "run" / "model")
    assert len(losses(folder / "run")) == STEPS


def test_resume_refuses_the_run_of_another_recipe(folder: Path) -> None:
    with pytest.raises(KilledError):
        begin(folder, "run", stop_at(2))
    with pytest.raises(UsageError, match="begun with another extra loss; resume it with the recipe"):
        train(resumed_settings(folder / "run", None, {}), resume=True)
