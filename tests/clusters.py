"""Real Ray clusters of several nodes on this machine."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# of shared memory; what is sent between nodes here is small
_OBJECT_STORE_BYTES = 80_000_000


@dataclass
class Node:
    """A node of a cluster: `ray start --block` and all that it has started, in a session of their own."""

    process: "subprocess.Popen[bytes]"

    def kill(self) -> None:
        """End it as a machine ends that loses its power."""
        for pid, _ in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(120)

    def processes(self) -> list[tuple[int, str]]:
        """Their numbers and names."""
        return [(pid, name) for pid, name in _processes() if _session(pid) == self.process.pid]


@dataclass
class Cluster:
    """A head node and others; `environment` lets processes in."""

    address: str
    environment: dict[str, str]
    nodes: list[Node]

    def workers(self) -> list[int]:
        """The process numbers of the actors that label."""
        return [pid for node in self.nodes for pid, name in node.processes() if "MapWorker" in name]


@contextlib.contextmanager
def cluster(folder: Path, nodes: int = 2, cpus: int = 1) -> Iterator[Cluster]:
    """A cluster that ends with the block; nodes are ended by their processes, since `ray stop` would end every
    cluster of the machine."""
    (folder / "token").write_text(secrets.token_hex(32))
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # else workers come after everything else that a busy machine does
        "OMP_NUM_THREADS": "1",
    }
    address = f"127.0.0.1:{_free_port()}"
    found = Cluster(address, environment, [])
    try:
        for number in range(nodes):
            found.nodes.append(_start(found, folder / f"node{number}.log", is_head=not number, cpus=cpus))
        yield found
    finally:
        for node in reversed(found.nodes):
            node.kill()


def _start(cluster: Cluster, log: Path, *, is_head: bool, cpus: int) -> Node:
    port = cluster.address.rpartition(":")[2]
    role = ["--head", "--port", port, "--include-dashboard=false"] if is_head else ["--address", cluster.address]
    limits = ["--num-cpus", str(cpus), "--num-gpus", "0", "--object-store-memory", str(_OBJECT_STORE_BYTES)]
    ray = Path(sys.executable).with_name("ray")
    with log.open("wb") as out:
        process = subprocess.Popen(
            [ray, "start", *role, *limits, "--disable-usage-stats", "--block"],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=cluster.environment, start_new_session=True,
        )  # fmt: skip
    deadline = time.monotonic() + 60
    while b"Ray runtime started" not in log.read_bytes():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    return Node(process)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _session(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        return os.getsid(pid)
    return None


def _processes() -> Iterator[tuple[int, str]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                yield int(entry.name), (entry / "cmdline").read_bytes().decode("utf-8", "replace")
