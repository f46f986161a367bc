"""Tar shards as inputs: which pictures are in them, where they lie, damage, and what the cache knows of them."""

import bz2
import gzip
import io
import json
import lzma
import os
import random
import subprocess
import sys
import tarfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import pictures
from clipcls.embed.cache.store import Cache
from clipcls.errors import ImageError, UsageError
from clipcls.images.decoding import decode_picture
from clipcls.inputs import contents
from clipcls.inputs.contents import open_content
from clipcls.inputs.discover import EXTENSIONS
from clipcls.inputs.shards import expand_braces, is_shard, members, read_pictures
from clipcls.records import FileStamp, ImageRef, Preprocessing, Span
from conftest import FakeEncoder, embed_images, save_pictures

BLOCK = 512


def member(name: str, size: int = 0, **fields: Any) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.size = size
    for field, value in fields.items():
        setattr(header, field, value)
    return header


def write_tar(
    path: Path, files: Sequence[tuple[str | tarfile.TarInfo, bytes]], form: int = tarfile.GNU_FORMAT, kind: str = ""
) -> Path:
    with tarfile.open(path, f"w:{kind}", format=form) as archive:  # type: ignore[call-overload]
        for name, content in files:
            header = member(name) if isinstance(name, str) else name
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return path


def numbered(count: int, size: int = 700) -> list[tuple[str, bytes]]:
    return [(f"{number}.jpg", bytes([number % 256]) * size) for number in range(count)]


def read(path: Path) -> list[ImageRef]:
    return list(read_pictures(str(path), EXTENSIONS))


def content(image: ImageRef) -> bytes:
    with open_content(image) as opened:
        return opened.file.read()


def shown(path: Path) -> dict[str, bytes | str]:
    """By name within the shard, or the shard's own: what is in each picture, or its error."""
    images = read(path)
    found = {image.path.removeprefix(f"{path}/"): image.error or content(image) for image in images}
    assert len(found) == len(images)
    return found


# ------------------------------------------------------------------------------------------- pictures


def test_read_pictures_gives_spans_in_the_order_of_the_shard(tmp_path: Path) -> None:
    files = [("2.jpg", b"two"), ("2.txt", b"text"), ("2.json", b"{}"), ("2.cls", b"7"), ("1.WebP", b"one" * 400)]
    path = write_tar(tmp_path / "a.tar", [*files, ("sub/3.seg.png", b"three"), ("jpg", b""), ("README", b"")])
    images = read(path)
    assert [image.path for image in images] == [f"{path}/{name}" for name in ("2.jpg", "1.WebP", "sub/3.seg.png")]
    assert [content(image) for image in images] == [b"two", b"one" * 400, b"three"]
    for image in images:
        assert isinstance(image.content, Span)
        assert (image.content.file, image.content.stamp) == (str(path), FileStamp.of(path.stat()))


def test_read_pictures_passes_over_hidden_and_reserved_names(tmp_path: Path) -> None:
    hidden = (".1.jpg", "._2.jpg", "sub/.3.jpg", ".sub/4.jpg", "./.5.jpg", "a/.b/c/6.jpg")
    reserved = ("__meta__/7.jpg", "__key__", "__MACOSX/._8.jpg")
    taken = ("./9.jpg", "../10.jpg", "a/./11.jpg", "__12.jpg", "a..jpg", "/13.jpg")
    path = write_tar(tmp_path / "a.tar", [(name, b"x") for name in (*hidden, *reserved, *taken)])
    assert [image.path for image in read(path)] == [f"{path}/{name}" for name in taken]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_read_pictures_keeps_names_of_any_length_in_any_bytes(tmp_path: Path, form: int) -> None:
    names = ["d/" * 200 + "long.jpg", "猫.jpg", "new\nline.jpg", " .jpg", os.fsdecode(b"\xff\xfe.jpg")]
    path = write_tar(tmp_path / "a.tar", [(name, str(number).encode()) for number, name in enumerate(names)], form)
    assert shown(path) == {name: str(number).encode() for number, name in enumerate(names)}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_reads_what_tarfile_itself_reads(tmp_path: Path, form: int) -> None:
    names = ["a.jpg", "x" * 99, "x" * 100, "p" * 90 + "/" + "n" * 90, "é.jpg", os.fsdecode(b"\xff"), "a//b", "f.jpg/"]
    kinds = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE)
    headers = [
        member(name, type=kind, linkname="target" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else "", uid=uid)
        for name in names
        for kind in kinds
        for uid in (0, 7)
    ]
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=form) as archive:
        for number, header in enumerate(headers):
            header.size = number * 37 if header.isreg() and not header.name.endswith("/") else 0
            archive.addfile(header, io.BytesIO(bytes(header.size)))
    fields = ("name", "size", "type", "linkname", "offset", "offset_data", "sparse")
    with path.open("rb") as file, tarfile.open(path) as archive:
        found = [[getattr(each.header, field) for field in fields] for each in members(file)]
        assert found == [[getattr(header, field) for field in fields] for header in archive]
    assert len(found) == len(headers)


def test_read_pictures_reads_headers_that_hold_for_several(tmp_path: Path) -> None:
    with tarfile.open(
        tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x" * 900}
    ) as archive:
        archive.addfile(member("1.jpg", 3, pax_headers={"mtime": "1.5"}), io.BytesIO(b"one"))
    assert shown(tmp_path / "a.tar") == {"1.jpg": b"one"}


def test_read_pictures_gives_both_of_two_with_one_name(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("1.jpg", b"first"), ("1.jpg", b"second")])
    images = read(path)
    assert [image.path for image in images] == [f"{path}/1.jpg"] * 2
    assert [content(image) for image in images] == [b"first", b"second"]


def test_read_pictures_leaves_an_empty_picture_to_the_decoder(tmp_path: Path) -> None:
    (image,) = read(write_tar(tmp_path / "a.tar", [("1.jpg", b"")]))
    preprocessing = Preprocessing((8, 8), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    with open_content(image) as opened, pytest.raises(ImageError, match=r"^empty file$"):
        decode_picture(opened.file, preprocessing)


def test_read_pictures_says_what_is_no_file(tmp_path: Path) -> None:
    files: list[tuple[str | tarfile.TarInfo, bytes]] = [
        ("a/1.jpg", b"one"),
        (member("hard.jpg", type=tarfile.LNKTYPE, linkname="a/1.jpg"), b""),
        (member("soft.jpg", type=tarfile.SYMTYPE, linkname=os.fsdecode(b"\xff.jpg")), b""),
        (member("pipe.jpg", type=tarfile.FIFOTYPE), b""),
        (member("folder.jpg", type=tarfile.DIRTYPE), b""),
        (member("soft.txt", type=tarfile.SYMTYPE, linkname="1.txt"), b""),
    ]
    assert shown(write_tar(tmp_path / "a.tar", files)) == {
        "a/1.jpg": b"one",
        "hard.jpg": "a link to a/1.jpg, and links in shards aren't followed",
        "soft.jpg": "a link to �.jpg, and links in shards aren't followed",
        "pipe.jpg": "no file",
    }


def test_read_pictures_fills_the_holes_of_a_sparse_member(tmp_path: Path) -> None:
    holes = {"GNU.sparse.map": "0,4,10,3", "GNU.sparse.size": "20"}
    files = [(member("1.jpg", pax_headers=holes), b"abcdxyz"), ("2.jpg", b"two")]
    path = write_tar(tmp_path / "a.tar", files, tarfile.PAX_FORMAT)
    assert shown(path) == {"1.jpg": b"abcd" + bytes(6) + b"xyz" + bytes(7), "2.jpg": b"two"}


def test_read_pictures_refuses_what_is_too_large_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipcls.inputs.shards._MOST_BYTES", 1000)
    path = write_tar(tmp_path / "a.tar.gz", [("1.jpg", bytes(1001)), ("2.jpg", b"two")], kind="gz")
    assert shown(path) == {"1.jpg": "1,001 bytes, more than the 1,000 that are read from such a shard", "2.jpg": b"two"}
    plain = write_tar(tmp_path / "a.tar", [("1.jpg", bytes(1001))])
    assert shown(plain) == {"1.jpg": bytes(1001)}


def test_read_pictures_reads_headers_only(tmp_path: Path) -> None:
    size = 2**40
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        header = member("1.jpg", size).tobuf(tarfile.GNU_FORMAT)
        file.write(header)
        file.seek(size, os.SEEK_CUR)
        file.write(member("2.jpg", 3).tobuf() + b"two".ljust(BLOCK, b"\0") + bytes(2 * BLOCK))
    images = read(path)
    assert images[0].content == Span(str(path), len(header), size, FileStamp.of(path.stat()))
    assert content(images[1]) == b"two"


def test_read_pictures_needs_no_more_memory_for_more_pictures(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [(f"{number:05d}.jpg", b"x") for number in range(4000)])
    next(read_pictures(str(path), EXTENSIONS))  # what is imported and compiled once doesn't count
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_pictures(str(path), EXTENSIONS)) == 4000
        assert tracemalloc.get_traced_memory()[1] < 300_000  # all headers are several million bytes
    finally:
        tracemalloc.stop()


# ------------------------------------------------------------------------------------------- compression

COMPRESSED: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("kind", COMPRESSED)
def test_read_pictures_decompresses(tmp_path: Path, kind: str) -> None:
    files = numbered(4)
    plain = write_tar(tmp_path / "plain.tar", files).read_bytes()
    path = tmp_path / f"a.tar.{kind}"
    compress = COMPRESSED[kind]
    path.write_bytes(compress(plain[:1000]) + compress(plain[1000:]))  # several parts, as parallel compressors write
    assert shown(path) == dict(files)
    assert all(isinstance(image.content, bytes) for image in read(path))


def test_read_pictures_goes_by_the_content_not_the_ending(tmp_path: Path) -> None:
    files = numbered(2)
    assert shown(write_tar(tmp_path / "a.tar", files, kind="gz")) == dict(files)
    plain = write_tar(tmp_path / "a.tgz", files)
    assert shown(plain) == dict(files)
    assert all(isinstance(image.content, Span) for image in read(plain))
    named = write_tar(tmp_path / "b.tar", [("BZh9.jpg", b"a name like bzip2's")])
    assert shown(named) == {"BZh9.jpg": b"a name like bzip2's"}


def test_read_pictures_says_what_this_python_cannot_decompress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    path = tmp_path / "a.tar.zst"
    path.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(40))
    ((name, error),) = shown(path).items()
    assert name == str(path)
    assert "this Python can't decompress it" in str(error) and "decompress it first" in str(error)


@pytest.mark.skipif(sys.version_info < (3, 14), reason="Python reads Zstandard from 3.14 on")
def test_read_pictures_decompresses_zstandard(tmp_path: Path) -> None:
    zstd = __import__("compression.zstd", fromlist=["compress"])
    plain = write_tar(tmp_path / "plain.tar", numbered(3)).read_bytes()
    path = tmp_path / "a.tar.zst"
    path.write_bytes(zstd.compress(plain))
    assert shown(path) == dict(numbered(3))
    path.write_bytes(zstd.compress(plain)[:-9])
    assert "broken here" in str(shown(path)[str(path)])


# ------------------------------------------------------------------------------------------- damage


def test_read_pictures_gives_what_precedes_a_cut(tmp_path: Path) -> None:
    files = numbered(3)
    whole = write_tar(tmp_path / "whole.tar", files).read_bytes()
    path = tmp_path / "cut.tar"
    each = 3 * BLOCK
    for cut in range(128, 3 * each + BLOCK, 128):
        path.write_bytes(whole[:cut])
        *good, last = read(path)
        assert [(image.path, content(image)) for image in good] == [
            (f"{path}/{name}", data) for name, data in files[: cut // each]
        ]
        assert last.path == str(path)
        reason = "not a tar file" if cut < BLOCK else "broken here, and nothing behind it is read: "
        assert last.error is not None and last.error.startswith(reason), cut
    path.write_bytes(whole[: 3 * each + 2 * BLOCK])
    assert shown(path) == dict(files)


def test_read_pictures_gives_what_precedes_a_broken_header(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", numbered(3))
    data = bytearray(path.read_bytes())
    data[3 * BLOCK : 3 * BLOCK + 20] = bytes([255]) * 20
    path.write_bytes(data)
    broken = "broken here, and nothing behind it is read: bad checksum"
    assert shown(path) == {"0.jpg": bytes(700), str(path): broken}


@pytest.mark.parametrize("kind", COMPRESSED)
def test_read_pictures_gives_what_precedes_damage_of_a_compressed_shard(tmp_path: Path, kind: str) -> None:
    noise = random.Random(0).randbytes(3 * 200_000)
    files = [(f"{number}.jpg", noise[number * 200_000 : (number + 1) * 200_000]) for number in range(3)]
    data = COMPRESSED[kind](write_tar(tmp_path / "plain.tar", files).read_bytes())
    path = tmp_path / f"a.tar.{kind}"
    flipped = bytearray(data)
    flipped[-30] ^= 255
    for damaged in (data[: len(data) * 9 // 10], data[:-3]):
        path.write_bytes(damaged)
        found = shown(path)
        assert str(found.pop(str(path))).startswith("broken here")
        assert found.items() <= dict(files).items()
    path.write_bytes(flipped)
    assert str(path) in shown(path)


def test_read_pictures_tells_a_wrong_checksum_at_the_very_end(tmp_path: Path) -> None:
    files = numbered(3)
    data = bytearray(gzip.compress(write_tar(tmp_path / "plain.tar", files).read_bytes()))
    data[-8] ^= 255
    path = tmp_path / "a.tgz"
    path.write_bytes(data)
    found = shown(path)
    assert "CRC" in str(found.pop(str(path)))
    assert found == dict(files)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", "empty file"),
        (b"no tar at all" * 100, "not a tar file (invalid header)"),
        (b"x", "not a tar file (truncated header)"),
        (gzip.compress(b"no tar at all" * 100), "not a tar file (invalid header)"),
        (gzip.compress(b""), "not a tar file (unexpected end of data)"),
    ],
    ids=["empty", "text", "byte", "compressed text", "compressed nothing"],
)
def test_read_pictures_says_what_is_no_tar(tmp_path: Path, data: bytes, error: str) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    assert shown(path) == {str(path): error}


def test_read_pictures_says_what_cannot_be_opened(tmp_path: Path) -> None:
    assert shown(tmp_path / "none.tar") == {str(tmp_path / "none.tar"): "can't be opened: no such file or directory"}
    path = write_tar(tmp_path / "a.tar", numbered(1))
    path.chmod(0)
    with pictures.unprivileged():
        assert [image.error for image in read(path)] == ["can't be opened: permission denied"]


def test_read_pictures_finds_nothing_in_an_empty_tar(tmp_path: Path) -> None:
    assert shown(write_tar(tmp_path / "a.tar", [])) == {}


def checked(header: bytearray) -> bytes:
    """A header whose checksum is right again."""
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def test_read_pictures_ends_at_a_size_below_zero(tmp_path: Path) -> None:
    header = bytearray(member("1.jpg").tobuf())
    header[124:136] = (-BLOCK).to_bytes(12, "big", signed=True)  # as GNU tar writes sizes over 8 GiB
    path = tmp_path / "a.tar"
    path.write_bytes(checked(header) * 3)
    (image,) = read(path)
    assert image.error is not None and image.path == str(path)
    pax = write_tar(tmp_path / "b.tar", [(member("1.jpg", pax_headers={"size": "-4096"}), b"x")], tarfile.PAX_FORMAT)
    (image,) = read(pax)
    assert image.error is not None and image.path == str(pax)


@pytest.mark.parametrize("kind", ["", "gz"])
def test_read_pictures_ends_at_a_size_beyond_all_bounds(tmp_path: Path, kind: str) -> None:
    header = bytearray(member("1.txt").tobuf())
    header[124:136] = (2**95 | 2**80).to_bytes(12, "big")
    data = member("0.jpg").tobuf() + checked(header) + bytes(2 * BLOCK)
    path = tmp_path / "a.tar"
    path.write_bytes(gzip.compress(data) if kind else data)
    broken = "broken here, and nothing behind it is read: unexpected end of data"
    assert shown(path) == {"0.jpg": b"", str(path): broken}


def test_read_pictures_refuses_to_read_a_header_of_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        file.write(
            member("0.jpg").tobuf() + member("x", 2**33, type=tarfile.GNUTYPE_LONGNAME).tobuf(tarfile.GNU_FORMAT)
        )
        file.truncate(2**33 + 4096)
    found = shown(path)
    assert found.pop("0.jpg") == b""
    assert "8,589,934,592 bytes" in str(found[str(path)])


def test_read_pictures_survives_a_tower_of_headers(tmp_path: Path) -> None:
    name = member("x", BLOCK, type=tarfile.GNUTYPE_LONGNAME).tobuf() + b"y".ljust(BLOCK, b"\0")
    path = tmp_path / "a.tar"
    path.write_bytes(member("0.jpg").tobuf() + name * 3000)
    assert list(shown(path)) == ["0.jpg", str(path)]


def test_read_pictures_never_raises_over_random_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipcls.inputs.shards._MOST_BYTES", 10**6)
    rng = random.Random(3)
    holes = {"GNU.sparse.map": "0,4,10,3", "GNU.sparse.size": "20"}
    sparse = (member("1.jpg", pax_headers=holes), b"abcdxyz")
    files = [sparse, *numbered(2, 20), ("é" * 200 + ".jpg", b"x"), (member("s", pax_headers={"size": "2"}), b"xx")]
    whole = [
        write_tar(tmp_path / "pax.tar", files, tarfile.PAX_FORMAT).read_bytes(),
        write_tar(tmp_path / "gnu.tar", files[1:], tarfile.GNU_FORMAT).read_bytes(),
    ]
    path = tmp_path / "a.tar"
    broken = 0
    for _ in range(400):
        data = bytearray(rng.choice(whole))
        start = rng.randrange(18) * BLOCK  # behind that there are zeros
        for _ in range(rng.randint(1, 4)):
            # a name, a size, a type, or anything
            place = rng.choice((rng.randrange(60), 124 + rng.randrange(12), 156, rng.randrange(BLOCK)))
            data[start + place] = rng.choice((0, 45, 48, 57, 128, 255, rng.randrange(256)))
        data[start : start + BLOCK] = checked(data[start : start + BLOCK])
        path.write_bytes(gzip.compress(data, 1) if rng.random() < 0.2 else data)
        images = read(path)
        broken += any(image.path == str(path) for image in images)
        assert all(image.path.startswith(str(path)) for image in images)
    assert 40 < broken < 400


# ------------------------------------------------------------------------------------------- names, streams


def test_is_shard_goes_by_the_ending() -> None:
    shards = ("a.tar", "a.TAR", "a.tar.gz", "a.tgz", "a.tar.bz2", "a.tar.xz", "a.tar.zst")
    assert all(map(is_shard, shards))
    assert not any(map(is_shard, ("a.jpg", "tar", "a.tar.jpg", "a.gz", "a.zip")))


def test_expand_braces_gives_ranges_and_lists() -> None:
    assert expand_braces("{train,test}-{08..10}.tar") == [
        f"{part}-{number}.tar" for part in ("train", "test") for number in ("08", "09", "10")
    ]
    assert expand_braces("a.tar") == ["a.tar"]
    with pytest.raises(UsageError, match=r"a\{0\.tar: Unbalanced braces"):
        expand_braces("a{0.tar")


class Counting(io.FileIO):
    """A file that counts how often it is read from, and how much."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.reads = self.bytes = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(-1 if size is None else size) or b""
        self.reads += 1
        self.bytes += len(data)
        return data


def test_members_reads_seldom_where_files_are_small_and_little_where_they_are_large(tmp_path: Path) -> None:
    with Counting(write_tar(tmp_path / "small.tar", numbered(1000, 1000))) as small:
        assert sum(1 for _ in members(small)) == 1000
        assert small.reads < 50
    with Counting(write_tar(tmp_path / "large.tar", numbered(100, 100_000))) as large:
        assert sum(1 for _ in members(large)) == 100
        assert large.bytes < 100 * 2 * 2**13


def test_members_reads_a_pipe(tmp_path: Path) -> None:
    files = numbered(300)
    path = write_tar(tmp_path / "a.tar.gz", files, kind="gz")
    with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as process:
        assert [(found.header.name, found.read()) for found in members(process.stdout, "r|*")] == files


# ------------------------------------------------------------------------------------------- the whole way


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    opened = Cache(tmp_path / "cache")
    yield opened
    opened.close()


class Counted:
    """Counts the pictures that are read from shards."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.spans = 0
        read_span = contents._read_span

        def count(span: Span) -> bytes:
            self.spans += 1
            return read_span(span)

        monkeypatch.setattr(contents, "_read_span", count)

    def during(self, path: Path, cache: Cache, encoder: FakeEncoder) -> tuple[int, list[list[float]]]:
        """How many spans were read for all pictures of a shard, and the features."""
        before = self.spans
        batches = list(embed_images(read_pictures(str(path), EXTENSIONS), encoder, cache))
        assert all(error is None for batch in batches for error in batch.errors)
        return self.spans - before, [row.tolist() for batch in batches for row in batch.features]


def shard_of(path: Path, files: Sequence[Path]) -> Path:
    return write_tar(path, [(file.name, file.read_bytes()) for file in files])


def test_embed_images_finds_pictures_of_shards_in_the_cache(
    tmp_path: Path, cache: Cache, fake_encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipcls.records.RACY_SECONDS", 0.0)
    counted = Counted(monkeypatch)
    files = save_pictures(tmp_path / "pictures", 6)
    path = shard_of(tmp_path / "a.tar", files[:4])
    reads, features = counted.during(path, cache, fake_encoder)
    assert reads == 4 and fake_encoder.batches == [4]
    assert counted.during(path, cache, fake_encoder) == (0, features)
    # other pictures under the old names
    write_tar(path, [(old.name, new.read_bytes()) for old, new in zip(files[:4], files[2:], strict=True)])
    reads, changed = counted.during(path, cache, fake_encoder)
    assert reads == 4 and sum(fake_encoder.batches) == 6  # two of them are known by their content
    assert changed[:2] == features[2:] and changed[2:] != features[:2]
    assert counted.during(path, cache, fake_encoder) == (0, changed)


def test_embed_images_trusts_no_shard_that_has_just_changed(
    tmp_path: Path, cache: Cache, fake_encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    path = shard_of(tmp_path / "a.tar", save_pictures(tmp_path / "pictures", 2))
    assert [counted.during(path, cache, fake_encoder)[0] for _ in range(2)] == [2, 2]
    later = time.time() + 3
    monkeypatch.setattr(time, "time", lambda: later)
    assert [counted.during(path, cache, fake_encoder)[0] for _ in range(2)] == [2, 0]
    assert sum(fake_encoder.batches) == 2


def test_embed_images_says_when_a_shard_changes_under_way(tmp_path: Path, fake_encoder: FakeEncoder) -> None:
    files = save_pictures(tmp_path / "pictures", 2)
    path = shard_of(tmp_path / "a.tar", files)
    images = read(path)
    shard_of(path, files[::-1] * 2)
    (batch,) = embed_images(images, fake_encoder)
    assert batch.errors == ("a.tar has changed since it was listed",) * 2


def test_predict_says_the_same_of_a_folder_and_its_shards(
    tmp_path: Path, tiny_model: Path, clipcls: Callable[..., Any]
) -> None:
    files = save_pictures(tmp_path / "pictures", 5)
    shard_of(tmp_path / "a.tar", files)
    (tmp_path / "b.tgz").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    options = ("--labels", "cat,dog", "--model", tiny_model, "--device", "cpu", "--format", "jsonl", "--no-cache")
    result = clipcls("predict", "pictures", "a.tar", "b.tgz", *options)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["path"] for row in rows] == [
        f"{place}/{file.name}" for place in ("pictures", "a.tar", "b.tgz") for file in files
    ]
    for number in range(5):
        scores = {round(rows[number + 5 * place]["similarity"], 5) for place in range(3)}
        assert len(scores) == 1
