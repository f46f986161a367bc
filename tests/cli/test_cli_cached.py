"""`clipcls predict` over what earlier runs left in the cache: the same answers, and nothing done twice."""

import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipcls.embed.cache.entries import CachedImage
from clipcls.embed.cache.prune import info
from clipcls.embed.cache.store import MEGABYTE, Cache
from conftest import EXAMPLES, save_pictures
from shell import run_on_files

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]

# files that haven't just changed, which the index of paths wants
COUNT = sum(path.suffix != ".txt" for path in EXAMPLES.iterdir())
PREDICT = ("predict", EXAMPLES, "--model", "pictogram", "--device", "cpu")
LABELS = ("--labels", "cat,dog,truck")
DIGITS = ("--format", "jsonl", "--top-k", "3", "--precision", "fp32")
FILE = "clipcls.sqlite3"


def rows(stdout: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stdout.splitlines()]


def similarities(done: "subprocess.CompletedProcess[bytes]") -> dict[tuple[str, str], float]:
    assert done.returncode == 0, done.stderr
    return {(row["path"], entry["label"]): entry["similarity"] for row in rows(done.stdout) for entry in row["top"]}


def assert_agree(done: "subprocess.CompletedProcess[bytes]", expected: "subprocess.CompletedProcess[bytes]") -> None:
    """Two runs with `DIGITS` have the same answers; last digits may change with the batch that a picture was in."""
    found, wanted = similarities(done), similarities(expected)
    assert [row["label"] for row in rows(done.stdout)] == [row["label"] for row in rows(expected.stdout)]
    assert found.keys() == wanted.keys()
    assert max(abs(found[key] - wanted[key]) for key in wanted) <= 1e-5


def messages(stderr: bytes) -> list[str]:
    """What `-v` said, without the model's name and the like."""
    return [line.removeprefix("clipcls: ") for line in stderr.decode().splitlines()]


def towers(stderr: bytes) -> list[str]:
    return [name for name in ("image", "text") if f"built the {name} tower".encode() in stderr]


# ------------------------------------------------------------------------------------------- nothing done twice


@pytest.mark.parametrize("kind", ["table", "tsv", "jsonl"])
def test_predict_prints_the_same_from_the_cache(clipcls: Run, tmp_path: Path, kind: str) -> None:
    arguments = (*PREDICT, *LABELS, "--format", kind, "--top-k", "2", "--cache-dir", tmp_path / "cache", "-v")
    cold, warm = clipcls(*arguments), clipcls(*arguments)
    assert cold.returncode == warm.returncode == 0, warm.stderr
    assert warm.stdout == cold.stdout and len(cold.stdout.splitlines()) >= COUNT
    assert towers(cold.stderr) == ["image", "text"] and towers(warm.stderr) == []
    assert f"images: {COUNT} of {COUNT} from the cache" in messages(warm.stderr)
    assert "texts: 3 of 3 from the cache" in messages(warm.stderr)


def test_predict_builds_only_the_tower_of_what_is_new(clipcls: Run, tmp_path: Path) -> None:
    assert clipcls(*PREDICT, *LABELS).returncode == 0
    label = clipcls(*PREDICT, "--labels", "cat,dog,truck,bird", "-v")
    assert (label.returncode, towers(label.stderr)) == (0, ["text"])
    assert "texts: 3 of 4 from the cache" in messages(label.stderr)
    assert f"images: {COUNT} of {COUNT} from the cache" in messages(label.stderr)
    (new,) = save_pictures(tmp_path / "new", 1)
    picture = clipcls(*PREDICT, new, *LABELS, "-v")
    assert (picture.returncode, towers(picture.stderr)) == (0, ["image"])
    assert f"images: {COUNT} of {COUNT + 1} from the cache" in messages(picture.stderr)


def run_unable_to_open(arguments: Sequence[str], folder: Path, environment: dict[str, str]) -> None:
    """In a process of its own: the command line where opening any picture fails."""
    from clipcls.errors import ImageError
    from clipcls.inputs import contents

    def refuse(path: object) -> Any:
        raise ImageError("it was opened")

    contents.open_file = refuse
    run_on_files(arguments, folder, environment)


def test_predict_with_other_labels_opens_no_image(clipcls: Run, forks: Any, tmp_path: Path) -> None:
    assert clipcls(*PREDICT, *LABELS).returncode == 0
    expected = clipcls(*PREDICT, "--labels", "train,bird", "--no-cache")
    arguments = [*map(str, PREDICT), "--labels", "train,bird"]
    process = forks.Process(target=run_unable_to_open, args=(arguments, tmp_path / ".streams", dict(os.environ)))
    process.start()
    process.join(120)
    assert process.exitcode == 0, (tmp_path / ".streams" / "stderr").read_text()
    assert (tmp_path / ".streams" / "stdout").read_bytes() == expected.stdout


# ------------------------------------------------------------------------------------------- options


def test_predict_without_the_cache_neither_reads_nor_writes_it(clipcls: Run, tmp_path: Path) -> None:
    uncached = clipcls(*PREDICT, *LABELS, *DIGITS, "--no-cache", "-v")
    assert not (tmp_path / "xdg-cache" / "clipcls").exists()
    cached = clipcls(*PREDICT, *LABELS, *DIGITS)
    before = (tmp_path / "xdg-cache" / "clipcls" / FILE).read_bytes()
    again = clipcls(*PREDICT, *LABELS, *DIGITS, "--no-cache", "-v")
    for done in (uncached, again):
        assert_agree(done, cached)
        assert towers(done.stderr) == ["image", "text"]
    assert (tmp_path / "xdg-cache" / "clipcls" / FILE).read_bytes() == before


def test_predict_keeps_its_cache_where_told(clipcls: Run, tmp_path: Path) -> None:
    assert clipcls(*PREDICT, *LABELS, "--cache-dir", tmp_path / "mine").returncode == 0
    facts = info(tmp_path / "mine")
    assert (facts.images, facts.texts, facts.models) == (COUNT, 3, 1)
    assert not (tmp_path / "xdg-cache" / "clipcls").exists()
    assert towers(clipcls(*PREDICT, *LABELS, "--cache-dir", "mine", "-v").stderr) == []


def test_predict_keeps_its_cache_under_the_size_asked_for(clipcls: Run, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    cache = Cache(folder)
    names = [b"%d" % i for i in range(2000)]
    features = np.ones(512, np.float32)
    cache.put_images([CachedImage("", None, hashlib.sha256(name).digest(), features) for name in names], b"s" * 32)
    cache.close()
    assert info(folder).images == 2000
    done = clipcls(*PREDICT, *LABELS, "--cache-dir", folder, "--cache-size", "1")
    assert (done.returncode, done.stderr) == (0, b"")
    assert info(folder).images * features.nbytes < MEGABYTE
    assert towers(clipcls(*PREDICT, *LABELS, "--cache-dir", folder, "-v").stderr) == []


# ------------------------------------------------------------------------------------------- two at once


def test_predict_processes_share_a_cache_at_the_same_time(forks: Any, tmp_path: Path) -> None:
    folders, processes = [], []
    for labels in ("cat,dog,truck", "cat,dog,bird,truck"):
        folders.append(tmp_path / labels / "streams")
        folders[-1].mkdir(parents=True)
        (folders[-1] / "stdin").touch()
        options = ["--batch-size", "1", "--cache-dir", str(tmp_path / "cache"), "--format", "jsonl"]
        arguments = [*map(str, PREDICT), "--labels", labels, *options]
        processes.append(forks.Process(target=run_on_files, args=(arguments, folders[-1], dict(os.environ))))
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [(folder / "stderr").read_bytes() for folder in folders] == [b""] * 2
    assert [process.exitcode for process in processes] == [0, 0]
    one, other = (rows((folder / "stdout").read_bytes()) for folder in folders)
    assert len(one) == len(other) == COUNT
    for left, right in zip(one, other, strict=True):
        assert left["path"] == right["path"]
        if left["label"] == right["label"]:
            assert left["similarity"] == pytest.approx(right["similarity"], abs=1e-5)
    facts = info(tmp_path / "cache")
    assert (facts.images, facts.texts) == (COUNT, 4)
    assert not list((tmp_path / "cache").glob("*damaged*"))


# ------------------------------------------------------------------------------------------- damage


def zeroed_header(data: bytearray) -> None:
    data[:100] = bytes(100)


def flipped_header(data: bytearray) -> None:
    data[3] ^= 0x40


def flipped_everywhere(data: bytearray) -> None:
    for position in np.random.default_rng(3).integers(100, len(data), 400):
        data[position] ^= 0xFF


def cut_in_half(data: bytearray) -> None:
    del data[len(data) // 2 :]


def cut_to_nothing(data: bytearray) -> None:
    del data[7:]


@pytest.mark.parametrize(
    "damage", [zeroed_header, flipped_header, flipped_everywhere, cut_in_half, cut_to_nothing], ids=lambda f: f.__name__
)
def test_predict_over_a_damaged_cache_answers_the_same(
    clipcls: Run, tmp_path: Path, damage: Callable[[bytearray], None]
) -> None:
    arguments = (*PREDICT, *LABELS, *DIGITS, "--cache-dir", "cache")
    cold = clipcls(*arguments)
    data = bytearray((tmp_path / "cache" / FILE).read_bytes())
    damage(data)
    (tmp_path / "cache" / FILE).write_bytes(data)
    after = clipcls(*arguments)
    assert_agree(after, cold)
    # rows that aren't whole are silently made again
    assert len(after.stderr.splitlines()) in ((0, 1) if damage is flipped_everywhere else (1,))
    assert b"Traceback" not in after.stderr
    healed = clipcls(*arguments, "-v")
    assert (healed.returncode, healed.stdout, towers(healed.stderr)) == (0, after.stdout, [])


def test_predict_without_a_usable_cache_folder_answers_the_same(clipcls: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    done = clipcls(*PREDICT, *LABELS, "--cache-dir", "file")
    assert done.returncode == 0 and len(done.stdout.splitlines()) == COUNT
    assert len(set(done.stderr.splitlines())) == 1 and b"cache off" in done.stderr


# ------------------------------------------------------------------------------------------- the same numbers


def test_predict_cached_uncached_single_and_batched_agree(clipcls: Run) -> None:
    exact = (*PREDICT, *LABELS, *DIGITS)
    runs = [
        clipcls(*exact, "--no-cache", "--batch-size", "1"),
        clipcls(*exact, "--no-cache", "--batch-size", "64"),
        clipcls(*exact, "--batch-size", "5"),
        clipcls(*exact, "--batch-size", "64"),
    ]
    for done in runs[1:]:
        assert_agree(done, runs[0])
    rough = clipcls(*exact[:-1], "bf16")
    first, found = similarities(runs[0]), similarities(rough)
    assert max(abs(found[key] - first[key]) for key in first) <= 2e-2
    for row, other in zip(rows(runs[0].stdout), rows(rough.stdout), strict=True):
        best, second, _ = (entry["similarity"] for entry in row["top"])
        if best - second > 0.01:
            assert row["label"] == other["label"], row
