"""Stores over a protocol that is really spoken: pictures in S3, served by a process on this machine."""

import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipcls.embed.cache.store import Cache
from clipcls.inputs.discover import discover
from clipcls.inputs.listing import Sources
from clipcls.records import ImageRef
from conftest import FakeEncoder, embed_images, save_pictures

s3fs = pytest.importorskip("s3fs")
pytest.importorskip("moto")
pytest.importorskip("flask_cors")

START_SECONDS = 60.0


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The endpoint of an S3 server."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + START_SECONDS
        while not answers(port):
            assert process.poll() is None and time.monotonic() < until, "the server doesn't start"
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@pytest.fixture
def bucket(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the same files as the bucket `pictures`."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    folder = tmp_path / "pictures"
    save_pictures(folder / "a", 3)
    save_pictures(folder / "b.c" / "deep", 2)
    (folder / "a" / "broken.png").write_bytes(b"no picture")
    (folder / "a" / "empty.png").touch()
    (folder / "a" / ".hidden.png").touch()
    with tarfile.open(folder / "0.tar", "w") as archive:
        archive.add(folder / "a", "a")
    (folder / "t.csv").write_text("image\na/000.png\nb.c/\nnope.png\n0.tar\n")
    system = s3fs.S3FileSystem()
    if not system.exists("pictures"):
        system.mkdir("pictures")
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            system.pipe_file(f"pictures/{path.relative_to(folder)}", path.read_bytes())
    yield folder
    s3fs.S3FileSystem.clear_instance_cache()


def answered(names: list[str], cache: Cache | None = None) -> list[tuple[str, Any]]:
    """Each picture's path, and its features or its error."""
    found = []
    for batch in embed_images(discover(Sources(names, column="image")), FakeEncoder(), cache):
        rows = iter(batch.features)
        found += [
            (image.path, error or next(rows).tolist()) for image, error in zip(batch.images, batch.errors, strict=True)
        ]
    return found


@pytest.mark.parametrize(
    "name", ["", "a/", "a/000.png", "a", "*/*.png", "**/0*.png", "0.tar", "{0,1}.tar", "t.csv", "b.c/", "*.csv"]
)
def test_pictures_in_s3_are_as_on_disk(bucket: Path, name: str) -> None:
    expected = [(path.replace(f"{bucket}/", "s3://pictures/"), row) for path, row in answered([f"{bucket}/{name}"])]
    assert answered([f"s3://pictures/{name}"]) == expected
    assert len(expected) > 0


def test_cached_pictures_in_s3_are_not_read_again(
    bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path / "cache")
    names = ["s3://pictures/b.c/"]
    first = answered(names, cache)
    listed = [ImageRef(path) for path, _ in first]
    with monkeypatch.context() as patched:
        patched.setattr("clipcls.inputs.stores.read", None)
        assert answered(names, cache) == answered([image.path for image in listed], cache) == first
    s3fs.S3FileSystem().pipe_file("pictures/b.c/deep/000.png", (bucket / "a/002.png").read_bytes())
    changed = answered(names, cache)
    assert not np.array_equal(changed[0][1], first[0][1]) and changed[1] == first[1]
    cache.close()


def test_s3_says_what_is_not_there(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert answered(
        ["s3://pictures/nope.png", "s3://pictures/nope/", "s3://nobucket/a.png", "s3://nobucket/*.png"]
    ) == [
        ("s3://pictures/nope.png", "no such file or directory"),
        ("s3://pictures/nope/", "no such file or directory"),
        ("s3://nobucket/a.png", "no such file or directory: The specified bucket does not exist"),
        ("s3://nobucket/*.png", "no file matches this pattern"),
    ]
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    s3fs.S3FileSystem.clear_instance_cache()
    for name in ("s3://pictures/a/000.png", "s3://pictures/a/", "s3://pictures/*.png", "s3://pictures/0.tar"):
        ((path, error),) = answered([name])
        assert path == name and "Unable to locate credentials" in error


def test_command_line_reads_from_s3(bucket: Path, clipcls: Callable[..., Any]) -> None:
    options = ("--model", "pictogram", "--labels", "cat,dog", "--format", "jsonl")
    local = clipcls("predict", bucket / "a", *options)
    stored = clipcls("predict", "s3://pictures/a/", *options)
    assert (stored.returncode, local.returncode) == (1, 1)
    assert stored.stdout.replace(b"s3://pictures/", f"{bucket}/".encode()) == local.stdout
    assert b"Traceback" not in stored.stderr
