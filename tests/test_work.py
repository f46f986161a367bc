"""What a worker of a cluster does, without a cluster."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clipcls.distributed.plan import ROWS, Plan
from clipcls.distributed.weights import send
from clipcls.distributed.work import PLAN_NAME, Job, Report, Worker
from clipcls.embed import Execution
from clipcls.errors import ModelError, StoppedError
from clipcls.predict import Classifier
from clipcls.records import ImageRef, ModelSpec
from clipcls.web import Web
from conftest import save_pictures
from killing import check_equal, rows_in

Make = Callable[..., tuple[Job, Plan]]


@pytest.fixture
def classifier(tiny_model: Path) -> Classifier:
    spec = ModelSpec(str(tiny_model), device="cpu", precision="fp32")
    return Classifier(["cat", "dog"], spec, execution=Execution(web=Web()))


@pytest.fixture
def make(classifier: Classifier, tmp_path: Path, one_thread: None) -> Make:
    """A job on these images, as it comes out of the pickle at a worker, and its plan."""

    def made(images: list[ImageRef], **changes: Any) -> tuple[Job, Plan]:
        folder = tmp_path / "out"
        folder.mkdir(exist_ok=True)
        plan = Plan(folder / PLAN_NAME, goes_on=False)
        plan.extend(images, 1)
        plan.write("this run")
        _ = classifier.label_features
        encoder = classifier.encoder
        facts = encoder.facts(classifier.execution.open_cache())
        fixed: dict[str, Any] = {"threads": 1, "folder": folder, "kind": "jsonl", "run": "this run"}
        fixed |= {"directory": str(Path.cwd()), "column": None}
        fixed |= dict.fromkeys(("allow_urls", "allow_private_urls", "retry", "default_cache"), False)
        job = Job(classifier=classifier, model=send(encoder.files, None), facts=facts, **fixed)
        return replace(pickle.loads(pickle.dumps(job)), **changes), plan

    return made


def label(job: Job, plan: Plan) -> list[Report]:
    worker = Worker(job, lambda _: b"")
    # as they come back
    return [Report.parse(worker.label(part.line).as_json()) for part in plan.parts]


def files(folder: Path, count: int) -> list[ImageRef]:
    return [ImageRef(str(path)) for path in save_pictures(folder / "pictures", count, (40, 30))]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_worker_writes_what_one_process_would(make: Make, classifier: Classifier, tmp_path: Path, kind: str) -> None:
    images = files(tmp_path, 230)
    Path(images[150].path).write_bytes(b"no picture")
    odd = ImageRef(str(tmp_path / "gone\udcff.png"), "no such file or directory")
    images.append(odd)
    job, plan = make(images, kind=kind)
    reports = label(job, plan)
    assert [report.count for report in reports] == [100, 100, 31]
    assert [[path for path, _ in report.failed] for report in reports] == [[], [images[150].path], [odd.path]]
    rows = rows_in(job.folder)
    check_equal(rows, list(classifier.predict(images)), 1e-5)
    expected = [number * ROWS + row for number, count in enumerate((100, 100, 31)) for row in range(count)]
    assert [row.index for row in rows] == expected
    assert sorted(path.name for path in job.folder.iterdir() if path.name != PLAN_NAME) == [
        f"part-00000{number}.{kind}" for number in range(3)
    ]


def test_worker_takes_relative_paths_from_where_the_run_was_started(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files(tmp_path, 2)
    monkeypatch.chdir(tmp_path)
    job, plan = make([ImageRef("pictures/000.png")])
    monkeypatch.chdir("/")
    (report,) = label(job, plan)
    assert not report.failed
    assert [row.path for row in rows_in(job.folder)] == ["pictures/000.png"]


def test_worker_leaves_a_part_that_is_there_alone(make: Make, tmp_path: Path) -> None:
    job, plan = make(files(tmp_path, 3))
    (first,) = label(job, plan)
    before = job.part_file(0).stat()
    (second,) = label(job, plan)
    assert second == first
    assert job.part_file(0).stat().st_mtime_ns == before.st_mtime_ns


def test_worker_retries_only_what_failed(make: Make, tmp_path: Path) -> None:
    images = files(tmp_path, 5)
    good = Path(images[3].path).read_bytes()
    Path(images[1].path).write_bytes(b"")
    Path(images[3].path).write_bytes(good[:50])
    job, plan = make(images)
    label(job, plan)
    before = rows_in(job.folder)
    Path(images[3].path).write_bytes(good)
    Path(images[0].path).unlink()  # it isn't looked at again
    (report,) = label(replace(job, retry=True), plan)
    after = rows_in(job.folder)
    assert report.count == 5
    assert [path for path, _ in report.failed] == [images[1].path]
    assert [row.path for row in after] == [image.path for image in images]
    assert [row.index for row in after] == list(range(5))
    assert [row.error is None for row in after] == [True, False, True, True, True]
    assert [after[row] for row in (0, 1, 2, 4)] == [before[row] for row in (0, 1, 2, 4)]


def test_worker_gives_up_a_part_that_ended_others(make: Make, tmp_path: Path) -> None:
    job, plan = make(files(tmp_path, 2))
    for attempt in range(5):
        (job.folder / f".part-000000.jsonl.{attempt:032x}.part").touch()
    (report,) = label(job, plan)
    with pytest.raises(StoppedError, match=r"part-000000.jsonl: 5 workers .* line 1 of .*\.clipcls-plan"):
        report.require()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": "another"}, "doesn't see .* that all nodes share"),
        ({"release": "0.0"}, "started by 0.0"),
        ({"directory": "/no/such"}, "/no/such: No such file"),
        ({"folder": Path("/no/such")}, "doesn't see /no/such"),
    ],
)
def test_worker_on_a_node_that_differs_ends_the_run(
    make: Make, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    job, plan = make(files(tmp_path, 1), **changes)
    (report,) = label(job, plan)
    with pytest.raises(StoppedError, match=message):
        report.require()


def test_worker_passes_on_that_its_model_cannot_be_had(make: Make, tmp_path: Path, tiny_model: Path) -> None:
    job, plan = make(files(tmp_path, 1))
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no weights")
    job = replace(job, model=send(replace(job.model.files, weights=broken), None))
    (report,) = label(job, plan)
    assert not job.part_file(0).exists()
    with pytest.raises(ModelError, match=r"broken\.safetensors"):
        report.require()


def test_worker_uses_the_cache_of_its_node(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from clipcls.cache import default_folder

    job, plan = make(files(tmp_path, 1), default_cache=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "node's own"))
    label(job, plan)
    assert default_folder().is_relative_to(tmp_path / "node's own")
    assert any(default_folder().iterdir())
