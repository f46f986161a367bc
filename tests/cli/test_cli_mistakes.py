"""A newcomer's first mistakes, and what is said to them."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def pictures(clipcls: Run, tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"no picture")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("predict photos --labels cat dog", "dog: no such file or folder. Labels are separated by commas: "),
        ("photos/ --labels cat,dog", "Did you mean: clipcls predict photos/ --labels cat,dog\n"),
        ("photoz --labels cat,dog", "Did you mean: clipcls predict photoz --labels cat,dog\n"),
        ("bogus", "No such command 'bogus'."),
        ("predict photos --labels a --format json", "'--format': 'json': use table, tsv, jsonl, csv or parquet.\n"),
        ("predict photos --labels a --decode slow", "'--decode': 'slow': use fast or exact.\n"),
        ("predict photos --labels a --top-k many", "'--top-k': 'many': expected a whole number.\n"),
        ("predict photos --labels a --top-k 0", "'--top-k': '0': expected 1 or more.\n"),
        ("predict photos --labels a --threshold high", "'--threshold': 'high': expected a number.\n"),
        ("predict photos --labels a --model a --model b", "it holds one value, and is given twice"),
        ("predict photos --labels a -o x -o y", "it holds one value, and is given twice"),
        ("train photos --epochs 1 --epochs 2", "it holds one value, and is given twice"),
        ("predict photos --labels a;b", "Did you mean --labels 'a,b'?"),
        ("predict photos --labels labels.txt", "Did you mean --labels-file labels.txt?"),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_what_was_meant(clipcls: Run, pictures: Path, arguments: str, said: str) -> None:
    (pictures / "labels.txt").write_text("cat\n")
    done = clipcls(*arguments.split())
    assert done.returncode == 2
    assert said in done.stderr.decode()


def test_lists_of_labels_add_up(clipcls: Run, pictures: Path) -> None:
    done = clipcls("check", "--model", "pictogram", "--labels", "cat,dog", "--labels", "truck", "--device", "cpu")
    assert b"3 labels" in done.stdout


@pytest.mark.parametrize("output", ["old.tsv", "old.jsonl", "old.csv", "old.parquet", "old.txt"])
def test_a_misspelt_folder_costs_no_old_output_and_no_model(clipcls: Run, pictures: Path, output: str) -> None:
    (pictures / output).write_text("what an earlier run found\n")
    done = clipcls("predict", "photoz", "nor/this.jpg", "--labels", "cat,dog", "-o", output, "--model", "no/such:model")
    assert (done.returncode, done.stdout) == (2, b"")
    said = b"No image that was named exists, so nothing is written. The first: photoz: no such file or directory."
    assert said in done.stderr
    assert (pictures / output).read_text() == "what an earlier run found\n"


def test_a_misspelt_folder_is_an_error_of_a_row_on_standard_output(clipcls: Run, pictures: Path) -> None:
    done = clipcls("predict", "photoz", "--labels", "cat,dog", "--format", "jsonl", "--model", "no/such:model")
    assert done.returncode == 1
    assert b'"path": "photoz"' in done.stdout


def test_folders_without_a_picture_say_what_they_hold(clipcls: Run, pictures: Path) -> None:
    (pictures / "raw").mkdir()
    (pictures / "raw" / "a.cr3").touch()
    done: Any = clipcls("predict", "raw", "--labels", "cat,dog", "--model", "no/such:model")
    assert done.returncode == 2
    assert b"left out of raw: 1 .cr3 (-v lists them)" in done.stderr
    assert b"No images found" in done.stderr


def test_summaries_of_commands_are_whole_sentences_in_80_columns(clipcls: Run) -> None:
    lines = clipcls("--help").stdout.decode().split("Commands:\n")[1].splitlines()
    assert len(lines) == 20
    assert all(line.endswith(".") and not line.endswith("...") and len(line) <= 80 for line in lines)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("clipcls predict --model p", ["photo", "pictogram"]),
        ("clipcls models pull m", ["multilingual"]),
        ("clipcls eval --prompts op", ["openai-imagenet-7", "openai-imagenet-80"]),
        ("clipcls predict --labels-file cif", ["cifar10", "cifar100"]),
        ("clipcls labels show every", ["everyday", "everyday-zh"]),
    ],
)
def test_completion_offers_models_and_sets(
    clipcls: Run, monkeypatch: pytest.MonkeyPatch, words: str, offered: list[str]
) -> None:
    count = str(len(words.split()) - 1)
    for name, value in (("_CLIPCLS_COMPLETE", "complete_bash"), ("COMP_WORDS", words), ("COMP_CWORD", count)):
        monkeypatch.setenv(name, value)
    assert clipcls().stdout.decode().split() == offered
