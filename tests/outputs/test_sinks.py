"""Rows as programs read them back, and outputs that break."""

import base64
import csv
import errno
import io
import json
import os
import resource
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len

from clipcls.errors import StoppedError, UsageError
from clipcls.outputs.destination import Destination
from clipcls.outputs.formats.csv import COLUMNS, CsvFormat
from clipcls.outputs.formats.jsonl import JsonlFormat
from clipcls.outputs.formats.table import TableFormat
from clipcls.outputs.formats.text import TextSink
from clipcls.outputs.formats.tsv import TsvFormat
from clipcls.outputs.rows import row_fields
from clipcls.outputs.sinks import open_sink
from clipcls.records import Prediction, ScoredLabel

ODD_NAMES = [
    "a.png",
    "a\tb.png",
    "a\nb\r.png",
    "back\\slash.png",
    "a,b.png",
    'quo"te.png',
    " edge ",
    "猫 é.png",
    "a\rb",
]
UNDECODABLE = os.fsdecode(b"caf\xe9\xff.png")


def prediction(path: str = "a.png", *top: tuple[str, float], unknown: bool = False) -> Prediction:
    entries = tuple(ScoredLabel(label, score, score / 2) for label, score in top or [("cat", 0.75)])
    best = entries[0]
    return Prediction(path, None if unknown else best.label, best.score, best.similarity, entries)


FAILED = Prediction("bad.png", None, None, None, error="truncated")


def unescaped(text: str) -> str:
    """What a reader of the TSV would write."""
    signs = {"\\\\": "\\", "\\t": "\t", "\\n": "\n", "\\r": "\r"}
    result, i = "", 0
    while i < len(text):
        step = 2 if text[i] == "\\" else 1
        result += signs[text[i : i + 2]] if step == 2 else text[i]
        i += step
    return result


# ------------------------------------------------------------------------------------------- TSV


@pytest.mark.parametrize("name", [*ODD_NAMES, "\\t\\n", "\\"])
def test_tsv_escapes_so_that_a_row_stays_a_row(name: str) -> None:
    row = TsvFormat().row(prediction(name, (name, 0.5)))
    assert row.endswith("\n") and row.count("\n") == 1 and "\r" not in row
    path, label, score = row.removesuffix("\n").split("\t")
    assert (unescaped(path), unescaped(label), score) == (name, name, "0.500000")


def test_tsv_has_a_line_for_each_listed_label() -> None:
    assert (
        TsvFormat().row(prediction("a.png", ("cat", 0.75), ("dog", 0.25)))
        == "a.png\tcat\t0.750000\na.png\tdog\t0.250000\n"
    )


def test_tsv_unknown_has_one_line_with_an_empty_label() -> None:
    assert TsvFormat().row(prediction("a.png", ("cat", 0.3), ("dog", 0.2), unknown=True)) == "a.png\t\t0.300000\n"


def test_tsv_scores_have_six_decimals() -> None:
    assert TsvFormat().row(prediction("a", ("b", 1e-9))) == "a\tb\t0.000000\n"
    assert TsvFormat().row(prediction("a", ("b", -0.1234567))) == "a\tb\t-0.123457\n"


def test_tsv_leaves_out_images_with_an_error() -> None:
    assert TsvFormat().row(FAILED) == ""


def test_tsv_keeps_a_names_bytes() -> None:
    stream = io.BytesIO()
    TextSink(stream, TsvFormat(), "out.tsv").write(prediction(UNDECODABLE))
    assert stream.getvalue() == b"caf\xe9\xff.png\tcat\t0.750000\n"


# ------------------------------------------------------------------------------------------- JSONL


@pytest.mark.parametrize("name", [*ODD_NAMES, "\x00\x1f\u2028", "\ufffd"])
def test_jsonl_row_is_one_line_equal_to_the_record(name: str) -> None:
    given = prediction(name, (name, 0.75), ("dog", 0.25))
    row = JsonlFormat().row(given)
    assert row.endswith("\n") and row.count("\n") == 1
    assert json.loads(row) == row_fields(given)
    assert row_fields(given) == {
        "path": name,
        "label": name,
        "score": 0.75,
        "similarity": 0.375,
        "top": [
            {"label": name, "score": 0.75, "similarity": 0.375},
            {"label": "dog", "score": 0.25, "similarity": 0.125},
        ],
        "error": None,
    }


def test_record_of_unknown_and_failed_images() -> None:
    unknown = row_fields(prediction("a.png", ("cat", 0.3), unknown=True))
    assert (unknown["label"], unknown["score"], len(unknown["top"])) == (None, 0.3, 1)
    assert row_fields(FAILED) == {
        "path": "bad.png",
        "label": None,
        "score": None,
        "similarity": None,
        "top": [],
        "error": "truncated",
    }


def test_record_gives_the_bytes_of_an_undecodable_name() -> None:
    fields = json.loads(JsonlFormat().row(prediction(UNDECODABLE)).encode("utf-8"))
    assert fields["path"] == "caf\ufffd\ufffd.png"
    assert base64.b64decode(fields["path_b64"]) == b"caf\xe9\xff.png"
    assert "path_b64" not in row_fields(prediction("猫\ufffd.png"))


def test_jsonl_error_with_an_undecodable_name_is_valid_utf8() -> None:
    stream = io.BytesIO()
    failed = Prediction(UNDECODABLE, None, None, None, error=f"{UNDECODABLE}: gone")
    TextSink(stream, JsonlFormat(), "out.jsonl").write(failed)
    assert json.loads(stream.getvalue().decode("utf-8"))["error"].endswith("gone")


def test_record_scores_have_the_digits_of_float32() -> None:
    assert row_fields(prediction("a", ("b", 0.30000001192092896)))["score"] == 0.3
    assert row_fields(prediction("a", ("b", 1.2345678e-12)))["score"] == 1.234568e-12


# ------------------------------------------------------------------------------------------- CSV


@pytest.mark.parametrize("given", [*map(prediction, ODD_NAMES), prediction(UNDECODABLE), FAILED])
def test_csv_is_read_back(given: Prediction, tmp_path: Path) -> None:
    with open_sink(Destination(str(tmp_path / "out.csv")), ("cat",)) as sink:
        sink.write(given)
        sink.write(prediction("last.png"))
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        row, last = csv.DictReader(file)
    expected = row_fields(given)
    assert tuple(row) == COLUMNS
    assert row["path"] == expected["path"]
    assert row["label"] == (expected["label"] or "")
    assert row["score"] == ("" if expected["score"] is None else str(expected["score"]))
    assert json.loads(row["top"]) == expected["top"]
    assert row["error"] == (expected["error"] or "")
    assert row["path_b64"] == expected.get("path_b64", "")
    assert last["path"] == "last.png"


def test_csv_row_of_unknown_has_an_empty_label() -> None:
    (cells,) = csv.reader([CsvFormat().row(prediction("a.png", ("cat", 0.3), unknown=True))])
    assert cells[:3] == ["a.png", "", "0.3"]


# ------------------------------------------------------------------------------------------- table

TABLE_NAMES = [
    "a.png",
    "long/" * 30 + "a.png",
    "猫" * 40 + ".png",
    "狗" * 3 + "/a.png",
    "a\x1b[31mred\n\t\x07.png",
    UNDECODABLE,
]


@pytest.mark.parametrize("width", [40, 41, 80, 200])
@pytest.mark.parametrize("labels", [("cat",), ("猫", "a much longer label"), ("x" * 300, "cat")])
def test_table_rows_have_one_width(width: int, labels: tuple[str, ...]) -> None:
    row = TableFormat().for_labels(labels, width).row
    lines = []
    for name in TABLE_NAMES:
        lines += row(prediction(name, *((label, 0.5) for label in labels))).splitlines()
        lines += row(prediction(name, unknown=True)).splitlines()
    assert len(lines) == len(TABLE_NAMES) * (len(labels) + 1)
    assert {cell_len(line) for line in lines} == {width}


def test_table_negative_cosine_keeps_the_width() -> None:
    row = TableFormat().for_labels(("cat",), 60).row
    assert cell_len(row(prediction("a", ("cat", -0.25)))) == cell_len(row(prediction("a", ("cat", 0.25)))) <= 61


def test_table_shows_no_control_characters_and_no_surrogates() -> None:
    row = TableFormat().for_labels(("\x1b]0;x\x07",), 80).row
    shown = "".join(row(prediction(name, ("\x1b]0;x\x07", 0.5))) for name in TABLE_NAMES)
    assert all(sign.isprintable() for sign in shown.replace("\n", ""))
    shown.encode("utf-8")


@pytest.mark.parametrize("space", ["\u202f", "\u00a0", "\u3000"])
def test_table_shows_a_wider_space_as_a_space(space: str) -> None:
    assert "\ufffd" not in TableFormat().for_labels(("cat",), 60).row(prediction(f"Screenshot 10.00{space}AM.png"))


def test_table_says_the_path_once_and_keeps_its_end() -> None:
    first, second = (
        TableFormat()
        .for_labels(("cat", "dog"), 40)
        .row(prediction("much/too/long/a/path/to/show/here.png", ("cat", 0.7), ("dog", 0.3)))
        .splitlines()
    )
    assert first.startswith("…") and "show/here.png" in first and first.split()[1:] == ["cat", "0.7000"]
    assert second.split() == ["dog", "0.3000"]


def test_table_unknown_and_errors() -> None:
    row = TableFormat().for_labels(("cat", "dog"), 60).row
    assert row(prediction("a.png", ("cat", 0.3), ("dog", 0.2), unknown=True)).split() == ["a.png", "unknown", "0.3000"]
    assert row(FAILED) == ""


# ------------------------------------------------------------------------------------------- outputs


@pytest.mark.parametrize(
    ("name", "kind", "begins"),
    [
        ("out.jsonl", None, '{"path"'),
        ("out.ndjson", None, '{"path"'),
        ("OUT.CSV", None, "path,label"),
        ("out.tsv", None, "a.png\tcat\t"),
        ("out.txt", None, "a.png\tcat\t"),
        ("out", None, "a.png\tcat\t"),
        ("out.csv", "jsonl", '{"path"'),
        ("out.csv", "table", "a.png   "),
    ],
)
def test_open_sink_format_is_the_named_one_or_the_extensions(
    tmp_path: Path, name: str, kind: str | None, begins: str
) -> None:
    with open_sink(Destination(str(tmp_path / name), format_name=kind), ("cat",)) as sink:
        sink.write(prediction())
    assert (tmp_path / name).read_text().startswith(begins)


def test_open_sink_rows_are_there_at_once(tmp_path: Path) -> None:
    with open_sink(Destination(str(tmp_path / "out.tsv")), ("cat",)) as sink:
        sink.write(prediction("a.png"))
        assert (tmp_path / "out.tsv").read_text() == "a.png\tcat\t0.750000\n"
        sink.write(FAILED)
        sink.write(prediction("b.png"))
        assert (tmp_path / "out.tsv").read_text().count("\n") == 2


@pytest.mark.parametrize(("terminal", "begins"), [(True, b"a.png   "), (False, b"a.png\tcat")])
def test_open_sink_standard_output_is_a_table_on_a_terminal_only(
    capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch, terminal: bool, begins: bytes
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    monkeypatch.setenv("COLUMNS", "50")
    with open_sink(Destination(), ("cat",)) as sink:
        sink.write(prediction())
    assert capsysbinary.readouterr().out.startswith(begins)
    assert not sys.stdout.closed


def test_open_sink_refuses_an_unknown_format(tmp_path: Path) -> None:
    destination = Destination(str(tmp_path / "x"), format_name="xml")
    with pytest.raises(UsageError, match="table, tsv"), open_sink(destination, ()):
        pass


@pytest.mark.parametrize("name", ["missing/out.tsv", "folder"])
def test_open_sink_that_cant_be_opened_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoppedError, match=name), open_sink(Destination(str(tmp_path / name)), ()):
        pass


# ------------------------------------------------------------------------------------------- broken outputs


class SmallDisk(io.BytesIO):
    """Takes so many bytes in all, as a file without a buffer on a full disk does: the part that fits first."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity

    def write(self, data: bytes) -> int:  # type: ignore[override]
        room = self.capacity - self.tell()
        if data and room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data[: min(room, 7)])


@pytest.mark.parametrize("capacity", [0, 5, 19, 20, 21, 39, 59])
def test_sink_full_disk_keeps_whole_rows(capacity: int) -> None:
    stream = SmallDisk(capacity)
    sink = TextSink(stream, TsvFormat(), "out.tsv")
    row = TsvFormat().row(prediction()).encode()
    whole = capacity // len(row)
    for _ in range(whole):
        sink.write(prediction())
    with pytest.raises(StoppedError, match=r"out\.tsv.*No space left"):
        sink.write(prediction())
    assert stream.getvalue() == row * whole


def test_open_sink_file_size_limit_keeps_whole_rows(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    file = tmp_path / "out.jsonl"
    written = 0
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        with pytest.raises(StoppedError, match=r"out\.jsonl"), open_sink(Destination(str(file)), ("cat",)) as sink:
            for _ in range(100):
                sink.write(prediction())
                written += 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert 0 < written < 100
    assert file.read_text() == JsonlFormat().row(prediction()) * written


@pytest.mark.parametrize("mode", ["w", "a"])
def test_open_sink_standard_output_in_a_file_keeps_whole_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    file = tmp_path / "log"
    file.write_text("before\n")
    written = 0
    with file.open(mode) as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        print("title")
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
            destination = Destination(format_name="csv")
            with pytest.raises(StoppedError, match="standard output"), open_sink(destination, ("cat",)) as sink:
                for _ in range(100):
                    sink.write(prediction())
                    written += 1
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        monkeypatch.undo()
    lines = file.read_text().splitlines(keepends=True)
    assert 0 < written < 100
    assert lines[-written - 2] == "title\n" and lines[-written - 1].startswith("path,label")
    assert lines[-written:] == [CsvFormat().row(prediction())] * written


def test_sink_full_disk_leaves_what_others_wrote_behind_it(tmp_path: Path) -> None:
    with (tmp_path / "log").open("ab", buffering=0) as stream:

        class Shared(io.FileIO):
            def write(self, data: bytes) -> int:  # type: ignore[override]
                if self.tell():
                    stream.write(b"another's\n")
                    raise OSError(errno.ENOSPC, "No space left on device")
                return super().write(data[:7])

        with Shared(tmp_path / "log", "ab") as shared, pytest.raises(StoppedError):
            TextSink(shared, TsvFormat(), "log").write(prediction())  # type: ignore[arg-type]
    assert (tmp_path / "log").read_bytes().endswith(b"another's\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="of Linux")
@pytest.mark.parametrize("kind", ["tsv", "jsonl", "csv", "table"])
def test_open_sink_full_device_is_a_stopped_run(kind: str) -> None:
    destination = Destination("/dev/full", format_name=kind)
    with pytest.raises(StoppedError, match="/dev/full"), open_sink(destination, ("cat",)) as sink:
        sink.write(prediction())


def test_sink_closed_pipe_is_the_callers_to_end() -> None:
    read, write = os.pipe()
    os.close(read)
    with open(write, "wb", buffering=0) as stream, pytest.raises(BrokenPipeError):  # noqa: PTH123
        TextSink(stream, TsvFormat(), "out.tsv").write(prediction())


@pytest.mark.parametrize("name", ["out.xml", "out.json", "out.tsv.gz"])
def test_open_sink_refuses_an_extension_it_does_not_write(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="--format"), open_sink(Destination(str(tmp_path / name)), ("cat",)):
        pass
    assert not (tmp_path / name).exists()
