"""What a run on a cluster is cut into."""

import itertools
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from clipcls.distributed.plan import ROWS, Part, Plan, read_part
from clipcls.errors import UsageError
from clipcls.inputs.discover import discover
from clipcls.inputs.listing import Sources
from clipcls.inputs.video import Sampling
from clipcls.records import Address, Container, FileStamp, ImageRef, Stored
from conftest import save_pictures
from videos import cut, write_video

pytest.importorskip("pyarrow")


def planned(folder: Path, images: Sequence[ImageRef], workers: int = 2) -> Plan:
    plan = Plan(folder / "plan", goes_on=False)
    plan.extend(images, workers, "image")
    return plan


def sizes(plan: Plan) -> list[int | None]:
    return [part.count for part in plan.parts]


def pictures(parts: Sequence[Part], column: str | None = None) -> list[ImageRef]:
    return [image for part in parts for image in part.images(Sources(column=column))]


def files(count: int) -> list[ImageRef]:
    return [ImageRef(f"{number}.jpg") for number in range(count)]


def shard(path: Path, paths: Sequence[Path]) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
        for picture in paths:
            archive.add(picture, picture.name)
    return path


def table(path: Path, values: list[Any], rows_in_group: int) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"image": values}), path, row_group_size=rows_in_group)
    return path


def test_plan_gives_each_worker_several_parts(tmp_path: Path) -> None:
    assert sizes(planned(tmp_path, files(5000))) == [313] * 15 + [305]
    assert [part.number for part in planned(tmp_path, files(5000)).parts] == list(range(16))


@pytest.mark.parametrize(("count", "workers", "size"), [(150, 2, 100), (1, 64, 1), (200_000, 2, 5000)])
def test_plan_makes_parts_neither_tiny_nor_huge(tmp_path: Path, count: int, workers: int, size: int) -> None:
    assert sizes(planned(tmp_path, files(count), workers))[0] == size


def test_plan_keeps_order_errors_addresses_and_odd_names(tmp_path: Path) -> None:
    images = [
        ImageRef("a.jpg"),
        ImageRef("gone.jpg", "no such file or directory"),
        ImageRef("https://x.org/a.jpg", content=Address("https://x.org/a.jpg")),
        ImageRef("s3://b/a.jpg", content=Stored(12, FileStamp(12, 0, 0, 7), is_known=True)),
        ImageRef("s3://b/b.jpg", content=Stored()),
        ImageRef("n\udcff\n\u2028.png"),
        ImageRef("a.jpg"),
    ]
    plan = planned(tmp_path, images)
    assert pictures(plan.parts) == images
    plan.write()
    assert pictures(Plan(tmp_path / "plan", goes_on=True).parts) == images


def test_plan_cuts_a_single_shard_for_all_workers(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", save_pictures(tmp_path / "p", 250, (8, 8)))
    plan = planned(tmp_path, list(discover([path], unread=True)))
    assert sizes(plan) == [100, 100, 50]
    assert pictures(plan.parts) == list(discover([path]))


def test_plan_leaves_a_compressed_shard_whole(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tgz", save_pictures(tmp_path / "p", 150, (8, 8)))
    plan = planned(tmp_path, list(discover([path], unread=True)))
    assert sizes(plan) == [None]
    assert pictures(plan.parts) == list(discover([path]))


def test_plan_leaves_many_shards_whole_and_unread(tmp_path: Path) -> None:
    for number in range(16):
        (tmp_path / f"{number:02}.tar").write_bytes(b"not opened")
    plan = planned(tmp_path, list(discover([str(tmp_path / "*.tar")], unread=True)))
    assert sizes(plan) == [None] * 16


def test_plan_takes_what_a_cut_shard_has_got_since(tmp_path: Path) -> None:
    paths = save_pictures(tmp_path / "p", 120, (8, 8))
    path = shard(tmp_path / "a.tar", paths[:110])
    plan = planned(tmp_path, list(discover([path], unread=True)))
    shard(path, paths)
    assert len(pictures(plan.parts)) == 120


@pytest.mark.parametrize("rows_in_group", [1, 40, 90, 250])
def test_plan_cuts_a_table_at_its_row_groups(tmp_path: Path, rows_in_group: int) -> None:
    path = table(tmp_path / "t.parquet", [f"{n}.jpg" for n in range(250)], rows_in_group)
    plan = planned(tmp_path, list(discover(Sources([path], column="image"), unread=True)))
    assert pictures(plan.parts, "image") == list(discover(Sources([path], column="image")))
    counts = sizes(plan)
    assert sum(count or 0 for count in counts) == 250
    if rows_in_group in (40, 90):
        starts = list(itertools.accumulate(count or 0 for count in counts))
        assert all(start % rows_in_group == 0 for start in starts[:-1])


def test_plan_of_a_broken_table_has_its_error(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no more")
    (image,) = pictures(planned(tmp_path, [next(discover([str(tmp_path / "*.parquet")], unread=True))]).parts, "x")
    assert image.error


def test_plan_goes_on_with_what_is_new(tmp_path: Path) -> None:
    plan = planned(tmp_path, files(250))
    plan.write()
    plan = Plan(tmp_path / "plan", goes_on=True)
    plan.extend([ImageRef("new.jpg"), *files(250), ImageRef("7.jpg")], 2, finished={0})
    assert sizes(plan) == [100, 100, 50, 2]
    # listed a second time, so wanted twice
    assert [image.path for image in plan.parts[3].images(Sources())] == ["new.jpg", "7.jpg"]


def test_plan_leaves_out_what_is_not_listed_any_more_unless_it_is_done(tmp_path: Path) -> None:
    plan = planned(tmp_path, [*files(250), ImageRef("gone.jpg", "no such file")])
    plan.write()
    plan = Plan(tmp_path / "plan", goes_on=True)
    # of the last part nothing is left but what has come meanwhile
    plan.extend([*files(150)[::3], ImageRef("gone.jpg")], 2, finished={0})
    assert [(part.number, part.count) for part in plan.parts] == [(0, 100), (1, 16), (2, 1)]
    assert list(plan.parts[2].images(Sources())) == [ImageRef("gone.jpg")]
    plan.extend(files(10), 2, finished={0})
    assert [(part.number, part.count) for part in plan.parts] == [(0, 100)]


@pytest.mark.parametrize("first", [True, False])
def test_plan_takes_a_shard_that_has_come_without_losing_its_neighbours(tmp_path: Path, first: bool) -> None:
    tar = tmp_path / "a.tar"
    names = [ImageRef(str(tar), "no such file"), ImageRef("b.jpg")]
    plan = planned(tmp_path, names if first else names[::-1])
    shard(tar, save_pictures(tmp_path / "p", 3, (8, 8)))
    listed = [ImageRef(str(tar), content=Container("shard")), ImageRef("b.jpg")]
    plan.extend(listed if first else listed[::-1], 2)
    assert pictures(plan.parts) == [ImageRef("b.jpg"), *discover([tar])]


def test_plan_leaves_out_containers_that_are_not_listed_any_more(tmp_path: Path) -> None:
    tar = shard(tmp_path / "a.tar", save_pictures(tmp_path / "p", 250, (8, 8)))
    listed = list(discover([tar], unread=True))
    plan = planned(tmp_path, listed)
    plan.extend([], 2, finished={1})
    assert [part.number for part in plan.parts] == [1]


@pytest.mark.parametrize("ending", ["tar", "parquet"])
def test_plan_takes_a_container_that_changed_before_any_of_it_was_done(tmp_path: Path, ending: str) -> None:
    paths = save_pictures(tmp_path / "p", 250, (8, 8))

    def listed(count: int) -> list[ImageRef]:
        if ending == "tar":
            made = shard(tmp_path / "a.tar", paths[:count])
        else:
            made = table(tmp_path / "t.parquet", [str(path) for path in paths[:count]], 50)
        return list(discover(Sources([made], column="image"), unread=True))

    plan = planned(tmp_path, listed(150))
    assert len(plan.parts) == 2
    plan.extend(listed(250), 2, "image")
    assert len(pictures(plan.parts, "image")) == 250
    with pytest.raises(UsageError, match="isn't what it was"):
        plan.extend(listed(200), 2, "image", finished={0})


def test_plan_knows_the_containers_it_has_cut(tmp_path: Path) -> None:
    tar = shard(tmp_path / "a.tar", save_pictures(tmp_path / "p", 250, (8, 8)))
    rows = table(tmp_path / "t.parquet", [f"{n}.jpg" for n in range(250)], 50)
    listed = list(discover(Sources([tar, rows], column="image"), unread=True))
    plan = planned(tmp_path, listed)
    plan.write()
    again = Plan(tmp_path / "plan", goes_on=True)
    again.extend(listed, 2)
    assert again.parts == plan.parts


@pytest.mark.parametrize("content", [None, b"{}\n", b"nonsense\n", b'{"part": 0}\n', b"\xff\n"])
def test_plan_that_is_none_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "plan").write_bytes(content)
    with pytest.raises(UsageError, match="plan"):
        Plan(tmp_path / "plan", goes_on=True)


def test_part_names_a_place_that_its_node_has_to_see(tmp_path: Path) -> None:
    def place(*images: ImageRef) -> str | None:
        return planned(tmp_path, images).parts[0].place

    stored, web = ImageRef("s3://b/a.jpg", content=Stored()), ImageRef("https://x/a.jpg", content=Address("https://x"))
    gone = ImageRef("gone.jpg", "no such file or directory")
    assert place(stored, web, gone) is None
    assert place(gone, stored, ImageRef("here.jpg")) == "here.jpg"
    assert place(ImageRef("s3://b/a.tgz", content=Container("shard"))) is None
    assert place(ImageRef("a.tgz", content=Container("shard"))) == "a.tgz"


def test_indexes_of_parts_never_meet(tmp_path: Path) -> None:
    part = planned(tmp_path, files(5000)).parts[-1]
    # exact in JSON's numbers, which are doubles to most readers, for nine million parts
    assert 9_000_000 * ROWS < 2**53
    assert read_part(part.line) == part
    assert json.loads(part.line)["part"] == part.number


def test_a_video_is_a_part_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("av")
    video = write_video(tmp_path / "a.mp4", cut([("red", 3)]))
    sources = Sources([str(video)], sampling=Sampling("frames", 2))
    plan = planned(tmp_path, [*files(2), *discover(sources, unread=True)])
    assert sizes(plan) == [2, None]
    assert (plan.parts[1].container, plan.parts[1].place) == (str(video), str(video))
    assert list(plan.parts[1].images(sources)) == list(discover(sources))
    plan.write()
    assert [part.line for part in Plan(tmp_path / "plan", goes_on=True).parts] == [part.line for part in plan.parts]
