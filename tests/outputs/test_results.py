"""What the sinks write, read back."""

import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clipcls.errors import UsageError
from clipcls.outputs.destination import Destination
from clipcls.outputs.formats import find_format, format_for
from clipcls.outputs.formats.text import TextFormat, WholeLines
from clipcls.outputs.read_back import read_predictions
from clipcls.outputs.sinks import open_sink
from clipcls.records import Prediction
from predictions import all_sorts


def written(path: Path, predictions: list[Prediction]) -> bytes:
    with open_sink(Destination(str(path)), ("cat",)) as sink:
        for prediction in predictions:
            sink.write(prediction)
    return path.read_bytes()


def read(path: Path) -> list[Prediction]:
    with path.open("rb") as file:
        return list(read_predictions(file, format_for(path), path.name))


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("lines", [1, 3])
def test_read_predictions_gives_what_was_written(tmp_path: Path, kind: str, lines: int) -> None:
    predictions = all_sorts(lines)
    written(tmp_path / f"out.{kind}", predictions)
    assert read(tmp_path / f"out.{kind}") == predictions


@pytest.mark.parametrize("lines", [1, 3])
def test_read_predictions_of_tsv_gives_an_image_for_its_lines(tmp_path: Path, lines: int) -> None:
    predictions = [prediction for prediction in all_sorts(lines) if prediction.error is None]
    written(tmp_path / "out.tsv", predictions)
    found = read(tmp_path / "out.tsv")
    assert [one.path for one in found] == [one.path for one in predictions]
    assert [one.label for one in found] == [one.label for one in predictions]
    assert [one.score for one in found] == [one.score for one in predictions]
    known = [one for one in zip(found, predictions, strict=True) if one[1].label is not None]
    assert [[entry.label for entry in one.top] for one, _ in known] == [[e.label for e in two.top] for _, two in known]
    assert all(one.similarity is None and math.isnan(one.top[0].similarity) for one, _ in known)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
def test_rows_of_a_cut_file_are_the_whole_ones(tmp_path: Path, kind: str) -> None:
    predictions = [replace(one, top=one.top[:1]) for one in all_sorts() if one.error is None or kind != "tsv"]
    data = written(tmp_path / f"out.{kind}", predictions)
    format = find_format(kind)
    assert isinstance(format, TextFormat)
    ends = [end for _, end in format.read_rows(WholeLines(io.BytesIO(data), "out"))]
    assert len(ends) == len(predictions) and ends[-1] == len(data)
    for length in range(len(data)):
        found = [end for _, end in format.read_rows(WholeLines(io.BytesIO(data[:length]), "out"))]
        assert found == [end for end in ends if end <= length]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
def test_read_predictions_says_that_a_file_ends_within_a_row(tmp_path: Path, kind: str) -> None:
    data = written(tmp_path / f"out.{kind}", all_sorts())
    (tmp_path / f"out.{kind}").write_bytes(data[:-3])
    with pytest.raises(UsageError, match="ends within a row"):
        read(tmp_path / f"out.{kind}")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
@pytest.mark.parametrize("change", [lambda data: b"\xef\xbb\xbf" + data, lambda data: data.removesuffix(b"\n")])
def test_read_predictions_takes_what_editors_make_of_a_file(tmp_path: Path, kind: str, change: Any) -> None:
    path = tmp_path / f"out.{kind}"
    data = written(path, [one for one in all_sorts() if one.error is None])
    before = read(path)
    path.write_bytes(change(data))
    assert [one.path for one in read(path)] == [one.path for one in before]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'a,cat,1,1,[],,\n"b,cat,1,1,[],,\nc,cat,1,1,[],,\n', r"out\.csv, line 3: a quote .* never closes"),
        (b'a,cat,1,1,[],,\n"b,cat,1,1,[],,\n"c",cat,1,1,[],,\n', r"out\.csv, line 3: text follows a cell in quotes"),
    ],
)
def test_predictions_behind_an_open_quote_are_not_lost(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "out.csv"
    path.write_bytes(b"path,label,score,similarity,top,error,path_b64\n" + content)
    with pytest.raises(UsageError, match=message):
        read(path)
    with pytest.raises(UsageError, match=message), path.open("rb") as file:  # as `--resume` reads it
        list(format_for(path).read(file, "out.csv", torn=True))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"path;label;score;similarity;top;error;path_b64\n", "Save it with commas between the cells"),
        ("path,label\n".encode("utf-16"), "it is in UTF-16; save it as UTF-8"),
    ],
)
def test_predictions_that_a_spreadsheet_saved_otherwise_are_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "out.csv").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read(tmp_path / "out.csv")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("out.jsonl", b'{"path": "x"}\n'),
        ("out.jsonl", b"[1]\n"),
        ("out.jsonl", b"\xff\xfe\n"),
        ("out.jsonl", b'{"path": 1, "label": null, "score": null, "similarity": null, "top": [], "error": null}\n'),
        ("out.csv", b"a,b\n1,2\n"),
        ("out.csv", b'path,label,score,similarity,top,error,path_b64\n"a"b,c\n'),
        ("out.csv", b"path,label,score,similarity,top,error,path_b64\na,cat,1,1,[],,\nb,cat\nc,cat,1,1,[],,\n"),
        ("out.tsv", b"a\tb\n"),
        ("out.tsv", b"a\tb\tc\n"),
        ("out.parquet", b"PAR1 nonsense PAR1"),
        ("out.parquet", b""),
    ],
)
def test_read_predictions_of_something_else_names_the_file(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=name):
        read(tmp_path / name)


def test_read_predictions_of_another_parquet_file_names_it(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"x": [1]}), tmp_path / "out.parquet")
    with pytest.raises(UsageError, match=r"out\.parquet"):
        read(tmp_path / "out.parquet")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
def test_read_predictions_of_an_empty_file_are_none(tmp_path: Path, kind: str) -> None:
    (tmp_path / f"out.{kind}").write_bytes(b"")
    assert read(tmp_path / f"out.{kind}") == []


def test_read_predictions_refuses_a_table(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="table"):
        list(read_predictions(io.BytesIO(b"x"), find_format("table"), "out.txt"))
