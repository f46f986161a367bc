"""`clipcls predict --engine ray` on real clusters: two nodes of one processor each."""

import os
import random
import signal
import socket
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clipcls.records import Prediction
from clusters import Cluster, cluster
from conftest import EXAMPLES, ROOT, save_pictures
from killing import check_equal, rows_in
from shell import Started

pytest.importorskip("ray")

COUNT = 400
Start = Callable[..., Started]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("cluster")) as found:
        yield found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Pictures that take a while, some of them damaged."""
    folder = tmp_path_factory.mktemp("data")
    different = [path.read_bytes() for path in save_pictures(folder / "different", 7, (900, 600))]
    (folder / "pictures").mkdir()
    bad = random.Random(0).sample(range(COUNT), 12)
    for number in range(COUNT):
        content = different[number % len(different)]
        (folder / "pictures" / f"{number:03}.png").write_bytes(content[:300] if number in bad else content)
    return folder


@pytest.fixture(scope="module")
def expected(data: Path, tiny_model: Path, forks: Any) -> list[Prediction]:
    """What one process says of them."""
    process = Started(forks, data, *command(tiny_model, "--output", "plain.jsonl"))
    process.communicate()
    assert process.wait() == 1
    return rows_in(data / "plain.jsonl")


@pytest.fixture
def run(data: Path, tiny_model: Path, nodes: Cluster, tmp_path: Path, forks: Any) -> Start:
    """Start a run over the two nodes, which writes to `out` and `stderr` of the test's folder."""

    def started(*more: str) -> Started:
        arguments = command(tiny_model, *spread(nodes, tmp_path / "out"), *more)
        with (tmp_path / "stderr").open("wb") as errors, (tmp_path / "stdout").open("wb") as output:
            streams = {"stdout": output.fileno(), "stderr": errors.fileno()}
            return Started(forks, data, *arguments, environment=nodes.environment, **streams)

    return started


def spread(nodes: Cluster, output: Path) -> list[str]:
    return ["--engine", "ray", "--ray-address", nodes.address, "--output-dir", str(output)]


def command(model: Path, *more: str) -> list[str]:
    common = ["--labels", "cat,dog,truck", "--top-k", "2", "--precision", "fp32", "--no-cache", "--model", str(model)]
    return ["predict", "pictures", *common, *more]


def wait_for_parts(folder: Path, count: int, process: Started) -> None:
    deadline = time.monotonic() + 120
    while len(list(folder.glob("part-*"))) < count:
        assert process.poll() is None and time.monotonic() < deadline, "ended too early, or never began"
        time.sleep(0.01)


def check_whole(folder: Path, expected: list[Prediction]) -> None:
    rows = rows_in(folder)
    check_equal(rows, expected, 1e-5)
    indexes = [row.index for row in rows]
    assert indexes == sorted(set(indexes), key=lambda index: index or 0)
    assert not list(folder.glob("*.part")), "drafts are left"


def test_run_that_is_ended_goes_on_without_a_row_twice(run: Start, expected: list[Prediction], tmp_path: Path) -> None:
    process = run()
    wait_for_parts(tmp_path / "out", 1, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 143
    said = [line for line in (tmp_path / "stderr").read_text().splitlines() if "pictures/" not in line]
    assert said[0] == "clipcls: stopping the workers; a second signal ends the run at once"
    assert said[1].endswith("images done; the same command with --resume goes on")
    assert said[2:] == ["clipcls: interrupted"]
    process = run("--resume")
    wait_for_parts(tmp_path / "out", 3, process)
    process.kill()
    process.wait(120)
    assert run("--resume").wait(180) == 1
    said = (tmp_path / "stderr").read_text().splitlines()
    assert "going on after" in said[0] and said[-1] == f"clipcls: 12 of {COUNT} images could not be read"
    assert all(line.startswith("clipcls: pictures/") for line in said[1:-1])
    assert (tmp_path / "stdout").read_bytes() == b""
    check_whole(tmp_path / "out", expected)
    # again: refused, and other settings are refused by name
    assert run().wait(180) == 2
    assert b"Give --resume" in (tmp_path / "stderr").read_bytes()
    assert run("--resume", "--threshold", "0.5").wait(180) == 2
    assert b"--threshold" in (tmp_path / "stderr").read_bytes()


def test_containers_are_read_by_the_workers(
    start: Start, data: Path, nodes: Cluster, tiny_model: Path, tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = sorted((data / "pictures").iterdir())[:90]
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for path in paths[:30]:
            archive.add(path, path.name)
    values = [path.read_bytes() for path in paths[30:60]]
    pq.write_table(pa.table({"image": values}), tmp_path / "t.parquet", row_group_size=7)
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in paths[60:]))
    inputs = ["a.tar", "t.parquet", "--column", "image", "--files-from", "list.txt"]
    common = [*inputs, "--labels", "cat,dog", "--model", str(tiny_model), "--precision", "fp32", "-q"]
    for target in (["--output", "plain.jsonl"], [*spread(nodes, tmp_path / "out"), "--format", "jsonl"]):
        process = start("predict", *common, *target, environment=nodes.environment)
        _, errors = process.communicate()
        assert process.wait() in (0, 1), errors
    check_equal(rows_in(tmp_path / "out"), rows_in(tmp_path / "plain.jsonl"), 1e-5)


def test_worker_and_node_that_are_lost_cost_no_row(
    run: Start, nodes: Cluster, expected: list[Prediction], tmp_path: Path
) -> None:
    # the last one, since a node is lost for good
    process = run()
    wait_for_parts(tmp_path / "out", 1, process)
    os.kill(nodes.workers()[0], signal.SIGKILL)
    wait_for_parts(tmp_path / "out", 2, process)
    nodes.nodes[1].kill()
    assert process.wait(240) == 1
    check_whole(tmp_path / "out", expected)


def test_address_that_nobody_answers_at_ends_the_run(clipcls: Any, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.jpg").touch()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        begin = time.monotonic()
        more = ["--engine", "ray", "--ray-address", address, "--output-dir", "out"]
        done = clipcls(*command(tiny_model, *more))
    assert done.returncode == 4
    assert time.monotonic() - begin < 40
    assert done.stderr.decode().startswith(f"clipcls: error: --ray-address {address}: no Ray cluster answers there")
    assert not (tmp_path / "out").exists()


def test_ray_that_is_not_installed_is_asked_for(clipcls: Any, tmp_path: Path) -> None:
    (tmp_path / "ray.py").write_text("raise ImportError(\"No module named 'ray'\")")
    arguments = ["predict", EXAMPLES, "--labels", "a,b", "--model", "pictogram", "--engine", "ray", "--output-dir", "o"]
    done = clipcls(*arguments, env={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    assert done.returncode == 2
    assert done.stderr.decode() == (
        "clipcls: error: --engine ray needs the package ray (No module named 'ray'): pip install 'clipcls[ray]'\n"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "ray"], "--output-dir"),
        (["--engine", "ray", "--output", "x.jsonl"], "--output-dir"),
        (["--engine", "ray", "--output-dir", "o", "--format", "csv"], "not csv"),
        (["--engine", "ray", "--output-dir", "o", "--device", "cuda:1"], "Ray chooses"),
        (["--engine", "ray", "--output-dir", "o", "--device", "cpu", "--gpus-per-worker", "1"], "contradict"),
        (["--engine", "ray", "--output-dir", "s3://bucket/o"], "an address"),
        (["--engine", "ray", "--output-dir", "o", "--ray-address", "ray://x:10001"], "ray job submit"),
        (["--ray-workers", "2"], "belong to --engine ray"),
        (["--gpus-per-worker", "0"], "belong to --engine ray"),
    ],
)
def test_options_that_contradict_are_refused(clipcls: Any, tmp_path: Path, options: list[str], message: str) -> None:
    done = clipcls("predict", EXAMPLES, "--labels", "a,b", "--model", "pictogram", *options)
    assert done.returncode == 2, done
    assert message in done.stderr.decode()
    assert not (tmp_path / "o").exists()
