"""Pictures are found again by the paths that results show, wherever they were."""

import base64
import io
import tarfile
from pathlib import Path

import pytest

from clipcls.inputs.discover import discover
from clipcls.inputs.result_paths import pictures_at
from clipcls.records import Address, ImageRef, Span, Stored
from conftest import save_pictures


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.chdir(tmp_path)
    return save_pictures(tmp_path / "pictures", 3)


def found(*paths: str, **options: object) -> list[ImageRef]:
    places = dict(pictures_at(paths, **options))  # type: ignore[arg-type]
    return [places[place] for place in range(len(paths))]


def test_files_and_addresses(pictures: list[Path]) -> None:
    here, gone, web, stored = found("pictures/000.png", "gone.png", "https://example.org/a.png", "s3://bucket/a.png")
    assert here == ImageRef("pictures/000.png")
    assert gone == ImageRef("gone.png")  # opening it tells
    assert web.error == "an address; --allow-urls has it fetched"
    assert stored.content == Stored()
    (web,) = found("https://example.org/a.png", allow_urls=True)
    assert web.content == Address("https://example.org/a.png")
    refused, piped = found("ftp://example.org/a.png", "-")
    assert "in a list or a table" in str(refused.error)
    assert piped.error == "it came on standard input, which keeps nothing"


def test_members_of_shards(pictures: list[Path]) -> None:
    with tarfile.open("shard.tar", "w") as shard:
        for path in pictures:
            shard.add(path, f"in/{path.name}")
    listed = [image.path for image in discover("shard.tar")]
    last, gone, first = found(listed[2], "shard.tar/in/gone.png", listed[0])
    assert isinstance(first.content, Span)
    assert isinstance(last.content, Span)
    assert gone.error == "it isn't in shard.tar any more"


def test_rows_of_tables(pictures: list[Path]) -> None:
    text = base64.b64encode(pictures[0].read_bytes()).decode()
    Path("table.csv").write_text(f"path,label\n{text},cat\n{text},dog\n")
    second, gone = found("table.csv/1", "table.csv/2")
    assert isinstance(second.content, bytes)
    assert io.BytesIO(second.content).read(4) == b"\x89PNG"
    assert gone.error == "it isn't in table.csv any more"
    Path("odd.csv").write_text(f"picture,label\n{text},cat\n")
    (unknown,) = found("odd.csv/0")
    assert "--column" in str(unknown.error)
    (known,) = found("odd.csv/0", column="picture")
    assert known.error is None
