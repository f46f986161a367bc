"""Tables of pictures and captions."""

import json
from pathlib import Path

import pytest

from clipcls.errors import UsageError
from clipcls.train.data.corpus import Row
from clipcls.train.data.table import Table, read_table


def test_read_table_resolves_paths_against_its_folder(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("image,caption,caption2\na.png,a cat,a pet\nsub/b.png,a dog,\n", encoding="utf-8")
    rows = read_table(table).rows
    assert rows == (Row(str(tmp_path / "a.png"), ("a cat", "a pet")), Row(str(tmp_path / "sub/b.png"), ("a dog",)))


def test_read_table_reads_tsv_and_jsonl_alike(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("image\tcaption\na.png\t猫\n", encoding="utf-8")
    (tmp_path / "t.jsonl").write_text(json.dumps({"image": "a.png", "captions": ["猫"]}), encoding="utf-8")
    assert read_table(tmp_path / "t.tsv").rows == read_table(tmp_path / "t.jsonl").rows


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_read_table_passes_over_a_byte_order_mark(tmp_path: Path, name: str) -> None:
    text = "image,caption\na.png,x\n" if name == "t.csv" else '{"image": "a.png", "caption": "x"}\n'
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert read_table(tmp_path / name).rows == (Row(str(tmp_path / "a.png"), ("x",)),)


def test_read_table_reports_rows_that_cannot_be_text(tmp_path: Path) -> None:
    table = tmp_path / "t.jsonl"
    lines = ['{"image": "a.png", "caption": "x"}', "[" * 200_000, '{"image": "b.png", "caption": "\\ud800"}']
    table.write_text("\n".join(lines), encoding="utf-8")
    nested, surrogate = read_table(table).problems
    assert nested.startswith(f"{table}:2: not JSON: maximum recursion depth")
    assert surrogate == f"{table}:3: a caption isn't valid Unicode"


@pytest.mark.parametrize("columns", ["image,caption,captions", "image,captions"])
def test_read_table_refuses_a_column_of_lists(tmp_path: Path, columns: str) -> None:
    table = tmp_path / "table.csv"
    table.write_text(f"{columns}\na.png,x,y\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"table\.csv: a column captions, .*; name it caption if .* caption2"):
        read_table(table)


def test_read_table_says_shortly_that_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gone\.csv: the table can't be read: no such file or directory$"):
        read_table(tmp_path / "gone.csv")


def test_digest_is_that_of_the_rows_wherever_they_lie(tmp_path: Path) -> None:
    tables = [Table((Row(f"/{root}/a.png", (caption,)),), (), Path(f"/{root}")) for root, caption in ("xc", "yc", "xd")]
    digests = [table.digest() for table in tables]
    assert digests[0] == digests[1] != digests[2]


def test_digest_bears_any_name_and_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("\ud800.png", "\udcff.png", "\0.png")
    tables = [Table((Row(name, ("x",)),), ()) for name in names]
    digests = [table.digest() for table in tables]
    assert len(set(digests)) == len(names)
    monkeypatch.delattr("clipcls.train.data.table.hashlib")
    assert [table.digest() for table in tables] == digests


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
