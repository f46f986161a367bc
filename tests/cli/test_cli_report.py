"""`clipcls report` and `predict --report` as processes, and the page in a browser, where there is one."""

import csv
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from browser import CHROMIUM, Page, browser
from conftest import EXAMPLES

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]
LABELS = ("--labels", "cat,dog,truck", "--model", "pictogram")


def data_in(page: Path) -> Any:
    found = re.search(r'id="data">(.*?)</script', page.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return json.loads(found[1])


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("black-cat.png", "dog-face.png", "pickup-truck.png"):
        shutil.copyfile(EXAMPLES / name, folder / name)
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


@pytest.mark.parametrize("output", ["labels.jsonl", "labels.csv", "labels.tsv", "labels.parquet"])
def test_every_format_makes_the_same_page(tmp_path: Path, pictures: Path, clipcls: Run, output: str) -> None:
    done = clipcls("predict", "pictures", *LABELS, "-o", output, "--report", "with.html")
    assert done.returncode == 1
    assert b"clipcls: 3 of 4 pictures shown, all counted, in with.html" in done.stderr
    read = clipcls("report", output)
    assert (read.returncode, read.stderr) == (0, b"clipcls: 3 of 4 pictures shown, all counted, in report.html\n")
    of_run, of_file = data_in(tmp_path / "with.html"), data_in(tmp_path / "report.html")
    assert of_run["digest"] == of_file["digest"]
    assert of_run["failures"] == [["pictures/broken.jpg", "not an image in a format Pillow reads"]]
    assert of_run["failures"] == of_file["failures"]
    assert [row["path"] for row in of_run["rows"]] == [row["path"] for row in of_file["rows"]]
    assert of_run["settings"][0][1].startswith("pictogram, fingerprint ")
    # nothing is known of a Parquet file's run
    assert bool(of_file["settings"]) == (output != "labels.parquet")


def test_runs_that_go_on_and_folders_of_parts_are_read_back(tmp_path: Path, pictures: Path, clipcls: Run) -> None:
    for arguments in (("-o", "labels.tsv"), ("--output-dir", "parts", "--format", "jsonl")):
        assert clipcls("predict", "pictures", *LABELS, *arguments).returncode == 1
        done = clipcls("predict", "pictures", *LABELS, *arguments, "--resume", "--report", "report.html")
        assert done.returncode == 1
        data = data_in(tmp_path / "report.html")
        assert (data["total"], data["failed"], data["counts"]) == (4, 1, [1, 1, 1])
    (tmp_path / "link.tsv").symlink_to("labels.tsv")
    assert clipcls("report", "parts", "link.tsv", "-o", "both.html", "-q").returncode == 0
    assert data_in(tmp_path / "both.html")["total"] == 8


def test_a_file_without_rows_tells_its_failures(tmp_path: Path, pictures: Path, clipcls: Run) -> None:
    assert clipcls("predict", "pictures/broken.jpg", *LABELS, "-o", "labels.tsv").returncode == 1
    assert clipcls("report", "labels.tsv").returncode == 0
    assert data_in(tmp_path / "report.html")["failures"][0][0] == "pictures/broken.jpg"


def test_a_run_to_standard_output_is_followed(tmp_path: Path, pictures: Path, clipcls: Run) -> None:
    done = clipcls("predict", "pictures", *LABELS, "--report", "report.html")
    assert len(done.stdout.splitlines()) == 3
    assert data_in(tmp_path / "report.html")["title"] == "predictions of pictures"
    nothing = clipcls("predict", "gone.png", *LABELS, "--report", "report.html")
    assert nothing.returncode == 1
    data = data_in(tmp_path / "report.html")
    assert (data["failures"], data["settings"]) == ([["gone.png", "no such file or directory"]], [])


def test_pictures_that_have_moved_are_said(tmp_path: Path, pictures: Path, clipcls: Run) -> None:
    clipcls("predict", "pictures", *LABELS, "-o", "labels.jsonl")
    (pictures / "black-cat.png").unlink()
    done = clipcls("report", "labels.jsonl", "--thumbnails", "small", "--most", "2")
    assert done.returncode in (0, 1)
    done = clipcls("report", "labels.jsonl", "--thumbnails", "small")
    assert done.returncode == 1
    assert b"1 of them can't be read again; pictures/black-cat.png: no such file or directory" in done.stderr
    assert len([*(tmp_path / "small").rglob("*.webp")]) == 2
    pictures.rename(tmp_path / "moved")
    done = clipcls("report", "labels.jsonl")
    assert b"3 of them can't be read again; run it in the folder that predict was run in; pictures/" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("gone.jsonl",), 2, "gone.jsonl: no such file or folder"),
        (("empty.jsonl",), 2, "empty.jsonl: holds no predictions"),
        (("text.jsonl",), 2, "text.jsonl, line 1: not a row that `clipcls predict` writes"),
        (("truth.csv",), 2, "truth.csv: its first line isn't the header"),
        (("picture.png",), 2, "its name tells no format"),
        (("nothing",), 2, "nothing: a folder without part files"),
        (("good.jsonl", "-o", "good.jsonl"), 2, "--output good.jsonl: a name that ends in .html is needed"),
        (("page.html", "-o", "page.html"), 2, "--output page.html is also an input or the output"),
        (("good.jsonl", "-o", "none/page.html"), 4, "none/page.html: can't be written"),
        (("good.jsonl", "--thumbnails", "text.jsonl"), 4, "--thumbnails text.jsonl: can't be made"),
        (("good.jsonl", "--thumbnails", "pictures"), 2, "--thumbnails pictures: it holds other files"),
        (("good.jsonl", "--truth", "truth.csv"), 2, "None of the predictions is of a picture of the truth"),
        (("good.jsonl", "--most", "0"), 2, "0"),
    ],
)
def test_bad_input(tmp_path: Path, clipcls: Run, arguments: tuple[str, ...], code: int, message: str) -> None:
    row = {"path": "a.png", "label": "cat", "score": 0.5, "similarity": 0.2, "top": [], "error": None}
    (tmp_path / "good.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "text.jsonl").write_text("hello\n")
    (tmp_path / "truth.csv").write_text("path,label\nb.png,cat\n")
    (tmp_path / "page.html").touch()
    (tmp_path / "picture.png").touch()
    (tmp_path / "nothing").mkdir()
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").touch()
    done = clipcls("report", *arguments)
    assert done.returncode == code
    assert message in done.stderr.decode()
    assert not (tmp_path / "report.html").exists()


def test_predict_refuses_a_page_before_it_runs(pictures: Path, clipcls: Run) -> None:
    for page, code in (("labels.jsonl", 2), ("none/a.html", 4)):
        done = clipcls("predict", "pictures", *LABELS, "-o", "out.jsonl", "--report", page)
        assert (done.returncode, done.stdout) == (code, b"")
    done = clipcls("predict", "pictures", *LABELS, "--format", "jsonl", "-o", "a.html", "--report", "a.html")
    assert done.returncode == 2


# ---------------------------------------------------------------------------------------------------------
# In a browser


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with browser() as opened:
        yield opened


NAMES = (
    *(b"<script>.png", b'"><img src=x onerror=alert(1)>.png', b'line\nbreak, and; "quo\'tes".png', b"bad-\xff.png"),
    *("\u202egnp.exe \u2028.png".encode(), b"__proto__.png", b"{{data}}.png", "猫 é.png".encode()),
)
NEW_LABELS = ("</script><b>", 'a, "b"', "__proto__", "ünï 猫")


def test_corrections_by_keys_are_exported_and_read_by_eval(tmp_path: Path, clipcls: Run, page: Page) -> None:
    (tmp_path / "odd").mkdir()
    for name in NAMES:
        shutil.copyfile(EXAMPLES / "cat.png", tmp_path / "odd" / os.fsdecode(name))
    assert clipcls("predict", "odd", *LABELS, "--label", "<img src=x>", "-o", "labels.jsonl").returncode == 0
    assert clipcls("report", "labels.jsonl").returncode == 0
    address = (tmp_path / "report.html").as_uri()
    page.open(address)
    assert page.evaluate("[document.title, document.images.length > 0]") == ["labels.jsonl – report", True]
    # a new label is typed, one is set by its number, one is kept, and one step is undone
    for label in NEW_LABELS:
        page.press("Enter")
        page.call("Input.insertText", text=label)
        page.press("Enter")
    page.press("2")
    page.press(" ")
    page.press("1")
    page.press("z", control=True)
    page.press(" ")
    page.press(" ")
    before = page.evaluate("[...marks]")
    page.open(address)
    assert page.evaluate("[...marks]") == before
    assert [label for _, label in before[:4]] == list(NEW_LABELS)
    assert len(before) == len(NAMES)
    for kind, name in (("csv", "labels.csv"), ("jsonl", "labels.jsonl"), ("studio", "label-studio.json")):
        page.evaluate(f"document.querySelector('[data-export={kind}]').click()")
        shutil.copyfile(page.downloaded(name), tmp_path / f"exported-{name}")
    assert not page.messages
    for name in ("exported-labels.csv", "exported-labels.jsonl"):
        done = clipcls("eval", name, "--predictions", "labels.jsonl", "--format", "json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["measured"] == len(NAMES)
    with (tmp_path / "exported-labels.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["path", "label"]
    assert all(Path(path).is_absolute() and os.path.exists(path) for path, _ in rows[1:])  # noqa: PTH110
    assert [label for _, label in rows[1:]] == [label for _, label in before]
    done = clipcls("sort", "exported-labels.csv", "--into", "sorted")
    assert (done.returncode, b"clipcls: 8 files copied into sorted/" in done.stderr) == (0, True), done.stderr
    (first, *_) = json.loads((tmp_path / "exported-label-studio.json").read_text())
    assert first["predictions"][0]["result"][0]["value"] == {"choices": [NEW_LABELS[0]]}


def test_a_browser_that_keeps_nothing_is_said(tmp_path: Path, pictures: Path, clipcls: Run, page: Page) -> None:
    clipcls("predict", "pictures", *LABELS, "--report", "report.html")
    refusal = "Object.defineProperty(window, 'localStorage', { get() { throw new Error('no') } })"
    added = page.call("Page.addScriptToEvaluateOnNewDocument", source=refusal)["identifier"]
    page.open((tmp_path / "report.html").as_uri())
    page.call("Page.removeScriptToEvaluateOnNewDocument", identifier=added)
    page.press(" ")
    assert page.evaluate("document.getElementById('notice').textContent").startswith("This browser keeps nothing")
    assert page.evaluate("document.getElementById('done').textContent") == "0 corrected, 1 kept"
    assert not page.messages


def test_filters_and_confusion_lead_to_pictures(tmp_path: Path, pictures: Path, clipcls: Run, page: Page) -> None:
    (tmp_path / "truth.csv").write_text("path,label\npictures/black-cat.png,dog\npictures/dog-face.png,dog\n")
    clipcls("predict", "pictures", *LABELS, "--top-k", "2", "--report", "plain.html")
    assert clipcls("predict", "pictures", *LABELS, "-o", "labels.jsonl").returncode == 1
    assert clipcls("report", "labels.jsonl", "--truth", "truth.csv", "--thumbnails", "small").returncode == 0
    page.open((tmp_path / "report.html").as_uri(), 390, 844, dark=True)
    shown = "[...document.querySelectorAll('.tile .path')].map((path) => path.textContent)"
    assert len(page.evaluate(shown)) == 3
    page.evaluate("document.querySelector('[data-view=mistakes]').click()")
    assert "1 of 2 answers are right: 50.0 %" in page.evaluate("document.getElementById('accuracy').textContent")
    page.evaluate("document.querySelector('#pairs button').click()")
    assert page.evaluate(shown) == ["pictures/black-cat.png"]
    page.evaluate("filter({pair: null, text: 'truck'})")
    assert page.evaluate(shown) == ["pictures/pickup-truck.png"]
    page.evaluate("filter({text: '', from: 2})")
    assert page.evaluate("document.getElementById('active').textContent").startswith("score 2 to … · 0 pictures")
    assert page.evaluate("document.getElementById('clear').click(), order.length") == 3
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert not page.messages
