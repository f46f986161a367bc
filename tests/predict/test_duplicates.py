"""Groups of pictures that are there more than once, and which of them to keep."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipcls.embed.execution import Execution
from clipcls.embed.session import Session
from clipcls.embed.watch import Watch
from clipcls.errors import StoppedError, UsageError
from clipcls.inputs.listing import Sources
from clipcls.predict import looks
from clipcls.predict.duplicates import DuplicateReport, find_duplicates
from clipcls.predict.error_limit import ErrorLimit
from clipcls.records import Duplicate
from conftest import EXAMPLES

PHOTOS = EXAMPLES.parent / "photos"


@pytest.fixture
def search(tmp_path: Path, fake_encoder: Any) -> Callable[..., DuplicateReport]:
    """Search `tmp_path` by the pictures' mean colours, so that nearly all pixels are compared."""

    def run(*names: str, **options: Any) -> DuplicateReport:
        sources = Sources([str(tmp_path / name) for name in names] or [str(tmp_path)])
        return find_duplicates(sources, Session(fake_encoder, Execution()), **options)

    return run


def put(path: Path, photo: str = "cat", *, size: float = 1.0, quality: int = 90, time: int | None = None) -> Path:
    path.parent.mkdir(exist_ok=True)
    image = Image.open(PHOTOS / f"{photo}.jpg").convert("RGB")
    image.resize((round(image.width * size), round(image.height * size))).save(path, quality=quality)
    if time is not None:
        os.utime(path, (time, time))
    return path


def copy(source: Path, name: str, time: int | None = None) -> Path:
    target = source.with_name(name)
    shutil.copyfile(source, target)
    if time is not None:
        os.utime(target, (time, time))
    return target


def shown(report: DuplicateReport) -> list[tuple[int, str, str, str]]:
    return [(row.group, row.kind, Path(row.path).name, row.why or "-") for row in report.rows]


def test_kinds_are_told_apart_and_the_largest_is_kept(tmp_path: Path, search: Callable[..., DuplicateReport]) -> None:
    put(tmp_path / "a-small.jpg", size=0.5)
    original = put(tmp_path / "b.jpg", time=2000)
    copy(original, "c.jpg", time=1000)
    put(tmp_path / "d.webp", quality=50)
    put(tmp_path / "e.jpg", "coffee")
    put(tmp_path / "f.jpg", "hat")
    copy(tmp_path / "f.jpg", "g.jpg", time=3000)
    os.utime(tmp_path / "f.jpg", (3000, 3000))
    report = search()
    with Image.open(original) as image:
        size = image.size
    assert shown(report) == [
        (1, "picture", "c.jpg", f"largest: {size[0]} × {size[1]}, sharpest, oldest"),
        (1, "picture", "a-small.jpg", "-"),
        (1, "bytes", "b.jpg", "-"),
        (1, "picture", "d.webp", "-"),
        (2, "bytes", "f.jpg", "first"),
        (2, "bytes", "g.jpg", "-"),
    ]
    assert (report.done, report.failed) == (7, 0)
    assert [row.keep for row in report.rows] == [True, False, False, False, True, False]
    assert [row.size for row in report.rows] == [Path(row.path).stat().st_size for row in report.rows]
    assert report.rows[2].similarity == 1.0


def test_same_bytes_need_no_model(tmp_path: Path) -> None:
    copy(put(tmp_path / "a.jpg"), "b.jpg")
    put(tmp_path / "c.jpg", quality=50)
    (tmp_path / "d.jpg").write_bytes(b"")
    (tmp_path / "e.jpg").write_bytes(b"")

    def refuse() -> Any:
        raise AssertionError("the model was opened")

    report = find_duplicates(Sources([str(tmp_path)]), Session(refuse, Execution()), "bytes")
    assert [(Path(row.path).name, row.kind) for row in report.rows] == [("a.jpg", "bytes"), ("b.jpg", "bytes")]
    assert (report.done, report.failed) == (5, 2)


def test_scenes_are_asked_for(tmp_path: Path, search: Callable[..., DuplicateReport]) -> None:
    image = Image.open(put(tmp_path / "a.jpg")).convert("RGB")
    image.rotate(2).crop((20, 20, image.width - 20, image.height - 20)).save(tmp_path / "b.jpg")
    put(tmp_path / "c.jpg", size=0.5)
    assert [Path(row.path).name for row in search().rows] == ["a.jpg", "c.jpg"]
    rows = search(kind="scene", threshold=0.999).rows
    assert [(Path(row.path).name, row.kind) for row in rows] == [
        ("a.jpg", "scene"),
        ("b.jpg", "scene"),
        ("c.jpg", "picture"),
    ]


def test_the_threshold_says_what_is_compared(tmp_path: Path, search: Callable[..., DuplicateReport]) -> None:
    put(tmp_path / "a.jpg")
    put(tmp_path / "b.jpg", size=0.5)
    assert search(threshold=0.9).rows
    assert not search(threshold=1.0).rows


def test_a_file_that_is_named_twice_is_one(tmp_path: Path, search: Callable[..., DuplicateReport]) -> None:
    put(tmp_path / "photos" / "a.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "photos" / "a.jpg")
    report = search("photos/a.jpg", "photos", "link.jpg")
    assert not report.rows
    assert report.done == 3
    os.link(tmp_path / "photos" / "a.jpg", tmp_path / "second.jpg")
    assert len(search("photos", "second.jpg").rows) == 2


def test_broken_pictures_fail_alone(tmp_path: Path, search: Callable[..., DuplicateReport]) -> None:
    put(tmp_path / "a.jpg")
    put(tmp_path / "b.jpg", size=0.5)
    (tmp_path / "c.jpg").write_bytes(b"no picture")
    failures: list[tuple[str, str]] = []
    report = search(watch=Watch(failed=lambda path, error: failures.append((Path(path).name, error))))
    assert len(report.rows) == 2
    assert (report.done, report.failed) == (3, 1)
    assert [name for name, _ in failures] == ["c.jpg"]
    with pytest.raises(StoppedError, match="stopped at the first bad image"):
        search(limit=ErrorLimit(0))
    with pytest.raises(UsageError, match="No image that was named exists"):
        search("missing.jpg")


def test_many_copies_are_compared_with_one(
    tmp_path: Path, search: Callable[..., DuplicateReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = put(tmp_path / "000.jpg", size=0.5)
    content = original.read_bytes()
    for number in range(1, 60):  # other bytes, the same pixels
        (tmp_path / f"{number:03}.jpg").write_bytes(content + bytes([number]))
    for number in range(60, 100):
        (tmp_path / f"{number:03}.jpg").write_bytes(content)
    compared = []
    compare = looks.compare
    monkeypatch.setattr(looks, "compare", lambda one, other: compared.append(1) or compare(one, other))
    rows = search().rows
    assert len(rows) == 100
    assert {row.group for row in rows} == {1}
    assert len(compared) == 59


def test_a_copy_goes_to_the_picture_it_differs_least_from(
    tmp_path: Path, search: Callable[..., DuplicateReport]
) -> None:
    image = Image.open(put(tmp_path / "b.jpg", "coffee")).convert("RGB")
    changed = image.copy()
    changed.paste(image.crop((40, 40, 70, 60)), (100, 120))
    changed.save(tmp_path / "a.jpg", quality=90)
    put(tmp_path / "c.jpg", "coffee", size=0.15)
    assert [Path(row.path).name for row in search().rows] == ["b.jpg", "c.jpg"]


def test_two_crops_of_a_picture_are_one_group_with_it(tmp_path: Path, search: Callable[..., DuplicateReport]) -> None:
    image = Image.open(put(tmp_path / "c.jpg")).convert("RGB")
    image.crop((0, 0, round(image.width * 0.9), round(image.height * 0.9))).save(tmp_path / "a.jpg", quality=90)
    image.crop((round(image.width * 0.1), round(image.height * 0.1), *image.size)).save(tmp_path / "b.jpg", quality=90)
    assert [Path(row.path).name for row in search().rows] == ["c.jpg", "a.jpg", "b.jpg"]
    (tmp_path / "c.jpg").unlink()
    assert not search().rows


def test_it_is_the_same_at_every_run(tmp_path: Path, search: Callable[..., DuplicateReport]) -> None:
    for number, photo in enumerate(["cat", "coffee", "hat"] * 3):
        put(tmp_path / f"{number}.jpg", photo, quality=90 - number, time=1000)

    def rows() -> Iterator[Duplicate]:
        yield from search().rows

    first = list(rows())
    assert [row.group for row in first] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert all(list(rows()) == first for _ in range(2))


def test_a_stopped_search_finds_nothing(tmp_path: Path, search: Callable[..., DuplicateReport]) -> None:
    put(tmp_path / "a.jpg")
    put(tmp_path / "b.jpg", size=0.5)
    assert not search(stop=lambda: True).rows


def test_pictures_in_a_shard_are_found(tmp_path: Path, search: Callable[..., DuplicateReport]) -> None:
    import tarfile

    original, small = put(tmp_path / "in" / "a.jpg"), put(tmp_path / "in" / "b.jpg", size=0.5)
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        shard.add(original, "one.jpg")
        shard.add(small, "two.jpg")
    rows = search("in/a.jpg", "shard.tar").rows
    assert [(row.kind, row.path.rpartition("/")[2]) for row in rows] == [
        ("picture", "a.jpg"),
        ("bytes", "one.jpg"),
        ("picture", "two.jpg"),
    ]


def test_noise_is_not_a_group(tmp_path: Path, search: Callable[..., DuplicateReport]) -> None:
    chance = np.random.default_rng(0)
    for number in range(6):
        pixels = chance.integers(0, 256, (90, 120, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    assert not search().rows


def test_pictures_in_a_parquet_table_are_found(tmp_path: Path, search: Callable[..., DuplicateReport]) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    original, small = put(tmp_path / "in" / "a.jpg"), put(tmp_path / "in" / "b.jpg", size=0.5)
    pictures = [original.read_bytes(), b"no picture", small.read_bytes(), original.read_bytes()]
    parquet.write_table(arrow.table({"image": pictures}), tmp_path / "t.parquet")
    report = search("t.parquet")
    assert shown(report)[0][:3] == (1, "picture", "0")
    assert [(row.kind, row.path.rpartition("/")[2]) for row in report.rows[1:]] == [("picture", "2"), ("bytes", "3")]
    assert (report.done, report.failed) == (4, 1)
    assert len(search("t.parquet", kind="bytes").rows) == 2
