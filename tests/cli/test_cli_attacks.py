"""`clipcls eval --attack` through its real entry point, as a process."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.cells import cell_len

from conftest import ROOT

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]
TRUTH = ROOT / "examples" / "truth.csv"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["text", "--severity", "0", "--severity", "4"], ["size of note", "5.0% blank", "by place", "Note: no sign"]),
        (["corrupt", "--severity", "3"], ["the worst first", "low resolution"]),
    ],
)
def test_attacks_are_told_in_tables_of_80_columns(clipcls: Run, arguments: list[str], expected: list[str]) -> None:
    done = clipcls("eval", TRUTH, "--model", "pictogram", "--attack", *arguments)
    text = done.stdout.decode()
    assert (done.returncode, done.stderr) == (0, b"")
    assert text.startswith("20 images attacked, 11 labels\n")
    assert all(len(line) <= 80 for line in text.splitlines() if not line.startswith("Note: "))
    assert all(words in text for words in expected)


def test_labels_of_all_kinds_are_warned_of_once_and_cut_to_the_table(clipcls: Run, tmp_path: Path) -> None:
    labels = ["很长的标签" * 30, "12", "a cup\tof tea", "猫"]
    pictures = sorted((ROOT / "examples" / "images").glob("*.png"))[: len(labels)]
    rows = "".join(f'{path},"{label}"\n' for path, label in zip(pictures, labels, strict=True))
    (tmp_path / "t.csv").write_text(f"path,label\n{rows}")
    done = clipcls("eval", "t.csv", "--model", "pictogram", "--attack", "text", "--severity", "1")
    lines = done.stderr.decode().splitlines()
    assert done.returncode == 0 and len([line for line in lines if "the model sees only the first" in line]) == 1
    table = [line for line in done.stdout.decode().splitlines() if not line.startswith("Note: ")]
    assert all(cell_len(line) <= 80 for line in table) and any(line.startswith("很长的标签很长") for line in table)


def test_it_is_said_plainly_what_noise_does(clipcls: Run, tiny_model: Path) -> None:
    done = clipcls("eval", TRUTH, "--model", tiny_model, "--attack", "adversarial", "--limit", "8")
    text = done.stdout.decode()
    assert (done.returncode, done.stderr) == (0, b"")
    assert text.startswith("8 of 20 images attacked, 11 labels\n")
    assert "2/255" in text and "4/255" in text
    assert "of the right answers fall to noise that nobody sees" in text or "everything falls: at" in text


def test_figures_are_told_as_json_and_a_bad_picture_is_left_out(clipcls: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    rows = TRUTH.read_text().replace("images/", f"{TRUTH.parent}/images/").replace("others/", f"{TRUTH.parent}/others/")
    (tmp_path / "t.csv").write_text(rows + f"{tmp_path}/bad.png,cat\n")
    run = ("eval", "t.csv", "--model", "pictogram", "--attack", "text", "--severity", "1", "--format", "json")
    done = clipcls(*run, "--seed", "5")
    assert done.returncode == 1
    assert b"1 of 21 images were left out" in done.stderr
    made = json.loads(done.stdout)
    assert (made["attack"], made["seed"], made["images"], made["measured"]) == ("text", 5, 21, 20)
    assert [variant["name"] for variant in made["variants"]] == ["note", "blank note"]
    assert set(made["variants"][0]["success"]) == {"part", "whole", "value", "low", "high"}
    assert made["failed"][0]["path"].endswith("bad.png")
    assert sum(share["whole"] for share in made["notes"]["success_by_place"].values()) <= 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limit", "3"], "these say how to --attack, which isn't given: leave --limit out."),
        (["--attack", "text", "--retrieval", "--score", "cosine"], "leave --retrieval, --score out."),
        (["--attack", "corrupt", "--prompts", "simple", "--prompts", "default"], "one prompt set at a time"),
    ],
)
def test_what_has_no_meaning_with_an_attack_is_refused(clipcls: Run, arguments: list[str], message: str) -> None:
    done = clipcls("eval", TRUTH, "--model", "pictogram", *arguments)
    assert done.returncode == 2 and not done.stdout
    assert message in done.stderr.decode() and len(done.stderr.splitlines()) == 1


def test_pictures_with_several_labels_are_refused(clipcls: Run, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,labels\na.png,cat|dog\n")
    done = clipcls("eval", "t.csv", "--model", "pictogram", "--attack", "text")
    assert done.returncode == 2 and b"needs one label an image" in done.stderr
