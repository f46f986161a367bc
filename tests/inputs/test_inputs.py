"""What inputs name, in which order, and what becomes of those that lead nowhere."""

import base64
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import pictures
from clipcls.errors import UsageError
from clipcls.images.formats import FORMATS
from clipcls.inputs.discover import EXTENSIONS, are_countable, discover, expand, hint
from clipcls.inputs.left_out import LeftOut
from clipcls.inputs.listing import Sources
from clipcls.inputs.shards import is_shard
from clipcls.inputs.tables import table_columns
from clipcls.records import Address, Container, ImageRef, Span


@pytest.fixture(autouse=True)
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of every test."""
    names = ("b.jpg", "a.PNG", "notes.txt", ".hidden.jpg", "sub/z.webp", "sub/.secret/x.jpg", "sub/deep/y.gif")
    for name in (*names, "sub/deep/README", "c[1].jpg", "-dash.jpg"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


ALL = [
    *("images/-dash.jpg", "images/a.PNG", "images/b.jpg", "images/c[1].jpg", "images/sub/deep/y.gif"),
    "images/sub/z.webp",
]


def found(inputs: Sequence[str], **options: object) -> list[str]:
    """The paths; those with an error as `path: error`."""
    refs = list(discover(Sources(inputs, **options)))  # type: ignore[arg-type]
    return [ref.path if ref.error is None else f"{ref.path}: {ref.error}" for ref in refs]


# ------------------------------------------------------------------------------------------- files and folders


def test_discover_takes_a_file_whatever_its_extension() -> None:
    assert found(["images/notes.txt", "images/.hidden.jpg"]) == ["images/notes.txt", "images/.hidden.jpg"]


def test_discover_goes_through_folders_in_order() -> None:
    assert found(["images"]) == ALL
    assert found(["images/"]) == ALL
    assert found(["images/sub", "images/b.jpg"]) == [ALL[4], ALL[5], "images/b.jpg"]


def test_discover_takes_a_hidden_folder_that_is_named() -> None:
    assert found(["images/sub/.secret"]) == ["images/sub/.secret/x.jpg"]


def test_discover_keeps_dot_as_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("images/sub")
    assert found(["."]) == ["./deep/y.gif", "./z.webp"]


def test_discover_finds_nothing_in_an_empty_folder() -> None:
    Path("empty").mkdir()
    assert found(["empty"]) == []
    assert found([]) == []


def test_discover_reports_what_does_not_exist() -> None:
    Path("dangling.jpg").symlink_to("nowhere.jpg")
    Path("loop.jpg").symlink_to("loop.jpg")
    assert found(["nope.jpg", "images/b.jpg", "dangling.jpg", "loop.jpg", "", "a\0b"]) == [
        "nope.jpg: no such file or directory",
        "images/b.jpg",
        "dangling.jpg: dangling link: no such file or directory",
        "loop.jpg: too many levels of symbolic links",
        ": no such file or directory",
        "a\0b: not a possible file name: embedded null byte; is the list NUL-separated (-0)?",
    ]


def test_discover_yields_odd_entries_of_a_folder() -> None:
    folder = Path("odd")
    (folder / "folder.jpg").mkdir(parents=True)
    (folder / "folder.jpg" / "inside.jpg").touch()
    (folder / "dangling.jpg").symlink_to("nowhere")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(folder / "pipe.jpg")
    names = ("dangling.jpg", "folder.jpg/inside.jpg", "loop.jpg", "pipe.jpg")
    assert found(["odd"]) == [f"odd/{name}" for name in names]


def test_discover_follows_links_and_ends_loops() -> None:
    Path("images/sub/deep/up").symlink_to("../..")
    Path("images/sub/self").symlink_to(".")
    Path("elsewhere").mkdir()
    Path("elsewhere/e.jpg").touch()
    Path("images/sub/link").symlink_to("../../elsewhere")
    assert found(["images/sub"]) == [
        *("images/sub/deep/up/-dash.jpg", "images/sub/deep/up/a.PNG", "images/sub/deep/up/b.jpg"),
        *("images/sub/deep/up/c[1].jpg", "images/sub/deep/y.gif", "images/sub/link/e.jpg", "images/sub/z.webp"),
    ]


def test_discover_goes_deeper_than_the_recursion_limit() -> None:
    start = os.getcwd()  # noqa: PTH109
    for _ in range(1200):
        os.mkdir("d")  # noqa: PTH102
        os.chdir("d")
    Path("x.jpg").touch()
    os.chdir(start)
    path = "d/" * 1200 + "x.jpg"
    try:
        assert found(["d"]) == [path]
    finally:  # pytest's own clean-up would recurse
        Path(path).unlink()
        os.removedirs("d/" * 1200)


def test_discover_reports_a_folder_it_cannot_read(tree: Path) -> None:
    tree.chmod(0o755)  # the current folder; of those above nothing is asked
    Path("images/sub/deep").chmod(0)
    try:
        with pictures.unprivileged():
            assert found(["images"]) == [
                *ALL[:4],
                "images/sub/deep: permission denied",
                ALL[5],
            ]
            assert found(["images/**/*.webp"]) == ["images/sub/z.webp", "images/sub/deep: permission denied"]
    finally:
        Path("images/sub/deep").chmod(0o755)


def test_discover_keeps_names_in_any_bytes() -> None:
    name = os.fsdecode(b"\xff\xfe.jpg")
    odd = ["new\nline.jpg", "qu'o\"te.jpg", "😀.jpg", name]
    Path("odd").mkdir()
    for each in odd:
        Path("odd", each).touch()
    assert found(["odd"]) == sorted(f"odd/{each}" for each in odd)


def test_discover_is_lazy() -> None:
    refs = discover(["images", "nope"])
    assert isinstance(refs, Iterator)
    assert next(refs).path == ALL[0]
    Path("nope").touch()  # not looked at yet
    assert list(refs)[-1] == ImageRef("nope")


def test_extensions_are_those_of_the_formats_that_are_read() -> None:
    Image.init()
    # HEIC isn't told to Pillow
    known = Image.registered_extensions() | dict.fromkeys((".heic", ".heif", ".hif"), "HEIC")
    assert {known[extension] for extension in EXTENSIONS} <= {*FORMATS, "MPO", "HEIC"}
    missing = {extension for extension, name in known.items() if name in (*FORMATS, "HEIC")} - EXTENSIONS
    assert not missing


# ------------------------------------------------------------------------------------------- patterns


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("images/*.jpg", ["images/-dash.jpg", "images/b.jpg", "images/c[1].jpg"]),
        ("images/?.*", ["images/a.PNG", "images/b.jpg"]),
        ("images/[ab].*", ["images/a.PNG", "images/b.jpg"]),
        ("images/.*.jpg", ["images/.hidden.jpg"]),
        ("images/s*", ["images/sub/deep/y.gif", "images/sub/z.webp"]),
        ("images/n*", ["images/notes.txt"]),
        ("*/sub/*/y.gif", ["images/sub/deep/y.gif"]),
        ("images/**/*.gif", ["images/sub/deep/y.gif"]),
        ("**/?.jpg", ["images/b.jpg"]),
        ("images/sub/**", ["images/sub/deep/README", "images/sub/deep/y.gif", "images/sub/z.webp"]),
        ("images/**/deep", ["images/**/deep: no file matches this pattern"]),
        ("*.nope", ["*.nope: no file matches this pattern"]),
        ("nope/*.jpg", ["nope/*.jpg: no file matches this pattern"]),
        ("images/b.jpg/*", ["images/b.jpg/*: no file matches this pattern"]),
    ],
)
def test_discover_expands_a_pattern(pattern: str, expected: list[str]) -> None:
    assert found([pattern]) == expected


def test_discover_prefers_a_file_of_that_name_to_a_pattern() -> None:
    Path("images/c1.jpg").touch()
    assert found(["images/c[1].jpg"]) == ["images/c[1].jpg"]
    Path("images/c[1].jpg").unlink()
    assert found(["images/c[1].jpg"]) == ["images/c1.jpg"]


def test_discover_expands_an_absolute_pattern(tree: Path) -> None:
    assert found([f"{tree}/images/b.*"]) == [f"{tree}/images/b.jpg"]


def test_discover_ends_loops_in_a_pattern() -> None:
    for name in ("one", "two", "three"):
        Path("images/sub", name).symlink_to("..")
    assert found(["images/**/z.webp"]) == ["images/sub/z.webp"]


# ------------------------------------------------------------------------------------------- lists


@pytest.mark.parametrize(
    ("data", "null_separated", "expected"),
    [
        (b"images/b.jpg\nimages/a.PNG\n", False, ["images/b.jpg", "images/a.PNG"]),
        (b"images/b.jpg\n\n\nimages/a.PNG", False, ["images/b.jpg", "images/a.PNG"]),
        (b"\xef\xbb\xbfimages/b.jpg\r\nimages/a.PNG\r\n", False, ["images/b.jpg", "images/a.PNG"]),
        (b"images/b.jpg\0\0images/a.PNG\0", True, ["images/b.jpg", "images/a.PNG"]),
        (b"a\nb.jpg\0images/b.jpg", True, ["a\nb.jpg: no such file or directory", "images/b.jpg"]),
        (b"images/sub\n", False, ["images/sub/deep/y.gif", "images/sub/z.webp"]),
        (b"images/*.jpg\n-\n", False, [f"{name}: no such file or directory" for name in ("images/*.jpg", "-")]),
        (b"", False, []),
        (b"", True, []),
    ],
)
def test_discover_reads_lists(data: bytes, null_separated: bool, expected: list[str]) -> None:
    Path("list").write_bytes(data)
    assert found(["-"], stdin=io.BytesIO(data), null=null_separated) == expected
    assert found([], files_from="list", null=null_separated) == expected
    assert found([], files_from="-", stdin=io.BytesIO(data), null=null_separated) == expected


def test_discover_reads_the_list_after_the_inputs() -> None:
    Path("list").write_text("images/b.jpg\n")
    assert found(["images/a.PNG"], files_from="list") == ["images/a.PNG", "images/b.jpg"]


def test_discover_keeps_a_carriage_return_that_belongs_to_a_name() -> None:
    Path("odd.jpg\r").touch()
    assert found(["-"], stdin=io.BytesIO(b"odd.jpg\r\n")) == ["odd.jpg\r"]


def test_discover_takes_names_in_any_bytes_from_a_list() -> None:
    name = os.fsdecode(b"\xff\xfe.jpg")
    Path(name).touch()
    assert found(["-"], stdin=io.BytesIO(b"\xff\xfe.jpg\n")) == [name]


def test_discover_reads_the_process_own_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading) as stdin, os.fdopen(writing, "wb") as pipe:
        pipe.write(b"images/b.jpg\n")
        pipe.close()
        monkeypatch.setattr(sys, "stdin", stdin)
        assert found(["-"]) == ["images/b.jpg"]
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UsageError, match="standard input is closed"):
        found(["-"])


@pytest.mark.parametrize("end", [b"\n", b"\0"])
def test_discover_gives_a_path_as_soon_as_it_is_there(end: bytes) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stdin, os.fdopen(writing, "wb", buffering=0) as pipe:
        refs = discover(Sources(["-"], stdin=stdin, null=end == b"\0"))
        for name in (b"images/b.jpg", b"images/a.PNG"):
            pipe.write(name + end)  # the pipe stays open: more could follow
            assert next(refs).path == name.decode()


@pytest.mark.parametrize("null_separated", [False, True])
def test_discover_refuses_a_list_with_another_separator(null_separated: bool) -> None:
    other = b"\n" if null_separated else b"\0"
    with pytest.raises(UsageError, match=r"longer than 1 MiB.*-0"):
        found(["-"], stdin=io.BytesIO((b"images/b.jpg" + other) * 200_000), null=null_separated)


@pytest.mark.parametrize(("name", "reason"), [("nope", "no such file"), ("images", "is a directory"), ("a\0b", "null")])
def test_discover_refuses_a_list_it_cannot_open_at_once(name: str, reason: str) -> None:
    with pytest.raises(UsageError, match=f"--files-from {name}: can't be read: .*{reason}"):
        discover(Sources(["images"], files_from=name))


def test_discover_says_when_a_list_breaks_off() -> None:
    class Broken(io.BytesIO):
        def readline(self, size: int | None = -1, /) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(UsageError, match="the list of paths breaks off"):
        found(["-"], stdin=Broken())


# ------------------------------------------------------------------------------------------- addresses

URL = "https://example.org/a[1]*.jpg?size=large"


@pytest.mark.parametrize("url", [URL, "HTTP://example.org/x", "http://" + "x" * 5000])
def test_discover_takes_addresses_that_are_allowed(url: str) -> None:
    expected = [ImageRef(url, content=Address(url))]
    assert list(discover(Sources([url], allow_urls=True))) == expected
    assert list(discover(Sources(["-"], stdin=io.BytesIO(f"{url}\r\n".encode()), allow_urls=True))) == expected
    refused = [ImageRef(url, "an address; --allow-urls has it fetched")]
    assert list(discover([url])) == list(discover(Sources(["-"], stdin=io.BytesIO(url.encode())))) == refused


def test_discover_prefers_a_file_to_an_address() -> None:
    path = Path("http:/example.org/a.jpg")
    path.parent.mkdir(parents=True)
    path.touch()
    assert list(discover(Sources(["http://example.org/a.jpg"], allow_urls=True))) == [
        ImageRef("http://example.org/a.jpg")
    ]


@pytest.mark.parametrize("name", ["{000..009}.tar", "a.tar?x=1", "a.TGZ#x", "a.parquet", "a.csv?x=a.jpg"])
def test_discover_reads_no_shards_or_tables_from_the_web(name: str) -> None:
    (image,) = discover(Sources([f"https://example.org/{name}"], allow_urls=True))
    assert image.path == f"https://example.org/{name}" and image.content is None
    assert image.error is not None and image.error.endswith("on the web, which has to be downloaded first")


# ------------------------------------------------------------------------------------------- shards


def write_shard(path: str, *names: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))


@pytest.fixture
def shards() -> list[str]:
    """What is found in two shards, one of them in a folder with a picture."""
    write_shard("shards/0.tar", "b.jpg", "b.txt", "a.jpg")
    write_shard("shards/sub/1.tar", "c.jpg")
    Path("shards/sub/d.jpg").touch()
    return ["shards/0.tar/b.jpg", "shards/0.tar/a.jpg", "shards/sub/1.tar/c.jpg"]


def test_discover_gives_what_is_in_a_shard(shards: list[str]) -> None:
    assert found(["images/b.jpg", "shards/0.tar", "shards/sub/1.tar"]) == ["images/b.jpg", *shards]
    assert found(["-"], stdin=io.BytesIO(b"shards/0.tar\nshards/sub/1.tar\n")) == shards
    assert all(isinstance(image.content, Span) for image in discover(["shards/0.tar"]))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("shards/*.tar", slice(0, 2)),
        ("shards/**/*.tar", slice(0, 3)),
        ("shards/{0,sub/1}.tar", slice(0, 3)),
        ("s[h]ards/{0..0}.tar", slice(0, 2)),
    ],
)
def test_discover_expands_patterns_of_shards(shards: list[str], pattern: str, expected: slice) -> None:
    assert found([pattern]) == shards[expected]


def test_discover_goes_on_where_a_shard_of_a_pattern_is_missing(shards: list[str]) -> None:
    Path("shards/2.tar").write_bytes(b"")
    missing = "shards/1.tar: no such file or directory"
    assert found(["shards/{0..2}.tar"]) == [*shards[:2], missing, "shards/2.tar: empty file"]
    assert found(["shards/{0.tar"]) == ["shards/{0.tar: Unbalanced braces: 'shards/{0.tar'"]


def test_discover_prefers_a_file_of_that_name_to_braces(shards: list[str]) -> None:
    Path("shards/0.tar").rename("shards/{0,1}.tar")
    assert found(["shards/{0,1}.tar"]) == ["shards/{0,1}.tar/b.jpg", "shards/{0,1}.tar/a.jpg"]
    assert found(["{a,b}.jpg"]) == ["{a,b}.jpg: no such file or directory"]


def test_discover_does_not_look_into_shards_in_folders(shards: list[str]) -> None:
    assert found(["shards"]) == ["shards/sub/d.jpg"]
    assert found(["shards/**"]) == [*shards, "shards/sub/d.jpg"]


def test_discover_opens_no_pipe_that_is_called_a_shard_or_a_table() -> None:
    for name in ("pipe.tar", "pipe.csv"):
        os.mkfifo(name)
    assert found(["pipe.tar", "pipe.csv"], column="image") == ["pipe.tar", "pipe.csv"]


def test_discover_takes_a_folder_that_is_called_a_shard_for_a_folder() -> None:
    Path("folder.tar").mkdir()
    Path("folder.tar/a.jpg").touch()
    Path("folder.csv").mkdir()
    assert found(["folder.tar", "folder.csv"]) == found(["**/folder.*/*.jpg"]) == ["folder.tar/a.jpg"]
    assert found(["**/folder.*"]) == ["**/folder.*: no file matches this pattern"]


@pytest.mark.usefixtures("shards")
def test_hint_names_shards_in_folders() -> None:
    expected = "shards holds shards such as shards/0.tar; name them to have them read"
    assert hint(Sources(["images", "nope", "-", "http://a/*", "shards"])) == expected
    assert hint(Sources("shards")) == hint(Sources(["sh*"])) == expected
    assert hint(Sources(["images", "shards/0.tar", "**/nope"])) is None


@pytest.mark.parametrize("name", ["-", "a.parquet", "a.csv", "shards/*.tar.gz", "a.TGZ"])
def test_are_countable_excepts_what_would_be_read_twice(name: str) -> None:
    assert are_countable(Sources(["images", "*.jpg", "a.tar", "{0..9}.TAR"]))
    assert not are_countable(Sources(["images", name]))


# ------------------------------------------------------------------------------------------- tables


def write_table(path: str, *lines: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("\n".join(["image,text", *lines]))


def test_discover_takes_the_paths_of_a_table_from_its_folder(tree: Path) -> None:
    write_shard("images/0.tar", "in.jpg")
    write_table("images/t.csv", "b.jpg,x", f"{tree}/images/a.PNG,x", "sub/deep,x", "0.tar,x", "*.jpg,x", ",x")
    expected = [
        *("images/b.jpg", f"{tree}/images/a.PNG", "images/sub/deep/y.gif", "images/0.tar/in.jpg"),
        *("images/*.jpg: no such file or directory", "images/t.csv/5: nothing in the column image"),
    ]
    assert found(["images/t.csv"], column="image") == expected
    assert found(["-"], stdin=io.BytesIO(b"images/t.csv\n"), column="image") == expected
    assert found(["images/t.*"], column="image") == found(["images/**/t.csv"], column="image") == expected


def test_discover_takes_addresses_from_a_table() -> None:
    write_table("t.csv", f"{URL},x")
    assert list(discover(Sources(["t.csv"], column="image", allow_urls=True))) == [ImageRef(URL, content=Address(URL))]
    assert list(discover(Sources(["t.csv"], column="image"))) == list(discover([URL]))


def test_discover_takes_pictures_from_a_table() -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"bytes": b"one", "path": "b.jpg"}, None, {"bytes": None, "path": "images/b.jpg"}, {"bytes": b"three"}]
    parquet.write_table(pyarrow.table({"image": rows}), "t.parquet")
    assert list(discover(Sources(["t.parquet"], column="image"))) == [
        ImageRef("t.parquet/0", content=b"one"),
        ImageRef("t.parquet/1", "nothing in the column image"),
        ImageRef("images/b.jpg"),
        ImageRef("t.parquet/3", content=b"three"),
    ]


def test_discover_ends_tables_in_tables() -> None:
    write_table("t.csv", "t.csv,x", "images/b.jpg,x")
    assert found(["t.csv"], column="image") == ["t.csv: a table in a table", "images/b.jpg"]


def test_discover_refuses_a_table_at_once() -> None:
    Path("t.csv").write_text("photo,text\nimages/b.jpg,x\n")
    with pytest.raises(UsageError, match=r"^t\.csv: a table without a column path, image, .*; --column says which"):
        discover(["images", "t.csv"])
    with pytest.raises(UsageError, match=r"^t\.csv: no column picture; there are: photo, text$"):
        discover(Sources(["images", "t.csv"], column="picture"))
    Path("t.csv").write_text("image,path\nimages/b.jpg,x\n")
    with pytest.raises(UsageError, match=r"^t\.csv: path and image may both be the column"):
        discover(["t.csv"])


@pytest.mark.parametrize("name", ["path", "image", "file_name", "url"])
def test_discover_finds_the_column_by_its_name(name: str) -> None:
    Path("t.csv").write_text(f"text,{name}\nx,images/b.jpg\n")
    assert found(["t.csv"]) == ["images/b.jpg"]


def test_discover_goes_on_after_a_table_of_a_list_or_a_pattern() -> None:
    Path("t.csv").write_text("photo,text\nimages/b.jpg,x\n")
    names = "path, image, filepath, file_name, filename, url"
    no_column = f"t.csv: a table without a column {names}; --column says which one holds the pictures"
    other = "t.csv: no column picture; there are: photo, text"
    for column, expected in ((None, no_column), ("picture", other)):
        listing = io.BytesIO(b"t.csv\nimages/b.jpg\n")
        assert found(["*.csv", "-"], stdin=listing, column=column) == [expected, expected, "images/b.jpg"]


@pytest.mark.parametrize("text", ["{}", "data:image/png;base64,{}"])
@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
def test_discover_reads_pictures_in_base64(name: str, text: str) -> None:
    picture = b"\x89PNG\r\n\x1a\n" + bytes(60)
    text = text.format(base64.b64encode(picture).decode())
    rows = [text, "images/b.jpg", "iVBORw0KGgo" * 9 + "~", "data:image/png;base64,~"]
    if name == "t.csv":
        Path(name).write_text("image\n" + "".join(f'"{row}"\n' for row in rows))
    elif name == "t.jsonl":
        Path(name).write_text("".join(json.dumps({"image": row}) + "\n" for row in rows))
    else:
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table({"image": rows}), name)
    first, second, third, fourth = discover([name])
    assert first == ImageRef(f"{name}/0", content=picture)
    assert second.path == "images/b.jpg"
    assert third.error is not None
    assert fourth.error == "a data URI in the column image that isn't base64"
    if name != "t.parquet":
        unread = next(discover([name], unread=True))
        assert unread.error == "a picture in base64, which workers elsewhere read from Parquet only"


@pytest.mark.parametrize("folder", ["set.parquet", "set"])
def test_discover_reads_folders_of_parquet_files(folder: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    Path(folder).mkdir()
    for name in ("part-1", "part-0", "_part"):
        parquet.write_table(pyarrow.table({"image": [name.encode()]}), f"{folder}/{name}.parquet")
    parts = [f"{folder}/part-0.parquet/0", f"{folder}/part-1.parquet/0"]
    assert found([folder], column="image") == parts
    assert found([folder]) == (parts if folder == "set.parquet" else [])
    if folder == "set.parquet":
        with pytest.raises(UsageError, match="no column picture"):
            discover(Sources([folder], column="picture"))


def test_the_column_of_a_long_table_is_found_in_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("t.jsonl").write_text('{"path": "images/b.jpg"}\n' * 99 + '{"other": 1}\n' * 50)
    monkeypatch.setattr("clipcls.inputs.tables._TRIED_RECORDS", 10)
    assert table_columns("t.jsonl", tried=True) == ["path"]
    assert table_columns("t.jsonl") == ["path", "other"]
    assert found(["t.jsonl"])[:99] == ["images/b.jpg"] * 99


def test_listing_that_nobody_asks_about_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "clipcls")
    Path("images/raw.cr3").touch()
    assert found(["images"])
    assert not caplog.messages


def test_folders_say_what_they_leave_out(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "clipcls")
    Path("mixed/@eaDir/b.jpg").mkdir(parents=True)
    Path("mixed/@eaDir/b.jpg/SYNOPHOTO_THUMB_M.jpg").write_bytes(b"\xff\xd8\xff")
    for name in ("a.jpg", "b.jxl", "c.JXL", "d.dng", "e.txt", "IMG_1", "photo.jpg.1", "notes", ".hidden.jxl"):
        Path("mixed", name).write_bytes(b"\xff\xd8\xff" if name in ("IMG_1", "photo.jpg.1") else b"text")
    left_out = LeftOut()
    assert [image.path for image in discover(["mixed"], left_out=left_out)] == [
        "mixed/IMG_1",
        "mixed/a.jpg",
        "mixed/photo.jpg.1",
    ]
    left_out.report(["mixed"])
    said = "left out of mixed: 2 .jxl, 1 folder @eaDir, 1 .dng, 1 without an extension (-v lists them)"
    assert caplog.messages[-1] == said
    assert "left out: mixed/c.JXL" in caplog.messages
    assert found(["mixed/@eaDir/b.jpg"]) == ["mixed/@eaDir/b.jpg/SYNOPHOTO_THUMB_M.jpg"]


@pytest.mark.parametrize("sources", [{"inputs": ["-"]}, {"files_from": "-"}])
def test_a_picture_on_standard_input_is_one(sources: dict[str, Any]) -> None:
    data = b"\x89PNG\r\n\x1a\n" + bytes(300_000)
    expected = [ImageRef("-", content=data)]
    assert list(discover(Sources(stdin=io.BytesIO(data), **sources))) == expected
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        assert list(discover(Sources(stdin=file, **sources))) == expected


def test_discover_reports_a_broken_table() -> None:
    Path("t.parquet").write_bytes(b"no parquet at all")
    pytest.importorskip("pyarrow")
    (image,) = discover(Sources(["t.parquet"], column="image"))
    assert image.path == "t.parquet"
    assert image.error is not None and image.error.startswith("the table can't be read, or not to its end: ")
    assert found(["nope.csv"]) == ["nope.csv: no such file or directory"]


# ------------------------------------------------------------------------------------------- containers left unread


def write_containers() -> list[str]:
    """Two shards, and a table of three row groups with pictures, paths, a folder, a shard, an address and nothing."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    write_shard("images/0.tar", "b.jpg", "b.txt", "a.jpg", "c.jpg")
    with tarfile.open("images/1.tgz", "w:gz") as archive:
        archive.add("images/sub")
    paths = ["b.jpg", "sub", "0.tar", "nope.jpg", URL, None, "t.parquet"]
    rows = [{"bytes": b"one", "path": "1.jpg"}, *({"bytes": None, "path": path} for path in paths), {"bytes": b"two"}]
    parquet.write_table(pyarrow.table({"image": rows}), "images/t.parquet", row_group_size=4)
    parquet.write_table(pyarrow.table({"image": ["b.jpg", "1.tgz", "a.PNG"]}), "images/u.parquet", row_group_size=2)
    return ["images/0.tar", "images/1.tgz", "images/t.parquet", "images/u.parquet"]


def test_discover_leaves_shards_and_parquet_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    names = write_containers()
    write_table("t.csv", "images/0.tar,x", "images/b.jpg,x", "images/t.parquet,x")
    shard, compressed, table, other = (
        ImageRef(name, content=Container("shard" if "tar" in name or "tgz" in name else "table")) for name in names
    )
    plain = ImageRef("images/b.jpg")
    listing = io.BytesIO("\n".join(names).encode())
    for inputs in (names, ["images/[01].t*", "images/**/*.parquet"], ["-"]):
        assert list(discover(Sources(inputs, stdin=listing, column="image"), unread=True)) == [
            shard,
            compressed,
            table,
            other,
        ]
    assert list(discover(Sources(["t.csv"], column="image"), unread=True)) == [
        shard,
        plain,
        ImageRef("images/t.parquet", "a table in a table"),
    ]
    with pytest.raises(UsageError, match="no column picture"):
        discover(Sources(["images/t.parquet"], column="picture"), unread=True)
    monkeypatch.setattr("clipcls.inputs.discover.read_pictures", None)
    monkeypatch.setattr("clipcls.inputs.discover.read_column", None)
    assert list(discover(Sources(names, column="image"), unread=True))


def test_expand_gives_what_discover_would_have(tree: Path) -> None:
    names = write_containers()
    (tree / "images/broken.tar").write_bytes(Path("images/0.tar").read_bytes()[:1100])
    (tree / "images/no.tar").write_bytes(b"no tar")
    (tree / "images/broken.parquet").write_bytes(b"no parquet")
    for name in (*names, "images/broken.tar", "images/no.tar", "images/b.jpg", "nope.tar"):
        for allow_urls in (False, True):
            expected = list(discover(Sources([name], column="image", allow_urls=allow_urls)))
            (image,) = discover(Sources([name], column="image"), unread=True)
            assert list(expand(image, Sources(column="image", allow_urls=allow_urls))) == expected
    (image,) = discover(Sources(["images/broken.parquet"], column="image"), unread=True)
    (expected_image,) = discover(Sources(["images/broken.parquet"], column="image"))
    assert (
        list(expand(image, Sources(column="image"), (0, 3)))
        == list(expand(image, Sources(column="image"), (3, 9)))
        == [expected_image]
    )


@pytest.mark.parametrize("step", [1, 2, 3, 5, 100])
def test_expand_gives_the_whole_in_parts(step: int) -> None:
    names = write_containers()
    Path("images/2.tar").write_bytes(Path("images/0.tar").read_bytes()[:1100])
    for name in (*names, "images/2.tar"):
        (image,) = discover(Sources([name], column="image"), unread=True)
        parts = [
            list(expand(image, Sources(column="image", allow_urls=True), (first, first + step)))
            for first in range(0, 30, step)
        ]
        assert [image for part in parts for image in part] == list(
            discover(Sources([name], column="image", allow_urls=True))
        )
        assert not is_shard(name) or max(map(len, parts)) <= step


def test_expand_opens_nothing_before_it_is_asked() -> None:
    names = write_containers()
    images = [expand(image, Sources(column="image")) for image in discover(Sources(names, column="image"), unread=True)]
    assert [next(pictures).path for pictures in images] == [
        *("images/0.tar/b.jpg", "images/1.tgz/images/sub/deep/y.gif", "images/t.parquet/0", "images/b.jpg")
    ]


def test_inputs_imports_neither_pillow_nor_numpy() -> None:
    code = "import sys, clipcls.inputs.discover; print({'PIL', 'numpy', 'torch'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_discover_takes_a_single_name_and_paths(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    for given in (str(tmp_path / "a.png"), [tmp_path / "a.png"]):
        assert [ref.path for ref in discover(given)] == [str(tmp_path / "a.png")]


@pytest.mark.parametrize("start", [b"\0\0\0\x20ftypisom\0\0", b"\x1aE\xdf\xa3\xa3B", b"RIFF\0\1\0\0AVI LIST"])
def test_video_is_no_list_of_paths(start: bytes) -> None:
    with pytest.raises(UsageError, match="a video stands where a list of paths was expected"):
        list(discover(Sources(["-"], stdin=io.BytesIO(start + b"\n" * 40))))
