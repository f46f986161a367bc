"""`clipcls duplicates` as a process, and `clipcls sort` after it."""

import csv
import io
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from conftest import EXAMPLES

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]
PHOTOS = EXAMPLES.parent / "photos"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("cat", "coffee", "hat"):
        shutil.copyfile(PHOTOS / f"{name}.jpg", folder / f"{name}.jpg")
    shutil.copyfile(PHOTOS / "cat.jpg", folder / "cat-2.jpg")
    image = Image.open(PHOTOS / "coffee.jpg").convert("RGB")
    image.resize((image.width // 2, image.height // 2)).save(folder / "coffee-small.webp", quality=60)
    return folder


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.*") if not path.name.startswith(".")}


def test_copies_are_listed_moved_and_taken_back(tmp_path: Path, photos: Path, clipcls: Run) -> None:
    before = names(photos)
    done = clipcls("duplicates", "photos", "-o", "copies.csv")
    assert done.returncode == 0, done.stderr
    assert done.stderr.decode().startswith("clipcls: 2 groups among 5 images; 2 pictures could go, 0.0 MB")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "copies.csv").read_text(encoding="utf-8"))))
    assert [(row["group"], row["kind"], row["keep"]) for row in rows] == [
        ("1", "bytes", "yes"),
        ("1", "bytes", "no"),
        ("2", "picture", "yes"),
        ("2", "picture", "no"),
    ]
    assert rows[2]["why"].startswith("largest: ")
    moved = clipcls("sort", "copies.csv", "--into", "copies", "--by", "move", "--yes")
    assert moved.returncode == 0, moved.stderr
    assert names(tmp_path / "copies") == {
        f"group-0001/{Path(rows[1]['path']).name}",
        "group-0002/coffee-small.webp",
    }
    assert names(photos) == before - {Path(rows[1]["path"]).name, "coffee-small.webp"}
    assert clipcls("sort", "--undo", "copies").returncode == 0
    assert names(photos) == before


def test_a_pipe_gets_tsv_and_sort_reads_it(photos: Path, tmp_path: Path, clipcls: Run) -> None:
    done = clipcls("duplicates", photos, "--kind", "bytes", "-q")
    lines = [line.split("\t") for line in done.stdout.decode().splitlines()]
    assert [line[:3] for line in lines] == [["1", "bytes", "yes"], ["1", "bytes", "no"]]
    assert not done.stderr
    shown = clipcls("sort", "-", "--format", "tsv", "--into", "copies", "--dry-run", input=done.stdout)
    assert shown.stdout.decode() == f"{lines[1][3]}\tcopies/group-0001/{Path(lines[1][3]).name}\n"


def test_nothing_found_is_said(tmp_path: Path, clipcls: Run) -> None:
    done = clipcls("duplicates", PHOTOS)
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr == b"clipcls: no duplicates among 8 images\n"


def test_pictures_that_fail_are_said_and_counted(photos: Path, clipcls: Run) -> None:
    (photos / "broken.jpg").write_bytes(b"no picture")
    done = clipcls("duplicates", photos, "--format", "jsonl")
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 4
    assert b"broken.jpg: not an image in a format Pillow reads" in done.stderr
    assert b"clipcls: 1 of 6 images could not be read" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("photos", "--kind", "bytes", "--threshold", "0.9"), b"--threshold is for --kind picture and scene"),
        (("photos", "--output", "photos/cat.jpg", "--format", "csv"), b"not a name for results"),
        (("photos", "--format", "parquet"), b"Parquet can't be written to standard output"),
        (("nowhere",), b"No image that was named exists"),
        ((), b"No images"),
    ],
)
def test_wrong_use_is_said(photos: Path, clipcls: Run, arguments: tuple[str, ...], message: bytes) -> None:
    done = clipcls("duplicates", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
