"""What README.md shows is what the program prints, and its Python runs."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import save_pictures

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_help_blocks_are_up_to_date() -> None:
    command = [sys.executable, "-m", "cogapp", "--check", "README.md"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, "run `cog -r README.md`\n" + done.stdout


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_python_examples_run(code: str, tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for _ in range(2):  # what can be resumed is
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 12 or done.stdout == "20 done, 0 failed\n"


PIPELINES = re.search(r"## Pipelines\n.*?```sh\n(.*?)```", README, re.DOTALL)[1].splitlines()  # type: ignore[index]


@pytest.mark.parametrize("line", PIPELINES)
def test_pipeline_runs_as_it_is_written(line: str, tmp_path: Path, tiny_model: Path) -> None:
    if "jq" in line and shutil.which("jq") is None:
        pytest.skip("jq isn't installed")
    save_pictures(tmp_path / "photos" / "sub folder", 3)
    for path in (tmp_path / "photos" / "sub folder").iterdir():
        path.rename(path.with_suffix(".jpg"))  # what a file is follows from its content
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "clipcls"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m clipcls "$@"\n')
    program.chmod(0o755)
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
        "CLIPCLS_MODEL": str(tiny_model),
    }
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "photos/sub folder/" in done.stdout or "awk" in line or "labels.csv" in line or "uniq" in line


def test_every_option_named_in_prose_exists() -> None:
    prose = re.sub(r"```text.*?```", "", README, flags=re.DOTALL)
    helps = "".join(re.findall(r"```text.*?```", README, re.DOTALL))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", prose))
    # options of pip, git, torchrun, benchmarks and cog, and of `clipcls models` and `clipcls cache`
    elsewhere = {
        "--address",
        "--block",
        "--head",
        "--port",
        "--more-words",
        "--memory",
        "--nproc-per-node",
        "--index-url",
        "--all",
        "--help",
        "--strict",
        "--check",
    } | {
        "--older-than",
        "--size",
    }
    assert named - elsewhere <= set(re.findall(r"--[a-z][a-z-]+", helps))
