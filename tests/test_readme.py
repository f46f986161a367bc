"""What README.md shows is what the program prints, and its Python runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_help_blocks_are_up_to_date() -> None:
    command = [sys.executable, "-m", "cogapp", "--check", "README.md"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, "run `cog -r README.md`\n" + done.stdout


def test_python_example_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 12


def test_every_option_named_in_prose_exists() -> None:
    prose = re.sub(r"```text.*?```", "", README, flags=re.DOTALL)
    helps = "".join(re.findall(r"```text.*?```", README, re.DOTALL))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", prose))
    # options of pip, git, torchrun, benchmarks and cog, and of `clipcls models` and `clipcls cache`
    elsewhere = {"--more-words", "--nproc-per-node", "--index-url", "--all", "--help", "--strict", "--check"} | {
        "--older-than",
        "--size",
    }
    assert named - elsewhere <= set(re.findall(r"--[a-z][a-z-]+", helps))
