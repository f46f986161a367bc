"""Jobs that are stopped, killed, out of disk, and gone on with; through the real command line."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from conftest import ROOT, save_pictures
from killing import bytes_in, check_equal, check_same_features, kill_at_random, rows_in
from shell import Started

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]
Start = Callable[..., Started]


@pytest.fixture
def job(tiny_model: Path, tmp_path: Path) -> list[str]:
    """A job of 160 images with 10 bad ones, which keeps nothing but its output."""
    save_pictures(tmp_path / "pictures", 160)
    for number in range(0, 160, 16):
        sorted((tmp_path / "pictures").iterdir())[number].write_bytes(b"no picture")
    common = ("--labels", "cat,dog,truck", "--top-k", "2", "--no-cache", "--precision", "fp32", "--batch-size", "4")
    return ["predict", "pictures", *common, "--workers", "1", "--model", str(tiny_model), "-q"]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_job_killed_at_random_is_gone_on_with(
    clipcls: Run, start: Start, job: list[str], tmp_path: Path, kind: str
) -> None:
    def target(name: str) -> list[str]:
        return ["--output-dir", name] if kind == "parquet" else ["--output", f"{name}.{kind}"]

    assert clipcls(*job, *target("whole")).returncode == 1
    whole, broken = (tmp_path / (name if kind == "parquet" else f"{name}.{kind}") for name in ("whole", "broken"))
    size = sum(path.stat().st_size for path in (whole.glob("part-*") if whole.is_dir() else [whole]))
    rng = random.Random(kind)

    for _ in range(4):
        kill_at_random(partial(start, *job, *target("broken"), "--resume"), is_running, broken, size, rng)
    last = clipcls(*job, *target("broken"), "--resume")
    assert last.returncode == 1, last.stderr
    check_equal(rows_in(broken), rows_in(whole), 1e-5)


def is_running(process: Started) -> bool:
    return process.poll() is None


def write_small_parts() -> None:
    from clipcls.outputs.vectors import write

    write.PART_ROWS = 8


@pytest.mark.parametrize("kind", ["parquet", "npy"])
def test_features_of_a_job_killed_at_random_are_gone_on_with(
    start: Start, tiny_model: Path, tmp_path: Path, kind: str
) -> None:
    # two parts in a row have no features
    save_pictures(tmp_path / "pictures", 64)
    for number in (3, *range(24, 40), 63):
        (tmp_path / "pictures" / f"{number:03d}.png").write_bytes(b"no picture")
    how = ("--no-cache", "--precision", "fp32", "--batch-size", "4", "--workers", "1", "--model", tiny_model, "-q")

    def begin(output: str) -> Started:
        arguments = ["embed", "pictures", "--output-dir", output, "--format", kind, "--resume", *how]
        return start(*arguments, before=write_small_parts)

    def finish(output: str) -> None:
        process = begin(output)
        _, errors = process.communicate()
        assert process.wait() == 1, errors

    finish("whole")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    rng = random.Random(kind)
    for _ in range(3):
        kill_at_random(partial(begin, "broken"), is_running, broken, bytes_in(whole), rng)
    finish("broken")
    check_same_features(broken, whole, 1e-5)
    assert not list(broken.rglob("*.part"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_the_batch_and_says_how_to_go_on(
    start: Start, tiny_model: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    pictures = save_pictures(tmp_path / "pictures", 3)
    arguments = ("predict", "-", "--labels", "cat,dog", "--model", tiny_model, "-o", "out.tsv")
    process = start(*arguments, stdin=subprocess.PIPE)
    process.stdin.write(b"".join(os.fsencode(path) + b"\n" for path in pictures))
    process.stdin.flush()
    limit = time.monotonic() + 60
    while not (tmp_path / "out.tsv").exists() or (tmp_path / "out.tsv").read_bytes().count(b"\n") < 3:
        assert time.monotonic() < limit, "no rows were written"
        time.sleep(0.02)
    time.sleep(0.3)  # it waits for the pipe
    process.send_signal(number)
    stderr = process.stderr.read()
    process.communicate()
    assert process.wait() == code
    assert b"3 images done; the same command with --resume goes on" in stderr
    assert b"Traceback" not in stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_during_start_up_ends_a_run_at_once(job: list[str], tmp_path: Path, number: signal.Signals) -> None:
    # stands for what Python aborts at: an exception within torch's C++ code that it is imported by
    (tmp_path / "torch.py").write_text(
        f"import os, signal\ntry:\n    os.kill(os.getpid(), {int(number)})\nexcept BaseException:\n    os.abort()\n"
    )
    command = [sys.executable, "-m", "clipcls", *job, "-o", "out.jsonl"]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (128 + number, b"clipcls: interrupted\n")
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("limit", ["5", "4%"])
def test_max_errors_stops_a_job_gone_wrong(clipcls: Run, job: list[str], tmp_path: Path, limit: str) -> None:
    done = clipcls(*job[:-1], "--max-errors", limit, "-o", "out.csv")
    assert done.returncode == 4
    assert b"could not be read" in done.stderr and b"--resume goes on" in done.stderr
    rows = rows_in(tmp_path / "out.csv")
    failures = sum(row.error is not None for row in rows)
    assert failures == 6 if limit == "5" else (len(rows) >= 100 and failures > 0.04 * len(rows))
    rest = clipcls(*job, "-o", "out.csv", "--resume")
    assert rest.returncode == 1
    assert len(rows_in(tmp_path / "out.csv")) == 160


@pytest.mark.parametrize("limit", ["10", "100%", "8%"])
def test_max_errors_that_isnt_reached_changes_nothing(clipcls: Run, job: list[str], limit: str) -> None:
    assert clipcls(*job, "--max-errors", limit).returncode == 1


@pytest.mark.parametrize("limit", ["-1", "x", "101%", "5 %", "", "%"])
def test_max_errors_refuses_what_is_no_number(clipcls: Run, job: list[str], limit: str) -> None:
    done = clipcls(*job, f"--max-errors={limit}")
    assert (done.returncode, b"--max-errors" in done.stderr) == (2, True)


def test_resume_with_other_settings_names_them(clipcls: Run, job: list[str]) -> None:
    assert clipcls(*job, "-o", "out.jsonl").returncode == 1
    other = [part.replace("cat,dog,truck", "cat,dog") for part in job]
    done = clipcls(*other, "--decode", "exact", "--resume", "-o", "out.jsonl")
    assert done.returncode == 2
    assert b"--labels" in done.stderr and b"--decode (fast then, exact now)" in done.stderr
    assert b"--model" not in done.stderr


def test_resume_tells_models_apart_by_their_weights(clipcls: Run, job: list[str], tmp_path: Path) -> None:
    from conftest import TINY_CONFIG, save_model

    assert clipcls(*job, "-o", "out.jsonl").returncode == 1
    place = job.index("--model")
    job = job[:place] + job[place + 2 :]
    other = save_model(tmp_path / "other", TINY_CONFIG, seed=1)
    done = clipcls(*job, "--model", other, "--resume", "-o", "out.jsonl")
    assert (done.returncode, b"--model" in done.stderr) == (2, True)
    same = save_model(tmp_path / "same", TINY_CONFIG)
    assert clipcls(*job, "--model", same, "--resume", "-o", "out.jsonl").returncode == 1


def test_retry_errors_gives_mended_images_their_rows(clipcls: Run, job: list[str], tmp_path: Path) -> None:
    assert clipcls(*job, "-o", "out.tsv").returncode == 1
    assert len({row.path for row in rows_in(tmp_path / "out.tsv")}) == 150
    good = (tmp_path / "pictures" / rows_in(tmp_path / "out.tsv")[0].path.rpartition("/")[2]).read_bytes()
    for path in (tmp_path / "pictures").iterdir():
        if path.read_bytes() == b"no picture":
            path.write_bytes(good)
    assert clipcls(*job, "-o", "out.tsv", "--resume").returncode == 1
    assert clipcls(*job, "-o", "out.tsv", "--resume", "--retry-errors").returncode == 0
    assert len({row.path for row in rows_in(tmp_path / "out.tsv")}) == 160


def with_limit(start: Start, size: int, *args: str) -> tuple[int, bytes]:
    """The exit code and the messages of a run of which no file may become larger."""
    process = start(*args, before=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size)))
    _, errors = process.communicate()
    return process.wait(), errors


def test_full_disk_keeps_whole_rows_and_the_run_goes_on_later(
    clipcls: Run, start: Start, job: list[str], tmp_path: Path
) -> None:
    cached = [part for part in job if part not in ("--no-cache", "-q")]
    code, errors = with_limit(start, 9000, *cached, "-o", "out.jsonl")
    assert code == 4, errors
    assert b"out.jsonl: can't be written" in errors and b"Traceback" not in errors
    assert 8000 < (tmp_path / "out.jsonl").stat().st_size <= 9000
    assert (tmp_path / "out.jsonl").read_bytes().endswith(b"}\n")
    assert clipcls(*cached, "-o", "out.jsonl", "--resume").returncode == 1
    assert len(rows_in(tmp_path / "out.jsonl")) == 160


def test_full_disk_of_the_cache_alone_doesnt_stop_a_job(start: Start, job: list[str], tmp_path: Path) -> None:
    cached = [part for part in job if part not in ("--no-cache", "-q", "--top-k", "2")]
    code, errors = with_limit(start, 40_000, *cached, "-o", "out.tsv")
    assert code == 1, errors
    assert b"cache off" in errors and b"Traceback" not in errors
    assert len(rows_in(tmp_path / "out.tsv")) == 150


def test_resumed_run_shows_how_much_is_done(clipcls: Run, job: list[str], tmp_path: Path) -> None:
    assert clipcls(*job, "-o", "out.jsonl").returncode == 1
    lines = (tmp_path / "out.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "out.jsonl").write_bytes(b"".join(lines[:100]))
    done = clipcls(*job[:-1], "-o", "out.jsonl", "--resume")
    assert b"going on after 100 images" in done.stderr
    assert b"10 of 160 images could not be read" in done.stderr
    assert [json.loads(line)["path"] for line in lines] == [row.path for row in rows_in(tmp_path / "out.jsonl")]


@pytest.mark.parametrize("source", [("--files-from", "gone.txt"), ("empty",)])
def test_run_without_pictures_leaves_the_output_as_it_was(
    clipcls: Run, job: list[str], tmp_path: Path, source: tuple[str, ...]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "out.jsonl").write_text("rows of an earlier run\n")
    assert clipcls("predict", *source, *job[2:], "-o", "out.jsonl").returncode == 2
    assert (tmp_path / "out.jsonl").read_text() == "rows of an earlier run\n"


@pytest.mark.parametrize("stderr", ["a reader that is gone", "a full disk"])
def test_run_goes_on_when_its_messages_are_lost(start: Start, job: list[str], tmp_path: Path, stderr: str) -> None:
    reader, writer = os.pipe() if stderr == "a reader that is gone" else (None, os.open("/dev/full", os.O_WRONLY))
    if reader is not None:
        os.close(reader)
    process = start(*job[:-1], "-o", "out.jsonl", stderr=writer)
    os.close(writer)
    process.communicate()
    assert process.wait() == 1
    assert len(rows_in(tmp_path / "out.jsonl")) == 160


def test_output_named_as_standard_output_is_appended_as_that(start: Start, job: list[str], tmp_path: Path) -> None:
    (tmp_path / "log").write_text("before\n")
    with (tmp_path / "log").open("ab") as log:
        process = start(*job, "-o", "/dev/stdout", stdout=log.fileno())
    process.communicate()
    assert process.wait() == 1
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[0] == "before" and len(lines) == 301
    assert sorted(path.name for path in tmp_path.glob(".*.run")) == []
