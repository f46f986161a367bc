"""Lists of duplicates: written in each format, and read back by `clipcls sort`."""

import csv
import io
import json
import os
from pathlib import Path

import pytest

from clipcls.errors import StoppedError, UsageError
from clipcls.outputs.destination import Destination
from clipcls.outputs.duplicates import write_duplicates
from clipcls.outputs.formats import OUTPUT_FORMATS, format_for
from clipcls.outputs.read_back import read_predictions
from clipcls.records import Duplicate, Prediction, ScoredLabel

ODD = os.fsdecode(b"caf\xe9\t\n.jpg")
ROWS = (
    Duplicate(1, "picture", "photos/a.jpg", True, "largest: 4000 × 3000, oldest", 1.0, 4_000_000),
    Duplicate(1, "picture", ODD, False, "", 0.98765432, 20_000),
    Duplicate(1, "bytes", "photos/a, copy.jpg", False, "", 1.0, 4_000_000),
    Duplicate(12, "scene", "shard.tar/1.jpg", True, "first", 1.0, None),
    Duplicate(12, "scene", "shard.tar/2.jpg", False, "", 0.91, None),
)
READABLE = [name for name, format in OUTPUT_FORMATS.items() if format.can_be_read]


@pytest.mark.parametrize("name", READABLE)
def test_those_that_may_go_are_read_back(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"copies.{name}"
    write_duplicates(ROWS, Destination(str(path)))
    with path.open("rb") as file:
        found = list(read_predictions(file, format_for(path), str(path)))
    assert [(row.path, row.label) for row in found] == [
        (ODD, "group-0001"),
        ("photos/a, copy.jpg", "group-0001"),
        ("shard.tar/2.jpg", "group-0012"),
    ]
    assert found[0].similarity == pytest.approx(0.9876543, abs=1e-6)


@pytest.mark.parametrize("name", READABLE)
def test_none_are_read_back_as_none(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"copies.{name}"
    write_duplicates((), Destination(str(path)))
    with path.open("rb") as file:
        assert not list(read_predictions(file, format_for(path), str(path)))


@pytest.mark.parametrize("name", READABLE)
def test_predictions_are_still_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"predictions.{name}"
    prediction = Prediction("a.jpg", "cat", 0.5, 0.25, (ScoredLabel("cat", 0.5, 0.25),))
    format = format_for(path)
    with path.open("wb") as file, format.open_sink(file, str(path)) as sink:
        sink.write(prediction)
    with path.open("rb") as file:
        assert [(row.path, row.label) for row in read_predictions(file, format, str(path))] == [("a.jpg", "cat")]


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("csv", b"1,picture,no\n"),
        ("tsv", b"1\tpicture\tno\n"),
        ("jsonl", b'{"group": "one", "keep": false, "path": "a", "similarity": 1}\n'),
        ("jsonl", b"[1, 2]\n"),
    ],
)
def test_other_rows_are_an_error(tmp_path: Path, name: str, row: bytes) -> None:
    path = tmp_path / f"copies.{name}"
    write_duplicates(ROWS, Destination(str(path)))
    with path.open("ab") as file:
        file.write(row)
    with path.open("rb") as file, pytest.raises(UsageError, match="behind row 5: not a row that `clipcls duplicates`"):
        list(read_predictions(file, format_for(path), str(path)))


def test_columns_are_those_of_the_guide(tmp_path: Path) -> None:
    for name in ("tsv", "csv", "jsonl"):
        write_duplicates(ROWS, Destination(str(tmp_path / f"copies.{name}")))
    lines = (tmp_path / "copies.tsv").read_bytes().split(b"\n")
    assert lines[0] == "1\tpicture\tyes\tphotos/a.jpg\tlargest: 4000 × 3000, oldest\t1.000000".encode()
    assert lines[1] == b"1\tpicture\tno\tcaf\xe9\\t\\n.jpg\t\t0.987654"
    table = list(csv.DictReader(io.StringIO((tmp_path / "copies.csv").read_text(encoding="utf-8"))))
    assert list(table[0]) == ["group", "kind", "keep", "path", "why", "similarity", "bytes", "path_b64"]
    assert (table[3]["path"], table[3]["bytes"], table[3]["keep"]) == ("shard.tar/1.jpg", "", "yes")
    row = json.loads((tmp_path / "copies.jsonl").read_text(encoding="utf-8").splitlines()[2])
    assert row == {
        "group": 1,
        "kind": "bytes",
        "keep": False,
        "path": "photos/a, copy.jpg",
        "why": "",
        "similarity": 1.0,
        "bytes": 4_000_000,
    }


def test_a_table_fits_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    long = Duplicate(1, "picture", "photographs/" * 9 + "a.jpg", False, "", 0.5, 1)
    write_duplicates((*ROWS[:2], long), Destination(str(tmp_path / "copies.table")))
    lines = (tmp_path / "copies.table").read_text(encoding="utf-8").splitlines()
    assert lines == [
        "1  keep     photos/a.jpg                            largest: 4000 × 3000, oldest",
        "   picture  caf���.jpg                                                    0.9877",
        "   picture  …raphs/photographs/photographs/photographs/photographs/a.jpg  0.5000",
    ]


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoppedError, match="can't be written"):
        write_duplicates(ROWS, Destination(str(tmp_path / "missing" / "copies.csv")))
