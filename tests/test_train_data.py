"""Tables, captions and the pictures of a batch."""

import json
import random
from pathlib import Path

import pytest
import torch
from PIL import Image

from clipcls.errors import UsageError
from clipcls.train.data import Canvas, Phrasing, Pictures, Row, decode_picture, read_table


def test_read_table_resolves_paths_against_its_folder(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("image,caption,caption2\na.png,a cat,a pet\nsub/b.png,a dog,\n", encoding="utf-8")
    rows = read_table(table).rows
    assert rows == (Row(tmp_path / "a.png", ("a cat", "a pet")), Row(tmp_path / "sub/b.png", ("a dog",)))


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


def test_phrasing_keeps_scripts_apart() -> None:
    phrasing = Phrasing(["{}", "a {}", "一张{}"])
    assert set(phrasing.every(["cat", "猫"])) == {"cat", "a cat", "猫", "一张猫"}
    drawn = {phrasing.draw(Row(Path("x"), ("猫",)), random.Random(n))[1] for n in range(20)}
    assert drawn == {"猫", "一张猫"}


@pytest.mark.parametrize(("mode", "corner"), [("shortest", 255), ("longest", 7), ("squash", 255)])
def test_decode_picture_resizes_as_the_preprocessing_does(tmp_path: Path, mode: str, corner: int) -> None:
    Image.new("RGB", (40, 20), "red").save(tmp_path / "wide.png")
    picture = decode_picture(tmp_path / "wide.png", Canvas(16, mode, 7))
    assert picture.shape == (4, 16, 16)
    assert picture[0, 0, 0] == corner


def test_pictures_leave_out_what_cannot_be_decoded(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), "red").save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    rows = [Row(tmp_path / name, ("x",)) for name in ("good.png", "bad.png", "missing.png")]
    pictures = Pictures(rows, Canvas(8, "squash", 0), cache_mb=1)
    batches = list(pictures.batches([[0, 1], [2], [0, 0]], workers=2))
    assert [len(batch.rows) for batch in batches] == [1, 0, 2]
    assert batches[2].pictures.dtype == torch.uint8
    assert len(pictures.problems) == 2
