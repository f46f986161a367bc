"""Columns of pictures: in text tables and in Parquet, whatever type holds them, and what is wrong with them."""

import csv
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from clipcls.errors import ImageError, UsageError
from clipcls.inputs.tables import Cell, check_column, is_table, read_column, row_groups

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def cells(path: Path, column: str = "image") -> list[Cell]:
    return list(read_column(str(path), column))


def values(path: Path, column: str = "image") -> list[str | bytes]:
    """Each cell's value, or its error."""
    found = cells(path, column)
    assert [cell.row for cell in found] == list(range(len(found)))
    return [cell.error or "neither" if cell.value is None else cell.value for cell in found]


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def write_parquet(path: Path, array: Any, **options: Any) -> Path:
    pq.write_table(pa.table({"id": pa.array(range(len(array))), "image": array}), path, **options)
    return path


def test_is_table_goes_by_the_ending() -> None:
    assert all(map(is_table, ("a.csv", "a.tsv", "a.jsonl", "a.parquet", "A.CSV")))
    assert not any(map(is_table, ("a.json", "a.jpg", "csv", "a.csv.gz")))


# ------------------------------------------------------------------------------------------- text


def test_read_column_takes_text_from_csv(tmp_path: Path) -> None:
    data = '\ufeffid,image,text\r\n1,a.jpg,x\r\n\r\n2,"b, ""c"".jpg","two\nlines"\r\n3, d.jpg \r\n4,,x\r\n5\r\n'
    nothing = "nothing in the column image"
    assert values(write(tmp_path / "a.csv", data)) == ["a.jpg", 'b, "c".jpg', "d.jpg", nothing, nothing]
    assert values(write(tmp_path / "a.TSV", "image\tid\na,b.jpg\t1\n")) == ["a,b.jpg"]
    assert values(write(tmp_path / "b.csv", "image\n")) == []
    assert values(write(tmp_path / "c.csv", "\ufeffimage\na.jpg\n")) == ["a.jpg"]


def test_read_column_keeps_names_in_any_bytes(tmp_path: Path) -> None:
    assert values(write(tmp_path / "a.csv", b"image\n\xff.jpg\n")) == [os.fsdecode(b"\xff.jpg")]
    assert values(write(tmp_path / "a.jsonl", b'{"image": "\xff.jpg"}\n')) == [os.fsdecode(b"\xff.jpg")]


def test_read_column_bears_long_fields_beside_it(tmp_path: Path) -> None:
    limit = 131_072
    csv.field_size_limit(limit)
    assert values(write(tmp_path / "a.csv", f"text,image\n{'x' * 2 * limit},a.jpg\n")) == ["a.jpg"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('"b.jpg\nc.jpg\n', 'line 3: a quote \\("\\) opens in this row and never closes'),
        ('"b.jpg\nc.jpg\n"d.jpg"\n', r"line 3: text follows a cell in quotes .*, which ends in line 5"),
        ('"b.jpg"x\n', "line 3: text follows a cell in quotes"),
        ('"b.jpg\n' + "x" * 200 + "\n", "line 3: a cell has more than 131,072 characters; is a quote"),
    ],
)
@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_read_column_stops_at_a_quote_that_never_closes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: str, message: str, ending: str
) -> None:
    csv.field_size_limit(131_072)
    monkeypatch.setattr("clipcls.text_files.LONGEST_CELL", 131_072)
    rows = rows.replace("x" * 200, "x" * 131_073)
    found = read_column(str(write(tmp_path / f"a.{ending}", f"image\na.jpg\n{rows}")), "image")
    assert next(found).value == "a.jpg"
    with pytest.raises(ImageError, match=message):
        next(found)


def test_a_row_longer_than_the_header_is_an_error(tmp_path: Path) -> None:
    table = write(tmp_path / "a.csv", "image,label\na,b.jpg,cat\nc.jpg,dog,\nd.jpg\n")
    first, *rest = read_column(str(table), "image")
    assert (first.value, first.place) == (None, "line 2")
    assert first.error == "3 cells, where the header has 2; put a cell with commas in quotes"
    assert [cell.value for cell in rest] == ["c.jpg", "d.jpg"]


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    for name, text in (("a.csv", "image,image\na,b\n"), ("a.tsv", "image\timage\na\tb\n")):
        with pytest.raises(UsageError, match="several columns image; rename"):
            next(read_column(str(write(tmp_path / name, text)), "image"))
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["image", "image"])
    pq.write_table(twice, tmp_path / "a.parquet")
    with pytest.raises(UsageError, match="several columns image; rename"):
        next(read_column(str(tmp_path / "a.parquet"), "image"))


def test_read_column_takes_text_from_json_lines(tmp_path: Path) -> None:
    lines = [
        '\ufeff{"image": "a.jpg", "width": 3}',
        "",
        '{"width": 4}',
        '{"image": null}',
        '{"image": 7}',
        '{"image": "  "}',
        '{"image": "\\ud83d.jpg"}',
        '{"image": ',
        "[1]",
        "[" * 100_000,
        '{"image": "猫.jpg"}',
    ]
    found = values(write(tmp_path / "a.jsonl", "\n".join(lines)))
    nothing = "nothing in the column image"
    assert found[:4] == ["a.jpg", nothing, nothing, "no text in the column image"]
    assert found[4:6] == [nothing, "no possible file name in the column image"]
    assert str(found[6]).startswith("not JSON: ") and str(found[8]).startswith("not JSON: ")
    assert (found[7], found[9]) == ("not a JSON object", "猫.jpg")


def test_read_column_refuses_json_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipcls.inputs.tables._LONGEST_LINE", 1000)
    path = write(tmp_path / "a.jsonl", json.dumps({"image": "a.jpg"}) + "\n" + "[" + '"b.jpg", ' * 1000 + "]")
    with pytest.raises(ImageError, match="a line longer than"):
        cells(path)


@pytest.mark.parametrize(
    ("name", "data", "listed"),
    [
        ("a.csv", "id,path\n1,a.jpg\n", "id, path"),
        ("a.csv", "", "none"),
        ("a.tsv", "id,image\n", "id,image"),
        ("a.jsonl", '{"id": 1, "path": "a.jpg"}\n{"id": 1, "file": "a.jpg"}\n', "id, path, file"),
        ("a.jsonl", "", "none"),
    ],
)
def test_read_column_lists_the_columns_there_are(tmp_path: Path, name: str, data: str, listed: str) -> None:
    path = write(tmp_path / name, data)
    for look in (check_column, cells):
        with pytest.raises(UsageError) as raised:
            look(str(path), "image")  # type: ignore[operator]
        assert str(raised.value) == f"{path}: no column image; there are: {listed}"


def test_check_column_leaves_what_is_broken_to_the_reading(tmp_path: Path) -> None:
    check_column(str(tmp_path / "none.csv"), "image")
    with pytest.raises(ImageError, match=r"^no such file or directory$"):
        cells(tmp_path / "none.csv")
    broken = write(tmp_path / "a.parquet", b"no parquet at all")
    check_column(str(broken), "image")
    with pytest.raises(ImageError, match="Parquet"):
        cells(broken)


# ------------------------------------------------------------------------------------------- Parquet

TEXTS = ["a.jpg", None, "", "猫.jpg", "a.jpg"]
NOTHING = "nothing in the column image"


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
@pytest.mark.parametrize("schema", [True, False])
def test_read_column_takes_text_from_parquet(tmp_path: Path, kind: Any, schema: bool) -> None:
    array = pa.array(TEXTS, pa.string()).cast(kind)
    path = write_parquet(tmp_path / "a.parquet", array, store_schema=schema)
    assert values(path) == ["a.jpg", NOTHING, NOTHING, "猫.jpg", "a.jpg"]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(3)], ids=str)
def test_read_column_takes_bytes_from_parquet(tmp_path: Path, kind: Any) -> None:
    array = pa.array([b"\xff\0a", None, b"two"], pa.binary()).cast(kind)
    assert values(write_parquet(tmp_path / "a.parquet", array)) == [b"\xff\0a", NOTHING, b"two"]


def test_read_column_takes_dictionaries_of_bytes(tmp_path: Path) -> None:
    array = pa.array([b"one", None, b"two", b"one"], pa.binary()).dictionary_encode()
    assert values(write_parquet(tmp_path / "a.parquet", array)) == [b"one", NOTHING, b"two", b"one"]


def test_read_column_says_what_row_is_empty(tmp_path: Path) -> None:
    assert values(write_parquet(tmp_path / "a.parquet", pa.array([b"", b"x"]))) == [NOTHING, b"x"]


def test_read_column_takes_the_pictures_of_hugging_face(tmp_path: Path) -> None:
    rows = [
        {"bytes": b"one", "path": "1.jpg"},
        {"bytes": None, "path": "2.jpg"},
        {"bytes": None, "path": None},
        None,
        {"bytes": b"five", "path": None},
    ]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    path = write_parquet(tmp_path / "a.parquet", pa.array(rows, kind), row_group_size=2)
    assert values(path) == [b"one", "2.jpg", NOTHING, NOTHING, b"five"]
    only_bytes = pa.array([{"bytes": b"one"}], pa.struct({"bytes": pa.large_binary()}))
    assert values(write_parquet(tmp_path / "b.parquet", only_bytes)) == [b"one"]


def test_read_column_keeps_text_that_is_not_utf8(tmp_path: Path) -> None:
    array = pa.array([b"\xff.jpg"], pa.binary()).cast(pa.string(), safe=False)
    assert values(write_parquet(tmp_path / "a.parquet", array)) == [os.fsdecode(b"\xff.jpg")]


@pytest.mark.parametrize(
    "array",
    [pa.array([1, 2]), pa.array([["a.jpg"]]), pa.array([{"url": "a.jpg"}]), pa.array([None]), pa.array([{"bytes": 1}])],
    ids=lambda array: str(array.type),
)
def test_read_column_refuses_what_holds_no_pictures(tmp_path: Path, array: Any) -> None:
    path = write_parquet(tmp_path / "a.parquet", array)
    with pytest.raises(UsageError, match=r"a\.parquet: the column image holds .*; needed are paths"):
        check_column(str(path), "image")


def test_read_column_lists_the_columns_of_parquet(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pa.array(["a.jpg"]))
    with pytest.raises(UsageError, match=r"a\.parquet: no column picture; there are: id, image$"):
        check_column(str(path), "picture")


def test_read_column_opens_a_parquet_file_with_any_name(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pa.array(["a.jpg"]))
    assert values(path.rename(tmp_path / os.fsdecode(b"\xff.parquet"))) == ["a.jpg"]


def test_read_column_gives_what_precedes_damage_in_parquet(tmp_path: Path) -> None:
    # each row group is a page with a checksum of its own from the compressor
    path = write_parquet(
        tmp_path / "a.parquet",
        pa.array([bytes([row]) * 9000 for row in range(8)]),
        row_group_size=2,
        compression="gzip",
        use_dictionary=False,
    )
    group = pq.ParquetFile(path).metadata.row_group(2).column(1)
    data = bytearray(path.read_bytes())
    start = group.data_page_offset
    data[start : start + group.total_compressed_size] = bytes(group.total_compressed_size)
    path.write_bytes(data)
    found = []
    with pytest.raises(ImageError):
        for cell in read_column(str(path), "image"):
            found.append(cell.row)
    assert found == [0, 1, 2, 3]


def test_read_column_reads_only_the_row_groups_of_the_rows(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pa.array([f"{row}.jpg" for row in range(10)]), row_group_size=3)
    assert row_groups(str(path)) == row_groups(str(path), "image") == [3, 3, 3, 1]
    group = pq.ParquetFile(path).metadata.row_group(1).column(1)
    data = bytearray(path.read_bytes())
    start = group.dictionary_page_offset
    data[start : start + group.total_compressed_size] = bytes(group.total_compressed_size)
    path.write_bytes(data)
    for rows in (range(3), range(1, 3), range(6, 10), range(7, 8), range(8, 99), range(10, 12), range(2, 2)):
        found = list(read_column(str(path), "image", rows))
        assert found == [Cell(row, f"{row}.jpg") for row in rows if row < 10]
    with pytest.raises(ImageError):
        list(read_column(str(path), "image", range(5, 6)))


def test_row_groups_fails_as_reading_does(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="Parquet"):
        row_groups(str(write(tmp_path / "broken.parquet", b"no parquet at all")))
    with pytest.raises(ImageError, match=r"^no such file or directory$"):
        row_groups(str(tmp_path / "none.parquet"))
    with pytest.raises(UsageError, match=r"no column picture; there are: id, image$"):
        row_groups(str(write_parquet(tmp_path / "a.parquet", pa.array(["a.jpg"]))), "picture")


def test_read_column_names_the_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "a.parquet", pa.array(["a.jpg"]))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"^Parquet needs the package pyarrow .*pip install 'clipcls\[parquet\]'$"):
        check_column(str(path), "image")


def test_read_column_needs_pyarrow_for_parquet_only(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "image\na.jpg\n")
    code = (
        "import sys; from clipcls.inputs.tables import read_column\n"
        "print([cell.value for cell in read_column(sys.argv[1], 'image')], 'pyarrow' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "['a.jpg'] False"


# ------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_read_column_needs_no_more_memory_for_more_rows(tmp_path: Path, name: str) -> None:
    row, head = ("x" * 99 + ".jpg\n", "image\n") if name == "a.csv" else (json.dumps({"image": "x" * 99}) + "\n", "")
    path = write(tmp_path / name, head + row * 20_000)
    next(read_column(str(path), "image"))
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_column(str(path), "image")) == 20_000
        assert tracemalloc.get_traced_memory()[1] < 300_000
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the peak of one process")
def test_read_column_holds_a_part_of_a_row_group(tmp_path: Path) -> None:
    count, size = 400, 200_000
    noise = os.urandom(count * size)
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    rows = [{"bytes": noise[row * size : (row + 1) * size], "path": None} for row in range(count)]
    # a writer in batches of some rows, as Hugging Face's are; pyarrow's own pages end at a number of rows
    path = write_parquet(tmp_path / "a.parquet", pa.array(rows, kind), write_batch_size=10)
    code = (
        "import re, sys; import pyarrow.parquet; from pathlib import Path\n"
        "from clipcls.inputs.tables import read_column\n"
        "def peak(): return 1024 * int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "before = peak()\n"
        "print(sum(len(cell.value) for cell in read_column(sys.argv[1], 'image')), peak() - before)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    total, more = map(int, result.stdout.split())
    assert total == count * size
    assert more < 0.7 * total  # read at once, it would be more than all of it
