"""Tables of pictures and captions."""

import json
from pathlib import Path

import pytest

from clipcls.errors import UsageError
from clipcls.train.rows import Row
from clipcls.train.table import read_table


def test_read_table_resolves_paths_against_its_folder(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("image,caption,caption2\na.png,a cat,a pet\nsub/b.png,a dog,\n", encoding="utf-8")
    rows = read_table(table).rows
    assert rows == (Row(str(tmp_path / "a.png"), ("a cat", "a pet")), Row(str(tmp_path / "sub/b.png"), ("a dog",)))


def test_read_table_reads_tsv_and_jsonl_alike(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("image\tcaption\na.png\t猫\n", encoding="utf-8")
    (tmp_path / "t.jsonl").write_text(json.dumps({"image": "a.png", "captions": ["猫"]}), encoding="utf-8")
    assert read_table(tmp_path / "t.tsv").rows == read_table(tmp_path / "t.jsonl").rows


def test_read_table_reports_bad_rows(tmp_path: Path) -> None:
    table = tmp_path / "table.jsonl"
    lines = ['{"image": "a.png", "caption": "a cat"}', "{", "[]", '{"caption": "x"}', '{"image": "b.png"}']
    table.write_text("\n".join(lines), encoding="utf-8")
    read = read_table(table)
    assert len(read.rows) == 1
    assert [problem.split(":")[1] for problem in read.problems] == ["2", "3", "4", "5"]


@pytest.mark.parametrize("text", ["", "image,caption\n", "image,caption\n,\n"])
def test_read_table_refuses_empty_table(tmp_path: Path, text: str) -> None:
    table = tmp_path / "table.csv"
    table.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=r"table\.csv: no usable row"):
        read_table(table)


def test_read_table_names_missing_column(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("file,caption\na.png,x\n", encoding="utf-8")
    with pytest.raises(UsageError, match="no column image; there are: file, caption"):
        read_table(table)


@pytest.mark.parametrize("name", ["missing.csv", "table.xlsx"])
def test_read_table_refuses_what_is_no_table(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=name):
        read_table(tmp_path / name)
