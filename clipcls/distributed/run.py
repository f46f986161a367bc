"""Start a run on a cluster, follow it, and write its output."""

import contextlib
import importlib
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from clipcls.distributed.cluster import Cluster, Pool, divide, require_ray
from clipcls.distributed.model_files import send
from clipcls.distributed.part_files import PartFiles
from clipcls.distributed.plan import Plan
from clipcls.distributed.work import Job, PartReport, Task
from clipcls.embed.cache.database import default_folder
from clipcls.embed.session import Session
from clipcls.embed.watch import Watch
from clipcls.errors import UsageError
from clipcls.inputs.discover import discover
from clipcls.inputs.left_out import LeftOut
from clipcls.inputs.listing import Sources
from clipcls.outputs.destination import Destination
from clipcls.outputs.formats import PARTS_FORMAT, format_names
from clipcls.outputs.resume import claim_folder
from clipcls.predict.answerer import Answerer
from clipcls.predict.error_limit import ErrorLimit
from clipcls.predict.run import RunReport, Tally, look_for_one, none_exists, refuse_resume, shape_for
from clipcls.records import ModelFacts, ModelSpec

#: The name of the plan's file in the output folder.
PLAN_NAME = ".clipcls-plan"


@dataclass(frozen=True, slots=True)
class Spread:
    """How a run is spread over a cluster.

    Attributes:
        address: address of the head node; see `Cluster`.
        workers: number of workers; None for as many as the cluster has room for.
        gpus_per_worker: None for one where there are GPUs.
        threads: threads of each worker; None for a fair share of its node's cores.
        verbose: whether Ray may log what it does.
    """

    address: str | None = None
    workers: int | None = None
    gpus_per_worker: float | None = None
    threads: int | None = None
    verbose: bool = False


class _ClusterRun:
    """A run whose plan is made and whose output is claimed.

    Attributes:
        total: number of images; None where the input would have to be read to count them.
        before: number of images that an earlier run has done and that aren't run again.
        failed: how many of those have an error.
    """

    def __init__(
        self, cluster: Cluster, pool: Pool, job: Job, plan: Plan, output: PartFiles, again: Sequence[Task]
    ) -> None:
        self._cluster = cluster
        self._pool = pool
        self._job = job
        self._output = output
        left = [part for part in plan.parts if part.number not in output]
        self._tasks = [*(Task(part.line) for part in left), *again]
        self.before, self.failed = output.done
        counts = [part.count for part in left] + [None if task.again is None else len(task.again) for task in again]
        self.total = None if None in counts else self.before + sum(count or 0 for count in counts)

    def reports(self) -> Iterator[PartReport | None]:
        """Run the remaining parts, and write their files.

        Yields:
            A report for each part, in order of completion; None several times a second in between.

        Raises:
            StoppedError: the cluster is lost, the output can't be written, or a part killed several workers.
            ModelError: the model can't be opened on a node.
        """
        if self._tasks:
            for report in self._cluster.label(self._job, self._tasks, self._pool):
                if report is not None:
                    self._output.write(report)
                yield report


def run_on_cluster(
    classifier: Answerer,
    sources: Sources,
    destination: Destination,
    spread: Spread,
    limit: ErrorLimit | None = None,
    stop: Callable[[], bool] = lambda: False,
    watch: Watch | None = None,
) -> RunReport:
    """Do what `clipcls.predict.run.run` does, over a cluster; each part of the images gets its own file.

    Args:
        classifier: a classifier whose session has a `ModelSpec`.

    Raises:
        ModelError: the model can't be opened.
        StoppedError: the cluster can't be reached or is lost, the output can't be written, or too many images failed.
        UsageError: Ray isn't installed, there are no images, or the options can't be followed on a cluster.
    """
    watch = watch or Watch()
    destination = replace(destination, shape=shape_for(sources, classifier.row_shape))
    with _opened(classifier, sources, destination, spread, watch) as run:
        total = run.total
        watch.begin(None if total is None else lambda: total, run.before)
        can_resume = classifier.per == "frame"
        tally = Tally(limit or ErrorLimit(), watch, (run.before, run.failed), can_resume)
        for part in run.reports():
            # all failures of a part are reported, even those past the limit
            tally.add(0 if part is None else part.count, () if part is None else part.failed)
            if tally.exceeded or stop():
                break
    return tally.report(sources, stop())


@contextlib.contextmanager
def _opened(
    classifier: Answerer, sources: Sources, destination: Destination, spread: Spread, watch: Watch
) -> Iterator[_ClusterRun]:
    """Reach the cluster, embed the labels, claim the output and plan the parts."""
    refuse_resume(classifier, destination)
    session = classifier.session
    assert session.spec is not None
    check_spread(destination, session.spec, spread)
    folder = destination.folder
    assert folder is not None
    if not sources.read_standard_input and not destination.resume:
        left_out = LeftOut(takes_videos=True)
        images, exist = look_for_one(discover(sources, unread=True, left_out=left_out), sources, left_out)
        if not exist:
            raise none_exists(next(images))
    with _joined(spread) as cluster:
        gpus = 0.0 if session.spec.device == "cpu" else spread.gpus_per_worker
        pool = divide(cluster.nodes, spread.workers, gpus, spread.threads)
        cluster.tell_if_busy(pool)
        settled, facts = _settle_model(session, session.spec, cluster, pool)
        classifier = classifier.on(settled)
        classifier.embed_labels(watch.labels)
        settings = classifier.settings() | sources.settings | {"--engine": "ray", "--precision": facts.precision}
        with claim_folder(destination, folder, settings) as (journal, files):
            if files and destination.retry_errors:
                journal.restate(settings)
            plan = Plan(folder / PLAN_NAME, bool(files), destination.retry_errors)
            output = PartFiles(folder, destination.format, files, destination.retry_errors)
            again = output.count(plan.parts)
            left_out = LeftOut(takes_videos=True)
            images = discover(sources, unread=True, left_out=left_out)
            plan.extend(images, pool.workers, sources.column, files.keys(), output.mended)
            left_out.report(sources.names)
            plan.write()
            job = Job(
                classifier=classifier,
                execution=session.execution,
                model=send(settled.encoder.files, cluster.put),
                facts=facts,
                threads=pool.threads,
                format=output.format,
                run=secrets.token_hex(8),
                directory=os.getcwd(),  # noqa: PTH109
                sources=replace(sources, inputs=(), files_from=None, stdin=None),
                default_cache=session.execution.cache_dir == default_folder(),
            )
            yield _ClusterRun(cluster, pool, job, plan, output, again)


def check_spread(destination: Destination, spec: ModelSpec, spread: Spread) -> None:
    """Refuse options that can't be followed on a cluster, before it is contacted.

    Raises:
        UsageError: there are such options, or Ray isn't installed.
    """
    if destination.shape.has_index:
        raise UsageError("--engine ray divides the inputs itself; leave --part out.")
    if destination.folder is None:
        raise UsageError("--engine ray writes part files: give --output-dir DIR.")
    if not destination.format.keeps_index:
        names = format_names(lambda one: one.keeps_index, first=PARTS_FORMAT)
        raise UsageError(f"--engine ray writes {names}, whose rows have an index; not {destination.format.name}.")
    if spec.device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {spec.device}: Ray chooses each worker's device; use auto, cpu or cuda.")
    if spread.gpus_per_worker and spec.device == "cpu":
        raise UsageError("--device cpu and --gpus-per-worker contradict each other.")
    if spec.device == "cuda" and spread.gpus_per_worker == 0:
        raise UsageError("--device cuda needs GPUs: leave --gpus-per-worker 0 out.")
    if spec.precision == "int8":
        raise UsageError("--precision int8: a quantised model is kept on one machine; give --engine ray bf16 or fp32.")
    require_ray()


@contextlib.contextmanager
def _joined(spread: Spread) -> Iterator[Cluster]:
    """Join the cluster, and meanwhile import torch, which takes as long."""
    threading.Thread(target=importlib.import_module, args=("clipcls.models.encoder",), daemon=True).start()
    with Cluster(spread.address, spread.verbose) as cluster:
        yield cluster


def _settle_model(session: Session, spec: ModelSpec, cluster: Cluster, pool: Pool) -> tuple[Session, ModelFacts]:
    """Return a session for this machine in the workers' precision, and the model's facts on the workers.

    `auto` may stand for another precision on the workers, and all rows have to be made with the same.
    """
    import torch

    precision = spec.precision
    if pool.gpus and precision == "auto":
        precision = cluster.precision_on_gpu(pool)
    # fp16 needs a GPU here too; without one the labels are embedded in fp32, which is no worse
    here = "fp32" if precision == "fp16" and not torch.cuda.is_available() else precision
    if pool.gpus:
        if spec.runtime == "openvino":
            raise UsageError("--runtime openvino is for CPUs, and the cluster has GPUs: give --device cpu.")
        settled = session.beside(replace(spec, precision=here, device="auto", runtime="torch"))
    else:
        settled = session.beside(replace(spec, precision=here, device="cpu"))
    facts = replace(settled.facts, device="cuda" if pool.gpus else "cpu")
    return settled, facts if precision in ("auto", here) else replace(facts, precision="fp16")
