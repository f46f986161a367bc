"""Sorting into folders: what goes where, doing it, undoing it, and being killed at every step."""

import errno
import itertools
import json
import os
import signal
import stat
import sys
import time
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from clipcls.errors import StoppedError, UsageError
from clipcls.outputs.sort import place
from clipcls.outputs.sort.log import LOG_NAME, locked, read_runs
from clipcls.outputs.sort.names import FAILED, UNKNOWN, FileNames, FolderNames, folder_name, numbered
from clipcls.outputs.sort.plan import SortPlan, plan
from clipcls.outputs.sort.sort import carry_out, undo
from clipcls.records import Prediction, SortMethod

METHODS: list[SortMethod] = ["copy", "hardlink", "symlink", "move"]
NASTY = [
    "", " ", ".", "..", "../../etc", "/etc/passwd", "a/b", "a\\b", "a:b", "C:", ".git", "cat.", "cat. .", " cat ",
    "con", "NUL", "nul.txt", "Com1", "lpt¹.jpg", "conin$", "con .txt", "a\0b", "a\nb", "\x1b[2J", "\x7f", "\ud800",
    "a\u2028b", "*?<>|\"", "猫" * 200, "x" * 5000, "é" * 100 + ".", "🐈‍⬛", "-rf", "_unknown", "_FAILED", "~",
]  # fmt: skip


def answer(path: str | Path, label: str | None, error: str | None = None) -> Prediction:
    score = None if error else 0.5
    return Prediction(os.fspath(path), label, score, score, error=error)


def sort(rows: Iterable[Prediction], into: Path, by: SortMethod = "copy") -> list[str]:
    """Plan and do; returns why files were left out."""
    planned = plan(rows, into, by)
    reasons = [reason for _, reason in planned.left_out]
    return reasons + [reason for _, reason in carry_out(planned) if reason is not None]


def targets(planned: SortPlan) -> list[str]:
    return [f"{file.target.parent.name}/{file.target.name}" for file in planned.run.files.values()]


def tree(folder: Path) -> dict[str, tuple[Any, ...]]:
    """All that is in a folder: kind, permissions, time and content of each file, by name."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        if stat.S_ISDIR(status.st_mode):
            found[str(path.relative_to(folder))] = ("folder",)
        else:
            content = path.readlink() if path.is_symlink() else path.read_bytes()
            facts = stat.filemode(status.st_mode), status.st_mtime_ns, content
            found[str(path.relative_to(folder))] = facts
    return found


def save(path: Path, content: bytes = b"picture", mtime_ns: int = 1_234_567_890_123_456_789) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, ns=(mtime_ns, mtime_ns))
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with three pictures."""
    for number, name in enumerate(("a.jpg", "b.jpg", "c.jpg")):
        save(tmp_path / "photos" / name, name.encode(), 10**18 + number).chmod(0o640)
    return tmp_path / "photos"


def three(photos: Path) -> list[Prediction]:
    return [answer(photos / "a.jpg", "cat"), answer(photos / "b.jpg", "dog"), answer(photos / "c.jpg", "cat")]


# ---------------------------------------------------------------------------------------------------------
# Names


@pytest.mark.parametrize("label", NASTY, ids=range(len(NASTY)))
def test_folder_name_holds_on_every_system(label: str) -> None:
    name = folder_name(label)
    assert 0 < len(name.encode()) <= 255
    assert not set(name) & set('/\\:*?"<>|')
    assert not any(unicodedata.category(sign) in ("Cc", "Cs") for sign in name)
    assert not name.startswith((".", " ")) and not name.endswith((".", " "))
    assert name.split(".")[0].strip().upper() not in {"CON", "NUL", "COM1", "LPT¹", "CONIN$"}


@pytest.mark.parametrize("label", ["cat", "hot dog", "crane, bird", "猫", "Größe", "-rf", "a.b"])
def test_folder_name_leaves_a_harmless_label_as_it_is(label: str) -> None:
    assert folder_name(label) == label


def test_folder_names_differ_for_all_labels_whatever_the_system(tmp_path: Path) -> None:
    labels = [*NASTY, "Cat", "cat", "CAT", "a_b", "caf\u00e9", "cafe\u0301", "straße", "STRASSE", "cat-2"]
    names = FolderNames(tmp_path, {})
    chosen = [unicodedata.normalize("NFC", names.of(label).casefold()) for label in labels]
    assert len(set(chosen)) == len(labels)
    assert not set(chosen) & {UNKNOWN, FAILED}
    assert [names.of(label) for label in ("cat", "cat")] == [names.of("cat")] * 2


def test_folder_names_avoid_files_and_links_that_are_in_the_way(tmp_path: Path) -> None:
    save(tmp_path / "cat")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "dog").symlink_to("elsewhere")
    (tmp_path / "truck").mkdir()
    names = FolderNames(tmp_path, {})
    assert [names.of(label) for label in ("cat", "dog", "truck")] == ["cat-2", "dog-2", "truck"]


def test_folder_names_keep_what_labels_had_before_unless_it_leads_out(tmp_path: Path) -> None:
    names = FolderNames(tmp_path, {"a/b": "a_b-2", "x": "../x"})
    assert [names.of(label) for label in ("a_b-2", "a/b", "x")] == ["a_b-2-2", "a_b-2", "x"]


@pytest.mark.parametrize(
    ("name", "number", "expected"),
    [
        ("cat.jpg", 1, "cat.jpg"),
        ("cat.jpg", 2, "cat-2.jpg"),
        (".hidden", 3, ".hidden-3"),
        ("no extension", 12, "no extension-12"),
        ("x" * 251 + ".jpg", 2, "x" * 249 + "-2.jpg"),
        ("猫" * 83 + "ab.jpg", 10, "猫" * 82 + "-10.jpg"),
        ("x." + "y" * 250, 2, "x." + "y" * 250 + "-2"),
        ("x." + "y" * 253, 2, "x." + "y" * 251 + "-2"),
    ],
)
def test_numbered_keeps_the_extension_and_the_length(name: str, number: int, expected: str) -> None:
    assert numbered(name, number) == expected
    assert len(os.fsencode(expected)) <= 255


def test_file_names_take_upper_and_lower_case_for_one() -> None:
    names = FileNames(["CAT.jpg"])
    assert [names.take(name) for name in ("cat.jpg", "Cat.JPG", "cat-3.jpg", "dog.jpg")] == [
        "cat-2.jpg",
        "Cat-3.JPG",
        "cat-3-2.jpg",
        "dog.jpg",
    ]


# ---------------------------------------------------------------------------------------------------------
# What goes where


def test_plan_takes_the_best_label_and_knows_unknown_and_failed(photos: Path, tmp_path: Path) -> None:
    rows = [
        answer(photos / "a.jpg", "cat"),
        answer(photos / "b.jpg", None),
        answer(photos / "c.jpg", None, "truncated"),
        answer(photos / "gone.jpg", None, "no such file"),
    ]
    planned = plan(rows, tmp_path / "sorted")
    assert targets(planned) == ["cat/a.jpg", "_unknown/b.jpg", "_failed/c.jpg"]
    assert planned.left_out == [(str(photos / "gone.jpg"), "no such file")]


@pytest.mark.parametrize("by", METHODS)
def test_plan_touches_nothing(photos: Path, tmp_path: Path, by: SortMethod) -> None:
    before = tree(tmp_path)
    plan(three(photos), tmp_path / "sorted", by)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("label", NASTY, ids=range(len(NASTY)))
def test_plan_lets_no_label_lead_out(photos: Path, tmp_path: Path, label: str) -> None:
    into = tmp_path / "deep" / "sorted"
    into.parent.mkdir()
    sort([answer(photos / "a.jpg", label)], into)
    (copied,) = into.rglob("a.jpg")
    assert copied.parent.parent == into
    assert {path.name for path in into.parent.iterdir()} == {"sorted"}
    assert [reason for _, reason in undo(into)] == [None]
    assert not into.exists()


def test_plan_numbers_names_that_are_taken_in_any_case(tmp_path: Path) -> None:
    rows = [answer(save(tmp_path / str(n) / name), "cat") for n, name in enumerate(("x.jpg", "X.jpg", "x.jpg", "y"))]
    save(tmp_path / "sorted" / "cat" / "Y")
    assert targets(plan(rows, tmp_path / "sorted")) == ["cat/x.jpg", "cat/X-2.jpg", "cat/x-3.jpg", "cat/y-2"]


def test_plan_leaves_out_what_is_no_file_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "x.tar")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    reasons = {
        "x.tar/key.jpg": "inside x.tar, not a file of its own",
        "http://example.com/a.jpg": "an address, not a file",
        "folder": "a folder, not a file",
        "folder/": "a folder, not a file",
        "folder/..": "a folder, not a file",
        "pipe": "a named pipe, not a file",
        "/dev/null": "a device, not a file",
        "loop": "too many levels of symbolic links",
        "dangling": "a link that leads nowhere",
        "gone": "no such file",
        "": "no such file",
        "a\0b": "not a possible file name",
        "\ud800": "not a possible file name",
        "y" * 300: "file name too long",
    }
    for by in METHODS:
        planned = plan([answer(path, "cat") for path in reasons], tmp_path / "sorted", by)
        assert not planned.run.files
        for path, reason in planned.left_out:
            assert reason.startswith(reasons[path]), path


def test_plan_takes_a_path_once_however_it_is_written(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (photos.parent / "link").symlink_to("photos")
    monkeypatch.chdir(photos)
    paths = ["a.jpg", "./a.jpg", str(photos / "a.jpg"), "../link/a.jpg", "../link/../photos/a.jpg"]
    planned = plan([answer(path, "cat") for path in paths], photos / "sorted", "move")
    assert targets(planned) == ["cat/a.jpg"]
    assert {reason for _, reason in planned.left_out} == {"listed twice; the first row counts"}
    assert len(planned.left_out) == 4


def test_plan_moves_both_names_of_one_file(photos: Path) -> None:
    (photos / "again.jpg").hardlink_to(photos / "a.jpg")
    rows = [answer(photos / "a.jpg", "cat"), answer(photos / "again.jpg", "dog")]
    assert sort(rows, photos / "sorted", "move") == []
    assert (photos / "sorted/cat/a.jpg").samefile(photos / "sorted/dog/again.jpg")


def test_plan_refuses_a_place_that_is_no_folder(photos: Path) -> None:
    with pytest.raises(UsageError, match="isn't a folder"):
        plan([], photos / "a.jpg")
    with pytest.raises(UsageError, match="isn't there"):
        plan([], photos / "no" / "such")
    save(photos / "sorted" / "_unknown")
    with pytest.raises(UsageError, match="_unknown isn't a folder"):
        plan([answer(photos / "a.jpg", None)], photos / "sorted")


def test_plan_refuses_hard_links_between_file_systems(photos: Path) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == photos.stat().st_dev:
        pytest.skip("there is only one file system")
    with pytest.raises(UsageError, match="--by copy"):
        plan(three(photos), other / "never-made", "hardlink")


# ---------------------------------------------------------------------------------------------------------
# Doing it


@pytest.mark.parametrize("by", METHODS)
def test_carry_out_puts_pictures_into_folders(photos: Path, tmp_path: Path, by: SortMethod) -> None:
    before = {path.name: path.stat() for path in photos.iterdir()}
    assert sort(three(photos), tmp_path / "sorted", by) == []
    found = {path.name: path for path in (tmp_path / "sorted").glob("*/*.jpg")}
    assert {name: path.parent.name for name, path in found.items()} == {"a.jpg": "cat", "b.jpg": "dog", "c.jpg": "cat"}
    for name, path in found.items():
        status = path.stat()
        assert path.read_bytes() == name.encode()
        assert (status.st_mtime_ns, status.st_mode) == (before[name].st_mtime_ns, before[name].st_mode)
        assert (status.st_ino == before[name].st_ino) == (by != "copy")
        assert path.is_symlink() == (by == "symlink")
    assert len(list(photos.iterdir())) == (0 if by == "move" else 3)


@pytest.mark.parametrize("by", METHODS)
def test_carry_out_goes_beside_what_has_come_meanwhile(photos: Path, tmp_path: Path, by: SortMethod) -> None:
    into = tmp_path / "sorted"
    planned = plan(three(photos), into, by)
    save(into / "cat" / "a.jpg", b"another")
    save(into / "cat" / "a-2.jpg", b"one more")
    outcomes = list(carry_out(planned))
    assert [reason for _, reason in outcomes] == [None] * 3
    assert planned.shown_target(outcomes[0][0]) == str(into / "cat" / "a-3.jpg")
    assert [(into / "cat" / name).read_bytes() for name in ("a.jpg", "a-2.jpg", "a-3.jpg")] == [
        b"another",
        b"one more",
        b"a.jpg",
    ]
    assert [reason for _, reason in undo(into)] == [None] * 3
    assert sorted(path.name for path in into.rglob("*")) == ["a-2.jpg", "a.jpg", "cat"]
    assert len(list(photos.iterdir())) == 3


def refuse_links(monkeypatch: pytest.MonkeyPatch, code: int, *, all_of_them: bool) -> None:
    """Hard links fail as on another kind of file system, or to another one."""
    real = os.link

    def link(source: Any, target: Any, **options: Any) -> None:
        if all_of_them or not os.fspath(source).endswith(".part"):
            raise OSError(code, os.strerror(code), os.fspath(source), None, os.fspath(target))
        real(source, target, **options)

    monkeypatch.setattr(place.os, "link", link)


SYSTEMS = {
    "usual": lambda monkeypatch: None,
    "without hard links": lambda monkeypatch: refuse_links(monkeypatch, errno.EPERM, all_of_them=True),
    "another device": lambda monkeypatch: refuse_links(monkeypatch, errno.EXDEV, all_of_them=False),
}


@pytest.mark.parametrize("by", ["copy", "move"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_carry_out_and_undo_need_no_hard_links(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: SortMethod, system: str
) -> None:
    before = tree(tmp_path)
    SYSTEMS[system](monkeypatch)
    into = tmp_path / "sorted"
    planned = plan(three(photos), into, by)
    save(into / "cat" / "a.jpg", b"another")
    assert [reason for _, reason in carry_out(planned)] == [None] * 3
    assert (into / "cat" / "a.jpg").read_bytes() == b"another"
    moved = into / "cat" / "a-2.jpg"
    assert (moved.read_bytes(), moved.stat().st_mtime_ns, moved.stat().st_mode & 0o777) == (b"a.jpg", 10**18, 0o640)
    assert not list(into.rglob("*.part"))
    assert [reason for _, reason in undo(into)] == [None] * 3
    (into / "cat" / "a.jpg").unlink()
    (into / "cat").rmdir()
    into.rmdir()
    assert tree(tmp_path) == before


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="one file system only")
def test_carry_out_moves_to_another_file_system_and_back(photos: Path, tmp_path: Path) -> None:
    import tempfile

    before = tree(tmp_path)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        assert sort(three(photos), Path(other) / "sorted", "move") == []
        assert not list(photos.iterdir())
        assert (Path(other) / "sorted/dog/b.jpg").stat().st_mtime_ns == 10**18 + 1
        assert [reason for _, reason in undo(Path(other) / "sorted")] == [None] * 3
        assert not list(Path(other).iterdir())
    assert tree(tmp_path) == before


def test_carry_out_moves_links_so_that_they_lead_where_they_did(photos: Path, tmp_path: Path) -> None:
    save(tmp_path / "originals" / "x.jpg", b"x")
    (photos / "relative.jpg").symlink_to("../originals/x.jpg")
    (photos / "absolute.jpg").symlink_to(tmp_path / "originals" / "x.jpg")
    (photos / "to a.jpg").symlink_to("a.jpg")
    (photos / "to the link.jpg").symlink_to("to a.jpg")
    before = tree(tmp_path)
    names = ["to the link.jpg", "relative.jpg", "absolute.jpg", "to a.jpg", "a.jpg"]
    into = tmp_path / "sorted"
    assert sort([answer(photos / name, name[0]) for name in names], into, "move") == []
    assert (into / "r" / "relative.jpg").readlink() == Path("../../originals/x.jpg")
    assert (into / "a" / "absolute.jpg").readlink() == tmp_path / "originals" / "x.jpg"
    for name in ("to a.jpg", "to the link.jpg"):
        assert (into / "t" / name).samefile(into / "a" / "a.jpg")
    assert [reason for _, reason in undo(into)] == [None] * 5
    assert tree(tmp_path) == before


@pytest.mark.parametrize("by", ["copy", "hardlink"])
def test_carry_out_follows_links_otherwise(photos: Path, tmp_path: Path, by: SortMethod) -> None:
    (photos / "link.jpg").symlink_to("a.jpg")
    assert sort([answer(photos / "link.jpg", "cat")], tmp_path / "sorted", by) == []
    sorted_file = tmp_path / "sorted" / "cat" / "link.jpg"
    assert not sorted_file.is_symlink()
    assert sorted_file.read_bytes() == b"a.jpg"
    assert [reason for _, reason in undo(tmp_path / "sorted")] == [None]


def test_carry_out_makes_links_that_outlive_the_folders_move(photos: Path, tmp_path: Path) -> None:
    inside = save(photos / "sorted" / "new" / "d.jpg")
    sort([answer(photos / "a.jpg", "cat"), answer(inside, "cat")], photos / "sorted", "symlink")
    (photos / "sorted").rename(tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere/cat/a.jpg").samefile(photos / "a.jpg")
    assert (tmp_path / "elsewhere/cat/d.jpg").samefile(tmp_path / "elsewhere/new/d.jpg")
    assert [reason for _, reason in undo(tmp_path / "elsewhere")] == [None] * 2


def test_carry_out_sorts_in_place(photos: Path, tmp_path: Path) -> None:
    save(photos / "cat" / "d.jpg")
    save(photos / "cat" / "e.jpg")
    save(photos / "dog")
    before = tree(tmp_path)
    rows = [
        *three(photos),
        answer(photos / "cat" / "d.jpg", "cat"),
        answer(photos / "cat" / "e.jpg", "dog"),
        answer(photos / "dog", "dog"),
    ]
    planned = plan(rows, photos, "move")
    assert planned.already_there == 1
    assert [reason for _, reason in carry_out(planned)] == [None] * 5
    found = {str(path.relative_to(photos)) for path in photos.rglob("*") if path.is_file()} - {LOG_NAME}
    assert found == {"cat/a.jpg", "cat/c.jpg", "cat/d.jpg", "dog-2/b.jpg", "dog-2/e.jpg", "dog-2/dog"}
    assert [reason for _, reason in undo(photos)] == [None] * 5
    assert tree(tmp_path) == before


@pytest.mark.parametrize("by", METHODS)
def test_carry_out_a_second_time_does_nothing(photos: Path, tmp_path: Path, by: SortMethod) -> None:
    into = tmp_path / "sorted"
    sort(three(photos), into, by)
    before = tree(tmp_path)
    again = plan(three(photos), into, by)
    assert (len(again.run.files), again.already_there, len(again.left_out)) == (0, 3, 0)
    assert list(carry_out(again)) == []
    assert tree(tmp_path) == before


def test_carry_out_copies_anew_what_was_changed(photos: Path, tmp_path: Path) -> None:
    into = tmp_path / "sorted"
    sort(three(photos), into)
    save(photos / "a.jpg", b"edited")
    save(into / "dog" / "b.jpg", b"cropped")
    assert targets(plan(three(photos), into)) == ["cat/a-2.jpg", "dog/b-2.jpg"]


def test_carry_out_says_where_a_picture_was_moved_to_before(photos: Path, tmp_path: Path) -> None:
    sort(three(photos), tmp_path / "sorted", "move")
    (reason,) = sort([answer(photos / "a.jpg", "horse")], tmp_path / "sorted", "move")
    assert reason.endswith(f"moved it to {tmp_path}/sorted/cat/a.jpg")


def test_carry_out_keeps_a_labels_folder_in_later_runs(photos: Path, tmp_path: Path) -> None:
    sort([answer(photos / "a.jpg", "x/y"), answer(photos / "b.jpg", "x_y")], tmp_path / "sorted")
    planned = plan([answer(photos / "c.jpg", "x_y")], tmp_path / "sorted")
    assert targets(planned) == ["x_y-2/c.jpg"]


def test_carry_out_leaves_out_what_has_gone_since(photos: Path, tmp_path: Path) -> None:
    planned = plan(three(photos), tmp_path / "sorted", "move")
    (photos / "b.jpg").unlink()
    assert [reason for _, reason in carry_out(planned)] == ["no such file", None, None]


def test_carry_out_stopped_between_two_files_can_be_undone_and_gone_on_with(photos: Path, tmp_path: Path) -> None:
    before = tree(tmp_path)
    into = tmp_path / "sorted"
    with closing(carry_out(plan(three(photos), into, "move"))) as outcomes:
        next(outcomes)
    assert read_runs(into)[-1].ended
    assert sum(1 for _ in photos.iterdir()) == 2
    assert sort(three(photos), into, "move") == []
    assert not list(photos.iterdir())
    assert len(list(undo(into))) == 2
    assert len(list(undo(into))) == 1
    assert tree(tmp_path) == before


def test_carry_out_stops_where_a_source_cannot_be_taken_away(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.unlink

    def unlink(self: Path, missing_ok: bool = False) -> None:
        if self == photos / "b.jpg":
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(self))
        real(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    into = tmp_path / "sorted"
    with pytest.raises(StoppedError, match=r"b\.jpg: can't be taken from its place: permission denied"):
        sort(three(photos), into, "move")
    monkeypatch.undo()
    assert not (into / "dog" / "b.jpg").exists()
    assert (photos / "b.jpg").read_bytes() == b"b.jpg"
    assert [reason for _, reason in undo(into)] == [None]
    assert len(list(photos.iterdir())) == 3


def test_carry_out_says_whose_folder_does_not_let_go(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", os.fspath(self), None, os.fspath(target))

    refuse_links(monkeypatch, errno.EPERM, all_of_them=True)
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(StoppedError, match=r"photos/a\.jpg: can't be taken from its place: permission denied"):
        sort(three(photos), tmp_path / "sorted", "move")
    assert not list((tmp_path / "sorted" / "cat").iterdir())
    assert len(list(photos.iterdir())) == 3


def test_carry_out_leaves_out_a_source_that_cannot_be_read(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.open

    def refuse(self: Path, *args: Any, **options: Any) -> Any:
        if self == photos / "b.jpg":
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(self))
        return real(self, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    assert sort(three(photos), tmp_path / "sorted") == ["can't be read: permission denied"]
    assert sorted(path.name for path in (tmp_path / "sorted").rglob("*.jpg")) == ["a.jpg", "c.jpg"]


def test_carry_out_leaves_out_a_source_that_changes_meanwhile(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = place.shutil.copystat

    def copystat(source: Path, target: Path) -> None:
        real(source, target)
        if source == photos / "b.jpg":
            source.write_bytes(b"edited")

    monkeypatch.setattr(place.shutil, "copystat", copystat)
    refuse_links(monkeypatch, errno.EXDEV, all_of_them=False)
    assert sort(three(photos), tmp_path / "sorted", "move") == ["it changed while it was copied"]
    assert [path.name for path in photos.iterdir()] == ["b.jpg"]
    assert (photos / "b.jpg").read_bytes() == b"edited"
    assert not list((tmp_path / "sorted" / "dog").iterdir())


def test_carry_out_refuses_a_second_process(photos: Path, tmp_path: Path) -> None:
    into = tmp_path / "sorted"
    sort(three(photos)[:1], into)
    with locked(into):
        with pytest.raises(StoppedError, match="another `clipcls sort` is at work"):
            sort(three(photos), into)
        with pytest.raises(StoppedError, match="another `clipcls sort` is at work"):
            list(undo(into))


# ---------------------------------------------------------------------------------------------------------
# Taking it back


ODD = [
    b" leading and trailing ", b"-rf.jpg", b"--", b"new\nline.jpg", b"tab\t\\.jpg", b"caf\xe9.jpg", b"\xff\xfe.png",
    "🐈‍⬛.png".encode(), b"'\"$(x)`;&|.jpg", b"..jpg", b".hidden.jpg", b"x" * 251 + b".jpg", b"y" * 255,
    "é".encode() * 127, b"*?[a].jpg", b"CON.jpg", b"nul", b"trailing.", b"\x1b[31mred.jpg", b"\x7f",
]  # fmt: skip


def test_undo_restores_a_thousand_files_with_odd_names(tmp_path: Path) -> None:
    names = (b"one", b"t\xffwo", b"-three\n", b" four ", "五".encode())
    folders = [tmp_path / "in" / os.fsdecode(name) for name in names]
    rows = []
    for number in range(1000):
        odd = ODD[number // 5 % len(ODD)]
        stem = odd if number < 5 * len(ODD) else b"%d" % number + odd[: 255 - 4]
        path = folders[number % 5] / os.fsdecode(stem)
        save(path, b"%d" % number * (number % 7), 10**18 + number * 1_000_003).chmod(0o400 + number % 0o200)
        labels = ["cat", "Cat", "a/b", "..", None, "犬"]
        rows.append(answer(path, labels[number % 6], "broken" if number % 11 == 0 else None))
    before = tree(tmp_path)
    assert len(before) == 1006
    into = tmp_path / "sorted"
    assert sort(rows, into, "move") == []
    assert not [path for path in (tmp_path / "in").rglob("*") if path.is_file()]
    assert sum(1 for path in into.rglob("*") if path.is_file()) == 1001
    assert len({path.name.casefold() for path in into.iterdir()}) == 8
    assert [reason for _, reason in undo(into)] == [None] * 1000
    assert tree(tmp_path) == before


def test_undo_puts_nothing_over_what_has_come_to_the_place(photos: Path, tmp_path: Path) -> None:
    into = tmp_path / "sorted"
    sort(three(photos), into, "move")
    save(photos / "b.jpg", b"new")
    assert {file.source.name: reason for file, reason in undo(into)} == {
        "a.jpg": None,
        "b.jpg": f"something else is at {photos / 'b.jpg'} now",
        "c.jpg": None,
    }
    assert (photos / "b.jpg").read_bytes() == b"new"
    assert (into / "dog" / "b.jpg").read_bytes() == b"b.jpg"
    (photos / "b.jpg").unlink()
    assert [reason for _, reason in undo(into)] == [None]
    assert (photos / "b.jpg").read_bytes() == b"b.jpg"
    assert not into.exists()


def test_undo_goes_on_to_the_run_before_when_the_rest_cannot_be_undone(photos: Path, tmp_path: Path) -> None:
    into = tmp_path / "sorted"
    sort(three(photos)[:2], into, "move")
    sort(three(photos)[2:], into, "move")
    save(photos / "c.jpg", b"new")
    assert [file.source.name for file, reason in undo(into)] == ["c.jpg"]
    assert [(file.source.name, reason is None) for file, reason in undo(into)] == [
        ("c.jpg", False),
        ("b.jpg", True),
        ("a.jpg", True),
    ]
    assert sorted(path.name for path in photos.iterdir()) == ["a.jpg", "b.jpg", "c.jpg"]
    assert [run.tried for run in read_runs(into)] == [True]
    assert (into / "cat" / "c.jpg").read_bytes() == b"c.jpg"


def test_undo_takes_back_run_after_run(photos: Path, tmp_path: Path) -> None:
    into = tmp_path / "sorted"
    states = [tree(tmp_path)]
    sort(three(photos), into, "move")
    states.append({name: facts for name, facts in tree(tmp_path).items() if not name.endswith(LOG_NAME)})
    sort([answer(into / "cat" / name, "dog") for name in ("a.jpg", "c.jpg")], into, "move")
    assert sorted(path.name for path in (into / "dog").iterdir()) == ["a.jpg", "b.jpg", "c.jpg"]
    assert len(list(undo(into))) == 2
    assert {name: facts for name, facts in tree(tmp_path).items() if not name.endswith(LOG_NAME)} == states[1]
    assert len(list(undo(into))) == 3
    assert tree(tmp_path) == states[0]


def test_undo_notices_what_comes_at_the_last_moment(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    into = tmp_path / "sorted"
    sort(three(photos), into, "move")
    real = os.link

    def link(source: Any, target: Any, **options: Any) -> None:
        if Path(target) == photos / "b.jpg":
            save(Path(target), b"new")
        real(source, target, **options)

    monkeypatch.setattr(place.os, "link", link)
    assert [file.source.name for file, reason in undo(into) if reason is not None] == ["b.jpg"]
    assert (photos / "b.jpg").read_bytes() == b"new"
    assert (into / "dog" / "b.jpg").read_bytes() == b"b.jpg"


def edit(path: Path) -> None:
    """Change a file such that neither its size nor its time tells."""
    status = path.stat()
    time.sleep(0.02)  # the clock of changes ticks a few times in that
    path.write_bytes(b"X" + path.read_bytes()[1:])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace_file(path: Path) -> None:
    path.unlink()
    save(path, b"another")


@pytest.mark.parametrize(
    ("by", "change"),
    [("copy", edit), ("copy", replace_file), ("hardlink", replace_file), ("symlink", replace_file)],
)
def test_undo_keeps_copies_and_links_that_were_changed(
    photos: Path, tmp_path: Path, by: SortMethod, change: Callable[[Path], None]
) -> None:
    into = tmp_path / "sorted"
    sort(three(photos), into, by)
    change(into / "dog" / "b.jpg")
    content = (into / "dog" / "b.jpg").read_bytes()
    assert [reason is None for _, reason in undo(into)] == [True, False, True]
    assert {str(path.relative_to(into)) for path in into.rglob("*")} == {"dog", "dog/b.jpg"}
    assert (into / "dog" / "b.jpg").read_bytes() == content
    with pytest.raises(UsageError, match="nothing to undo"):
        list(undo(into))


@pytest.mark.parametrize("by", ["copy", "hardlink"])
def test_undo_keeps_the_last_of_a_picture(photos: Path, tmp_path: Path, by: SortMethod) -> None:
    into = tmp_path / "sorted"
    sort(three(photos), into, by)
    (photos / "b.jpg").unlink()
    assert [reason is None for _, reason in undo(into)] == [True, False, True]
    assert (into / "dog" / "b.jpg").read_bytes() == b"b.jpg"


def test_undo_removes_copies_that_are_the_same_on_another_disk(photos: Path, tmp_path: Path) -> None:
    import shutil

    into = tmp_path / "sorted"
    sort(three(photos), into)
    shutil.copytree(into, tmp_path / "copied", symlinks=True)
    assert [reason for _, reason in undo(tmp_path / "copied")] == [None] * 3
    assert not (tmp_path / "copied").exists()


def test_undo_takes_back_a_picture_that_was_edited_in_place(photos: Path, tmp_path: Path) -> None:
    into = tmp_path / "sorted"
    sort(three(photos), into, "move")
    (into / "dog" / "b.jpg").write_bytes(b"cropped")
    assert [reason for _, reason in undo(into)] == [None] * 3
    assert (photos / "b.jpg").read_bytes() == b"cropped"


def test_undo_makes_the_folders_that_have_gone(photos: Path, tmp_path: Path) -> None:
    before = tree(tmp_path)
    sort(three(photos), tmp_path / "sorted", "move")
    photos.rmdir()
    (tmp_path / "sorted").rename(tmp_path / "renamed")
    assert [reason for _, reason in undo(tmp_path / "renamed")] == [None] * 3
    assert tree(tmp_path) == before


def test_undo_leaves_folders_that_sort_has_not_made_or_that_hold_more(photos: Path, tmp_path: Path) -> None:
    into = tmp_path / "sorted"
    (into / "cat").mkdir(parents=True)
    sort(three(photos), into)
    save(into / "dog" / "mine.jpg")
    list(undo(into))
    assert {str(path.relative_to(into)) for path in into.rglob("*")} == {"cat", "dog", "dog/mine.jpg"}


def test_undo_refuses_a_record_that_it_cannot_trust(photos: Path, tmp_path: Path) -> None:
    into = tmp_path / "sorted"
    sort(three(photos), into, "move")
    record = into / LOG_NAME
    lines = record.read_bytes().splitlines(keepends=True)
    for bad in (b"not JSON\n", b"[]\n", b'{"file": 1}\n', b'{"done": 99, "mark": [1, 2, 3, 4, 5]}\n', b"{}\n"):
        record.write_bytes(b"".join([*lines, bad]))
        with pytest.raises(UsageError, match=rf"{LOG_NAME}, line {len(lines) + 1}: "):
            list(undo(into))
    record.write_bytes(lines[0] + lines[1].replace(b'"cat/', b'"../../'))
    with pytest.raises(UsageError, match="line 2"):
        list(undo(into))
    record.write_bytes(lines[0].replace(b'"clipcls_sort": 1', b'"clipcls_sort": 2'))
    with pytest.raises(UsageError, match="line 1: not the record of `clipcls sort` as this version"):
        plan(three(photos), into)


# ---------------------------------------------------------------------------------------------------------
# Being killed


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """In a process of its own, do some work, but die before the given one of its steps; whether it came to its end.

    A step is whatever Python reports to audit hooks: opening, linking, renaming, removing, making folders.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking where there may be threads
        child = os.fork()
    if child == 0:
        steps = itertools.count(1)

        def hook(event: str, _arguments: object) -> None:
            if event.startswith(("open", "os.", "shutil.")) and next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            work()
        except BaseException as exc:  # noqa: BLE001, it must not come back into pytest
            print(repr(exc), file=sys.__stderr__, flush=True)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFEXITED(status)


def corpus(folder: Path) -> tuple[list[Prediction], Path]:
    """Two pictures, one of them empty, and a link to the first; and where to sort them to."""
    photos = folder / "photos"
    save(photos / "a.jpg", b"a" * 10)
    save(photos / "b.jpg", b"", time.time_ns())
    (photos / "l.jpg").symlink_to("a.jpg")
    rows = [answer(photos / "l.jpg", "cat"), answer(photos / "a.jpg", "cat"), answer(photos / "b.jpg", "dog")]
    return rows, folder / "sorted"


SCENES: list[tuple[SortMethod, str]] = [
    *((by, "usual") for by in METHODS),
    ("copy", "without hard links"),
    ("move", "without hard links"),
    ("move", "another device"),
]


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """New folders."""
    # what a killed process has written is the system's; the disk only matters where that dies too
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
    return (path for number in itertools.count() if not (path := tmp_path / str(number)).mkdir())


def undo_all(into: Path) -> None:
    for _ in range(4):
        if not (into / LOG_NAME).exists():
            return
        assert [reason for _, reason in undo(into) if reason is not None] == []
    raise AssertionError("the record is still there")


def restored(folder: Path) -> dict[str, tuple[Any, ...]]:
    """The tree, but for a folder that was made just before the process was killed."""
    found = tree(folder)
    if list(found)[-1] == "sorted":
        del found["sorted"]
    return found


@pytest.mark.parametrize(("by", "system"), SCENES)
def test_undo_restores_all_wherever_sorting_was_killed(
    places: Iterator[Path], monkeypatch: pytest.MonkeyPatch, by: SortMethod, system: str
) -> None:
    SYSTEMS[system](monkeypatch)
    for step in itertools.count(1):
        folder = next(places)
        rows, into = corpus(folder)
        before = tree(folder)
        ended = killed_at(step, lambda: sort(rows, into, by))  # noqa: B023, called at once
        undo_all(into)
        assert restored(folder) == before, f"killed at step {step}"
        if ended:
            break
    assert step > 8


@pytest.mark.parametrize(("by", "system"), SCENES)
def test_sorting_goes_on_wherever_it_was_killed(
    places: Iterator[Path], monkeypatch: pytest.MonkeyPatch, by: SortMethod, system: str
) -> None:
    SYSTEMS[system](monkeypatch)
    for step in itertools.count(1):
        folder = next(places)
        rows, into = corpus(folder)
        before = tree(folder)
        ended = killed_at(step, lambda: sort(rows, into, by))  # noqa: B023, called at once
        shown = targets(plan(rows, into, by))
        done = [os.fspath(file.target) for file, reason in carry_out(plan(rows, into, by)) if reason is None]
        assert done == [f"{into}/{name}" for name in shown]
        found = {str(path.relative_to(into)): path.read_bytes() for path in into.rglob("*") if path.is_file()}
        del found[LOG_NAME]
        assert found == {"cat/a.jpg": b"a" * 10, "cat/l.jpg": b"a" * 10, "dog/b.jpg": b""}, f"killed at step {step}"
        for path, source in ((into / name, folder / "photos" / Path(name).name) for name in found if by == "copy"):
            copied, original = path.stat(), source.stat()
            assert (copied.st_mode, copied.st_mtime_ns) == (original.st_mode, original.st_mtime_ns), f"step {step}"
        undo_all(into)
        assert restored(folder) == before, f"killed at step {step}"
        if ended:
            break


@pytest.mark.parametrize(("by", "system"), SCENES)
def test_undo_goes_on_wherever_it_was_killed(
    places: Iterator[Path], monkeypatch: pytest.MonkeyPatch, by: SortMethod, system: str
) -> None:
    SYSTEMS[system](monkeypatch)
    for step in itertools.count(1):
        folder = next(places)
        rows, into = corpus(folder)
        before = tree(folder)
        sort(rows, into, by)
        ended = killed_at(step, lambda: list(undo(into)))  # noqa: B023, called at once
        undo_all(into)
        assert restored(folder) == before, f"killed at step {step}"
        if ended:
            break
    assert step > 5


def test_undo_understands_a_record_that_breaks_off_within_a_line(places: Iterator[Path]) -> None:
    for cut in range(1, 120, 7):
        folder = next(places)
        rows, into = corpus(folder)
        before = tree(folder)
        sort(rows, into, "move")
        record = into / LOG_NAME
        data = record.read_bytes().removesuffix(b'{"end": true}\n')
        assert data.splitlines()[-1].startswith(b'{"done": 3')
        # only the last line can be cut: what follows a line is done after it was written
        last = len(data) - data[:-1].rfind(b"\n") - 1
        record.write_bytes(data[: -min(cut, last)])
        undo_all(into)
        assert restored(folder) == before


def test_record_has_whole_lines_that_json_reads(tmp_path: Path) -> None:
    path = save(tmp_path / os.fsdecode(b"caf\xe9\n.jpg"))
    sort([answer(path, "\ud800")], tmp_path / "sorted", "move")
    lines = [json.loads(line) for line in (tmp_path / "sorted" / LOG_NAME).read_bytes().splitlines()]
    assert [next(iter(line)) for line in lines] == ["clipcls_sort", "file", "done", "end"]
    assert lines[1]["target"] == "_/caf\udce9\n.jpg"
    assert read_runs(tmp_path / "sorted")[0].files[1].source == path
