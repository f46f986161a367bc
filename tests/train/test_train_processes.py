"""Training in two processes, really started: the same gradients as one, and whole runs under torchrun."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file

from clipcls.train.data.read import read_data
from clipcls.train.processes import join_processes
from clipcls.train.settings import load_settings
from clipcls.train.start_model import start_model
from clipcls.train.trainer import Trainer
from conftest import ROOT, TINY_CONFIG, save_pictures
from recipe import Pictogram
from shell import Started

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A table of 16 pictures with one caption each, two of them equal; nothing in a batch is random but its order."""
    pictures = save_pictures(tmp_path / "pictures", 16)
    rows = [{"image": f"pictures/{path.name}", "caption": f"a {path.stem[1:]}"} for path in pictures[:-1]]
    rows.append({"image": f"pictures/{pictures[-1].name}", "caption": "a 00"})
    (tmp_path / "table.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "arch.json").write_text(json.dumps(TINY_CONFIG), encoding="utf-8")
    (tmp_path / "config.yaml").write_text(
        "data: table.jsonl\narch: arch.json\noutput: run\nbatch_size: 16\nprecision: fp32\ndevice: cpu\n"
        "augment: none\nepochs: 2\nworkers: 1\n",
        encoding="utf-8",
    )
    return tmp_path


def gradients(folder: Path, given: dict[str, Any]) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss and the gradients of the first batch in float64, where rounding is no matter."""
    hooks = Pictogram(curriculum=0, proxy_weight=0.5, spread=False) if "recipe" in given else None
    given = {name: value for name, value in given.items() if name != "recipe"} | {"grad_clip": 0.0}
    settings = load_settings(folder / "config.yaml", given)
    # losses are computed in float32 on purpose
    with join_processes(CPU) as processes, patch.object(torch.Tensor, "float", torch.Tensor.double):
        torch.manual_seed(0)
        start = start_model(settings)
        start.model.double()
        trainer = Trainer(settings, start, read_data(Path(settings.data)), processes, hooks)
        if trainer.extra_loss is not None:
            trainer.extra_loss.double()
        batch = next(trainer.feed.batches())
        loss = trainer.step(replace(batch, images=batch.images.double()), 1e-3)
        assert loss is not None
        named = (pair for module in trainer.modules for pair in module.named_parameters())
        return loss, {name: weight.grad for name, weight in named if weight.grad is not None}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def one_of_two(folder: Path, given: dict[str, Any], rank: int, port: int) -> None:
    """In a process of its own, with the environment that torchrun sets."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.save(gradients(folder, given), folder / f"gradients-{rank}.pt")


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"loss": "sigmoid"},
        {"accumulate": 2},
        {"recipe": True, "positives": "listed"},
        {"bad": 3},
        {"bad": 12, "accumulate": 2},
    ],
    ids=str,
)
def test_two_processes_with_half_the_batch_give_the_gradients_of_one(
    folder: Path, given: dict[str, Any], forks: Any
) -> None:
    bad, given = given.get("bad", 0), {name: value for name, value in given.items() if name != "bad"}
    for number in range(bad):  # so that the shares differ in size
        (folder / "pictures" / f"{number:03d}.png").write_bytes(b"no picture")
    port = free_port()
    started = [forks.Process(target=one_of_two, args=(folder, given, rank, port)) for rank in range(2)]
    for process in started:
        process.start()
    whole_loss, whole = gradients(folder, given)
    for process in started:
        process.join(120)
        assert process.exitcode == 0
    for rank in range(2):
        loss, shared = torch.load(folder / f"gradients-{rank}.pt", weights_only=True)
        assert loss == pytest.approx(whole_loss, rel=1e-12)
        assert shared.keys() == whole.keys() >= {"logit_scale", "visual.proj", "text_projection"}
        for name, gradient in whole.items():
            torch.testing.assert_close(shared[name], gradient, atol=1e-12, rtol=1e-9)
    assert float(whole["logit_scale"].abs()) > 1e-3


def torchrun(*args: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    command += [str(free_port()), "-m", "clipcls", "train", *map(str, args)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)


def losses(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


def without_key_bias(name: str, weight: torch.Tensor) -> torch.Tensor:
    """A tower's weight, but for biases that softmax cancels: their gradients are nothing but rounding."""
    if not name.endswith("attn.in_proj_bias"):
        return weight
    query, _, value = weight.chunk(3)
    return torch.cat([query, value])


def test_torchrun_trains_as_one_process_does(folder: Path, clipcls: Any) -> None:
    one = clipcls("train", "--config", folder / "config.yaml", "--output", folder / "one", "--batch-size", "8")
    assert one.returncode == 0, one.stderr
    two = torchrun("--config", folder / "config.yaml", "--output", folder / "two", "--batch-size", "8")
    assert two.returncode == 0, two.stderr
    assert two.stdout.splitlines() == [str(folder / "two" / "model")]
    assert losses(folder / "two") == pytest.approx(losses(folder / "one"), rel=1e-4)
    assert len(losses(folder / "two")) == 4
    ones, twos = (load_file(folder / name / "model" / "open_clip_model.safetensors") for name in ("one", "two"))
    for name, weight in ones.items():
        one, two = (without_key_bias(name, weight), without_key_bias(name, twos[name]))
        # AdamW divides each gradient by its own size, and the rounding of a small one with it
        assert (two - one).norm() <= 1e-3 * one.norm(), name


def test_two_processes_say_an_error_once_and_end(folder: Path, start: Callable[..., Started]) -> None:
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [common | {"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    arguments = ("train", "--config", "config.yaml", "--output", folder, "--batch-size", "8")
    failed = [start(*arguments, environment=environment) for environment in ranks]
    errors = [process.communicate()[1] for process in failed]
    assert all(process.wait() != 0 for process in failed)
    assert sum(text.count(b"the output exists already") for text in errors) == 1
