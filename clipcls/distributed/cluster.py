"""Join a Ray cluster, divide it among workers, and run the parts of a job on it by Ray Data.

Ray does the scheduling, retries and spilling. Only this module imports it; it comes with the extra `ray`.
"""

import contextlib
import json
import logging
import os
import queue
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from clipcls.distributed.work import Job, PartReport, Task, Worker
from clipcls.embed.cores import available_cores
from clipcls.errors import StoppedError, UsageError, first_line

logger = logging.getLogger(__name__)

#: How long to wait for an address to answer.
ANSWER_SECONDS = 5
#: How long joining the cluster may then take.
JOIN_SECONDS = 40
_LET_IN = "RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH have to be those of its nodes, and Ray and Python the same versions."
_NEEDED = f"All nodes need clipcls {version('clipcls')} with its extra ray; -v says more."
# a head node that is silent for longer counts as gone
_LOST_SECONDS = 30
# how long to wait for a node that a worker fits on
_ROOM_SECONDS = 600
_POLL_SECONDS = 0.2
_LEAVE_SECONDS = 10
# more threads in one process would wait for Python's lock
_MOST_THREADS = 8
# shared memory of a cluster that we start: it only holds lists of paths
_OBJECT_STORE_BYTES = 2**28


@dataclass(frozen=True, slots=True)
class Node:
    """The CPUs and GPUs that Ray counts on a machine of the cluster."""

    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True)
class Pool:
    """How a cluster is divided among workers.

    Attributes:
        workers: number of processes.
        threads: threads that each worker decodes with, and on a CPU computes with.
        cpus: CPUs that Ray reserves for each worker; fewer than `threads` where more wouldn't fit.
        gpus: GPUs that Ray reserves for each worker.
    """

    workers: int
    threads: int
    cpus: float
    gpus: float


def divide(
    nodes: Sequence[Node], workers: int | None = None, gpus_per_worker: float | None = None, threads: int | None = None
) -> Pool:
    """Divide a cluster: a worker for each GPU, or without GPUs a worker for up to 8 cores.

    Args:
        nodes: the nodes that are alive.
        workers: number of workers; None for as many as fit.
        gpus_per_worker: None for one if there are GPUs; 0 for none; with a fraction several workers share one.
        threads: threads of each worker; None for a fair share of the smallest node's cores.

    Raises:
        UsageError: that many workers don't fit.
    """
    gpus = gpus_per_worker if gpus_per_worker is not None else float(any(node.gpus >= 1 for node in nodes))
    able = [node for node in nodes if (node.gpus >= gpus if gpus else node.cpus > 0)]
    if not able:
        raise UsageError(f"No node of the cluster has {f'{gpus:g} GPUs' if gpus else 'a CPU'} for a worker.")
    room = sum(_fitting(node.gpus, gpus) for node in able) if gpus else None
    if workers is not None and room is not None and workers > room:
        raise UsageError(f"--ray-workers {workers}: with {gpus:g} GPUs each, {room} fit into the cluster.")
    if threads is None:
        threads = min(_threads_on(node, gpus) for node in able)
    if workers is None:
        workers = room or sum(max(1, _fitting(node.cpus, threads)) for node in able)
    # a GPU's worker is placed by its GPU; its threads mustn't keep it from a node whose cores others use
    wanted = min(1.0, threads) if gpus else float(threads)
    return Pool(workers, threads, _request(able, workers, wanted, gpus), gpus)


def _threads_on(node: Node, gpus: float) -> int:
    if gpus:
        return max(1, int(node.cpus // max(1, _fitting(node.gpus, gpus))))
    return max(1, min(int(node.cpus), _MOST_THREADS))


def _fitting(has: float, needs: float) -> int:
    return int(has / needs + 1e-6)


def _request(nodes: Sequence[Node], workers: int, wanted: float, gpus: float) -> float:
    """Return the CPUs to reserve for each worker: those wanted, or the most with which all workers fit."""

    def fits(cpus: float) -> bool:
        each = (min(_fitting(node.cpus, cpus), _fitting(node.gpus, gpus) if gpus else workers) for node in nodes)
        return sum(each) >= workers

    shares = sorted({node.cpus / n for node in nodes for n in range(1, workers + 1)}, reverse=True)
    # Ray counts in ten thousandths
    candidates = (int(cpus * 10_000) / 10_000 for cpus in (wanted, *(share for share in shares if share < wanted)))
    return next((cpus for cpus in candidates if cpus > 0 and fits(cpus)), 0.0)


def require_ray() -> Any:
    """Return the module `ray`.

    Raises:
        UsageError: it isn't installed.
    """
    # Ray sends usage statistics unless told otherwise, and reads this when it is imported
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # else a thread that calls Ray after we left would join whatever cluster it finds
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
    try:
        import ray
        import ray.data
    except ImportError as exc:
        raise UsageError(f"--engine ray needs the package ray ({exc}): pip install 'clipcls[ray]'") from exc
    return ray


class Cluster:
    """A Ray cluster that this process has joined, and leaves at the end of the `with` block.

    Args:
        address: `HOST:PORT` of a head node, or `auto`; None for what RAY_ADDRESS says, or else for a cluster of this
            machine alone, which ends with this process.
        verbose: whether Ray may log what it does.

    Raises:
        StoppedError: the cluster can't be reached.
        UsageError: Ray isn't installed, or the address isn't one.
    """

    def __init__(self, address: str | None, verbose: bool) -> None:
        self._ray = require_ray()
        self._verbose = verbose
        variable = os.environ.get("RAY_ADDRESS")
        self._name = f"--ray-address {address}" if address is not None else f"RAY_ADDRESS={variable}"
        self._address = address if address is not None else variable or "local"
        _quiet(verbose)
        if self._address not in ("auto", "local"):
            _require_answer(self._address, self._name)
        self._error: BaseException | None = None
        self._joined, self._leaving, self._left = threading.Event(), threading.Event(), threading.Event()
        threading.Thread(target=self._stay, name="ray", daemon=True).start()
        if not self._joined.wait(JOIN_SECONDS):
            raise StoppedError(f"{self._name}: no Ray cluster let us in within {JOIN_SECONDS} seconds. {_LET_IN}")
        if self._error is not None:
            raise self._error
        self._head: str = self._ray.get_runtime_context().gcs_address
        if self._address == "auto":
            # Ray takes the latest of several clusters: say which
            logger.warning("the Ray cluster is that at %s", self._head)

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        # Ray may hang while it shuts down
        self._leaving.set()
        self._left.wait(_LEAVE_SECONDS)

    def _stay(self) -> None:
        """Join the cluster, and leave it when told to.

        Runs on a thread of its own: joining may hang, and Ray leaves signal handlers alone there. The thread lives as
        long as the cluster is used, since a cluster that it starts ends with it.
        """
        try:
            self._join()
        except BaseException as exc:  # noqa: BLE001 - raised again where it is waited for
            self._error = exc
        self._joined.set()
        if self._error is None:
            self._leaving.wait()
            self._ray.shutdown()
        self._left.set()

    def _join(self) -> None:
        own: dict[str, Any] = {"num_cpus": available_cores(), "object_store_memory": _OBJECT_STORE_BYTES}
        try:
            self._ray.init(
                address=self._address,
                log_to_driver=self._verbose,
                logging_level=logging.INFO if self._verbose else logging.CRITICAL,
                **(own | {"include_dashboard": False} if self._address == "local" else {}),
            )
        except (self._ray.exceptions.RayError, OSError, RuntimeError, ValueError) as exc:
            if self._address == "local":
                raise StoppedError(f"Ray can't be started: {_reason(exc)}") from exc
            if self._address == "auto":
                raise StoppedError(f"{self._name}: this machine is in no cluster that can be joined.") from exc
            raise StoppedError(f"{self._name}: {_reason(exc)}. {_LET_IN}") from exc

    @property
    def nodes(self) -> list[Node]:
        """The nodes that are alive."""
        alive = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        return [Node(found.get("CPU", 0.0), found.get("GPU", 0.0)) for found in alive]

    @property
    def put(self) -> Callable[[bytes], Any] | None:
        """A function that stores content for all nodes and returns a reference; None on a cluster of one node."""
        return self._ray.put if len(self.nodes) > 1 else None

    def precision_on_gpu(self, pool: Pool) -> str:
        """Return the precision that `auto` stands for on the workers' GPUs, by asking one of them.

        Raises:
            StoppedError: no worker answers.
        """
        ask = self._ray.remote(num_gpus=pool.gpus, num_cpus=0)(_precision_here)
        try:
            return str(self._ray.get(ask.remote(), timeout=300))
        except self._ray.exceptions.RayError as exc:
            raise StoppedError(f"no worker says what its GPU can do: {_reason(exc)}") from exc

    def label(self, job: Job, tasks: Sequence[Task], pool: Pool) -> Iterator[PartReport | None]:
        """Label parts on the workers.

        Yields:
            A report for each part, in order of completion; None several times a second in between.

        Raises:
            StoppedError: the cluster is lost, or Ray fails.
            ClipclsError: the error that a worker stopped with.
        """
        results: queue.SimpleQueue[PartReport | BaseException | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, args=(job, tasks, pool, results), daemon=True).start()
        watch = _Watch(self._head, lambda: self._has_room(pool))
        watch.start()
        left = len(tasks)
        while left:
            try:
                result = results.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                watch.look()
                yield None
                continue
            if isinstance(result, BaseException):
                raise StoppedError(f"Ray gave up: {_reason(result)}. {_NEEDED}") from result
            if result is None:
                raise StoppedError(f"Ray ended with {left:,} parts undone.")
            result.require()
            left -= 1
            yield result

    def _has_room(self, pool: Pool) -> bool:
        return any(node.cpus >= pool.cpus and node.gpus >= pool.gpus for node in self.nodes)

    def tell_if_busy(self, pool: Pool) -> None:
        """Warn if workers will have to wait until other jobs free their CPUs or GPUs."""
        free = self._ray.available_resources()
        for kind, needed in (("CPU", pool.cpus), ("GPU", pool.gpus)):
            if needed * pool.workers > free.get(kind, 0.0) + 1e-6:
                logger.warning(
                    "the workers want %g %ss, and the cluster has %g to spare: who finds none waits",
                    *(needed * pool.workers, kind, free.get(kind, 0.0)),
                )

    def _run(self, job: Job, tasks: Sequence[Task], pool: Pool, results: Any) -> None:
        """Put reports into `results`; runs on a thread, since waiting for Ray can't be interrupted."""
        try:
            for row in self._dataset(job, tasks, pool).iter_rows():
                results.put(_report(row))
            results.put(None)
        except BaseException as exc:  # noqa: BLE001 - raised again where the results are read
            results.put(exc)

    def _dataset(self, job: Job, tasks: Sequence[Task], pool: Pool) -> Any:
        """Return the dataset of reports, with one block and one task for each part."""
        data = self._ray.data
        context = data.DataContext.get_current()
        context.enable_progress_bars = self._verbose
        context.print_on_execution_start = self._verbose
        context.scheduling_strategy = "SPREAD"  # else Ray fills one node before it uses the next
        rows = [{"task": json.dumps([task.line, task.again])} for task in tasks]
        # a worker gets its next part while it labels one; more would queue there while other workers are idle
        actors = data.ActorPoolStrategy(size=min(pool.workers, len(tasks)), max_tasks_in_flight_per_actor=2)
        return data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _Actor,
            fn_constructor_args=(job,),
            batch_size=1,
            compute=actors,
            num_cpus=pool.cpus,
            num_gpus=pool.gpus or None,
        )


class _Actor:
    """Adapts `Worker` to Ray Data, which calls it with a batch of rows and takes rows back."""

    def __init__(self, job: Job) -> None:
        import ray

        self._worker = Worker(job, ray.get)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        (text,) = batch["task"]  # one part, one task, one row
        line, again = json.loads(str(text))
        report = self._worker.label(Task(line, again and tuple(again)))
        facts = [report.number, report.count, report.failed, report.stopped]
        return {"facts": [json.dumps(facts)], "content": [report.content]}


def _report(row: dict[str, Any]) -> PartReport:
    number, count, failed, stopped = json.loads(row["facts"])
    return PartReport(number, count, tuple(map(tuple, failed)), row["content"], stopped and tuple(stopped))


class _Watch:
    """Watches whether the cluster is there and has room for a worker.

    Ray itself would end this process silently a minute after the head node is gone, and wait for ever for a node that
    a worker fits on.

    Args:
        head: the head node's address, for messages.
        has_room: asks the cluster whether a worker fits on any node; may hang.
    """

    def __init__(self, head: str, has_room: Callable[[], bool]) -> None:
        self._head = head
        self._has_room = has_room
        self._heard = self._roomy = time.monotonic()
        self._has_told = False

    def start(self) -> None:
        """Ask again and again on a daemon thread, since signals don't interrupt a call to Ray."""
        threading.Thread(target=self._ask_always, daemon=True).start()

    def _ask_always(self) -> None:
        # an exception means that the cluster is gone, which `look` finds out by the silence
        with contextlib.suppress(Exception):
            while True:
                self.ask()
                time.sleep(ANSWER_SECONDS)

    def ask(self) -> None:
        """Ask the cluster once, and note when it answered and when it had room."""
        roomy = self._has_room()
        self._heard = time.monotonic()
        if roomy:
            self._roomy, self._has_told = self._heard, False

    def look(self) -> None:
        """Warn, or raise, if the cluster has been silent or without room for too long.

        Raises:
            StoppedError: the head node, or all nodes that a worker fits on, have been away for some time.
        """
        now = time.monotonic()
        if now - self._heard > _LOST_SECONDS:
            raise StoppedError(f"the Ray cluster at {self._head} is gone; --resume goes on with another.")
        if now - self._roomy > _ROOM_SECONDS:
            raise StoppedError(
                f"for {_ROOM_SECONDS // 60} minutes, no node of the cluster had room for a worker; --resume goes on."
            )
        if not self._has_told and now - self._roomy > _LOST_SECONDS:
            self._has_told = True
            logger.warning("no node of the cluster has room for a worker any more; waiting for one")


def _precision_here() -> str:
    from clipcls.models.device import choose_device, choose_precision

    return choose_precision("auto", choose_device("cuda"))


def _require_answer(address: str, name: str) -> None:
    """Require that something answers at an address; messages call it `name`.

    Raises:
        StoppedError: nothing answers.
        UsageError: the address isn't one.
    """
    host, _, port = address.rpartition(":")
    if "://" in address:
        raise UsageError(
            f"{name}: use HOST:PORT of the head node, on one of the cluster's nodes; from elsewhere, `ray job submit` "
            "runs the whole command there."
        )
    if not host or not port.isdigit():
        raise UsageError(f"{name}: use HOST:PORT, or auto for the cluster that this machine is in.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError) as exc:
        reason = getattr(exc, "strerror", None) or first_line(exc)
        raise StoppedError(f"{name}: no Ray cluster answers there ({reason.lower()}).") from exc


def _quiet(verbose: bool) -> None:
    """Keep Ray's loggers from writing to the terminal; they still write to their files."""
    if verbose:
        return
    for name in ("ray", "ray.data", "ray.serve", "ray.train", "ray.tune"):
        found = logging.getLogger(name)
        found.handlers = [handler for handler in found.handlers if not isinstance(handler, logging.StreamHandler)]
        found.propagate = False


def _reason(exc: BaseException) -> str:
    """Return the one line of Ray's message that names the error, among remote tracebacks, advice and colours."""
    lines = [line.strip() for line in re.sub("\x1b\\[[0-9;]*m", "", str(exc)).splitlines()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Exit|Interrupt)\b", line)]
    return named[-1] if named else f"{type(exc).__name__}: {lines[0] if lines else ''}"
