"""Sorting into folders: what goes where, doing it, undoing it, and being killed at every step."""

import errno
import itertools
import json
import os
import shutil
import sys
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterable
from contextlib import closing
from functools import partial
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


def done(planned: SortPlan) -> list[str | None]:
    """Carry a plan out; returns why each file was left out, None for those that weren't."""
    return [reason for _, reason in carry_out(planned)]


def sort(rows: Iterable[Prediction], into: Path, by: SortMethod = "copy") -> list[str]:
    """Plan and carry out; returns why files were left out."""
    planned = plan(rows, into, by)
    return [reason for _, reason in planned.left_out] + [reason for reason in done(planned) if reason is not None]


def undone(into: Path) -> dict[str, str | None]:
    """Undo; returns why each file stays, by its name, in the order of names."""
    return dict(sorted((file.source.name, reason) for file, reason in undo(into)))


ALL_UNDONE = {"a.jpg": None, "b.jpg": None, "c.jpg": None}


def targets(planned: SortPlan) -> list[str]:
    return [f"{file.target.parent.name}/{file.target.name}" for file in planned.run.files.values()]


def tree(folder: Path) -> dict[str, tuple[Any, ...]]:
    """All that is in a folder: kind, permissions, time and content of each file, by name."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        facts = (
            ("folder",) if path.is_dir() and not path.is_symlink() else (status.st_mode, status.st_mtime_ns, content)
        )
        found[str(path.relative_to(folder))] = facts
    return found


def names_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()} - {LOG_NAME}


def save(path: Path, content: bytes = b"picture", mtime_ns: int = 1_234_567_890_123_456_789) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, ns=(mtime_ns, mtime_ns))
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with three pictures."""
    for number, name in enumerate(ALL_UNDONE):
        save(tmp_path / "photos" / name, name.encode(), 10**18 + number).chmod(0o640)
    return tmp_path / "photos"


@pytest.fixture
def into(tmp_path: Path) -> Path:
    return tmp_path / "sorted"


def three(photos: Path) -> list[Prediction]:
    return [answer(photos / "a.jpg", "cat"), answer(photos / "b.jpg", "dog"), answer(photos / "c.jpg", "cat")]


# ---------------------------------------------------------------------------------------------------------
# Names


def test_folder_names_hold_on_every_system_and_differ_for_all_labels(tmp_path: Path) -> None:
    labels = [*NASTY, "Cat", "cat", "CAT", "a_b", "caf\u00e9", "cafe\u0301", "straße", "STRASSE", "cat-2"]
    names = FolderNames(tmp_path, {})
    chosen = [names.of(label) for label in labels]
    for name in chosen:
        assert 0 < len(name.encode()) <= 255
        assert not set(name) & set('/\\:*?"<>|')
        assert not any(unicodedata.category(sign) in ("Cc", "Cs") for sign in name)
        assert not name.startswith((".", " ")) and not name.endswith((".", " "))
        assert name.split(".")[0].strip().upper() not in {"CON", "NUL", "COM1", "LPT¹", "CONIN$"}
    keys = {unicodedata.normalize("NFC", name.casefold()) for name in chosen}
    assert len(keys) == len(labels) and not keys & {UNKNOWN, FAILED}
    assert [names.of(label) for label in labels] == chosen
    for label in ["cat", "hot dog", "crane, bird", "猫", "Größe", "-rf", "a.b"]:
        assert folder_name(label) == label


def test_folder_names_avoid_what_is_in_the_way_and_keep_what_labels_had(tmp_path: Path) -> None:
    save(tmp_path / "cat")
    (tmp_path / "dog").symlink_to("truck")
    (tmp_path / "truck").mkdir()
    names = FolderNames(tmp_path, {"a/b": "a_b-2", "x": "../x"})
    assert [names.of(label) for label in ("cat", "dog", "truck")] == ["cat-2", "dog-2", "truck"]
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
    taken = [names.take(name) for name in ("cat.jpg", "Cat.JPG", "cat-3.jpg", "dog.jpg")]
    assert taken == ["cat-2.jpg", "Cat-3.JPG", "cat-3-2.jpg", "dog.jpg"]


# ---------------------------------------------------------------------------------------------------------
# What goes where


@pytest.mark.parametrize("by", METHODS)
def test_plan_knows_unknown_and_failed_and_touches_nothing(photos: Path, into: Path, by: SortMethod) -> None:
    rows = [
        answer(photos / "a.jpg", "cat"),
        answer(photos / "b.jpg", None),
        answer(photos / "c.jpg", None, "truncated"),
        answer(photos / "gone.jpg", None, "no such file"),
    ]
    before = tree(photos.parent)
    planned = plan(rows, into, by)
    assert targets(planned) == ["cat/a.jpg", "_unknown/b.jpg", "_failed/c.jpg"]
    assert planned.left_out == [(str(photos / "gone.jpg"), "no such file")]
    assert tree(photos.parent) == before


def test_plan_lets_no_label_lead_out(photos: Path, tmp_path: Path) -> None:
    into = tmp_path / "deep" / "sorted"
    into.parent.mkdir()
    for label in NASTY:
        sort([answer(photos / "a.jpg", label)], into)
        (copied,) = into.rglob("a.jpg")
        assert copied.parent.parent == into and os.listdir(into.parent) == ["sorted"]  # noqa: PTH208
        assert undone(into) == {"a.jpg": None}
        assert not into.exists()


def test_plan_numbers_names_that_are_taken_in_any_case(tmp_path: Path, into: Path) -> None:
    rows = [answer(save(tmp_path / str(n) / name), "cat") for n, name in enumerate(("x.jpg", "X.jpg", "x.jpg", "y"))]
    save(into / "cat" / "Y")
    assert targets(plan(rows, into)) == ["cat/x.jpg", "cat/X-2.jpg", "cat/x-3.jpg", "cat/y-2"]


def test_plan_leaves_out_what_is_no_file_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "x.tar")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    reasons = {
        "x.tar/key.jpg": "inside x.tar, not a file of its own",
        "x.tar#t=1.5": "a part of x.tar, not a file of its own",
        "x.tar#t=1,3": "a part of x.tar, not a file of its own",
        "gone.mp4#t=1": "no such file",
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


def test_plan_takes_a_path_once_and_a_file_by_each_of_its_names(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (photos.parent / "link").symlink_to("photos")
    (photos / "again.jpg").hardlink_to(photos / "a.jpg")
    monkeypatch.chdir(photos)
    paths = ["a.jpg", "./a.jpg", str(photos / "a.jpg"), "../link/a.jpg", "../link/../photos/a.jpg", "again.jpg"]
    rows = [answer(path, "cat") for path in paths]
    assert sort(rows, photos / "sorted", "move") == ["listed twice; the first row counts"] * 4
    assert (photos / "sorted/cat/a.jpg").samefile(photos / "sorted/cat/again.jpg")


def test_plan_refuses_a_place_that_is_no_folder(photos: Path) -> None:
    with pytest.raises(UsageError, match="isn't a folder"):
        plan([], photos / "a.jpg")
    with pytest.raises(UsageError, match="isn't there"):
        plan([], photos / "no" / "such")
    save(photos / "sorted" / "_unknown")
    with pytest.raises(UsageError, match="_unknown isn't a folder"):
        plan([answer(photos / "a.jpg", None)], photos / "sorted")


# ---------------------------------------------------------------------------------------------------------
# Doing it


@pytest.mark.parametrize("by", METHODS)
def test_sorting_and_undoing_and_sorting_twice(photos: Path, tmp_path: Path, into: Path, by: SortMethod) -> None:
    before, inodes = tree(tmp_path), {path.name: path.stat().st_ino for path in photos.iterdir()}
    assert sort(three(photos), into, by) == []
    assert names_in(into) == {"cat/a.jpg", "dog/b.jpg", "cat/c.jpg"}
    for path in into.glob("*/*.jpg"):
        status = path.stat()
        assert (status.st_mode, status.st_mtime_ns, path.read_bytes()) == before[f"photos/{path.name}"]
        assert (status.st_ino == inodes[path.name]) == (by != "copy")
        assert path.is_symlink() == (by == "symlink")
    assert len(names_in(photos)) == (0 if by == "move" else 3)
    after = tree(tmp_path)
    again = plan(three(photos), into, by)
    assert (again.run.files, again.already_there, again.left_out) == ({}, 3, [])
    assert done(again) == []
    assert tree(tmp_path) == after
    assert undone(into) == ALL_UNDONE
    assert tree(tmp_path) == before


def refuse_links(monkeypatch: pytest.MonkeyPatch, code: int, *, all_of_them: bool) -> None:
    """Hard links fail as on another kind of file system, or to another one."""
    real = os.link

    def link(source: Any, target: Any, **options: Any) -> None:
        if all_of_them or not os.fspath(source).endswith(".part"):
            raise OSError(code, os.strerror(code), os.fspath(source), None, os.fspath(target))
        real(source, target, **options)

    monkeypatch.setattr(place.os, "link", link)


SYSTEMS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "usual": lambda monkeypatch: None,
    "without hard links": lambda monkeypatch: refuse_links(monkeypatch, errno.EPERM, all_of_them=True),
    "another device": lambda monkeypatch: refuse_links(monkeypatch, errno.EXDEV, all_of_them=False),
}
SCENES: list[tuple[SortMethod, str]] = [
    *((by, "usual") for by in METHODS),
    ("copy", "without hard links"),
    ("move", "without hard links"),
    ("move", "another device"),
]


@pytest.mark.parametrize(("by", "system"), SCENES)
def test_sorting_goes_beside_what_has_come_meanwhile(
    photos: Path, into: Path, monkeypatch: pytest.MonkeyPatch, by: SortMethod, system: str
) -> None:
    SYSTEMS[system](monkeypatch)
    before = tree(photos)
    planned = plan(three(photos), into, by)
    others = {save(into / "cat" / "a.jpg", b"another"), save(into / "cat" / "a-2.jpg", b"one more")}
    assert done(planned) == [None] * 3
    assert names_in(into) == {"cat/a.jpg", "cat/a-2.jpg", "cat/a-3.jpg", "cat/c.jpg", "dog/b.jpg"}
    third = into / "cat" / "a-3.jpg"
    assert (third.stat().st_mode, third.stat().st_mtime_ns, third.read_bytes()) == before["a.jpg"]
    assert {path.read_bytes() for path in others} == {b"another", b"one more"}
    assert undone(into) == ALL_UNDONE
    assert set(into.rglob("*")) == {into / "cat", *others}
    assert tree(photos) == before


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="one file system only")
def test_sorting_moves_to_another_file_system_and_back(photos: Path, tmp_path: Path) -> None:
    before = tree(tmp_path)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        into = Path(folder) / "sorted"
        with pytest.raises(UsageError, match="--by copy"):
            plan(three(photos), into, "hardlink")
        assert sort(three(photos), into, "move") == []
        assert not names_in(photos)
        assert (into / "dog" / "b.jpg").stat().st_mtime_ns == 10**18 + 1
        assert undone(into) == ALL_UNDONE
        assert not into.exists()
    assert tree(tmp_path) == before


def test_sorting_moves_links_so_that_they_lead_where_they_did(photos: Path, tmp_path: Path, into: Path) -> None:
    save(tmp_path / "originals" / "x.jpg", b"x")
    (photos / "relative.jpg").symlink_to("../originals/x.jpg")
    (photos / "absolute.jpg").symlink_to(tmp_path / "originals" / "x.jpg")
    (photos / "to a.jpg").symlink_to("a.jpg")
    (photos / "to the link.jpg").symlink_to("to a.jpg")
    before = tree(tmp_path)
    names = ["to the link.jpg", "relative.jpg", "absolute.jpg", "to a.jpg", "a.jpg"]
    assert sort([answer(photos / name, name[0]) for name in names], into, "move") == []
    assert (into / "r" / "relative.jpg").readlink() == Path("../../originals/x.jpg")
    assert (into / "a" / "absolute.jpg").readlink() == tmp_path / "originals" / "x.jpg"
    for name in ("to a.jpg", "to the link.jpg"):
        assert (into / "t" / name).samefile(into / "a" / "a.jpg")
    assert set(undone(into).values()) == {None}
    assert tree(tmp_path) == before


@pytest.mark.parametrize("by", ["copy", "hardlink"])
def test_sorting_follows_links_otherwise(photos: Path, into: Path, by: SortMethod) -> None:
    (photos / "link.jpg").symlink_to("a.jpg")
    assert sort([answer(photos / "link.jpg", "cat")], into, by) == []
    assert not (into / "cat" / "link.jpg").is_symlink()
    assert (into / "cat" / "link.jpg").read_bytes() == b"a.jpg"
    assert undone(into) == {"link.jpg": None}


def test_sorting_makes_links_that_outlive_the_folders_move(photos: Path, tmp_path: Path) -> None:
    inside = save(photos / "sorted" / "new" / "d.jpg")
    sort([answer(photos / "a.jpg", "cat"), answer(inside, "cat")], photos / "sorted", "symlink")
    moved = (photos / "sorted").rename(tmp_path / "elsewhere")
    assert (moved / "cat/a.jpg").samefile(photos / "a.jpg")
    assert (moved / "cat/d.jpg").samefile(moved / "new/d.jpg")
    assert undone(moved) == {"a.jpg": None, "d.jpg": None}


def test_sorting_in_place(photos: Path, tmp_path: Path) -> None:
    for name in ("cat/d.jpg", "cat/e.jpg", "dog"):
        save(photos / name)
    before = tree(tmp_path)
    others = {"cat/d.jpg": "cat", "cat/e.jpg": "dog", "dog": "dog"}
    planned = plan([*three(photos), *(answer(photos / name, label) for name, label in others.items())], photos, "move")
    assert planned.already_there == 1
    assert done(planned) == [None] * 5
    assert names_in(photos) == {"cat/a.jpg", "cat/c.jpg", "cat/d.jpg", "dog-2/b.jpg", "dog-2/e.jpg", "dog-2/dog"}
    assert set(undone(photos).values()) == {None}
    assert tree(tmp_path) == before


def test_sorting_again_heeds_what_was_changed_and_moved_and_named(photos: Path, tmp_path: Path, into: Path) -> None:
    sort(three(photos), into)
    save(photos / "a.jpg", b"edited")
    save(into / "dog" / "b.jpg", b"cropped")
    assert targets(plan(three(photos), into)) == ["cat/a-2.jpg", "dog/b-2.jpg"]
    moved = tmp_path / "moved"
    sort([answer(photos / "a.jpg", "x/y"), answer(photos / "b.jpg", "x_y")], moved, "move")
    assert sort([answer(photos / "a.jpg", "horse")], moved, "move") == [
        f"no such file: an earlier run moved it to {moved}/x_y/a.jpg"
    ]
    assert targets(plan([answer(photos / "c.jpg", "x_y")], moved)) == ["x_y-2/c.jpg"]


def test_sorting_stopped_between_two_files_can_be_undone_and_gone_on_with(
    photos: Path, tmp_path: Path, into: Path
) -> None:
    before = tree(tmp_path)
    with closing(carry_out(plan(three(photos), into, "move"))) as outcomes:
        next(outcomes)
    assert read_runs(into)[-1].ended
    assert names_in(photos) == {"b.jpg", "c.jpg"}
    assert sort(three(photos), into, "move") == []
    assert not names_in(photos)
    assert undone(into) == {"b.jpg": None, "c.jpg": None}
    assert undone(into) == {"a.jpg": None}
    assert tree(tmp_path) == before


@pytest.mark.parametrize("system", SYSTEMS)
def test_sorting_stops_where_a_source_cannot_be_taken_away(
    photos: Path, into: Path, monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    def refusing(real: Callable[..., Any]) -> Callable[..., Any]:
        def refuse(path: Path, *arguments: Any, **options: Any) -> Any:
            if path == photos / "b.jpg":
                raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
            return real(path, *arguments, **options)

        return refuse

    SYSTEMS[system](monkeypatch)
    monkeypatch.setattr(Path, "unlink", refusing(Path.unlink))
    monkeypatch.setattr(Path, "replace", refusing(Path.replace))
    with pytest.raises(StoppedError, match=r"b\.jpg: can't be taken from its place: permission denied"):
        sort(three(photos), into, "move")
    monkeypatch.undo()
    assert (names_in(photos), names_in(into)) == ({"b.jpg", "c.jpg"}, {"cat/a.jpg"})
    assert undone(into) == {"a.jpg": None}


def test_sorting_leaves_out_what_is_gone_or_unreadable_or_changes(
    photos: Path, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open, real_copystat = Path.open, shutil.copystat

    def refuse(self: Path, *args: Any, **options: Any) -> Any:
        if self == photos / "b.jpg":
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(self))
        return real_open(self, *args, **options)

    def edit_while_copied(source: Path, target: Path) -> None:
        real_copystat(source, target)
        if source == photos / "c.jpg":
            save(source, b"edited")

    planned = plan(three(photos), into, "move")
    (photos / "a.jpg").unlink()
    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(place.shutil, "copystat", edit_while_copied)
    refuse_links(monkeypatch, errno.EXDEV, all_of_them=False)
    assert done(planned) == ["no such file", "can't be read: permission denied", "it changed while it was copied"]
    monkeypatch.undo()
    assert (photos / "c.jpg").read_bytes() == b"edited"
    assert (names_in(photos), names_in(into)) == ({"b.jpg", "c.jpg"}, set())


def test_sorting_and_undo_refuse_a_second_process(photos: Path, into: Path) -> None:
    sort(three(photos)[:1], into)
    for work in (lambda: sort(three(photos), into), lambda: undone(into)):
        with locked(into), pytest.raises(StoppedError, match="another `clipcls sort` is at work"):
            work()


# ---------------------------------------------------------------------------------------------------------
# Taking it back


ODD = [
    b" leading and trailing ", b"-rf.jpg", b"--", b"new\nline.jpg", b"tab\t\\.jpg", b"caf\xe9.jpg", b"\xff\xfe.png",
    "🐈‍⬛.png".encode(), b"'\"$(x)`;&|.jpg", b"..jpg", b".hidden.jpg", b"x" * 251 + b".jpg", b"y" * 255,
    "é".encode() * 127, b"*?[a].jpg", b"CON.jpg", b"nul", b"trailing.", b"\x1b[31mred.jpg", b"\x7f",
]  # fmt: skip


def test_undo_restores_a_thousand_files_with_odd_names(tmp_path: Path, into: Path) -> None:
    names = (b"one", b"t\xffwo", b"-three\n", b" four ", "五".encode())
    folders = [tmp_path / "in" / os.fsdecode(name) for name in names]
    labels = ["cat", "Cat", "a/b", "..", None, "犬"]
    rows = []
    for number in range(1000):
        odd = ODD[number // 5 % len(ODD)]
        stem = odd if number < 5 * len(ODD) else b"%d" % number + odd[: 255 - 4]
        path = save(folders[number % 5] / os.fsdecode(stem), b"%d" % number * (number % 7), 10**18 + number * 1_000_003)
        path.chmod(0o400 + number % 0o200)
        rows.append(answer(path, labels[number % 6], "broken" if number % 11 == 0 else None))
    before = tree(tmp_path)
    assert len(before) == 1006
    assert sort(rows, into, "move") == []
    assert not names_in(tmp_path / "in")
    assert len(names_in(into)) == 1000
    assert len({path.name.casefold() for path in into.iterdir()}) == 8
    assert [reason for _, reason in undo(into)] == [None] * 1000
    assert tree(tmp_path) == before


def test_undo_puts_nothing_over_what_has_come_to_the_place(
    photos: Path, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.link

    def link(source: Any, target: Any, **options: Any) -> None:
        if Path(target) == photos / "c.jpg":  # at the last moment
            save(Path(target), b"new")
        real(source, target, **options)

    sort(three(photos), into, "move")
    save(photos / "b.jpg", b"new")
    monkeypatch.setattr(place.os, "link", link)
    stays = {name: f"something else is at {photos / name} now" for name in ("b.jpg", "c.jpg")}
    assert undone(into) == {"a.jpg": None} | stays
    monkeypatch.undo()
    for name in stays:
        assert (photos / name).read_bytes() == b"new"
        (photos / name).unlink()
    assert undone(into) == {"b.jpg": None, "c.jpg": None}
    assert {path.name: path.read_bytes() for path in photos.iterdir()} == {name: name.encode() for name in ALL_UNDONE}
    assert not into.exists()


def test_undo_takes_back_run_after_run_past_what_cannot_be(photos: Path, tmp_path: Path, into: Path) -> None:
    before = tree(tmp_path)
    sort(three(photos), into, "move")
    sort([answer(into / "cat" / name, "dog") for name in ("a.jpg", "c.jpg")], into, "move")
    assert names_in(into) == {"dog/a.jpg", "dog/b.jpg", "dog/c.jpg"}
    save(into / "cat" / "a.jpg", b"new")
    assert undone(into) == {"a.jpg": f"something else is at {into}/cat/a.jpg now", "c.jpg": None}
    assert {name: reason is None for name, reason in undone(into).items()} == {
        "a.jpg": False,
        "b.jpg": True,
        "c.jpg": True,
    }
    assert [run.tried for run in read_runs(into)] == [True, True]
    (into / "cat" / "a.jpg").unlink()
    assert undone(into) == {"a.jpg": None}
    assert undone(into) == {"a.jpg": None}
    assert tree(tmp_path) == before


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
    ("by", "change", "changed"),
    [
        ("copy", edit, "sorted/dog"),
        ("copy", replace_file, "sorted/dog"),
        ("copy", Path.unlink, "photos"),
        ("hardlink", replace_file, "sorted/dog"),
        ("hardlink", Path.unlink, "photos"),
        ("symlink", replace_file, "sorted/dog"),
    ],
)
def test_undo_keeps_what_was_changed_and_the_last_of_a_picture(
    photos: Path, into: Path, by: SortMethod, change: Callable[[Path], None], changed: str
) -> None:
    sort(three(photos), into, by)
    change(photos.parent / changed / "b.jpg")
    content = (into / "dog" / "b.jpg").read_bytes()
    assert {name: reason is None for name, reason in undone(into).items()} == {
        "a.jpg": True,
        "b.jpg": False,
        "c.jpg": True,
    }
    assert set(into.rglob("*")) == {into / "dog", into / "dog" / "b.jpg"}
    assert (into / "dog" / "b.jpg").read_bytes() == content
    with pytest.raises(UsageError, match="nothing to undo"):
        undone(into)


def test_undo_bears_other_disks_edits_and_folders_that_are_gone(photos: Path, tmp_path: Path, into: Path) -> None:
    sort(three(photos), into)
    shutil.copytree(into, tmp_path / "copied", symlinks=True)
    assert undone(tmp_path / "copied") == undone(into) == ALL_UNDONE
    assert os.listdir(tmp_path) == ["photos"]  # noqa: PTH208
    sort(three(photos), into, "move")
    shutil.copytree(into, tmp_path / "copied")
    shutil.rmtree(into)
    assert undone(tmp_path / "copied") == ALL_UNDONE
    sort(three(photos), into, "move")
    (into / "dog" / "b.jpg").write_bytes(b"cropped")
    photos.rmdir()
    assert undone(into.rename(tmp_path / "renamed")) == ALL_UNDONE
    assert [(photos / name).read_bytes() for name in ALL_UNDONE] == [b"a.jpg", b"cropped", b"c.jpg"]


def test_undo_leaves_folders_that_sort_has_not_made_or_that_hold_more(photos: Path, into: Path) -> None:
    (into / "cat").mkdir(parents=True)
    sort(three(photos), into)
    save(into / "dog" / "mine.jpg")
    assert undone(into) == ALL_UNDONE
    assert set(into.rglob("*")) == {into / "cat", into / "dog", into / "dog" / "mine.jpg"}


def test_undo_refuses_a_log_that_it_cannot_trust(photos: Path, into: Path) -> None:
    sort(three(photos), into, "move")
    log = into / LOG_NAME
    lines = log.read_bytes().splitlines(keepends=True)
    for bad in (b"not JSON\n", b"[]\n", b'{"file": 1}\n', b'{"done": 99, "mark": [1, 2, 3, 4]}\n', b"{}\n"):
        log.write_bytes(b"".join([*lines, bad]))
        with pytest.raises(UsageError, match=rf"{LOG_NAME}, line {len(lines) + 1}: "):
            undone(into)
    log.write_bytes(lines[0] + lines[1].replace(b'"cat/', b'"../../'))
    with pytest.raises(UsageError, match="line 2"):
        undone(into)
    log.write_bytes(lines[0].replace(b'"clipcls_sort": 1', b'"clipcls_sort": 2'))
    with pytest.raises(UsageError, match="line 1: not the record of `clipcls sort` as this version"):
        plan(three(photos), into)


def test_log_has_whole_lines_of_utf_8_and_is_read_as_an_earlier_version_wrote_it(tmp_path: Path, into: Path) -> None:
    path = save(tmp_path / os.fsdecode(b"caf\xe9\n.jpg"))
    sort([answer(path, "\ud800")], into, "move")
    log = into / LOG_NAME
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert [next(iter(line)) for line in lines] == ["clipcls_sort", "file", "done", "end"]
    assert lines[1]["source"] == str(path)
    lines[1] |= {"target": "_/caf\ufffd\n.jpg", "target_b64": "Xy9jYWbpCi5qcGc="}
    lines[2]["mark"].insert(3, 2049)  # the device
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert undone(into) == {path.name: None}
    assert path.read_bytes() == b"picture"


# ---------------------------------------------------------------------------------------------------------
# Being killed


class Killed(BaseException):
    """The end of the process, as far as the code under test can tell."""


class Killer:
    """Nothing is done to files below `folder` from the given step on, clearing up after an exception included.

    A step is whatever Python reports to audit hooks: opening, linking, renaming, removing, making folders.
    """

    folder: str | None = None
    steps = 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None or not event.startswith(("open", "os.")):
            return
        if any(isinstance(path, str | os.PathLike) and self.folder in os.fspath(path) for path in arguments):
            self.steps -= 1
            if self.steps < 0:
                raise Killed


KILLER = Killer()
sys.addaudithook(KILLER)


def killed_at(step: int, folder: Path, work: Callable[[], object]) -> bool:
    """Do some work, but be killed before one of its steps, counted from 0; returns whether it was."""
    KILLER.folder, KILLER.steps = str(folder), step
    try:
        work()
    except Killed:
        return True
    finally:
        KILLER.folder = None
    return False


def corpus(folder: Path) -> tuple[list[Prediction], Path]:
    """Two pictures, one of them empty, and a link to the first; and where to sort them to."""
    photos = folder / "photos"
    save(photos / "a.jpg", b"a" * 10)
    save(photos / "b.jpg", b"", time.time_ns())
    (photos / "l.jpg").symlink_to("a.jpg")
    rows = [answer(photos / "l.jpg", "cat"), answer(photos / "a.jpg", "cat"), answer(photos / "b.jpg", "dog")]
    return rows, folder / "sorted"


def check_going_on(rows: list[Prediction], into: Path, by: SortMethod) -> None:
    expected = targets(plan(rows, into, by))
    found = [file.target for file, reason in carry_out(plan(rows, into, by)) if reason is None]
    assert found == [into / name for name in expected]
    contents = {name: (into / name).read_bytes() for name in names_in(into)}
    assert contents == {"cat/a.jpg": b"a" * 10, "cat/l.jpg": b"a" * 10, "dog/b.jpg": b""}
    for name in contents if by == "copy" else ():
        copied, original = (into / name).stat(), (into.parent / "photos" / Path(name).name).stat()
        assert (copied.st_mode, copied.st_mtime_ns) == (original.st_mode, original.st_mtime_ns)


def check_undone(into: Path, before: dict[str, Any]) -> None:
    for _ in range(4):
        if (into / LOG_NAME).exists():
            assert set(undone(into).values()) <= {None}
    after = tree(into.parent)
    # a folder may have been made just before the process was killed
    assert after == before or after == before | {"sorted": ("folder",)}


@pytest.mark.parametrize("killed", ["sorting", "sorting, then gone on", "undo"])
@pytest.mark.parametrize(("by", "system"), SCENES)
def test_undo_restores_all_wherever_a_process_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: SortMethod, system: str, killed: str
) -> None:
    # what a killed process has written is the system's; the disk only matters where that dies too
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
    SYSTEMS[system](monkeypatch)
    for step in itertools.count():
        folder = tmp_path / str(step)
        rows, into = corpus(folder)
        before = tree(folder)
        if killed == "undo":
            sort(rows, into, by)
        work = partial(undone, into) if killed == "undo" else partial(sort, rows, into, by)
        was_killed = killed_at(step, folder, work)
        if killed == "sorting, then gone on":
            check_going_on(rows, into, by)
        check_undone(into, before)
        if not was_killed:
            break
    assert step > 5


def test_undo_understands_a_log_that_breaks_off_within_a_line(tmp_path: Path) -> None:
    for cut in range(1, 80, 7):
        rows, into = corpus(tmp_path / str(cut))
        before = tree(into.parent)
        sort(rows, into, "move")
        data = (into / LOG_NAME).read_bytes().removesuffix(b'{"end": true}\n')
        # only the last line can be cut: what follows a line is done after it was written
        last = len(data) - data[:-1].rfind(b"\n") - 1
        (into / LOG_NAME).write_bytes(data[: -min(cut, last)])
        check_undone(into, before)
    sort(rows[1:2], into)
    with (into / LOG_NAME).open("ab") as log:
        log.write(b'{"clipcls_sort": 1, "ru')
    sort(rows[2:], into)
    check_undone(into, before)
    into.mkdir()
    (into / LOG_NAME).touch()
    check_undone(into, before)
