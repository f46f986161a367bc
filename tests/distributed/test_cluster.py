"""How a cluster is divided among workers."""

import logging
import socket
import threading
import time

import pytest

from clipcls.distributed import cluster as module
from clipcls.distributed.cluster import ANSWER_SECONDS, Cluster, Node, Pool, divide
from clipcls.errors import StoppedError, UsageError

pytest.importorskip("ray")


@pytest.mark.parametrize(
    ("nodes", "pool"),
    [
        # a worker for up to 8 cores, as many as fit
        ([Node(2, 0)], Pool(1, 2, 2.0, 0.0)),
        ([Node(1, 0), Node(1, 0)], Pool(2, 1, 1.0, 0.0)),
        ([Node(64, 0)], Pool(8, 8, 8.0, 0.0)),
        ([Node(16, 0), Node(4, 0)], Pool(5, 4, 4.0, 0.0)),
        # a head node that lends no cores
        ([Node(0, 0), Node(4, 0)], Pool(1, 4, 4.0, 0.0)),
        ([Node(0.5, 0)], Pool(1, 1, 0.5, 0.0)),
        # a worker for each GPU, with its share of the cores
        ([Node(16, 4)], Pool(4, 4, 1.0, 1.0)),
        ([Node(16, 4), Node(8, 0), Node(8, 1)], Pool(5, 4, 1.0, 1.0)),
    ],
)
def test_divide_fills_the_cluster(nodes: list[Node], pool: Pool) -> None:
    assert divide(nodes) == pool


def test_divide_shares_gpus() -> None:
    assert divide([Node(16, 2)], gpus_per_worker=0.5) == Pool(4, 4, 1.0, 0.5)
    assert divide([Node(16, 2)], gpus_per_worker=0) == Pool(2, 8, 8.0, 0.0)


def test_divide_asks_for_fractions_where_more_workers_are_wanted_than_cores() -> None:
    assert divide([Node(1, 0), Node(1, 0)], workers=4) == Pool(4, 1, 0.5, 0.0)
    # three don't fit on two nodes with two thirds each
    assert divide([Node(1, 0), Node(1, 0)], workers=3).cpus == 0.5
    assert divide([Node(2, 0)], workers=2, threads=2) == Pool(2, 2, 1.0, 0.0)


def test_divide_asks_for_all_threads_that_are_wanted() -> None:
    assert divide([Node(8, 0)], workers=1, threads=3) == Pool(1, 3, 3.0, 0.0)


@pytest.mark.parametrize(
    ("nodes", "options", "message"),
    [
        ([Node(4, 0)], {"gpus_per_worker": 1}, "No node .* 1 GPUs"),
        ([Node(4, 1)], {"gpus_per_worker": 2}, "No node .* 2 GPUs"),
        ([Node(4, 1)], {"workers": 2}, "--ray-workers 2: with 1 GPUs each, 1 fit"),
        ([Node(0, 0)], {}, "No node .* a CPU"),
    ],
)
def test_divide_refuses_what_never_fits(nodes: list[Node], options: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        divide(nodes, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("address", ["", "nonsense", "host:", "host:port", ":1", "ray://host:10001"])
def test_cluster_refuses_what_is_no_address(address: str) -> None:
    with pytest.raises(UsageError, match="HOST:PORT"):
        Cluster(address, verbose=False)


def test_cluster_that_nobody_answers_for_is_given_up_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    start = time.monotonic()
    with pytest.raises(StoppedError, match=rf"{address}: no Ray cluster answers there \(connection refused\)"):
        Cluster(address, verbose=False)
    assert time.monotonic() - start < ANSWER_SECONDS + 1


def test_watch_tells_of_a_cluster_without_room_and_gives_it_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    room = True
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    monkeypatch.setattr(logging.getLogger("clipcls"), "propagate", True)
    watch = module._Watch("head:1", lambda: room)
    told = []
    for now in range(0, 1300, 10):
        room = not 100 <= now < 200 and now < 500
        watch.ask()
        try:
            watch.look()
        except StoppedError as exc:
            assert "for 10 minutes, no node" in str(exc)
            break
        told.append(len(caplog.messages))
    assert now == 1100
    assert (told[13], told[20], told[-1]) == (1, 1, 2)


def test_watch_gives_up_a_head_node_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = threading.Event()
    monkeypatch.setattr(module, "_LOST_SECONDS", 0.2)
    watch = module._Watch("head:1", silent.wait)
    watch.start()
    watch.look()
    time.sleep(0.3)
    with pytest.raises(StoppedError, match="head:1 is gone; --resume"):
        watch.look()
    silent.set()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "\x1b[36mray::f()\x1b[39m (pid=1)\n  File x\nModuleNotFoundError: No module named 'clipcls'",
            "ModuleNotFoundError: No",
        ),
        (
            "Failed\nray.exceptions.OutOfMemoryError: no room\nTo change retry attempts, configure",
            "ray.exceptions.OutOf",
        ),
        ("something else\nand more", "RuntimeError: something else"),
        ("", "RuntimeError: "),
    ],
)
def test_reason_is_found_in_what_ray_says(text: str, reason: str) -> None:
    assert module._reason(RuntimeError(text)).startswith(reason)
