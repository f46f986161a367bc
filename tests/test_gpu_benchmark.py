"""The tiny form of the benchmark for GPUs, what it makes of parts that fail, and its shares of the roofs."""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parent / "benchmarks" / "gpu.py"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return importlib.import_module("gpu")


def test_tiny_form_runs_all_parts(gpu: ModuleType, tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    command = [sys.executable, str(SCRIPT), "--tiny", "--folder", str(tmp_path / "data"), "--output", str(output)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    # files, not pipes: the process that others are forked off holds them open until torch is taken apart
    streams = [tmp_path / name for name in ("stdout", "stderr")]
    with streams[0].open("wb") as stdout, streams[1].open("wb") as stderr:
        ran = subprocess.run(command, env=environment, stdout=stdout, stderr=stderr, timeout=300)
    printed, messages = (path.read_text(encoding="utf-8") for path in streams)
    assert ran.returncode == 0, printed + messages
    found = json.loads(output.read_text(encoding="utf-8"))
    assert list(found["parts"]) == list(gpu.PARTS)
    assert all(part["results"] and part["error"] is None for part in found["parts"].values())
    assert found["failed"] == [] and "Nothing failed." in printed
    assert [(run["kind"], run["images"]) for run in found["whole_runs"]] == [
        ("small", 48),
        ("large", 4),
        ("shards", 48),
    ]
    checked = {name for name, part in found["parts"].items() for result in part["results"] if result["ok"]}
    assert checked == {"features", "predictions", "memory", "sharing", "training"}
    assert "| tiny ViT, 48 small JPEGs in shards |" in printed


PARTS = """
import os, signal, subprocess, sys, time
from gpu_plan import Result

def fails(plan, until):
    yield Result("first", {"speed": 1.5})
    raise ValueError("no such thing")

def dies(plan, until):
    yield Result("first", {"speed": 1.5})
    os.kill(os.getpid(), signal.SIGKILL)

def hangs(plan, until):
    yield Result("first", {"speed": 1.5})
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    (plan.folder / "child").write_text(str(child.pid))
    time.sleep(100)
"""


@pytest.mark.parametrize(
    ("function", "error"),
    [
        ("fails", "ValueError: no such thing"),
        ("dies", "ended with exit code -9"),
        ("hangs", "took too long, and was ended"),
    ],
)
def test_part_that_fails_keeps_its_results(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, error: str
) -> None:
    (tmp_path / "failing_parts.py").write_text(PARTS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    plan, now = gpu.tiny_plan(tmp_path), time.monotonic()
    limit = now + (60 if function != "hangs" else 3)
    found = list(gpu.run_part(gpu.Kind("failing_parts", function, 60), plan, limit, limit))
    assert found == [gpu.Result("first", {"speed": 1.5}), error]
    if function == "hangs":
        # what it had started is ended with it
        child = Path("/proc") / (tmp_path / "child").read_text(encoding="utf-8")
        deadline = time.monotonic() + 10
        while child.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not child.exists()


def speed(gpu: ModuleType, name: str, images_per_second: float, **figures: Any) -> Any:
    return gpu.Result(name, {**figures, "images_per_second": images_per_second})


def test_shares_are_of_the_lower_roof(gpu: ModuleType, tmp_path: Path) -> None:
    report = gpu.Report(["a machine"], tmp_path / "report.json")
    report.parts["forward"] = gpu.Part(
        [
            speed(gpu, "slower", 1000.0, model="ViT", way="eager", batch=64, precision="bf16"),
            speed(gpu, "faster", 2000.0, model="ViT", way="CUDA graph", batch=256, precision="bf16"),
        ]
    )
    report.parts["decoding"] = gpu.Part(
        [
            speed(gpu, "small", 4000.0, kind="small", way="threads", number=8),
            speed(gpu, "on the GPU", 9000.0, kind="large", way="in a batch by nvJPEG", number=32),
            speed(gpu, "large", 500.0, kind="large", way="threads", number=8),
        ]
    )
    rounds = [("small", 1400.0), ("small", 1600.0), ("large", 450.0), ("shards", 1000.0)]
    report.parts["whole"] = gpu.Part(
        [speed(gpu, kind, images, model="ViT", kind=kind, images=100) for kind, images in rounds],
        error="took too long, and was ended",
    )
    report.parts["memory"] = gpu.Part([gpu.Result("batches", {"said": None}, ok=False)])
    shares = {run["kind"]: run["share_of_lower_roof"] for run in report.whole_runs()}
    assert shares == {"small": 0.75, "large": 0.9, "shards": 0.5}
    report.write()
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["failed"] == report.failed
    assert report.failed == [
        "whole: took too long, and was ended",
        "memory: batches:  - NOT AS IT SHOULD BE",
    ]
    text = "\n".join(report.as_text())
    assert "| ViT bf16, eager | 1,000 |  |" in text and "| ViT bf16, CUDA graph |  | 2,000 |" in text
    assert "FAILED: whole: took too long" in text
