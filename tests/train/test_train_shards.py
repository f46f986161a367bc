"""WebDataset shards: what counts as a sample, their order, damage, and whole runs on them."""

import functools
import http.server
import io
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import webdataset
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image
from safetensors.torch import load_file
from webdataset import ShardWriter, TarWriter

from clipcls.errors import StoppedError, UsageError
from clipcls.inputs.labelled.examples import Example
from clipcls.train.checkpoint import resumed_settings
from clipcls.train.data.corpus import Share
from clipcls.train.data.read import read_data
from clipcls.train.data.shards import Shards, is_stream, open_shards, shuffled
from clipcls.train.data.table import Table
from clipcls.train.loop import TrainWatch, train
from clipcls.train.settings import load_settings
from conftest import ROOT, TINY_CONFIG, save_pictures
from labelled import write_tar

pytestmark = pytest.mark.usefixtures("one_thread", "no_curves")

ALONE = Share()


def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (number * 37 % 256, number * 91 % 256, number % 256)).save(file, "PNG")
    return file.getvalue()


def write_shards(folder: Path, counts: Sequence[int]) -> Path:
    """Shards `000.tar`, … of so many samples; each is named and described by its number."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = itertools.count()
    for shard, count in enumerate(counts):
        with TarWriter(str(folder / f"{shard:03d}.tar")) as writer:
            for number in itertools.islice(numbers, count):
                writer.write({"__key__": f"{number:05d}", "png": picture(number), "txt": f"thing {number}"})
    return folder


def one_pass(shards: Shards) -> list[Example]:
    return list(shards._pass(shards._shards, random.Random(0)))


def captions(batches: Iterator[Sequence[Example]], count: int) -> list[list[str]]:
    return [[row.concept for row in batch] for batch in itertools.islice(batches, count)]


# ---- names


def test_read_data_knows_shards_by_their_names(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "shards", [2, 2, 2])
    (folder / "readme.txt").write_text("not a shard")
    digests = set()
    for name in ("shards", "shards/*.tar", "shards/{000..002}.tar", "shards/{002,00{0,1}}.tar"):
        shards = read_data(f"{tmp_path}/{name}")
        assert isinstance(shards, Shards), name
        assert (shards.count, shards.problems) == (6, [])
        digests.add(shards.digest())
    assert len(digests) == 1
    assert read_data(folder / "001.tar").count == 2


def test_read_data_still_reads_class_folders_and_tables(tmp_path: Path) -> None:
    write_shards(tmp_path, [1])
    for name in ("cat", "dog"):
        save_pictures(tmp_path / name, 1)
    classes = read_data(tmp_path)
    assert isinstance(classes, Table)
    assert [problem.split("/")[-1].split(":")[0] for problem in classes.problems] == ["000.tar"]
    (tmp_path / "table.csv").write_text("image,caption\ncat/000.png,a cat\n")
    assert isinstance(read_data(str(tmp_path / "table.csv")), Table)
    with pytest.raises(UsageError, match="samples: only for shards"):
        read_data(tmp_path / "table.csv", 100)


def test_shards_tells_shards_of_equal_names_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tar(tmp_path / name / "0.tar", {"1.png": b"x", "1.txt": name.encode()})
    rows = one_pass(open_shards(f"{tmp_path}/*/0.tar"))
    assert {row.image.path: row.concept for row in rows} == {
        f"{tmp_path}/{name}/0.tar/1.png": name for name in ("a", "b")
    }


@pytest.mark.parametrize("name", ["x{.tar", "*.tar", "none.tar", "{0..1}.tar"])
def test_shards_refuses_names_of_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"\.tar: (no usable sample.*the first problem|Unbalanced braces)"):
        open_shards(f"{tmp_path}/{name}")


def test_shards_names_the_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_shards(tmp_path, [1])
    monkeypatch.setitem(sys.modules, "webdataset", None)
    assert len(one_pass(open_shards(str(folder)))) == 1
    with pytest.raises(UsageError, match=r"pip install 'clipcls\[webdataset\]'"):
        open_shards(f"pipe:cat {folder}/000.tar", 1)


# ---- order


@pytest.mark.parametrize(("counts", "processes"), [([5, 3, 4, 1, 5], 1), ([3] * 6, 3)])
def test_batches_give_each_row_once_an_epoch(tmp_path: Path, counts: Sequence[int], processes: int) -> None:
    shards = open_shards(str(write_shards(tmp_path, counts)))
    epochs: list[list[str]] = [[], []]
    for rank in range(processes):
        batches = shards.batches(processes, 0, Share(rank, processes))
        for epoch in epochs:
            epoch += [concept for [concept] in captions(batches, 18 // processes)]
    expected = sorted(f"thing {number}" for number in range(18))
    assert [sorted(epoch) for epoch in epochs] == [expected, expected]
    assert epochs[0] != epochs[1]


def test_batches_depend_on_the_seed_alone(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, [4, 4, 4])
    code = (
        "import itertools, sys; from clipcls.train.data.corpus import Share\n"
        "from clipcls.train.data.shards import open_shards\n"
        "for batch in itertools.islice(open_shards(sys.argv[1]).batches(6, 3, Share(1, 3)), 9):\n"
        "    print([row.concept for row in batch])"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", code, str(folder)]
    elsewhere = subprocess.run(command, capture_output=True, check=True, env=environment, text=True).stdout
    shards = open_shards(str(folder))
    assert elsewhere.splitlines() == [str(batch) for batch in captions(shards.batches(6, 3, Share(1, 3)), 9)]
    assert captions(shards.batches(6, 3, ALONE), 9) != captions(shards.batches(6, 4, ALONE), 9)


def test_batches_shuffle_the_shards_anew_each_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipcls.train.data.shards.SHUFFLED", 1)
    shards = open_shards(str(write_shards(tmp_path, [1] * 8)))
    epochs = captions(shards.batches(8, 0, ALONE), 3)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert captions(shards.batches(8, 1, ALONE), 1) != epochs[:1]


def test_batches_shuffle_the_rows_anew_each_epoch(tmp_path: Path) -> None:
    shards = open_shards(str(write_shards(tmp_path, [20])))
    epochs = captions(shards.batches(20, 0, ALONE), 3)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert captions(shards.batches(20, 1, ALONE), 1) != epochs[:1]


def test_batches_mix_the_shards_from_the_start(tmp_path: Path) -> None:
    shards = open_shards(str(write_shards(tmp_path, [200, 200])))
    first = next(shards.batches(20, 0, ALONE))
    assert len({Path(row.image.path).parent for row in first}) == 2


@pytest.mark.parametrize("name", ["{}/*.tar", "pipe:cat {}/{{000..002}}.tar"])
def test_batches_pass_over_the_first_ones(tmp_path: Path, name: str) -> None:
    shards = open_shards(name.format(write_shards(tmp_path, [4, 3, 4])), 11)
    for share in (ALONE, Share(1, 2)):
        whole = captions(shards.batches(4, 0, share), 12)
        for first in range(12):
            assert captions(shards.batches(4, 0, share, first), 12 - first) == whole[first:]


def test_batches_open_no_shard_of_a_passed_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = open_shards(str(write_shards(tmp_path, [4, 4])))
    opened: list[str] = []

    def open_shard(shard: str) -> Any:
        opened.append(shard)
        return Path(shard).open("rb")

    monkeypatch.setattr("clipcls.train.data.shards._opened", open_shard)
    next(shards.batches(4, 0, ALONE, first=2000))
    assert len(opened) == 2


def test_batches_of_few_rows_hold_each_once(tmp_path: Path) -> None:
    shards = open_shards(str(write_shards(tmp_path, [2, 1])))
    for batch in captions(shards.batches(64, 0, ALONE), 3):
        assert sorted(batch) == ["thing 0", "thing 1", "thing 2"]


def test_batches_refuse_processes_that_cannot_share(tmp_path: Path) -> None:
    shards = open_shards(str(write_shards(tmp_path, [3, 0, 3])))
    with pytest.raises(UsageError, match="2 shards can't be dealt out to 3 processes"):
        shards.batches(3, 0, Share(0, 3))
    with pytest.raises(UsageError, match="batch_size: 5 isn't a multiple of the 2 processes"):
        shards.batches(5, 0, Share(0, 2))


def test_digest_follows_the_data_not_their_place(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "a", [2, 2])
    digest = open_shards(str(folder)).digest()
    moved = folder.rename(tmp_path / "moved")
    assert open_shards(str(moved)).digest() == digest
    (moved / "001.tar").rename(moved / "002.tar")
    assert open_shards(str(moved)).digest() != digest
    (moved / "002.tar").rename(moved / "001.tar")
    content = (moved / "001.tar").read_bytes()
    (moved / "001.tar").write_bytes(content.replace(b"thing 3", b"thong 3"))
    assert open_shards(str(moved)).digest() != digest


def test_memory_does_not_grow_with_the_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipcls.train.data.shards.SHUFFLED", 100)
    size, count = 50_000, 1000
    with ShardWriter(str(tmp_path / "%03d.tar"), maxcount=500, verbose=0, encoder=False) as writer:
        for number in range(count):
            writer.write({"__key__": str(number), "jpg": bytes(size), "txt": b"thing %d" % (number % 7)})
    open_shards(str(tmp_path / "000.tar"))  # what is imported and compiled once doesn't count
    tracemalloc.start()
    try:
        shards = open_shards(str(tmp_path))
        assert shards.count == count
        assert tracemalloc.get_traced_memory()[1] < 10 * size
        for _ in itertools.islice(shards.batches(10, 0, ALONE), 120):
            pass
        assert tracemalloc.get_traced_memory()[1] < 1.3 * size * 100
    finally:
        tracemalloc.stop()


def test_shuffled_gives_the_order_of_webdataset() -> None:
    for count, held in itertools.product((0, 1, 2, 5, 20, 33), (1, 2, 7, 20)):
        expected = list(webdataset.shuffle(held, initial=held, rng=random.Random(3))(iter(range(count))))
        assert list(shuffled(iter(range(count)), held, random.Random(3))) == expected  # type: ignore[arg-type, comparison-overlap]


def test_digest_and_order_are_those_of_earlier_versions(tmp_path: Path) -> None:
    # a run that such a version has begun goes on
    folder = tmp_path / "shards"
    for shard in range(2):
        numbers = range(3 * shard, 3 * shard + 3)
        write_tar(folder / f"{shard}.tar", [(f"{n}.{e}", f"{n}".encode()) for n in numbers for e in ("png", "txt")])
    shards = open_shards(str(folder))
    assert shards.digest() == "4625550cb5372e24b55d52cc2f54d54e846723091fd5474ecaaa7d3be877c6f6"
    assert captions(shards.batches(4, 1, ALONE), 3) == [list("1032"), list("4531"), list("5240")]


# ---- Parquet and stores


def write_parquet(path: Path, numbers: Iterable[int], column: str = "caption") -> str:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    images = [{"bytes": picture(number), "path": None} for number in numbers]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": images, column: [f"thing {number}" for number in numbers]}), path)
    return str(path)


def test_parquet_files_that_hold_pictures_are_shards(tmp_path: Path) -> None:
    one = read_data(write_parquet(tmp_path / "p" / "0.parquet", range(3)))
    assert isinstance(one, Shards) and one.count == 3
    write_parquet(tmp_path / "p" / "1.parquet", range(3, 5), "label")
    for name in ("p", "p/*.parquet", "p/{0..1}.parquet"):
        shards = read_data(f"{tmp_path}/{name}")
        assert isinstance(shards, Shards) and shards.problems == []
        rows = sorted(one_pass(shards), key=lambda row: row.concept)
        assert [row.concept for row in rows] == [f"thing {number}" for number in range(5)]
        assert [row.image.content for row in rows] == [picture(number) for number in range(5)]
        assert rows[3].image.path == f"{tmp_path}/p/1.parquet/0"
        assert shards.words == {"thing", *"01234"}
    whole = captions(shards.batches(2, 0, Share(1, 2)), 6)
    assert captions(shards.batches(2, 0, Share(1, 2), 4), 2) == whole[4:]


def test_parquet_rows_without_a_picture_count_as_they_are_read(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    data = [picture(0), None, picture(2), picture(3)]
    pq.write_table(pa.table({"image": data, "caption": ["a", "b", None, "d"]}), tmp_path / "a.parquet")
    shards = open_shards(str(tmp_path / "a.parquet"))
    assert shards.count == len(one_pass(shards)) == 3
    assert shards.problems == [f"{tmp_path}/a.parquet, row 2: no caption"]


def test_shards_in_a_store_are_read_as_those_on_disk(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "s", [2, 3])
    write_parquet(folder / "0.parquet", range(5))
    MemoryFileSystem().put(str(folder), "/s", recursive=True)
    try:
        with pytest.raises(UsageError, match="samples: 100000"):
            read_data("memory://s/*.tar")
        for name in ("memory://s/*.tar", "memory://s/{000..001}.tar"):
            shards = read_data(name, 5)
            rows = one_pass(shards)  # type: ignore[arg-type]
            assert {row.image.path for row in rows} == {f"memory://s/{n > 1:03d}.tar/{n:05d}.png" for n in range(5)}
        table = read_data("memory://s/0.parquet")
        assert (table.count, table.words) == (5, {"thing", *"01234"})
        assert len(one_pass(table)) == 5  # type: ignore[arg-type]
        missing = open_shards("memory://s/{000..002}.tar", 5)
        assert len(one_pass(missing)) == 5
        assert missing.problems == ["memory://s/002.tar: can't be read to its end: no such file or directory"]
    finally:
        MemoryFileSystem.store.clear()


# ---- damage


def test_shards_uses_what_precedes_damage(tmp_path: Path) -> None:
    members = [
        item for number in range(4) for item in ((f"{number}.png", bytes(700)), (f"{number}.txt", b"thing %d" % number))
    ]
    whole = write_tar(tmp_path / "whole.tar", members).read_bytes()
    broken = write_shards(tmp_path / "broken", [1]) / "cut.tar"
    found = set()
    end = 4 * (512 + 1024 + 512 + 512)
    for cut in range(0, end + 512, 128):
        broken.write_bytes(whole[:cut])
        shards = open_shards(str(broken.parent))
        rows = [row for row in one_pass(shards) if row.image.path.startswith(str(broken))]
        assert [row.captions for row in sorted(rows, key=lambda row: row.image.path)] == [
            (f"thing {number}",) for number in range(len(rows))
        ]
        assert shards.count == 1 + len(rows) == 1 + cut // (end // 4)
        assert all(row.image.content == bytes(700) for row in rows)
        assert any(problem.startswith(f"{broken}: can't be read to its end: ") for problem in shards.problems), cut
        found.add(len(rows))
    assert found == {0, 1, 2, 3, 4}
    broken.write_bytes(whole[: end + 1024])
    assert open_shards(str(broken.parent)).problems == []


def test_shards_reports_broken_headers(tmp_path: Path) -> None:
    path = write_shards(tmp_path, [1, 1]) / "000.tar"
    members = [(f"{number}.{name}", b"thing") for number in range(3) for name in ("png", "txt")]
    content = bytearray(write_tar(path, members).read_bytes())
    content[4 * 1024 : 4 * 1024 + 20] = bytes([255]) * 20
    path.write_bytes(content)
    shards = open_shards(str(tmp_path))
    assert (shards.count, len(one_pass(shards))) == (3, 3)
    assert shards.problems == [f"{path}: can't be read to its end: bad checksum"]


def test_shards_reports_shards_that_cannot_be_opened(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, [2])
    (folder / "001.tar").write_bytes(b"no tar at all" * 100)
    (folder / "002.tar").mkdir()
    shards = open_shards(f"{folder}/{{000..003}}.tar")
    assert (shards.count, len(one_pass(shards))) == (2, 2)
    assert [problem.split(":")[0][-7:] for problem in shards.problems] == ["001.tar", "002.tar", "003.tar"]


def test_shards_refuses_shards_without_samples(tmp_path: Path) -> None:
    apart = [(f"{number}.{name}", b"x") for name in ("png", "txt") for number in range(2)]
    write_tar(tmp_path / "a.tar", apart)
    with pytest.raises(UsageError, match=r"neighbours in a \.tar.*the first problem: .*a\.tar/0: no caption"):
        open_shards(str(tmp_path))


# ---- commands and URLs


def test_remote_shards_need_a_count(tmp_path: Path) -> None:
    name = f"pipe:cat {write_shards(tmp_path, [3])}/000.tar"
    assert is_stream(name)
    with pytest.raises(UsageError, match="samples: 100000"):
        read_data(name)
    shards = read_data(name, 3)
    assert (shards.count, shards.words, shards.problems) == (3, None, [])


def test_remote_shards_that_fail_are_problems(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, [3])
    cut = write_tar(folder / "001.tar", [(name, b"x") for name in ("8.png", "8.txt", "9.png", "9.txt")])
    cut.write_bytes(cut.read_bytes()[:3000])
    names = [f"pipe:cat {folder}/{number:03d}.tar" for number in range(2)]
    names += ["pipe:exit 3", f"pipe:cat {folder}/000.tar; exit 4"]
    shards = Shards("pipe:", names, 8)
    rows = one_pass(shards)
    assert len(rows) == len(one_pass(shards)) == 7
    assert f"{names[1]}/9: no caption" in shards.problems
    problems = dict(problem.split(": can't be read to its end: ") for problem in shards.problems if "end" in problem)
    assert set(problems) == set(names[1:])
    assert "end of data" in problems[names[1]]
    assert "status 3" in problems[names[2]]
    assert "status 4" in problems[names[3]]


def test_remote_shards_give_no_caption_that_is_cut_off(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"1.png": b"x", "1.txt": b"one", "2.png": b"x", "2.txt": b"a long caption"})
    shards = Shards("pipe:", [f"pipe:head -c {3 * 1024 + 512 + 6} {path}"], 2)
    assert [row.captions for row in one_pass(shards)] == [("one",)]
    assert len(shards.problems) == 2


def test_remote_shards_may_have_more_behind_their_end(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"1.png": b"x", "1.txt": b"one"})
    (tmp_path / "more").write_bytes(bytes(1_000_000))
    shards = Shards("pipe:", [f"pipe:exec cat {path} {tmp_path}/more"], 1)
    assert len(one_pass(shards)) == 1
    assert shards.problems == []


def test_remote_shards_without_samples_end_the_run(tmp_path: Path) -> None:
    shards = open_shards("pipe:exit 3", 10)
    with pytest.raises(UsageError, match=r"no usable sample.*status 3"):
        next(shards.batches(2, 0, ALONE))
    with pytest.raises(UsageError, match="no usable sample"):
        one_pass(shards)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@pytest.mark.skipif(shutil.which("curl") is None, reason="webdataset reads URLs by curl")
def test_shards_from_urls(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, [2, 2])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever).start()
        base = f"http://127.0.0.1:{server.server_address[1]}"
        shards = read_data(f"{base}/{{000..002}}.tar", 4)
        rows = one_pass(shards)
        server.shutdown()
    assert {row.image.path for row in rows} == {f"{base}/{n // 2:03d}.tar/{n:05d}.png" for n in range(4)}
    [problem] = shards.problems
    assert problem.startswith(f"{base}/002.tar: can't be read to its end: ")
    assert "status 22" in problem


# ---- runs


class KilledError(BaseException):
    """In place of a signal, within the process."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shards(tmp_path / "shards", [5, 3, 4])
    (tmp_path / "arch.json").write_text(json.dumps(TINY_CONFIG))
    (tmp_path / "config.yaml").write_text(
        f"data: {tmp_path}/shards/*.tar\narch: arch.json\noutput: run\nepochs: 3\nbatch_size: 4\n"
        "precision: fp32\ndevice: cpu\n"
    )
    return tmp_path


def begin(folder: Path, output: str, report: Callable[..., None] = lambda figures: None, **given: Any) -> Any:
    return train(load_settings(folder / "config.yaml", {"output": str(folder / output), **given}), TrainWatch(report))


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_train_resumes_on_shards(folder: Path) -> None:
    def report(figures: Any) -> None:
        if figures.step == 5:
            raise KilledError

    result = begin(folder, "whole")
    assert (result.last_step.step, result.problems) == (9, ())
    words = (folder / "whole" / "model" / "words.txt").read_text().split()
    assert words == sorted(["thing", *map(str, range(12))])
    with pytest.raises(KilledError):
        begin(folder, "run", report, save_minutes=1e-9)
    assert len(losses(folder / "run")) == 5
    (folder / "shards").rename(folder / "moved")
    train(resumed_settings(folder / "run", None, {"data": str(folder / "moved" / "{000..002}.tar")}), resume=True)
    assert losses(folder / "run") == losses(folder / "whole")
    runs = [load_file(folder / run / "model" / "open_clip_model.safetensors") for run in ("whole", "run")]
    assert all(tensor.equal(runs[1][key]) for key, tensor in runs[0].items())


def test_train_refuses_changed_shards(folder: Path) -> None:
    def report(figures: Any) -> None:
        if figures.step == 2:
            raise KilledError

    with pytest.raises(KilledError):
        begin(folder, "run", report, save_minutes=1e-9)
    (folder / "shards" / "001.tar").unlink()
    with pytest.raises(UsageError, match="doesn't hold the rows any more"):
        train(resumed_settings(folder / "run", None, {}), resume=True)


def test_train_counts_what_it_left_out(folder: Path) -> None:
    path = write_tar(folder / "shards" / "bad.tar", {"1.png": b"x", "2.png": b"no picture", "2.txt": b"two"})
    result = begin(folder, "run", epochs=2)
    assert sorted(problem.partition(":")[0] for problem in result.problems) == [f"{path}/1", f"{path}/2.png"]
    with pytest.raises(UsageError, match=r"strict_data: 1 of the data.*bad\.tar/1: no caption"):
        begin(folder, "strict", strict_data=True)


def test_train_stops_at_a_problem_met_on_the_way(folder: Path) -> None:
    vanishing = folder / "shards" / "000.tar"

    def report(figures: Any) -> None:
        vanishing.unlink(missing_ok=True)

    with pytest.raises(StoppedError, match=r"strict_data: .*000\.tar: can't be read"):
        begin(folder, "run", report, strict_data=True, epochs=30)


def test_train_on_a_command_leaves_the_words_unknown(folder: Path) -> None:
    name = f"pipe:cat {folder}/shards//{{000..002}}.tar"
    result = begin(folder, "run", data=name, samples=8)
    assert (result.last_step.step, result.problems) == (6, ())
    assert (result.model / "open_clip_model.safetensors").is_file()
    assert not (result.model / "words.txt").exists()
    assert resumed_settings(folder / "run", None, {}).data == name
