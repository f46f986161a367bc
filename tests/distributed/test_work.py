"""What a worker of a cluster does, without a cluster; and the files that its work becomes."""

import pickle
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clipcls.distributed.cluster import Pool
from clipcls.distributed.model_files import send
from clipcls.distributed.part_files import PartFiles
from clipcls.distributed.plan import ROWS, Plan, read_part
from clipcls.distributed.run import _settle_model as settle_model
from clipcls.distributed.work import Job, PartReport, Task, Worker
from clipcls.embed.execution import Execution
from clipcls.embed.session import Session
from clipcls.errors import ModelError, StoppedError, UsageError
from clipcls.inputs.discover import discover
from clipcls.inputs.listing import Sources
from clipcls.inputs.web import Web
from clipcls.models.runtime.conversions import stored_conversions
from clipcls.outputs.formats import find_format
from clipcls.predict.classifier import Classifier
from clipcls.records import ImageRef, ModelSpec
from conftest import save_pictures
from killing import check_equal, rows_in

Make = Callable[..., tuple[Job, Plan]]


@pytest.fixture
def classifier(tiny_model: Path) -> Classifier:
    spec = ModelSpec(str(tiny_model), device="cpu", precision="fp32")
    return Classifier(Session(spec, Execution(web=Web())), ["cat", "dog"])


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a node's own temporary folder is in."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def make(classifier: Classifier, tmp_path: Path, own_folder: Path, one_thread: None) -> Make:
    """A job on these images, as it comes out of the pickle at a worker, and its plan."""

    def made(images: list[ImageRef], **changes: Any) -> tuple[Job, Plan]:
        plan = Plan(tmp_path / "plan", goes_on=False)
        plan.extend(images, 1)
        _ = classifier.label_features
        encoder = classifier.session.encoder
        facts = encoder.facts(classifier.session.execution.open_cache().file_sha256)
        fixed: dict[str, Any] = {
            "threads": 1,
            "format": find_format("jsonl"),
            "run": "run",
            "directory": str(Path.cwd()),
        }
        fixed |= {"sources": Sources(), "default_cache": False, "execution": classifier.session.execution}
        job = Job(classifier=classifier, model=send(encoder.files, None), facts=facts, **fixed)
        return replace(pickle.loads(pickle.dumps(job)), **changes), plan

    return made


def label(job: Job, plan: Plan) -> list[PartReport]:
    worker = Worker(job, lambda _: b"")
    return [worker.label(Task(part.line)) for part in plan.parts]


def written(folder: Path, kind: str, reports: list[PartReport]) -> Path:
    folder.mkdir(exist_ok=True)
    files = PartFiles(folder, find_format(kind), {}, retry=False)
    for report in reports:
        files.write(report)
    return folder


def parts_in(folder: Path) -> dict[int, Path]:
    return dict(enumerate(sorted(folder.iterdir())))


def files(folder: Path, count: int) -> list[ImageRef]:
    return [ImageRef(str(path)) for path in save_pictures(folder / "pictures", count, (40, 30))]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_worker_says_what_one_process_would(make: Make, classifier: Classifier, tmp_path: Path, kind: str) -> None:
    images = files(tmp_path, 230)
    Path(images[150].path).write_bytes(b"no picture")
    odd = ImageRef(str(tmp_path / "gone\udcff.png"), "no such file or directory")
    images.append(odd)
    job, plan = make(images, format=find_format(kind))
    reports = label(job, plan)
    assert [report.count for report in reports] == [100, 100, 31]
    assert [[path for path, _ in report.failed] for report in reports] == [[], [images[150].path], [odd.path]]
    out = written(tmp_path / "out", kind, reports)
    assert [path.name for path in parts_in(out).values()] == [f"part-00000{number}.{kind}" for number in range(3)]
    rows = rows_in(out)
    check_equal(rows, list(classifier.predict(images)), 1e-5)
    expected = [number * ROWS + row for number, count in enumerate((100, 100, 31)) for row in range(count)]
    assert [row.index for row in rows] == expected


def test_worker_computes_with_the_runtime_of_the_run(
    make: Make, classifier: Classifier, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipcls.models.runtime.choice.is_installed", lambda: True)
    images = files(tmp_path, 3)
    job, plan = make(images)
    execution = Execution(cache_dir=tmp_path / "cache")
    session = Session(ModelSpec(str(tiny_model), device="cpu", precision="fp32", runtime="openvino"), execution)
    # a node without a home has no cache, and so nothing to keep a conversion in
    for number, where in enumerate((execution, Execution())):
        reports = label(replace(job, facts=session.facts, execution=where), plan)
        check_equal(
            rows_in(written(tmp_path / f"out{number}", "jsonl", reports)), list(classifier.predict(images)), 1e-5
        )
    assert len(stored_conversions(tmp_path / "cache")) == 1  # the labels came with the job


def test_workers_with_gpus_run_torch(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipcls.models.runtime.choice.is_installed", lambda: True)
    session = Session(ModelSpec(str(tiny_model), precision="fp32"), Execution(cache_dir=tmp_path / "cache"))
    cluster: Any = None
    for gpus, found in ((0.0, ("cpu", "openvino")), (1.0, ("cuda", "torch"))):
        facts = settle_model(session, ModelSpec(str(tiny_model), precision="fp32"), cluster, Pool(1, 1, 1.0, gpus))[1]
        assert (facts.device, facts.runtime) == found
    asked = ModelSpec(str(tiny_model), precision="fp32", runtime="openvino")
    with pytest.raises(UsageError, match="--runtime openvino is for CPUs"):
        settle_model(session, asked, cluster, Pool(1, 1, 1.0, 1.0))


def test_worker_takes_relative_paths_from_where_the_run_was_started(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files(tmp_path, 2)
    monkeypatch.chdir(tmp_path)
    job, plan = make([ImageRef("pictures/000.png")])
    monkeypatch.chdir("/")
    (report,) = label(job, plan)
    assert not report.failed
    assert [row.path for row in rows_in(written(tmp_path / "out", "jsonl", [report]))] == ["pictures/000.png"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_only_what_failed_is_run_again(make: Make, tmp_path: Path, kind: str) -> None:
    images = files(tmp_path, 105)
    good = Path(images[3].path).read_bytes()
    Path(images[1].path).write_bytes(b"")
    Path(images[3].path).write_bytes(good[:50])
    job, plan = make(images, format=find_format(kind))
    out = written(tmp_path / "out", kind, label(job, plan))
    before = rows_in(out)
    Path(images[3].path).write_bytes(good)
    Path(images[0].path).unlink()  # it isn't looked at again
    output = PartFiles(out, find_format("jsonl"), parts_in(out), retry=True)
    (task,) = output.count(plan.parts)
    assert output.done == (103, 0)
    assert task.again == (images[1].path, images[3].path)
    report = Worker(replace(job, format=find_format("jsonl")), lambda _: b"").label(task)
    assert (report.count, [path for path, _ in report.failed]) == (2, [images[1].path])
    output.write(report)
    assert len(parts_in(out)) == 2
    after = rows_in(out)
    assert [(row.path, row.index) for row in after] == [(row.path, row.index) for row in before]
    assert [number for number, row in enumerate(after) if row.error is not None] == [1]
    assert [after[number] for number in (0, 2, 4, 104)] == [before[number] for number in (0, 2, 4, 104)]


def test_what_could_not_be_listed_is_listed_anew(make: Make, tmp_path: Path) -> None:
    images = files(tmp_path, 3)
    listed = [images[0], ImageRef("later.png", "no such file or directory"), images[1]]
    job, plan = make(listed)
    plan.write()
    out = written(tmp_path / "out", "jsonl", label(job, plan))
    retried = Plan(tmp_path / "plan", goes_on=True, retry=True)
    retried.extend([images[0], ImageRef("later.png"), images[1]], 1, finished={0})
    assert [part.count for part in retried.parts] == [2, 1]
    output = PartFiles(out, find_format("jsonl"), parts_in(out), retry=True)
    assert output.count(retried.parts) == []
    assert output.done == (2, 0)
    # as many rows in the files and in the plan as before, without the one that is to come
    assert [row.path for row in rows_in(out)] == [images[0].path, images[1].path]
    assert [image.path for image in retried.parts[1].images(Sources())] == ["later.png"]


def test_shard_that_was_broken_is_read_again_as_a_whole(make: Make, tmp_path: Path) -> None:
    images = files(tmp_path, 3)
    shard = tmp_path / "a.tar"
    shard.write_bytes(b"no shard")
    listed = list(discover([shard], unread=True))
    job, plan = make(listed)
    plan.write()
    out = written(tmp_path / "out", "jsonl", label(job, plan))
    assert [row.path for row in rows_in(out)] == [str(shard)]
    with tarfile.open(shard, "w") as archive:
        for image in images:
            archive.add(image.path, Path(image.path).name)
    again = list(discover([shard], unread=True))
    with pytest.raises(UsageError, match=r"a\.tar isn't what it was"):
        Plan(tmp_path / "plan", goes_on=True).extend(again, 1, finished={0})
    retried = Plan(tmp_path / "plan", goes_on=True, retry=True)
    output = PartFiles(out, find_format("parquet"), parts_in(out), retry=True)
    (task,) = output.count(retried.parts)
    retried.extend(again, 1, finished={0}, mended=output.mended)
    output.write(Worker(replace(job, format=find_format("parquet")), lambda _: b"").label(task))
    assert [row.path for row in rows_in(out)] == [f"{shard}/00{number}.png" for number in range(3)]
    # from now on it is what it was
    retried.write()
    Plan(tmp_path / "plan", goes_on=True).extend(again, 1, finished={0})


def test_shard_that_was_broken_is_read_again_in_the_parts_that_follow_too(make: Make, tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    with tarfile.open(shard, "w") as archive:
        for image in files(tmp_path, 230):
            archive.add(image.path, Path(image.path).name)
    whole = shard.read_bytes()
    job, plan = make(list(discover([shard], unread=True)))
    plan.write()
    shard.write_bytes(whole[: len(whole) * 3 // 5])
    out = written(tmp_path / "out", "jsonl", label(job, plan))
    assert 100 < len(rows_in(out)) < 200
    shard.write_bytes(whole)
    retried = Plan(tmp_path / "plan", goes_on=True, retry=True)
    output = PartFiles(out, find_format("jsonl"), parts_in(out), retry=True)
    tasks = output.count(retried.parts)
    retried.extend(discover([shard], unread=True), 1, finished={0, 1, 2}, mended=output.mended)
    assert (output.done, [task.again for task in tasks]) == ((100, 0), [None, None])
    retried.write()
    for task in tasks:
        # were it cut short after any of them, the rest would be known
        output = PartFiles(out, find_format("jsonl"), parts_in(out), retry=False)
        left = output.count(Plan(tmp_path / "plan", goes_on=True).parts)
        assert read_part(task.line).number in [read_part(one.line).number for one in left]
        output.write(Worker(job, lambda _: b"").label(task))
    rows = rows_in(out)
    assert [row.path for row in rows] == [image.path for image in discover([shard])]
    assert not any(row.error for row in rows)


def test_files_that_are_there_are_counted(make: Make, tmp_path: Path) -> None:
    images = files(tmp_path, 105)
    Path(images[1].path).write_bytes(b"")
    job, plan = make(images, format=find_format("parquet"))
    out = written(tmp_path / "out", "parquet", label(job, plan))
    output = PartFiles(out, find_format("parquet"), parts_in(out), retry=False)
    assert output.count(plan.parts) == []
    assert output.done == (105, 1)
    assert 1 in output
    assert 2 not in output


def test_file_that_lacks_rows_is_made_again(make: Make, tmp_path: Path) -> None:
    job, plan = make(files(tmp_path, 105))
    reports = label(job, plan)
    out = written(tmp_path / "out", "jsonl", reports)
    path = out / "part-000000.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 1])
    output = PartFiles(out, find_format("jsonl"), parts_in(out), retry=False)
    assert output.count(plan.parts) == [Task(plan.parts[0].line)]
    assert output.done == (5, 0)
    output.write(reports[0])
    assert path.read_bytes() == whole


def test_part_that_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "part-000000.jsonl").mkdir()
    with pytest.raises(StoppedError, match=r"part-000000\.jsonl: can't be written"):
        PartFiles(tmp_path, find_format("jsonl"), {}, retry=False).write(PartReport(0, content=b"x"))


def test_worker_gives_up_a_part_that_ended_others(make: Make, tmp_path: Path) -> None:
    job, plan = make(files(tmp_path, 2))

    for _ in range(3):  # as if the process had ended, the mark stays
        worker = Worker(job, lambda _: b"")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "unlink", lambda *_, **__: None)
            worker.label(Task(plan.parts[0].line))
    (report,) = label(job, plan)
    with pytest.raises(StoppedError, match=r"3 workers .* part 0, .*\.clipcls-plan"):
        report.require()
    (report,) = label(replace(job, run="another"), plan)
    report.require()


def test_worker_leaves_nothing_behind(make: Make, own_folder: Path, tmp_path: Path) -> None:
    label(*make(files(tmp_path, 2)))
    (folder,) = own_folder.glob("clipcls*")
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("changes", "path", "message"),
    [
        ({"release": "0.0"}, None, "0.0 where the run was started"),
        ({}, "/no/such/folder/a.png", "on .*: there is no /no/such/folder: "),
        ({"directory": "/no/such"}, "folder/a.png", "on .*: there is no /no/such/folder: "),
    ],
)
def test_worker_on_a_node_that_differs_ends_the_run(
    make: Make, tmp_path: Path, changes: dict[str, Any], path: str | None, message: str
) -> None:
    job, plan = make(files(tmp_path, 1) if path is None else [ImageRef(path)], **changes)
    (report,) = label(job, plan)
    with pytest.raises(StoppedError, match=message):
        report.require()


def test_worker_needs_no_folder_for_absolute_paths(make: Make, tmp_path: Path) -> None:
    (report,) = label(*make(files(tmp_path, 1), directory="/no/such"))
    assert (report.count, report.failed) == (1, ())


def test_worker_passes_on_that_its_model_cannot_be_had(make: Make, tmp_path: Path) -> None:
    job, plan = make(files(tmp_path, 1))
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no weights")
    job = replace(job, model=send(replace(job.model.files, weights=broken), None))
    (report,) = label(job, plan)
    with pytest.raises(ModelError, match=r"broken\.safetensors"):
        report.require()


def test_worker_uses_the_cache_of_its_node(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from clipcls.embed.cache.database import default_folder

    job, plan = make(files(tmp_path, 1), default_cache=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "node's own"))
    label(job, plan)
    folder = default_folder()
    assert folder is not None
    assert folder.is_relative_to(tmp_path / "node's own")
    assert any(folder.iterdir())
