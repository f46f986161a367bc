"""`clipcls check` through its real entry point: formats, exit codes, and what it doesn't need."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from clipcls.check.findings import ok, warning
from clipcls.cli.check import _shown
from conftest import ROOT, TINY_CONFIG, save_model
from shell import Started
from tiny_models import change, train

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A model folder that nothing is wrong with."""
    return change(save_model(tmp_path / "trained", TINY_CONFIG), train)


def lines(done: "subprocess.CompletedProcess[bytes]") -> list[list[str]]:
    return [line.split("\t") for line in done.stdout.decode().splitlines()]


def test_check_writes_a_line_for_each_finding(clipcls: Run, trained: Path) -> None:
    done = clipcls("check", "--model", trained, "--labels", "cat,delivery truck")
    assert (done.returncode, done.stderr) == (0, b"")
    found = lines(done)
    assert all(len(line) == 4 for line in found)
    assert {level for level, *_ in found} <= {"ok", "note"}
    assert {"model", "activation", "preprocessing", "tokenizer", "temperature", "labels"} <= {line[1] for line in found}


def test_check_exits_with_1_for_warnings(clipcls: Run, trained: Path) -> None:
    done = clipcls("check", "--model", trained, "--labels", "cat")
    assert done.returncode == 1
    assert ["warning", "labels"] in [line[:2] for line in lines(done)]


def test_check_exits_with_2_for_errors_of_labels_and_names_them_all(clipcls: Run, trained: Path) -> None:
    template = ("--template", "a photo", "--template", "{} " + "very " * 20)
    done = clipcls("check", "--model", trained, "--labels", "cat,dog,Cat", *template, "--strict-prompts")
    assert done.returncode == 2
    messages = [message for level, _, message, _ in lines(done) if level == "error"]
    parts = ("'cat' and 'Cat'", "no placeholder", "first 16 tokens")
    assert len(messages) == 3
    assert all(any(part in message for message in messages) for part in parts)


def test_check_exits_with_3_for_errors_of_the_model(clipcls: Run, trained: Path) -> None:
    (trained / "open_clip_model.safetensors").unlink()
    done = clipcls("check", "--model", trained, "--labels", "cat,dog,Cat")
    assert done.returncode == 3
    assert [level for level, *_ in lines(done)].count("error") == 2


def test_check_writes_json(clipcls: Run, trained: Path) -> None:
    done = clipcls("check", "--model", trained, "--labels", "cat", "--format", "json")
    data = json.loads(done.stdout)
    assert data["exit_code"] == done.returncode == 1
    (finding,) = [finding for finding in data["findings"] if finding["level"] == "warning"]
    assert finding.keys() == {"level", "subject", "message", "remedy", "exit_code"}


def test_check_is_quiet_about_what_is_well(clipcls: Run, trained: Path) -> None:
    done = clipcls("check", "--model", trained, "--labels", "cat", "-q")
    assert [line[0] for line in lines(done)] == ["warning"]
    assert clipcls("check", "--model", trained, "-q").stdout == b""


def test_check_survives_names_that_are_not_text(clipcls: Run, trained: Path, tmp_path: Path) -> None:
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/l\xff\nabels.txt")
    done = clipcls("check", "--model", trained, "--labels-file", odd)
    assert (done.returncode, done.stderr) == (2, b"")
    assert all(len(line) == 4 for line in lines(done))
    assert b"\\udcff\\nabels.txt: can't be read" in done.stdout
    assert json.loads(clipcls("check", "--model", trained, "--labels-file", odd, "--format", "json").stdout)


def test_check_does_not_mind_a_closed_pipe(start: Callable[..., Started], trained: Path) -> None:
    process = start("check", "--model", trained, "--labels", "cat,dog", "--no-cache")
    assert process.stdout.readline()
    process.stdout.close()
    _, errors = process.communicate()
    assert (process.wait(), errors) == (0, b"")


def test_check_writes_a_table_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    found = [ok("model", "well"), warning("labels", "one label only, 'cat': " + "so " * 20, "Add labels for the rest.")]
    assert _shown(iter(found), None, False) == found
    table = capsysbinary.readouterr().out.decode().splitlines()
    assert table[0] == "ok       model          well"
    assert table[1].startswith("warning  labels         one label only")
    assert all(line.startswith(" " * 24) for line in table[2:])
    assert table[-1].strip() == "→ Add labels for the rest."
    assert len(table) > 3
    assert all(len(line) <= 70 for line in table)


def test_check_help_imports_no_torch(tmp_path: Path) -> None:
    code = "import sys; sys.argv = ['clipcls', 'check', '--help']; from clipcls.cli import main; main()"
    probe = f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr)); {code}"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr.strip()) == (0, "False")
    assert "clipcls check --model" in done.stdout


def test_an_audit_needs_labels_and_pictures(clipcls: Run, trained: Path, tmp_path: Path) -> None:
    done = clipcls("check", "--model", trained, "--audit", ROOT / "examples" / "images")
    assert done.returncode == 2 and b"--audit puts words beside labels" in done.stderr
    wanted = ("--labels", "cat,delivery truck", "--audit", ROOT / "examples" / "images")
    done = clipcls("check", "--model", trained, *wanted)
    found = [line for line in lines(done) if line[1] == "audit"]
    assert len(found) == 8 and all(line[0] == "note" for line in found)
    assert found[0][2].startswith("12 pictures; fewer than 30")
    assert done.returncode == 0, done.stderr
