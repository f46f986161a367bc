"""Outputs that a run goes on with."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from clipcls.errors import StoppedError, UsageError
from clipcls.outputs import sinks
from clipcls.outputs.destination import Destination, check_destination
from clipcls.outputs.formats import find_format, format_for
from clipcls.outputs.journal import Journal, journal_path
from clipcls.outputs.read_back import read_predictions
from clipcls.outputs.resume import open_output
from clipcls.records import Prediction
from predictions import SETTINGS, all_sorts, answer, destination, failed, write


def copied(source: Path, folder: Path, size: int) -> Path:
    """A copy of an output and its journal, as a kill would have left them; nothing says that its rows are whole."""
    folder.mkdir()
    path = folder / source.name
    path.write_bytes(source.read_bytes()[:size])
    journal = journal_path(source).read_text().splitlines(keepends=True)
    journal_path(path).write_text("".join(line for line in journal if "whole" not in line))
    return path


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
@pytest.mark.parametrize("lines", [1, 3])
def test_resume_of_a_file_cut_anywhere_gives_the_unbroken_one(tmp_path: Path, kind: str, lines: int) -> None:
    predictions = all_sorts(lines)
    settings = SETTINGS | {"--top-k": lines}
    whole = tmp_path / f"out.{kind}"
    write(destination(whole), predictions, settings)
    expected = whole.read_bytes()
    for size in range(0, len(expected) + 1, 7):
        cut = copied(whole, tmp_path / str(size), size)
        write(destination(cut, resume=True), predictions, settings)
        assert cut.read_bytes() == expected, size


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
def test_resume_of_a_whole_run_computes_nothing(tmp_path: Path, kind: str) -> None:
    file = destination(tmp_path / f"out.{kind}", resume=True)
    settings = SETTINGS | {"--multi-label": True}
    write(file, all_sorts(3), settings)
    with open_output(file, (), lambda: settings) as output:
        assert output.done.count == len(all_sorts()) and output.done.failed == 2
        assert list(output.done.remaining([])) == []


def test_resume_appends_what_is_new(tmp_path: Path) -> None:
    file = destination(tmp_path / "out.jsonl", resume=True)
    write(file, [answer("b", 0.5), failed("c")])
    write(file, [answer("a", 0.5), answer("b", 0.5), failed("c"), answer("b", 0.5)])
    paths = [json.loads(line)["path"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert paths == ["b", "c", "a", "b"]


def test_without_resume_the_output_is_written_anew(tmp_path: Path) -> None:
    write(destination(tmp_path / "out.tsv"), [answer("a", 0.5), failed("b")])
    write(destination(tmp_path / "out.tsv"), [answer("c", 0.5)], SETTINGS | {"--threshold": 0.1})
    assert (tmp_path / "out.tsv").read_text().startswith("c\t")
    write(destination(tmp_path / "out.tsv", resume=True), [answer("c", 0.5)], SETTINGS | {"--threshold": 0.1})
    assert len((tmp_path / "out.tsv").read_text().splitlines()) == 1


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
def test_retry_errors_runs_failed_images_again(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"out.{kind}"
    write(destination(path), [answer("a", 0.5), failed("b"), answer("c", 0.5), failed("d")])
    write(destination(path, resume=True), [answer(name, 0.5) for name in "abcd"])
    assert ("b\tcat" in path.read_text(), "b,cat" in path.read_text(), '"b", "label": "cat"' in path.read_text()) == (
        (False,) * 3
    )
    write(destination(path, resume=True, retry_errors=True), [answer("a", 0.5), answer("b", 0.5), failed("d")])
    with path.open("rb") as file:
        found = [(row.path, row.label) for row in read_predictions(file, find_format(kind), "out")]
    assert found[:3] == [("a", "cat"), ("c", "cat"), ("b", "cat")]
    with open_output(destination(path, resume=True), (), lambda: SETTINGS) as output:
        assert (output.done.count, output.done.failed) == (4, 1)


def test_resume_names_the_settings_that_differ(tmp_path: Path) -> None:
    write(destination(tmp_path / "out.csv"), [answer("a", 0.5)])
    before = (tmp_path / "out.csv").read_bytes()
    others = {"--model": "cd34", "--labels": [["cow", "cow"]], "--top-k": 2, "--threshold": 0.5}
    with pytest.raises(UsageError, match=r"--labels, --top-k \(not given then, 2 now\)") as caught:
        write(destination(tmp_path / "out.csv", resume=True), [answer("a", 0.5)], others)
    assert "--model (ab12 then, cd34 now)" in str(caught.value) and "--threshold" not in str(caught.value)
    assert (tmp_path / "out.csv").read_bytes() == before


def test_resume_refuses_an_output_of_unknown_settings(tmp_path: Path) -> None:
    write(destination(tmp_path / "out.csv"), [answer("a", 0.5)])
    journal_path(tmp_path / "out.csv").unlink()
    with pytest.raises(UsageError, match="nothing says how it was made"):
        write(destination(tmp_path / "out.csv", resume=True), [answer("a", 0.5)])
    assert "a,cat" in (tmp_path / "out.csv").read_text()


def test_resume_refuses_a_file_that_something_else_wrote_into(tmp_path: Path) -> None:
    write(destination(tmp_path / "out.jsonl"), [answer("a", 0.5)])
    with (tmp_path / "out.jsonl").open("a") as file:
        file.write("hello\n")
    with pytest.raises(UsageError, match=r"out\.jsonl, line 2"):
        write(destination(tmp_path / "out.jsonl", resume=True), [answer("a", 0.5)])
    assert (tmp_path / "out.jsonl").read_text().endswith("hello\n")


def test_second_run_on_the_same_output_is_refused(tmp_path: Path) -> None:
    first = open_output(destination(tmp_path / "out.jsonl"), (), lambda: SETTINGS)
    with first as output:
        output.write(answer("a", 0.5))
        with pytest.raises(StoppedError, match="another run"):
            write(destination(tmp_path / "out.jsonl", resume=True), [answer("a", 0.5)])
        with pytest.raises(StoppedError, match="another run"):
            write(destination(tmp_path / "out.jsonl"), [answer("a", 0.5)])
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_second_run_on_the_same_file_is_refused_by_any_name(tmp_path: Path, kind: str) -> None:
    (tmp_path / f"link.{kind}").symlink_to(f"out.{kind}")
    with open_output(destination(tmp_path / f"out.{kind}"), (), lambda: SETTINGS) as output:
        output.write(answer("a", 0.5))
        for name in ("out", "link"):
            with pytest.raises(StoppedError, match="another run"):
                write(destination(tmp_path / f"{name}.{kind}"), [answer("b", 0.5)])
    with (tmp_path / f"out.{kind}").open("rb") as file:
        assert [row.path for row in read_predictions(file, find_format(kind), "out")] == ["a"]


def test_link_as_the_output_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    real = tmp_path / "disk" / "out.jsonl"
    link = tmp_path / "link.jsonl"
    link.symlink_to("disk/out.jsonl")
    write(destination(link), [answer("a", 0.5), failed("b")])
    real.chmod(0o600)
    write(destination(link, resume=True, retry_errors=True), [answer("a", 0.5), answer("b", 0.5)])
    assert link.is_symlink() and [json.loads(line)["error"] for line in real.read_text().splitlines()] == [None, None]
    assert real.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link.jsonl"]


def test_link_to_itself_as_the_output_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").symlink_to("out.jsonl")
    with pytest.raises(StoppedError, match=r"out\.jsonl: can't be written"):
        write(destination(tmp_path / "out.jsonl"), [answer("a", 0.5)])


def test_settings_are_on_the_disk_before_the_first_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    with open_output(destination(tmp_path / "out.tsv"), (), lambda: SETTINGS):
        assert synced == [journal_path(tmp_path / "out.tsv").stat().st_size]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "-", "resume": True}, "can't go on with standard output"),
        ({"output": "x.parquet", "resume": True}, "--output-dir"),
        ({"output": "x.txt", "format_name": "table", "resume": True}, "can't go on"),
        ({"output": "/dev/null", "format_name": "tsv", "resume": True}, "can't go on"),
        ({"output": "x.tsv", "retry_errors": True}, "goes with --resume"),
        ({"output": "x.tsv", "folder": Path("y")}, "not both"),
        ({"folder": Path("y"), "format_name": "tsv"}, "use parquet, jsonl or csv"),
        ({"output": "-", "format_name": "parquet"}, "standard output"),
        ({"output": ""}, "empty"),
    ],
)
def test_check_destination_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_destination(Destination(**options))


# ---- part files


def in_parts(folder: Path) -> list[Prediction]:
    found: list[Prediction] = []
    for part in sorted(folder.glob("part-*")):
        with part.open("rb") as file:
            found += read_predictions(file, format_for(part), part.name)
    return found


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "PART_ROWS", 4)


@pytest.mark.parametrize("kind", [None, "jsonl", "csv"])
def test_parts_hold_all_rows_in_order(tmp_path: Path, small_parts: None, kind: Any) -> None:
    predictions = all_sorts(2)
    write(Destination(folder=tmp_path / "out", format_name=kind), predictions)
    assert in_parts(tmp_path / "out") == predictions
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names[:3] == [".clipcls-run", *(f"part-{n:06d}.{kind or 'parquet'}" for n in range(2))]
    assert len(names) == 1 + -(-len(predictions) // 4)


def test_resume_of_parts_goes_on_behind_the_last(tmp_path: Path, small_parts: None) -> None:
    predictions = all_sorts()
    folder = tmp_path / "out"
    write(Destination(folder=folder), predictions)
    for part in sorted(folder.glob("part-*"))[2:]:
        part.unlink()
    (folder / ".part-000002.parquet.part").write_bytes(b"half of it")
    write(Destination(folder=folder, resume=True), predictions)
    assert in_parts(folder) == predictions
    assert not list(folder.glob(".part-*"))


def test_run_that_is_stopped_keeps_the_rows_of_its_last_part(tmp_path: Path, small_parts: None) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        open_output(Destination(folder=tmp_path / "out"), (), lambda: SETTINGS) as output,
    ):
        for name in "abcdef":
            output.write(answer(name, 0.5))
        raise KeyboardInterrupt
    assert [row.path for row in in_parts(tmp_path / "out")] == list("abcdef")


def test_retry_errors_in_parts(tmp_path: Path, small_parts: None) -> None:
    folder = tmp_path / "out"
    write(Destination(folder=folder), [failed("a"), *(answer(name, 0.5) for name in "bcde")])
    write(Destination(folder=folder, resume=True, retry_errors=True), [answer(name, 0.5) for name in "abcde"])
    assert [row.path for row in in_parts(folder)] == ["b", "c", "d", "e", "a"]


def test_retry_errors_in_vain_leaves_no_empty_parts(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    for _ in range(3):
        write(Destination(folder=folder, resume=True, retry_errors=True), [answer("a", 0.5), failed("b")])
    assert [row.path for row in in_parts(folder)] == ["a", "b"]
    assert len(list(folder.glob("part-*"))) == 2


@pytest.mark.parametrize("name", ["out.tsv", "out.csv", "parts"])
def test_retry_errors_takes_higher_limits(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    options: Any = {"folder": path} if name == "parts" else {"output": str(path)}
    limits = SETTINGS | {"--max-bytes": 10, "--max-pixels": 5}
    write(Destination(**options), [answer("a", 0.5), failed("b")], limits)
    rows = [answer("a", 0.5), answer("b", 0.5)]
    higher = limits | {"--max-bytes": 20}
    with pytest.raises(UsageError, match=r"--max-bytes \(10 then, 20 now\)"):
        write(Destination(**options, resume=True), rows, higher)
    for wrong in ({"--max-pixels": 4}, {"--threshold": 0.1}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            write(Destination(**options, resume=True, retry_errors=True), rows, higher | wrong)
    write(Destination(**options, resume=True, retry_errors=True), rows, higher)
    with open_output(Destination(**options, resume=True), (), lambda: higher) as output:
        assert (output.done.count, output.done.failed) == (2, 0)


def test_folder_with_results_is_not_written_to_without_resume(tmp_path: Path) -> None:
    write(Destination(folder=tmp_path / "out"), [answer("a", 0.5)])
    with pytest.raises(UsageError, match="--resume"):
        write(Destination(folder=tmp_path / "out"), [answer("a", 0.5)])
    with pytest.raises(UsageError, match="--threshold"):
        write(Destination(folder=tmp_path / "out", resume=True), [answer("a", 0.5)], SETTINGS | {"--threshold": 0.1})


def test_parquet_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    with open_output(destination(path), (), lambda: SETTINGS) as output:
        output.write(answer("a", 0.5))
        assert not path.exists()
    assert path.exists() and [file.name for file in tmp_path.iterdir()] == ["out.parquet"]


def test_parquet_file_takes_no_devices_place(tmp_path: Path) -> None:
    (tmp_path / "file.parquet").touch()
    (tmp_path / "link.parquet").symlink_to("file.parquet")
    write(destination(tmp_path / "link.parquet"), [answer("a", 0.5)])
    assert (tmp_path / "link.parquet").is_symlink() and (tmp_path / "file.parquet").stat().st_size > 0
    device = tmp_path / "device.parquet"
    device.symlink_to("/dev/null")
    write(destination(device), [answer("a", 0.5)])
    assert device.is_symlink() and not Path("/dev/null").is_file()


# ---- the journal


def test_journal_cut_anywhere_is_read_up_to_there(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal(path, "out") as journal:
        journal.begin(SETTINGS)
        for name in ("a", "b\n", "c\udcff"):
            journal.add_failure(failed(name))
    data = path.read_bytes()
    counts = []
    for size in range(len(data) + 1):
        path.write_bytes(data[:size])
        with Journal(path, "out") as journal:
            assert journal.settings in (None, SETTINGS)
            counts.append(len(journal.failed))
    assert counts == sorted(counts) and counts[-1] == 3


@pytest.mark.parametrize(
    "content", ["{}\n", "\n", "null\n", '{"settings": null}\n', "[" * 100_000 + "\n", "\0" * 9 + "\n"]
)
def test_journal_of_something_else_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "journal").write_text(content)
    with pytest.raises(UsageError, match="not the record of a run"):
        Journal(tmp_path / "journal", "out")


def test_journal_on_a_full_disk_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, data: bytes) -> int:
            if len(data) > 10:
                return int(self.file.write(data[:10]))
            raise OSError(errno.ENOSPC, "No space left on device")

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    with Journal(tmp_path / "journal", "out") as journal:
        journal.begin(SETTINGS)
        before = (tmp_path / "journal").read_bytes()
        monkeypatch.setattr(journal, "_file", Full(journal._file))
        with pytest.raises(StoppedError, match="No space left"):
            journal.add_failure(failed("a"))
        assert (tmp_path / "journal").read_bytes() == before
