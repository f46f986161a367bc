"""`clipcls labels`, and `--labels-file` with the name of a set."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT, save_pictures
from shell import TERMINAL, Started, run_on_terminal

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


def test_list_is_tsv_in_a_pipe(clipcls: Run) -> None:
    rows = [line.split("\t") for line in clipcls("labels", "list").stdout.decode().splitlines()]
    assert {len(row) for row in rows} == {4}
    assert ["everyday", "300 labels", "written for clipcls"] in [[row[0], row[1], row[3]] for row in rows]
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)


def test_list_on_a_terminal_is_a_table_in_80_columns(start: Callable[..., Started]) -> None:
    code, shown, _ = run_on_terminal(start, "labels", "list", environment={"COLUMNS": "80"}, stdout=TERMINAL)
    assert code == 0
    lines = shown.decode().splitlines()
    assert lines[:2] == [
        "cifar10        10  Ten kinds of animals and vehicles.",
        "                   CIFAR-10, Krizhevsky 2009",
    ]
    assert max(map(len, lines)) <= 80


def test_show_prints_a_label_a_line_that_is_a_label_file(clipcls: Run, tmp_path: Path) -> None:
    shown = clipcls("labels", "show", "food101").stdout
    assert shown.startswith(b"apple pie\nbaby back ribs\n") and shown.count(b"\n") == 101
    (tmp_path / "labels.txt").write_bytes(shown)
    assert clipcls("labels", "show", "labels.txt").stdout == shown


def test_show_names_what_was_meant(clipcls: Run) -> None:
    done = clipcls("labels", "show", "imagnet")
    assert done.returncode == 2
    assert b"No label set or file 'imagnet'. Did you mean imagenet?" in done.stderr


def test_show_ends_well_where_the_pipe_is_closed() -> None:
    command = f"{sys.executable} -m clipcls labels show imagenet | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert (done.stdout, done.stderr) == (b"tench\n0\n", b"")


@pytest.mark.parametrize("command", ["predict", "eval", "calibrate", "check"])
def test_a_set_is_taken_by_name(clipcls: Run, tiny_model: Path, tmp_path: Path, command: str) -> None:
    for label in ("frog", "ship"):
        save_pictures(tmp_path / "data" / label, 5)
    data = [] if command == "check" else ["data"]
    more = ["-o", "calibration.json"] if command == "calibrate" else []
    done: Any = clipcls(command, *data, "--labels-file", "cifar10", "--model", tiny_model, "--prompts", "simple", *more)
    assert done.returncode in (0, 1), done.stderr
    if command == "check":
        assert b"10 labels" in done.stdout
    if command == "eval":
        assert b"--labels-file cifar10" in done.stdout + done.stderr
    if command == "predict":
        assert len(done.stdout.splitlines()) == 10
    refused = clipcls(command, *data, "--labels-file", "cifar", "--model", tiny_model, *more)
    assert refused.returncode == 2 or b"cifar10 or cifar100" in refused.stdout
    assert b"Did you mean cifar10 or cifar100?" in refused.stdout + refused.stderr


def test_a_run_with_a_set_is_resumed_with_its_labels_in_a_file(clipcls: Run, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_bytes(clipcls("labels", "show", "cifar10").stdout)
    first, *others = save_pictures(tmp_path / "pictures", 3)
    settings = ["--model", tiny_model, "-o", "out.jsonl"]
    assert clipcls("predict", first, "--labels-file", "cifar10", *settings).returncode == 0
    done = clipcls("predict", first, *others, "--labels-file", "labels.txt", "--resume", *settings)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "out.jsonl").read_bytes().splitlines()) == 3
