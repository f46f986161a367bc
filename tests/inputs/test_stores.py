"""Addresses of stores as inputs: what is found there, how it is read, what is refused, and what errors become."""

import errno
import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import known_implementations

from clipcls.embed.cache.store import Cache
from clipcls.errors import ImageError, UsageError
from clipcls.inputs import stores
from clipcls.inputs.contents import known_stamp, located, open_content
from clipcls.inputs.discover import are_countable, discover, expand, hint
from clipcls.inputs.listing import Sources
from clipcls.inputs.tables import row_groups
from clipcls.records import Address, Container, FileStamp, ImageRef, Stored
from conftest import FakeEncoder, embed_images, save_pictures

FILES = ("b.jpg", "a.PNG", "notes.txt", ".hidden.jpg", "sub/z.webp", "sub/.secret/x.jpg", "sub/deep/y.gif", "c[1].jpg")


class Shop(MemoryFileSystem):  # type: ignore[misc]
    """A store that gives versions, counts what it is asked, and may be out of order."""

    protocol = "shop"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    asked: ClassVar[list[str]] = []
    failure: ClassVar[Exception | None] = None

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        stripped: str = MemoryFileSystem._strip_protocol(path.replace("shop://", "memory://"))
        return stripped

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        self._note("info")
        return self._versioned(super().info(path, **options))

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        self._note("ls")
        return [self._versioned(facts) for facts in super().ls(path, True, **options)]

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        self._note("cat_file")
        if start and start >= self.store[path].size:
            raise OSError(errno.EINVAL, "InvalidRange")  # as S3 says it
        data: bytes = super().cat_file(path, start, end, **options)
        return data

    def _note(self, method: str) -> None:
        Shop.asked.append(method)
        if Shop.failure is not None:
            raise Shop.failure

    def _versioned(self, facts: dict[str, Any]) -> dict[str, Any]:
        if facts["type"] == "file":
            facts = facts | {"ETag": str(hash(self.store[facts["name"]].getvalue()))}
        return facts


class Deaf(AsyncFileSystem):  # type: ignore[misc]
    """A store that never answers."""

    protocol = "deaf"

    async def _info(self, path: str, **_: Any) -> dict[str, Any]:
        import asyncio

        await asyncio.sleep(60)
        return {}


fsspec.register_implementation("shop", Shop, clobber=True)
fsspec.register_implementation("deaf", Deaf, clobber=True)


@pytest.fixture(autouse=True)
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The same files in the current folder and in two stores."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Shop, "failure", None)
    for system in (Shop, MemoryFileSystem):
        system.store.clear()
        system.pseudo_dirs[:] = [""]
    for name in FILES:
        put(f"images/{name}", name.encode())
    Shop.asked.clear()
    yield tmp_path
    for system in (Shop, MemoryFileSystem):
        system.store.clear()
        system.pseudo_dirs[:] = [""]


def put(name: str, data: bytes) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(data)
    for protocol in ("memory", "shop"):
        fsspec.filesystem(protocol).pipe_file(f"/bucket/{name}", data)


def put_tar(name: str, files: dict[str, bytes]) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for each, content in files.items():
            header = tarfile.TarInfo(each)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    put(name, gzip.compress(data.getvalue()) if name.endswith("gz") else data.getvalue())


def found(inputs: Sequence[str], **options: Any) -> list[str]:
    """The paths; those with an error as `path: error`."""
    refs = list(discover(Sources(inputs, **options)))
    return [ref.path if ref.error is None else f"{ref.path}: {ref.error}" for ref in refs]


def read(image: ImageRef, max_bytes: int = 1000) -> bytes:
    with open_content(image, max_bytes) as opened:
        return opened.file.read()


def problem(image: ImageRef, max_bytes: int = 1000) -> str:
    with pytest.raises(ImageError) as caught:
        read(image, max_bytes)
    return str(caught.value)


# ------------------------------------------------------------------------------------------- what is found


@pytest.mark.parametrize("store", ["memory://bucket", "shop://bucket"])
@pytest.mark.parametrize(
    "inputs",
    [
        ["images"],
        ["images/"],
        ["images/b.jpg", "images/notes.txt", "images/sub"],
        ["images/*.jpg"],
        ["images/.*"],
        ["images/*"],
        ["images/s*"],
        ["images/n*"],
        ["images/**"],
        ["images/**/*.gif"],
        ["**/sub/*/?.gif"],
        ["images/**/z.webp"],
        ["*/sub/z.webp"],
        ["images/*/nope.jpg"],
        ["images/c[1].jpg"],
        ["images/b.jpg/*"],
        ["nope/*.jpg"],
        ["shards/{0..1}.tar", "shards/2.tar.gz"],
        ["shards/*"],
        ["shards/**"],
        ["t.csv"],
        ["*.csv"],
        ["t.jsonl", "t.parquet"],
        ["broken.tar", "empty.tar", "broken.parquet"],
    ],
    ids=lambda inputs: " ".join(inputs),
)
def test_discover_finds_in_a_store_what_it_finds_on_disk(inputs: list[str], store: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for name in ("0.tar", "1.tar", "2.tar.gz"):
        put_tar(f"shards/{name}", {"b.jpg": name.encode() * 9, "b.txt": b"text", "a/.jpg": b"", "a.png": b"a"})
    put("t.csv", b"image\nimages/b.jpg\n\nimages/sub/\n,\nshards/0.tar\nt.csv\n")
    put("t.jsonl", json.dumps({"image": "images/a.PNG"}).encode())
    rows = [{"bytes": b"one", "path": "1.jpg"}, {"bytes": None, "path": "images/b.jpg"}, None]
    parquet.write_table(pyarrow.table({"image": rows}), "t.parquet", row_group_size=2)
    put("t.parquet", Path("t.parquet").read_bytes())
    put("broken.tar", Path("shards/0.tar").read_bytes()[:1100])
    put("empty.tar", b"")
    put("broken.parquet", b"no parquet")

    def seen(prefix: str) -> list[tuple[str, str | bytes]]:
        images = list(discover(Sources([f"{prefix}{name}" for name in inputs], column="image")))
        # what a broken shard lacks is called differently where it is a stream
        said = [(image.error or "").replace("truncated header", "unexpected end of data") for image in images]
        return [
            (image.path.removeprefix(prefix), error or read(image, 10**6))
            for image, error in zip(images, said, strict=True)
        ]

    assert seen(f"{store}/") == seen("")


def test_discover_asks_a_listing_for_what_tells_changes() -> None:
    (image,) = discover(["shop://bucket/images/sub/deep/"])
    stamp = known_stamp(image)
    assert image == ImageRef("shop://bucket/images/sub/deep/y.gif", content=Stored(14, stamp, is_known=True))
    assert stamp is not None and stamp.size == 14 and Shop.asked == ["ls"]
    (other,) = discover(["memory://bucket/images/sub/deep/"])
    assert other.content == Stored(14, is_known=True) and known_stamp(other) is None


def test_discover_asks_nothing_for_pictures_in_a_list() -> None:
    data = b"shop://bucket/images/b.jpg\nshop://bucket/nope.jpg\n"
    images = list(discover(Sources(["-"], stdin=io.BytesIO(data), allow_private_urls=True)))
    assert [image.content for image in images] == [Stored(), Stored()] and not Shop.asked
    assert read(images[0]) == b"b.jpg"
    assert problem(images[1]) == "no such file or directory"
    put("list", data)
    assert list(discover(Sources([], files_from="shop://bucket/list", allow_private_urls=True))) == images
    with pytest.raises(UsageError, match=r"^--files-from shop://nope: can't be read: no such file or directory$"):
        discover(Sources([], files_from="shop://nope"))


def test_discover_prefers_a_file_to_an_address() -> None:
    Path("shop:/bucket").mkdir(parents=True)
    Path("shop:/bucket/b.jpg").touch()
    assert list(discover(["shop://bucket/b.jpg"])) == [ImageRef("shop://bucket/b.jpg")]


def test_discover_reports_what_is_not_there() -> None:
    assert found(["shop://bucket/nope", "shop://bucket/nope/", "shop://bucket/nope.tar"]) == [
        "shop://bucket/nope: no such file or directory",
        "shop://bucket/nope/: no such file or directory",
        "shop://bucket/nope.tar: no such file or directory",
    ]
    fsspec.filesystem("shop").mkdir("/bucket/folder.tar")
    fsspec.filesystem("shop").mkdir("/bucket/folder.jpg")
    assert found(["shop://bucket/folder.tar"]) == ["shop://bucket/folder.tar: a folder, not a file"]
    (image,) = discover(["shop://bucket/folder.jpg"])
    assert problem(image) == "a folder; with / behind its name, it is gone through"


def test_discover_leaves_out_what_marks_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    marker = {"name": "bucket/images/sub/", "size": 0, "type": "file"}
    picture = {"name": "bucket/images/sub/a.jpg", "size": 1, "type": "file"}
    monkeypatch.setattr(Shop, "ls", lambda *_, **__: [marker, picture])
    assert found(["shop://bucket/images/sub/"]) == ["shop://bucket/images/sub/a.jpg"]


def test_local_path_takes_file_addresses(tree: Path) -> None:
    put("with space.jpg", b"")
    put("with%20.jpg", b"")
    names = ["images/b.jpg", "with space.jpg", "with%20.jpg"]
    assert found([f"file://{tree}/{name}" for name in names]) == [f"{tree}/{name}" for name in names]
    assert found([f"file://{tree}/with%20space.jpg"]) == [f"{tree}/with space.jpg"]
    assert found([f"file://{tree}/images/*.jpg"]) == found([f"{tree}/images/*.jpg"])
    assert found(["-"], stdin=io.BytesIO(f"FILE://{tree}/images".encode())) == found([f"{tree}/images"])
    assert found(["file:///nope"]) == ["/nope: no such file or directory"]
    put("images/t.csv", f"image\nfile://{tree}/images/b.jpg\nb.jpg\n{tree}/images/b.jpg\n".encode())
    assert found([f"file://{tree}/images/t.csv"], column="image") == [f"{tree}/images/b.jpg"] * 3
    local, beside, absolute = found(["shop://bucket/images/t.csv"], column="image")
    assert (local, beside, absolute) == (f"{tree}/images/b.jpg", "shop://bucket/images/b.jpg", local)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jpg", "s3://bucket/x/y/a.jpg"),
        ("../a.jpg", "s3://bucket/x/a.jpg"),
        ("./sub//../", "s3://bucket/x/y/"),
        ("../../../../other/a.jpg", "s3://bucket/other/a.jpg"),
        ("a//b.jpg", "s3://bucket/x/y/a//b.jpg"),
        ("sub/", "s3://bucket/x/y/sub/"),
    ],
)
def test_beside_stays_in_the_bucket(name: str, expected: str) -> None:
    assert stores.beside("s3://bucket/x/y/t.csv", name) == expected
    assert stores.beside("s3://bucket/t.csv", "a.jpg") == "s3://bucket/a.jpg"


def test_are_countable_excepts_stores() -> None:
    assert not are_countable(Sources(["images", "shop://bucket/images/"]))
    assert are_countable(Sources(["file:///images"]))
    assert hint(Sources(["shop://bucket/images/"])) is None and not Shop.asked


def test_expand_reads_what_was_left_in_a_store() -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    put_tar("0.tar", {f"{number}.jpg": b"x" * number for number in range(5)})
    parquet.write_table(pyarrow.table({"image": ["images/b.jpg", "0.tar", "a"]}), "t.parquet", row_group_size=2)
    put("t.parquet", Path("t.parquet").read_bytes())
    Shop.asked.clear()
    shard, table = discover(Sources(["shop://bucket/0.tar", "shop://bucket/t.parquet"], column="image"), unread=True)
    assert (shard.content, table.content) == (Container("shard"), Container("table"))
    assert row_groups(table.path) == [2, 1]
    assert Shop.asked == ["info", "cat_file"] * 2  # of the table only its end, for its column and here
    for image in (shard, table):
        whole = list(discover(Sources([image.path], column="image")))
        assert list(expand(image, Sources(column="image"))) == whole
        parts = [list(expand(image, Sources(column="image"), (first, first + 2))) for first in range(0, 6, 2)]
        assert [each for part in parts for each in part] == whole


# ------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("simplecache::http://127.0.0.1/a.jpg", "a chained address"),
        ("zip://a.jpg::shop://bucket/a.zip", "a chained address"),
        ("shop://bucket/a::b.jpg", "a chained address"),
        ("generic://http://127.0.0.1/a.jpg", "generic:// stands for other addresses"),
        ("REFERENCE://a.jpg", "reference:// stands for other addresses"),
        ("nosuch://bucket/a.jpg", "Protocol not known: nosuch"),
    ],
)
def test_addresses_that_lead_elsewhere_are_refused(address: str, expected: str) -> None:
    put("t.csv", f"image\n{address}\n".encode())
    for inputs in ([address], ["t.csv"], ["-"]):
        (image,) = discover(
            Sources(inputs, stdin=io.BytesIO(address.encode()), column="image", allow_private_urls=True)
        )
        message = image.error or problem(image)
        assert message.startswith(expected)
    with pytest.raises(ImageError, match=expected):
        stores.look(address)


def test_lists_and_tables_name_settled_stores_only() -> None:
    put("t.csv", b"image\nshop://bucket/images/b.jpg\nmemory://bucket/images/b.jpg\n")
    refusal = "shop://bucket/images/b.jpg: a shop:// address in a list or a table; --allow-private-urls has it read"
    both = ["shop://bucket/images/b.jpg", "memory://bucket/images/b.jpg"]
    for inputs in (["t.csv"], ["-"]):
        for allowed, expected in ((False, [refusal, both[1]]), (True, both)):
            listing = io.BytesIO("\n".join(both).encode())
            assert found(inputs, stdin=listing, column="image", allow_private_urls=allowed) == expected
    assert found(both) == both
    # what lies beside a table that the user has named is on the server that he has named
    put("u.csv", b"image\nimages/b.jpg\n")
    assert found(["shop://bucket/u.csv"], column="image") == [both[0]]


def test_addresses_of_the_web_stay_with_the_web(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Any:
        raise AssertionError("not to be asked")

    monkeypatch.setattr("clipcls.inputs.stores._ask", refuse)
    url = "https://example.com/a.jpg?b=[1]"
    assert list(discover(Sources([url], allow_urls=True))) == [ImageRef(url, content=Address(url))]
    assert not any(map(stores.is_address, (url, "HTTP://a/b.tar", "file:///a", "a.jpg", "C://a.jpg", "a b://c")))


# ------------------------------------------------------------------------------------------- reading


def test_open_content_reads_from_a_store() -> None:
    put("empty.jpg", b"")
    empty, image = discover(["shop://bucket/empty.jpg", "shop://bucket/images/b.jpg"])
    assert read(empty) == b"" and read(image) == b"b.jpg"
    assert known_stamp(image) is None
    known = located(image)
    assert located(known) is known
    with open_content(known) as opened:
        assert opened.stamp == known_stamp(known) is not None
    with open_content(ImageRef("memory://bucket/images/b.jpg", content=Stored())) as opened:
        assert opened.stamp is None


def test_open_content_reads_no_more_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    put("large.jpg", bytes(5000))
    (image,) = discover(["shop://bucket/large.jpg"])
    assert problem(image, 4999) == "5,000 bytes, more than the limit of 4,999" and "cat_file" not in Shop.asked
    monkeypatch.setattr("clipcls.inputs.stores._BLOCK", 700)
    assert read(image, 5000) == bytes(5000)
    for size in (1, 699, 700, 701, 1400, 1401):
        put("other.jpg", bytes(size))
        (other,) = discover(["shop://bucket/other.jpg"])
        assert read(other, 5000) == bytes(size)
    unknown = ImageRef(image.path, content=Stored(is_known=True))
    assert read(unknown, 5000) == bytes(5000)
    Shop.asked.clear()
    assert problem(unknown, 1400) == "more than the limit of 1,400 bytes"
    assert Shop.asked == ["cat_file"] * 2


@pytest.mark.parametrize("size", [0, 4999, 5001])
def test_open_content_notices_another_size(size: int) -> None:
    put("a.jpg", bytes(5000))
    (image,) = discover(["shop://bucket/*.jpg"])
    put("a.jpg", bytes(size))
    assert problem(image, 9000) == "it has changed since it was listed"


def test_open_named_is_a_file_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom(5000)
    put("a.bin", data)
    monkeypatch.setattr("clipcls.inputs.stores._BLOCK", 1024)
    with stores.open_named("shop://bucket/a.bin") as file:
        assert file.seekable() and file.read(10) == data[:10]
        assert file.seek(-20, os.SEEK_END) == 4980 and file.read() == data[4980:]
        assert file.read() == b""
        file.seek(1000)
        assert file.read(3000) == data[1000:4000] and file.tell() == 4000
        put("a.bin", data[:4500])
        with pytest.raises(ImageError, match="changed since it was opened"):
            file.read()


def test_stores_are_read_from_many_threads() -> None:
    for number in range(40):
        put(f"many/{number:02d}.jpg", str(number).encode())
    images = list(discover(["shop://bucket/many/"]))
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(read, images)) == [str(number).encode() for number in range(40)]


# ------------------------------------------------------------------------------------------- the cache


def features(inputs: list[str], cache: Cache, stdin: bytes = b"") -> list[Any]:
    batches = list(
        embed_images(discover(Sources(inputs, stdin=io.BytesIO(stdin), allow_private_urls=True)), ENCODER, cache)
    )
    assert not any(error for batch in batches for error in batch.errors)
    return [row for batch in batches for row in batch.features]


ENCODER = FakeEncoder()


def test_cached_pictures_of_a_store_are_not_read_again(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [path.name for path in save_pictures(tmp_path / "made", 4)]
    for name in names:
        put(f"made/{name}", (tmp_path / "made" / name).read_bytes())
    listing = "\n".join(f"shop://bucket/made/{name}" for name in names).encode()
    cache = Cache(tmp_path / "cache")
    first = features(["shop://bucket/made/"], cache)
    assert Shop.asked.count("cat_file") == 4
    Shop.asked.clear()
    (tree / "elsewhere").mkdir()
    monkeypatch.chdir(tree / "elsewhere")
    assert np.array_equal(features(["shop://bucket/made/"], cache), first) and Shop.asked == ["ls"]
    Shop.asked.clear()
    assert np.array_equal(features(["-"], cache, listing), first) and set(Shop.asked) == {"info"}
    Shop.asked.clear()
    monkeypatch.chdir(tree)
    put(f"made/{names[0]}", (tmp_path / "made" / names[1]).read_bytes())
    Shop.asked.clear()  # some versions of fsspec ask when they write
    changed = features(["shop://bucket/made/"], cache)
    assert Shop.asked == ["ls", "cat_file"] and np.array_equal(changed[0], first[1])
    cache.close()


def test_times_tell_changes_where_there_are_no_versions() -> None:
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    time = int(moment.timestamp()) * 10**9
    assert stores._stamp(7, {"mtime": moment}) == FileStamp(7, time, time, 0)
    assert stores._stamp(7, {"mtime": 5}) is stores._stamp(7, {}) is None
    one, other = (stores._stamp(7, {"ETag": tag, "LastModified": moment}) for tag in ("a", "b"))
    assert one is not None and str(one).startswith("7 0 0 ") and one != other


# ------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (RuntimeError("Could not connect\nto it"), "Could not connect"),
        (PermissionError("Forbidden"), "access denied: Forbidden"),
        (PermissionError(13, "Forbidden"), "access denied: Forbidden"),
        (FileNotFoundError("The bucket does not exist"), "no such file or directory: The bucket does not exist"),
        (TimeoutError(), "no answer in time"),
        (OSError(5, "Slow down"), "Slow down"),
        (KeyError("size"), "'size'"),
        (
            ImportError("Install shopfs to access the shop"),
            "shop:// needs a package that isn't installed: Install shop",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_of_any_package_become_rows(failure: Exception, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = list(discover(["shop://bucket/images/sub/"]))
    monkeypatch.setattr(Shop, "failure", failure)
    prefix = "shop://bucket/"
    names = ["images/", "images/*.nope", "images", "a.tar", "images/b.jpg", "t.csv"]
    images = [*listed, *discover(Sources([prefix + name for name in names], column="image"))]
    assert len(images) >= len(listed) + len(names)
    for image in images:
        message = image.error or problem(image)
        if "*" not in image.path or not isinstance(failure, FileNotFoundError):
            assert expected in message
    with pytest.raises(UsageError, match="can't be read"):
        discover(Sources([], files_from="shop://bucket/list"))
    batches = list(embed_images(iter(images), FakeEncoder()))
    assert all(error for batch in batches for error in batch.errors)


def test_a_store_that_fails_in_the_middle_of_a_shard() -> None:
    put_tar("0.tar", {"a.jpg": bytes(2**23), "b.jpg": bytes(2**23)})
    images = discover(["shop://bucket/0.tar"])
    assert next(images).path == "shop://bucket/0.tar/a.jpg"
    fsspec.filesystem("shop").pipe_file("/bucket/0.tar", bytes(2**24 + 9))
    assert [image.error for image in images] == ["it has changed since it was opened"]


def test_stores_give_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipcls.inputs.stores._USUAL_PATIENCE", 0.2)
    with pytest.raises(ImageError, match=r"^no answer in time$"):
        stores.look("deaf://bucket/a.jpg")
    assert threading.active_count() < 20


def test_stores_name_the_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    attic = {"class": "nosuchmodule.Attic", "err": "Install atticfs to access the attic"}
    monkeypatch.setitem(known_implementations, "attic", attic)
    assert found(["attic://bucket/"]) == [
        "attic://bucket/: attic:// needs a package that isn't installed: Install atticfs to access the attic"
    ]


def test_fsspec_is_loaded_for_addresses_only(tree: Path) -> None:
    put("t.csv", b"image\nimages/b.jpg\n")
    code = (
        "import sys; from clipcls.inputs.discover import discover; from clipcls.inputs.listing import Sources\n"
        "print(len(list(discover(Sources(sys.argv[1:], column='image', allow_urls=True)))), 'fsspec' in sys.modules)\n"
    )
    names = ["images", "t.csv", "images/*.jpg", "https://example.com/a.jpg", f"file://{tree}/images/b.jpg"]
    for arguments, expected in ((names, "False"), ([*names, "memory://a/b/"], "True")):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        assert done.stdout.split()[1] == expected
