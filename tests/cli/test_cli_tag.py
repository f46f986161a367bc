"""`clipcls tag`, through its real entry point, as processes."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import EXAMPLES

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("cat.png", "dog.jpg"):
        shutil.copy(EXAMPLES / name, folder / name)
    empty = {"score": None, "similarity": None, "top": []}
    rows = [
        {"path": "photos/cat.png", "label": "cat", "score": 1, "similarity": 1, "top": [], "error": None},
        {"path": "photos/dog.jpg", "label": "dog", "score": 1, "similarity": 1, "top": [], "error": None},
        {"path": "photos/bad.jpg", "label": None, **empty, "error": "not a picture"},
        {"path": "photos/gone.jpg", "label": "dog", "score": 1, "similarity": 1, "top": [], "error": None},
    ]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "export.csv").write_text("path,label\nphotos/cat.png,tiger\n")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_tags_are_written_and_taken_back(clipcls: Run, photos: Path, tmp_path: Path) -> None:
    before = contents(photos)
    shown = clipcls("tag", "labels.jsonl", "--dry-run", "--under", "AI")
    assert shown.stdout.decode() == f"{photos}/cat.png.xmp\tAI|cat\n{photos}/dog.jpg.xmp\tAI|dog\n"
    assert contents(photos) == before and not (tmp_path / "labels.jsonl.tagged.jsonl").exists()
    done = clipcls("tag", "labels.jsonl", "--under", "AI")
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == [
        "clipcls: photos/gone.jpg: no such file",
        "clipcls: 2 files tagged; `clipcls tag --undo labels.jsonl.tagged.jsonl` takes them back",
        "clipcls: 1 without a label, 1 left out",
    ]
    assert b"<rdf:li" in (photos / "cat.png.xmp").read_bytes() and b"AI|cat" in (photos / "cat.png.xmp").read_bytes()
    again = clipcls("tag", "labels.jsonl", "--under", "AI")
    assert b"2 had their keywords already" in again.stderr
    assert clipcls("tag", "export.csv", "--log", "labels.jsonl.tagged.jsonl").returncode == 0
    assert b"tiger" in (photos / "cat.png.xmp").read_bytes()
    undone = clipcls("tag", "--undo", "labels.jsonl.tagged.jsonl")
    assert (undone.returncode, undone.stderr) == (0, b"clipcls: 3 files restored\n")
    assert contents(photos) == before


def test_answers_to_questions_are_keywords(clipcls: Run, photos: Path, tmp_path: Path) -> None:
    answer = {"label": "black", "score": 1.0, "similarity": 0.3, "top": []}
    row = {"path": "photos/cat.png", "animal": {**answer, "label": "cat"}, "colour": answer, "error": None}
    (tmp_path / "answers.jsonl").write_text(json.dumps(row) + "\n")
    assert clipcls("tag", "answers.jsonl", "--dry-run").stdout.endswith(b"cat.png.xmp\tanimal|cat;colour|black\n")
    one = clipcls("tag", "answers.jsonl", "--dry-run", "--question", "animal", "--sidecar-name", "stem")
    assert one.stdout.endswith(b"cat.xmp\tcat\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Give predictions, or --undo LOG."),
        (("labels.jsonl", "--undo", "log"), "--undo LOG goes alone"),
        (("--undo", "log"), "log: no such file"),
        (("labels.jsonl", "--under", "a|b"), "--under takes one keyword"),
        (("nowhere.jsonl",), "nowhere.jsonl: can't be read: No such file or directory."),
    ],
)
def test_mistakes_are_named(clipcls: Run, photos: Path, arguments: tuple[str, ...], said: str) -> None:
    done = clipcls("tag", *arguments)
    assert done.returncode == 2
    assert said in done.stderr.decode()
