"""The bytes of inputs, wherever they are."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from clipcls.errors import ImageError
from clipcls.inputs.contents import MAX_BYTES, known_path, known_stamp, open_content
from clipcls.inputs.web import Web
from clipcls.records import Address, Container, FileStamp, ImageRef, Span

PARTS = (b"first picture", b"", b"second", bytes(5000))
URL = "https://example.com/a.png"


class Mirror(Web):
    """Gives what it is asked for."""

    def fetch(self, url: str, max_bytes: int) -> bytes:
        return f"{url} up to {max_bytes}".encode()


class Offline(Web):
    def fetch(self, url: str, max_bytes: int) -> bytes:
        raise ImageError("HTTP 404: not found")


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "shard.tar"
    path.write_bytes(b"".join(PARTS))
    return path


def span(shard: Path, number: int) -> ImageRef:
    offset = sum(map(len, PARTS[:number]))
    content = Span(str(shard), offset, len(PARTS[number]), FileStamp.of(shard.stat()))
    return ImageRef(f"{shard}/{number}.png", content=content)


def read(image: ImageRef, max_bytes: int = MAX_BYTES, web: Web | None = None) -> bytes:
    with open_content(image, max_bytes, web) as opened:
        assert opened.file.tell() == 0 and opened.file.seekable()
        return opened.file.read()


def problem(image: ImageRef, max_bytes: int = MAX_BYTES, web: Web | None = None) -> str:
    with pytest.raises(ImageError) as caught:
        read(image, max_bytes, web)
    return str(caught.value)


def test_open_content_gives_a_file_with_its_status(shard: Path) -> None:
    before = time.time()
    with open_content(ImageRef(str(shard))) as opened:
        assert opened.file.read() == b"".join(PARTS)
        assert opened.stamp == FileStamp.of(shard.stat())
        assert opened.seen is not None and before <= opened.seen <= time.time()
    assert opened.file.closed


def test_open_content_closes_a_file_that_is_not_used_in_the_end(shard: Path) -> None:
    with pytest.raises(RuntimeError, match="user"), open_content(ImageRef(str(shard))) as opened:
        raise RuntimeError("user")
    assert opened.file.closed


def test_open_content_says_why_a_file_cannot_be_read(tmp_path: Path) -> None:
    assert problem(ImageRef(str(tmp_path / "missing.png"))) == "no such file or directory"
    assert problem(ImageRef(str(tmp_path))) == "not a regular file: directory"


def test_open_content_gives_bytes() -> None:
    with open_content(ImageRef("memory", content=b"picture")) as opened:
        assert opened.file.read() == b"picture"
        assert opened.stamp is None and opened.seen is None


@pytest.mark.parametrize("number", range(len(PARTS)))
def test_open_content_gives_a_part_of_a_larger_file(shard: Path, number: int) -> None:
    image = span(shard, number)
    with open_content(image) as opened:
        assert opened.file.read() == PARTS[number]
        assert opened.stamp == known_stamp(image)
        assert opened.seen is not None and opened.seen <= time.time()


def test_open_content_gives_each_thread_its_own_part(shard: Path) -> None:
    images = [span(shard, number) for number in range(len(PARTS))] * 20
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read, images)) == list(PARTS) * 20


def test_open_content_refuses_a_part_of_a_file_that_has_changed(shard: Path) -> None:
    image = span(shard, 0)
    shard.write_bytes(b"another file")
    assert problem(image) == "shard.tar has changed since it was listed"


def test_open_content_refuses_a_part_of_a_file_that_was_exchanged(shard: Path, tmp_path: Path) -> None:
    image = span(shard, 0)
    status = shard.stat()
    (tmp_path / "other").write_bytes(bytes(len(shard.read_bytes())))
    os.utime(tmp_path / "other", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    (tmp_path / "other").replace(shard)
    assert problem(image) == "shard.tar has changed since it was listed"


def test_open_content_refuses_a_part_that_is_cut_off(shard: Path) -> None:
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    message = "truncated: the file that it lies in ends before it does"
    assert problem(span(shard, len(PARTS) - 1)) == message
    assert read(span(shard, 0)) == PARTS[0]
    shard.write_bytes(b"")
    assert problem(span(shard, 0)) == message


def test_open_content_says_that_the_larger_file_is_gone(shard: Path) -> None:
    image = span(shard, 0)
    shard.unlink()
    assert problem(image) == "no such file or directory"


def test_open_content_fetches_an_address() -> None:
    image = ImageRef(URL, content=Address(URL))
    with open_content(image, 1234, Mirror()) as opened:
        assert opened.file.read() == f"{URL} up to 1234".encode()
        assert opened.stamp is None and opened.seen is None


def test_open_content_says_why_an_address_cannot_be_fetched() -> None:
    image = ImageRef(URL, content=Address(URL))
    assert problem(image, web=Offline()) == "HTTP 404: not found"
    assert problem(image) == "an address on the web, which nothing was allowed to fetch"


@pytest.mark.parametrize("kind", ["file", "part", "bytes"])
def test_open_content_refuses_more_bytes_than_the_limit(kind: str, shard: Path) -> None:
    whole = shard.read_bytes()
    image, size = {
        "file": (ImageRef(str(shard)), len(whole)),
        "part": (span(shard, 3), len(PARTS[3])),
        "bytes": (ImageRef("memory", content=whole), len(whole)),
    }[kind]
    assert len(read(image, size)) == size
    assert problem(image, size - 1) == f"{size:,} bytes, more than the limit of {size - 1:,}"


def test_open_content_takes_a_small_part_of_a_file_over_the_limit(shard: Path) -> None:
    assert read(span(shard, 2), max_bytes=10) == PARTS[2]


def test_known_stamp_tells_parts_and_states_of_a_file_apart(shard: Path) -> None:
    image = span(shard, 0)
    assert isinstance(image.content, Span)
    offset, size, stamp = image.content.offset, image.content.size, image.content.stamp
    others = [
        Span(str(shard), offset + 1, size, stamp),
        Span(str(shard), offset, size + 1, stamp),
        Span(str(shard), offset, size, replace(stamp, inode=0)),
    ]
    known = {(known_path(image), known_stamp(image)) for image in [image, *(replace(image, content=o) for o in others)]}
    assert len(known) == 4 and None not in {stamp for _, stamp in known}
    assert known_stamp(image) == known_stamp(span(shard, 0))


def test_known_stamp_looks_at_files_and_knows_none_of_the_rest(shard: Path) -> None:
    assert known_stamp(ImageRef(str(shard))) == FileStamp.of(shard.stat())
    assert known_stamp(ImageRef("missing.png")) is known_stamp(ImageRef("nul\0")) is None
    assert known_stamp(ImageRef("memory", content=b"picture")) is None
    assert known_stamp(ImageRef("memory", content=b"")) is None
    assert known_stamp(ImageRef(URL, content=Address(URL))) is None


def test_open_content_refuses_what_holds_several_pictures(shard: Path) -> None:
    image = ImageRef(str(shard), content=Container("shard"))
    assert problem(image) == "a shard, and no picture"
    assert known_stamp(image) is None
